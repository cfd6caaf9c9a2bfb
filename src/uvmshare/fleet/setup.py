"""Setting a fleet up: its folder of certificates, and the users and roles of its etcd. Each step may be repeated.

    FOLDER/fleet.json                which fleet, and where its etcd is
    FOLDER/ca.*, callers.*, root.*   the two authorities, and etcd's administrator: these stay in the folder
    FOLDER/admin.pem                 an administrator's, for gates (UVMSHARE_CERT)
    FOLDER/etcd/HOST/                for the member of etcd on HOST
    FOLDER/gate/                     for the gates: gate.toml and what it names
    FOLDER/hosts/HOST/               for a host: host.toml and what it names
    FOLDER/tenants/TENANT/USER.pem   for a tenant's user (UVMSHARE_CERT)

What lives here: what is written where, and which role is whose. What must not: how certificates are made
(`certificates`), or how etcd is asked (`uvmshare.etcd`).

A host's role is its own prefix and nothing else; a gate's is all of the fleet. Etcd takes a certificate's common name
for its user: ``FLEET/host/HOST``, ``FLEET/gate``, ``root``.
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import msgspec

from uvmshare.errors import UNREADABLE, DaemonError, InvalidOptions, StoreError
from uvmshare.etcd.administration import Administration
from uvmshare.etcd.client import EtcdStore
from uvmshare.etcd.endpoints import Certificates, Endpoints
from uvmshare.etcd.listing import listed
from uvmshare.etcd.protocol import Put, absent, unchanged
from uvmshare.fleet.callers import ADMINISTRATORS
from uvmshare.fleet.certificates import Authority, read_file, write_file
from uvmshare.fleet.documents import Tenant, decode, encode
from uvmshare.fleet.keys import Keys, require_host_name, require_tenant
from uvmshare.wording import reason_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from uvmshare.fleet.callers import Role

__all__ = ["FleetFolder", "MemberStatus", "Settings"]

_PATIENCE: Final = 10.0
"""Seconds in which etcd is to answer an administrator."""

_ROOT: Final = "root"
"""Etcd's own name for its administrator, and for their role."""


class Settings(msgspec.Struct, frozen=True):
    """What ``fleet.json`` says."""

    fleet: str
    endpoints: tuple[str, ...]


class MemberStatus(msgspec.Struct, frozen=True):
    """What one member of etcd says of itself."""

    url: str
    state: str
    """``"leader"``, ``"follower"``, or why it does not answer."""
    version: str = ""
    bytes: int = 0
    """Of its database."""
    alarms: tuple[str, ...] = ()


