"""What an agent tells of itself, of its mounts and of its guest.

What lives here: the documents, field by field. What must not: what they mean (`uvmshare.mounts.doctor`). Fields that
this version does not know are passed over: the agent may be a newer one. All the others have bounds: a guest tells what
it likes.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from uvmshare.mounts.cache import Cache  # noqa: TC001  msgspec reads the annotations

__all__ = ["MOST_MOUNTS", "Added", "AgentInfo", "GuestReport", "ListedMount", "ListedPins", "MountHealth", "Pong"]

MOST_MOUNTS: Final = 4096
"""Of one agent."""

_Word = Annotated[str, msgspec.Meta(max_length=256)]
_Path = Annotated[str, msgspec.Meta(max_length=4096)]
_Words = Annotated[str, msgspec.Meta(max_length=16 * 1024)]
"""A sentence may have a path or two, and who uses it."""
_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
_Places = msgspec.Meta(max_length=256)
"""How many directories an agent may mount below."""
_Named = msgspec.Meta(max_length=256)


class AgentInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The agent's greeting."""

    version: _Count
    """Of the protocol."""
    agent: _Word
    """Another one each time the agent is started."""
    boot: _Word
    """Another one each time the guest is started (``/proc/sys/kernel/random/boot_id``)."""
    nonce: _Word = ""
    token: bool = False
    """Whether it asks for proof of a token."""
    allow: Annotated[tuple[_Path, ...], _Places] = ()
    """It mounts below these directories alone."""
    server: _Path = ""
    """Where its mounts dial, but for the port."""
    release: _Word = ""
    """What it is: a version of uvmshare, or of the shell script."""
    features: Annotated[tuple[_Word, ...], _Named] = ()
    """What it knows of a mount's options, beyond the first ones (`uvmshare.guest.wire.FEATURES`)."""


class Added(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent answers when it has mounted."""

    chosen: _Word = ""
    """What cache and msize came to, in its kernel's words; "" from an older agent."""
    no_events: _Words = ""
    """Why what the host does is no event there, although that was asked for."""
    again: _Count | None = None
    """How often the agent has mounted it again by itself; None from an older agent."""


class Pong(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent answers when it is only asked for a word."""

    changes: _Count = 0
    """Another number when a mount was lost, mounted again, or lost its events, without being asked for; 0 from an older
    agent."""


class ListedEvents(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent repeats of what the host does, so that inotify tells of it."""

    repeated: _Count = 0
    """Changes that were repeated, since the mount was made or came back."""
    failed: _Count = 0
    """Changes that could not be."""
    ended: _Words = ""
    """Why none are repeated."""


class ListedPins(msgspec.Struct, frozen=True, kw_only=True):
    """Directories of a mount that its agent holds, so that inotify works on them."""

    directories: _Count = 0
    full: bool = False
    """Whether there are more than may be held."""
    ended: _Words = ""
    """Why none are held."""
    events: ListedEvents | None = None
    """None where none are asked for."""


class ListedMount(msgspec.Struct, frozen=True, kw_only=True):
    """One mount of the agent's."""

    mount_path: _Path
    share_name: _Word
    port: _Count
    read_only: bool = False
    cache: Cache = "none"
    msize: _Count | None
    suid: bool = False
    dev: bool = False
    posixacl: bool = False
    events: bool = False
    """Whether what the host does is to be an event there."""
    no_events: _Words = ""
    """Why it is not, if it was to be."""
    chosen: _Word = ""
    """What cache and msize came to; "" from an older agent, and before it was mounted."""
    state: Literal["mounting", "mounted", "broken"] = "mounted"
    """"broken": its connection was lost, and it is being mounted again."""
    again: _Count = 0
    """How often it was mounted again since the agent was started."""
    last_gap: _Seconds | None = None
    """Seconds from the moment that its connection was seen to be lost until it was mounted again, the last time."""
    error: _Words = ""
    """Why it could not be mounted again yet."""
    pins: ListedPins | None = None
    """None from an older agent, and where none are needed."""


class MountHealth(msgspec.Struct, frozen=True, kw_only=True):
    """Whether one mount can be read."""

    mount_path: _Path
    status: Literal["ok", "slow", "dead", "missing", "failing"]
    """"slow": no answer in time, and perhaps never; "dead": its connection is lost; "missing": not mounted; "failing":
    it answers with an error."""
    seconds: _Seconds | None = None
    """How long reading took."""
    error: _Words = ""
    events: bool = False
    """Whether what the host does is to be an event there."""
    no_events: _Words = ""
    """Why it is not, if it was to be."""
    pins: ListedPins | None = None
    """Of a mount with events."""


class FileSystem(msgspec.Struct, frozen=True, kw_only=True):
    """What is mounted at, or above, a directory that the agent may mount below."""

    path: _Path
    kind: _Word
    writable: bool


class GuestReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the guest can and cannot do."""

    kernel: _Word
    python: _Word = ""
    release: _Word = ""
    machine: _Word = ""
    config: Annotated[dict[_Word, _Word], _Named] = {}
    """Kernel options that matter, as far as the guest tells: "y", "m" or "n"; left out when it does not tell."""
    modules: Annotated[dict[_Word, bool], _Named] = {}
    """By name, whether a module is loaded or built in; 9p means the file system itself."""
    vsock: _Word = ""
    """"" when the guest has a vsock device; otherwise what is missing."""
    time: _Seconds
    """Seconds since the epoch, by the guest's clock, when it was asked."""
    asked: float = 0.0
    """The same by the host's clock, added there."""
    root: bool = True
    """Whether the agent may mount."""
    server: _Path = ""
    server_error: _Words = ""
    """Why the file server cannot be dialled; "" when it can, or when nobody tried."""
    allow: Annotated[tuple[FileSystem, ...], _Places] = ()
    mounts: Annotated[tuple[MountHealth, ...], msgspec.Meta(max_length=MOST_MOUNTS)] = ()
