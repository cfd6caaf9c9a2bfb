"""The fleet file of a host: which fleet it follows, and what the fleet may do there. The host alone decides that.

    host = "host-17"
    endpoints = ["https://etcd1.example:2379", "https://etcd2.example:2379"]
    ca = "ca.pem"                # the certificates lie beside the file, where no path is given
    certificate = "host-17.pem"
    key = "host-17.key"

    [tenants.acme]
    user = "acme"                # whose rights to files its VMs have
    below = ["/srv/acme"]        # what may be shared

What lives here: how it is read. What must not: a connection, or how a path is held to it (`uvmshare.daemon.shares`).
"""

from __future__ import annotations

import os
import pwd
import re
import tomllib
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from uvmshare.daemon.identity import Identity
from uvmshare.errors import DaemonError, InvalidOptions
from uvmshare.fleet.keys import DEFAULT_FLEET, require_host_name, require_tenant
from uvmshare.wording import complaint, reason_of

__all__ = ["Ends", "EndsText", "HostFile", "TenantRights", "Text", "ends_of", "read_file", "read_host_file"]


@dataclass(frozen=True, slots=True)
class TenantRights:
    """What a host lets one tenant do on it."""

    user: Identity
    """Whose rights to files its VMs have."""
    below: tuple[str, ...]
    """Below which directories it may share, links followed."""
    remote: bool = False
    """Whether its VMs may listen off loopback."""


Text = Annotated[str, msgspec.Meta(min_length=1)]


class _Tenant(msgspec.Struct, forbid_unknown_fields=True):
    user: str
    below: list[Text] = []
    remote: bool = False


class EndsText(msgspec.Struct, kw_only=True):
    """Where etcd is, as every fleet file says it."""

    fleet: str = DEFAULT_FLEET
    endpoints: Annotated[list[Text], msgspec.Meta(min_length=1)]
    ca: Text | None = None
    certificate: Text | None = None
    key: Text | None = None


class _HostFile(EndsText, forbid_unknown_fields=True, kw_only=True):
    host: str
    tenants: dict[str, _Tenant] = {}


@dataclass(frozen=True, slots=True)
class Ends:
    """Where a fleet's etcd is, and what proves to it who asks."""

    fleet: str
    endpoints: tuple[str, ...]
    ca: str | None = None
    certificate: str | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True)
class HostFile:
    """What a host's fleet file says."""

    host: str
    ends: Ends
    tenants: dict[str, TenantRights]


def read_host_file(path: str) -> HostFile:
    """Read a host's fleet file. Raises `DaemonError`, which says what is wrong with it."""
    found = read_file(path, _HostFile)
    try:
        tenants = {require_tenant(name): _rights(path, name, each) for name, each in found.tenants.items()}
        return HostFile(require_host_name(found.host), ends_of(path, found), tenants)
    except InvalidOptions as error:
        msg = f"{path}: {error}"
        raise DaemonError(msg) from error


def read_file(path: str, kind: type[Any]) -> Any:
    """Read a fleet file. Raises `DaemonError`, which says what is wrong with it."""
    try:
        with open(path, "rb") as file:
            return msgspec.convert(tomllib.load(file), kind)
    except OSError as error:
        msg = f"{path}: {error.strerror}: give the file that `uvmshare fleet` wrote"
        raise DaemonError(msg) from error
    except tomllib.TOMLDecodeError as error:  # it says where: "Invalid value (at line 3, column 7)"
        where = re.search(r"\((at .*)\)$", str(error))
        msg = f"{path}: it is no TOML{f' {where[1]}' if where else ''}; docs/fleet.md shows a fleet file"
        raise DaemonError(msg) from error
    except (UnicodeDecodeError, RecursionError, msgspec.ValidationError) as error:
        field, words = complaint(str(error)) if isinstance(error, msgspec.ValidationError) else ("", reason_of(error))
        msg = f"{path}: {f'{field}: ' if field else ''}{words}; docs/fleet.md shows a fleet file"
        raise DaemonError(msg) from error


def ends_of(path: str, found: EndsText) -> Ends:
    """Return where etcd is, as a fleet file at `path` says it. Raises `DaemonError`."""
    folder = os.path.dirname(os.path.abspath(path))

    def beside(name: str | None) -> str | None:
        return None if name is None else os.path.join(folder, name)

    if len({found.ca is None, found.certificate is None, found.key is None}) > 1:
        msg = f"{path}: ca, certificate and key belong together: give all three"
        raise DaemonError(msg)
    return Ends(found.fleet, tuple(found.endpoints), beside(found.ca), beside(found.certificate), beside(found.key))


def _rights(path: str, name: str, found: _Tenant) -> TenantRights:
    try:
        user = pwd.getpwnam(found.user)
    except KeyError as error:
        msg = f"{path}: tenant {name!r}: this host has no user {found.user!r}: make one (useradd), or name another"
        raise DaemonError(msg) from error
    groups = tuple(sorted(os.getgrouplist(found.user, user.pw_gid)))
    below = tuple(_real(path, name, each) for each in found.below)
    return TenantRights(Identity(user.pw_uid, user.pw_gid, groups), below, found.remote)


def _real(path: str, tenant: str, directory: str) -> str:
    if not os.path.isabs(directory):
        msg = f"{path}: tenant {tenant!r}: {directory!r} is not absolute: give the whole path of a directory"
        raise DaemonError(msg)
    return os.path.realpath(directory)