class FleetFolder:
    """The folder of a fleet's administrator."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self._json = self._at("fleet.json")

    def _at(self, *names: str) -> str:
        return os.path.join(self.path, *names)

    @property
    def exists(self) -> bool:
        """Whether a fleet was begun in it."""
        return os.path.exists(self._json)

    def settings(self) -> Settings:
        """Return what it is the folder of. Raises `DaemonError`."""
        if not self.exists:
            msg = f"{self.path} is no folder of a fleet: make one with uvmshare fleet init"
            raise DaemonError(msg)
        try:
            return msgspec.json.decode(read_file(self._json), type=Settings)
        except UNREADABLE as error:
            msg = f"{self._json} cannot be read ({reason_of(error)}): restore it, or begin in a new folder"
            raise DaemonError(msg) from error

    # The certificates of a fleet.

    def begin(self, settings: Settings, gates: Sequence[str]) -> None:
        """Make the authorities, and the certificates of etcd, of gates at these addresses, and of an administrator.

        What is there stays. Raises `DaemonError`, `InvalidOptions`.
        """
        Endpoints(settings.endpoints, Certificates(b"", b"", b""))  # refuses what is none
        if self.exists and self.settings() != settings:
            msg = f"{self.path} is the folder of another fleet, or of another etcd: name what {self._json} says"
            raise InvalidOptions(msg)
        ca, callers = Authority(self.path, "ca"), Authority(self.path, "callers")
        for url in settings.endpoints:
            host = url.removeprefix("https://").rpartition(":")[0].strip("[]")
            folder = self._at("etcd", host)
            ca.sign_files(folder, "member", host, [host])
            write_file(os.path.join(folder, "ca.pem"), ca.pem, mode=0o644)
        ca.sign_files(self.path, _ROOT, _ROOT)
        gate = self._at("gate")
        ca.sign_files(gate, "gate", f"{settings.fleet}/gate", gates)
        write_file(os.path.join(gate, "callers.pem"), callers.pem, mode=0o644)
        self._write_toml(gate, "gate", settings, ['callers = "callers.pem"'])
        callers.sign_bundle(self._at("admin.pem"), "admin", ADMINISTRATORS, ca.pem)
        write_file(self._json, msgspec.json.encode(settings), mode=0o644)

    def _write_toml(self, folder: str, name: str, settings: Settings, lines: Sequence[str]) -> str:
        """Write a fleet file beside its certificates, unless there is one, which may say more by now."""
        path = os.path.join(folder, f"{name}.toml")
        write_file(os.path.join(folder, "ca.pem"), Authority(self.path, "ca").pem, mode=0o644)
        if not os.path.exists(path):
            endpoints = ", ".join(f'"{url}"' for url in settings.endpoints)
            common = [
                f'fleet = "{settings.fleet}"',
                f"endpoints = [{endpoints}]",
                'ca = "ca.pem"',
                f'certificate = "{name}.pem"',
                f'key = "{name}.key"',
            ]
            write_file(path, "".join(f"{line}\n" for line in (*common, *lines)).encode(), mode=0o644)
        return path

    # The etcd of a fleet.

    @asynccontextmanager
    async def _etcd(
        self, settings: Settings, urls: Sequence[str] = (), patience: float = _PATIENCE
    ) -> AsyncIterator[EtcdStore]:
        """Open etcd as its administrator."""
        root = [read_file(self._at(name)) for name in ("ca.pem", f"{_ROOT}.pem", f"{_ROOT}.key")]
        store = EtcdStore(Endpoints(tuple(urls) or settings.endpoints, Certificates(*root), patience))
        try:
            yield store
        finally:
            await store.close()

    async def write_roles(self) -> None:
        """Give etcd its administrator and the role of gates, and have it ask who a caller is. Raises `StoreError`."""
        settings = self.settings()
        gate = f"{settings.fleet}/gate"
        async with self._etcd(settings) as store:
            administration = Administration(store)
            await administration.add_user(_ROOT, _ROOT)
            await administration.add_role(gate, Keys(settings.fleet).top)
            await administration.add_user(gate, gate)
            await administration.enable_roles()

    async def add_host(self, host: str) -> str:
        """Let a host into the fleet; return the folder with what it needs. Raises `InvalidOptions`, `StoreError`."""
        settings = self.settings()
        keys = Keys(settings.fleet)
        user = f"{settings.fleet}/host/{require_host_name(host)}"
        folder = self._at("hosts", host)
        Authority(self.path, "ca").sign_files(folder, "host", user)
        async with self._etcd(settings) as store:
            administration = Administration(store)
            await administration.add_role(user, keys.host(host))
            await administration.add_user(user, user)
            await store.txn([absent(keys.registered(host))], [Put(keys.registered(host), b"{}")])
        self._write_toml(folder, "host", settings, [f'host = "{host}"', *_TENANTS])
        return folder

    async def add_tenant(
        self,
        tenant: str,
        users: Sequence[str],
        *,
        vms: int | None = None,
        holdings: int | None = None,
        holdings_in_all: int | None = None,
        roles: Mapping[Role, Sequence[str]] | None = None,
    ) -> list[str]:
        """Let a tenant into the fleet, or change what it may have; return the files of its users' certificates.

        `roles` say which users have which role; a role without any stays as it is. Raises `InvalidOptions`,
        `StoreError`.
        """
        settings = self.settings()
        key = Keys(settings.fleet).tenant(require_tenant(tenant))
        for user in users:
            if not user or "/" in user or user.startswith("."):
                msg = f"user {user!r}: give a name without a slash, which does not begin with a dot"
                raise InvalidOptions(msg)
        limits = (("vms", vms), ("holdings", holdings), ("holdings_in_all", holdings_in_all))
        changed: dict[str, Any] = {name: limit for name, limit in limits if limit is not None}
        changed |= {role: tuple(names) for role, names in (roles or {}).items() if names}
        async with self._etcd(settings) as store:
            while True:
                found = (await store.get(key)).found
                before = None if found is None else found.value
                now = Tenant() if before is None else decode(Tenant, before, key)
                compare = absent(key) if found is None else unchanged(found)
                value = encode(msgspec.structs.replace(now, **changed), before)
                if value == before or (await store.txn([compare], [Put(key, value)])).succeeded:
                    break
        callers, ca = Authority(self.path, "callers"), Authority(self.path, "ca")
        return [callers.sign_bundle(self._at("tenants", tenant, f"{user}.pem"), user, tenant, ca.pem) for user in users]

    async def status(self) -> list[MemberStatus]:
        """Return what each member of etcd says of itself; why, where one does not answer."""
        settings = self.settings()
        found = []
        for url in settings.endpoints:
            try:
                async with self._etcd(settings, [url], 3.0) as store:
                    said = await Administration(store).status()
            except StoreError as error:
                found.append(MemberStatus(url, str(error)))
            else:
                state = "leader" if said.leader == said.header.member_id else "follower"
                found.append(MemberStatus(url, state, said.version, said.db_size, said.errors))
        return found

    async def hosts(self) -> dict[str, bool]:
        """Return the hosts of the fleet, and whether each lives."""
        settings = self.settings()
        keys = Keys(settings.fleet)
        async with self._etcd(settings) as store:
            found = (await listed(store, keys.registered())).found
            names = [each.key.removeprefix(keys.registered()) for each in found]
            return {name: (await store.get(keys.alive(name))).found is not None for name in names}


_TENANTS: Final = (
    "",
    "# What the fleet may do on this host. Without a tenant here: nothing.",
    "# [tenants.acme]",
    '# user = "acme"               # whose rights to files its VMs have',
    '# below = ["/srv/acme"]       # what may be shared',
)
