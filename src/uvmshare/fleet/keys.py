"""The keys of a fleet in etcd: how each is made, and how a host's key is read.

What lives here: `Keys`, and which names of fleets, hosts and tenants there can be. What must not: what is in the values
(`documents`), or a request to etcd.

No name has a slash, so no name can leave its place in a key.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, NamedTuple

from uvmshare.errors import InvalidOptions

__all__ = ["DEFAULT_FLEET", "HostKey", "Keys", "require_host_name", "require_tenant"]

DEFAULT_FLEET: Final = "uvmshare"

_TENANT: Final = re.compile(r"[a-z][a-z0-9-]{0,31}")
"""It begins with a letter: on a host, what is before a VM's colon is a tenant, or the number of a user."""
_HOST: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,61}[A-Za-z0-9])?")


def require_tenant(name: str) -> str:
    """Return a tenant's name. Raises `InvalidOptions` for what is none."""
    if not _TENANT.fullmatch(name):
        msg = f"tenant {name!r}: give up to 32 lower-case letters, digits and -, and begin with a letter"
        raise InvalidOptions(msg)
    return name


def require_host_name(name: str, what: str = "host") -> str:
    """Return a host's name, or another that has its form: `what` says of what. Raises `InvalidOptions`."""
    if not _HOST.fullmatch(name):
        msg = f"{what} {name!r}: give up to 63 letters, digits, - and dots, as of a host name"
        raise InvalidOptions(msg)
    return name


class HostKey(NamedTuple):
    """What one key below a host's prefix is about."""

    kind: str
    """Its first part: "vm", "have", "owner", "alive", "term" or "fence"."""
    tenant: str = ""
    name: str = ""
    """The VM's; of an owner's marker, the owner's."""
    lease: str = ""


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one fleet. Two fleets in one etcd have two names, and see nothing of each other."""

    fleet: str = DEFAULT_FLEET

    @property
    def top(self) -> str:
        """The prefix of everything."""
        return f"/{self.fleet}/"

    # What gates and administrators write

    def name(self, tenant: str, vm: str) -> str:
        """Where the name of a VM is: which host has it."""
        return f"{self.top}vm/{tenant}/{vm}"

    def names(self, tenant: str = "") -> str:
        """Return the prefix of all names, or of one tenant's."""
        return f"{self.top}vm/{tenant}/" if tenant else f"{self.top}vm/"

    def vm_of_name(self, key: str) -> tuple[str, str]:
        """Return tenant and VM of a name's key."""
        tenant, _, vm = key.removeprefix(self.names()).partition("/")
        return tenant, vm

    def count(self, tenant: str) -> str:
        """Where it is counted how many VMs a tenant has."""
        return f"{self.top}count/{tenant}"

    def tenant(self, tenant: str) -> str:
        """Where a tenant's quotas and roles are."""
        return f"{self.top}tenant/{tenant}"

    def registered(self, host: str = "") -> str:
        """Where it is written that there is such a host; without one, the prefix of all."""
        return f"{self.top}hosts/{host}"

    def owner(self, tenant: str, owner: str, seconds: float) -> str:
        """Where the lease of an owner is who promised to renew within so many seconds."""
        return f"{self.owners(tenant, owner)}{seconds:g}"

    def owners(self, tenant: str, owner: str) -> str:
        """Return the prefix of all leases of an owner."""
        return f"{self.top}owner/{tenant}/{owner}/"

    # What one host sees

    def host(self, host: str) -> str:
        """Return the prefix that one host reads and writes, and nothing else."""
        return f"{self.top}host/{host}/"

    @property
    def all_hosts(self) -> str:
        """The prefix of everything that hosts see."""
        return f"{self.top}host/"

    def want(self, host: str, tenant: str, vm: str) -> str:
        """Where it is written what is wanted of a host for one VM."""
        return f"{self.host(host)}vm/{tenant}/{vm}"

    def have(self, host: str, tenant: str, vm: str) -> str:
        """Where the host says what it has of one VM."""
        return f"{self.host(host)}have/{tenant}/{vm}"

    def alive(self, host: str) -> str:
        """Where the host says that it lives."""
        return f"{self.host(host)}alive"

    def term(self, host: str) -> str:
        """Where it is counted how many fenced VMs were taken from a host."""
        return f"{self.host(host)}term"

    def fence(self, host: str) -> str:
        """Where it is written which boot of which machine has the name of a host."""
        return f"{self.host(host)}fence"

    def marker(self, host: str, tenant: str, owner: str, lease: str) -> str:
        """Where a host sees that the lease of an owner lives."""
        return f"{self.host(host)}owner/{tenant}/{owner}/{lease}"

    def read_host(self, host: str, key: str) -> HostKey | None:
        """Return what a key below a host's prefix is about; None for what this version does not know."""
        kind, *rest = key.removeprefix(self.host(host)).split("/")
        if kind in ("alive", "term", "fence") and not rest:
            return HostKey(kind)
        if kind in ("vm", "have") and len(rest) == 2:
            return HostKey(kind, *rest)
        if kind == "owner" and len(rest) == 3:
            return HostKey(kind, *rest)
        return None

    def host_of(self, key: str) -> str:
        """Return the host of a key below `all_hosts`."""
        return key.removeprefix(self.all_hosts).partition("/")[0]
