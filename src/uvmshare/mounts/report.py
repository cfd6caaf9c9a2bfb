"""What an agent tells of itself, of its mounts and of its guest.

What lives here: the documents, field by field. What must not: what they mean (`uvmshare.mounts.doctor`). Fields that
this version does not know are passed over: the agent may be a newer one.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from uvmshare.mounts.options import Cache  # noqa: TC001  msgspec reads the annotations

__all__ = ["AgentInfo", "GuestReport", "ListedMount", "MountHealth"]


class AgentInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The agent's greeting."""

    version: int
    """Of the protocol."""
    agent: str
    """Another one each time the agent is started."""
    boot: str
    """Another one each time the guest is started (``/proc/sys/kernel/random/boot_id``)."""
    nonce: str = ""
    token: bool = False
    """Whether it asks for proof of a token."""
    allow: tuple[str, ...] = ()
    """It mounts below these directories alone."""
    server: str = ""
    """Where its mounts dial, but for the port."""
    release: str = ""
    """What it is: a version of uvmshare, or of the shell script."""


class ListedMount(msgspec.Struct, frozen=True, kw_only=True):
    """One mount of the agent's."""

    mount_path: str
    share_name: str
    port: int
    read_only: bool = False
    cache: Cache = "none"
    msize: int
    state: Literal["mounting", "mounted", "broken"] = "mounted"
    """"broken": its connection was lost, and it is being mounted again."""
    again: int = 0
    """How often it was mounted again since the agent was started."""
    last_gap: float | None = None
    """Seconds from the moment that its connection was seen to be lost until it was mounted again, the last time."""
    error: str = ""
    """Why it could not be mounted again yet."""


class MountHealth(msgspec.Struct, frozen=True, kw_only=True):
    """Whether one mount can be read."""

    mount_path: str
    status: Literal["ok", "slow", "dead", "missing", "failing"]
    """"slow": no answer in time, and perhaps never; "dead": its connection is lost; "missing": not mounted; "failing":
    it answers with an error."""
    seconds: float | None = None
    """How long reading took."""
    error: str = ""


class FileSystem(msgspec.Struct, frozen=True, kw_only=True):
    """What is mounted at, or above, a directory that the agent may mount below."""

    path: str
    kind: str
    writable: bool


class GuestReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the guest can and cannot do."""

    kernel: str
    python: str = ""
    release: str = ""
    machine: str = ""
    config: dict[str, str] = {}
    """Kernel options that matter, as far as the guest tells: "y", "m" or "n"; left out when it does not tell."""
    modules: dict[str, bool] = {}
    """By name, whether a module is loaded or built in; 9p means the file system itself."""
    vsock: str = ""
    """"" when the guest has a vsock device; otherwise what is missing."""
    time: float
    """Seconds since the epoch, by the guest's clock, when it was asked."""
    asked: float = 0.0
    """The same by the host's clock, added there."""
    root: bool = True
    """Whether the agent may mount."""
    server: str = ""
    server_error: str = ""
    """Why the file server cannot be dialled; "" when it can, or when nobody tried."""
    allow: tuple[FileSystem, ...] = ()
    mounts: tuple[MountHealth, ...] = ()
