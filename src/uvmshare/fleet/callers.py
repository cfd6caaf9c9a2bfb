"""The callers of a gate: a tenant's users and the fleet's administrators, known by their certificates alone.

What lives here: `Caller`, how it is read from a certificate, and what each role may. What must not: a connection.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from uvmshare.errors import AccessDenied, InvalidOptions, NotThere, OperationDenied
from uvmshare.fleet.documents import EVERYBODY
from uvmshare.fleet.keys import require_tenant

if TYPE_CHECKING:
    from collections.abc import Mapping

    from uvmshare.fleet.documents import Tenant

__all__ = ["ADMINISTRATORS", "Caller", "Role", "caller_of"]

ADMINISTRATORS: Final = "uvmshare:admin"
"""The organisation in the certificates of administrators: no tenant's name has a colon."""

Role = Literal["read", "hold", "own"]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks."""

    tenant: str
    """Empty for an administrator."""
    name: str

    @property
    def is_admin(self) -> bool:
        """Whether they may do everything, for every tenant."""
        return not self.tenant

    def __str__(self) -> str:
        return f"{self.tenant or 'administrator'}/{self.name}"

    def find(self, vm: str) -> tuple[str, str]:
        """Return tenant and VM of a name as they write it. Raises `NotThere` for what can be none of theirs."""
        tenant, colon, name = vm.rpartition(":")
        if self.is_admin:
            if not colon or ":" in tenant:
                msg = f"VM {vm!r}: an administrator writes TENANT:NAME"
                raise NotThere(msg)
            return tenant, name
        if colon and tenant != self.tenant:
            raise no_vm(vm)
        return self.tenant, name

    def shown(self, tenant: str, vm: str) -> str:
        """Return what they call a VM."""
        return f"{tenant}:{vm}" if self.is_admin else vm

    def require(self, role: Role, tenant: Tenant) -> None:
        """See that they have a role. Raises `OperationDenied`."""
        if self.is_admin:
            return
        roles: dict[Role, tuple[str, ...]] = {
            "own": tenant.own,
            "hold": tenant.hold + tenant.own,
            "read": tenant.read + tenant.hold + tenant.own,
        }
        if self.name not in roles[role] and EVERYBODY not in roles[role]:
            msg = (
                f"{self.name} of tenant {self.tenant} has not the role {role!r}: an administrator of the fleet gives it"
            )
            raise OperationDenied(msg)

    def require_tenant(self) -> str:
        """Return whose they are. Raises `OperationDenied` for an administrator, who has nothing of their own."""
        if self.is_admin:
            msg = "VMs and owners are a tenant's: ask with the certificate of one of theirs"
            raise OperationDenied(msg)
        return self.tenant

    def require_admin(self) -> None:
        """See that they are an administrator. Raises `OperationDenied`."""
        if not self.is_admin:
            msg = f"{self.name} of tenant {self.tenant} is no administrator of the fleet: have one do it"
            raise OperationDenied(msg)


def no_host(host: str) -> NotThere:
    """Return the error for a host that the fleet does not have."""
    return NotThere(f"there is no host {host!r} in this fleet: `uvmshare host ls` lists them")


def no_vm(vm: str) -> NotThere:
    """Return the error of a VM that is not there, or is another tenant's."""
    return NotThere(f"there is no VM {vm!r}, or none of yours: `uvmshare vm ls` lists them")


def caller_of(certificate: Mapping[str, Any]) -> Caller:
    """Return who has a certificate that was checked (`ssl.SSLSocket.getpeercert`). Raises `AccessDenied`."""
    found: dict[str, list[str]] = {}
    for names in certificate.get("subject", ()):
        for kind, value in names:
            found.setdefault(kind, []).append(value)
    tenants, names_ = found.get("organizationName", []), found.get("commonName", [])
    if len(tenants) != 1 or len(names_) != 1:
        msg = "the certificate has not one organisation and one common name: make one with uvmshare fleet add-tenant"
        raise AccessDenied(msg)
    if tenants[0] == ADMINISTRATORS:
        return Caller("", names_[0])
    try:
        return Caller(require_tenant(tenants[0]), names_[0])
    except InvalidOptions as error:
        raise AccessDenied(str(error)) from error
