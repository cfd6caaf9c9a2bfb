"""What a caller asks to have mounted in the guest, in one canonical form: two spellings of one mount are equal.

What lives here: `MountOptions` and every check that can be made before a guest is asked.
What must not: whether a mount exists, and what the guest's agent allows.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from uvmshare import arguments
from uvmshare.errors import InvalidOptions
from uvmshare.mounts.cache import Cache
from uvmshare.share.options import AddOptions, ShareKeywords, options_of

if TYPE_CHECKING:
    from uvmshare.share.options import HostPath

__all__ = ["Cache", "MapKeywords", "MountOptions", "canonical_guest_path", "mapping_of"]

_MIN_MSIZE: Final = 4096
_MAX_MSIZE: Final = 1 << 30
_GUEST_PATH: Final = "an absolute path in the guest, such as /run/uvmshare/project"
_SHARE: Final = "AddOptions, or the decimal name that the Manager gave"
_PATH_MAX: Final = 4095
"""PATH_MAX of Linux without its NUL."""


@dataclass(frozen=True, slots=True, init=False)
class MountOptions:
    """A share, and where and how the guest mounts it.

    - `share`: the name of a share that the VM has ("0"); or `AddOptions`, for a share that is added before the mount
      and removed after it.
    - `mount_path`: an absolute path in the guest, made canonical (no double slashes, no dots).
    - `read_only`: the guest's kernel refuses changes. Always so when the `AddOptions` are read-only.
    - `suid`, `dev`: set-user-ID programs in the share have their rights in the guest, and device nodes in it can be
      opened. Without these the guest mounts it nosuid and nodev.
    - `posixacl`: the guest's kernel keeps access control lists (acl(5)) and holds its programs to them.
    - `events`: what is changed on the host is an event in the guest (inotify(7)), as docs/events.md says. A guest that
      cannot do that has the mount all the same, and says why (`MountInfo.no_events`). Not with ``cache="loose"``.
    - `cache`, `msize`: as in Linux's 9p.rst; `msize` in bytes. "auto" and None: the guest chooses.

    Raises `InvalidOptions` for invalid values.
    """

    share: str | AddOptions
    mount_path: str
    read_only: bool = False
    cache: Cache = "auto"
    msize: int | None = None
    suid: bool = False
    dev: bool = False
    posixacl: bool = False
    events: bool = False

    def __init__(
        self,
        share: str | AddOptions,
        mount_path: str,
        *,
        read_only: bool = False,
        cache: Cache = "auto",
        msize: int | None = None,
        suid: bool = False,
        dev: bool = False,
        posixacl: bool = False,
        events: bool = False,
    ) -> None:
        if isinstance(share, AddOptions):
            read_only = read_only or share.read_only
        elif not isinstance(share, str):
            arguments.refuse_type("share", share, _SHARE)
        elif not re.fullmatch(r"[0-9]{1,20}", share):
            arguments.refuse_value("share", share, _SHARE)
        flags = {"read_only": read_only, "suid": suid, "dev": dev, "posixacl": posixacl, "events": events}
        for what, value in flags.items():
            arguments.flag(what, value)
        arguments.one_of("cache", cache, Cache)
        if events and cache == "loose":
            msg = "events with cache='loose', which shows what a file was before: choose another cache, or no events"
            raise InvalidOptions(msg)
        if msize is not None:
            arguments.number("msize", msize, least=_MIN_MSIZE, most=_MAX_MSIZE, such_as="262144 bytes")

        # The class is frozen: this is how a frozen dataclass sets its own fields.
        object.__setattr__(self, "share", share)
        object.__setattr__(self, "mount_path", canonical_guest_path(mount_path))
        object.__setattr__(self, "read_only", read_only)
        object.__setattr__(self, "cache", cache)
        object.__setattr__(self, "msize", msize)
        object.__setattr__(self, "suid", suid)
        object.__setattr__(self, "dev", dev)
        object.__setattr__(self, "posixacl", posixacl)
        object.__setattr__(self, "events", events)

    def may_be(self, other: MountOptions) -> bool:
        """Tell whether both may be of the same mount: everything is equal, as far as the directories are known."""
        if not isinstance(self.share, AddOptions) or not isinstance(other.share, AddOptions):
            return self == other
        return self.share.may_be(other.share) and self._how() == other._how()

    def replaces(self, other: MountOptions) -> bool:
        """Tell whether only the directory differs: another one is now at the same path of the host."""
        if not isinstance(self.share, AddOptions) or not isinstance(other.share, AddOptions):
            return False
        return (
            self._how() == other._how()
            and not self.share.may_be(other.share)
            and self.share.may_be(other.share.of_directory(None))
        )

    def _how(self) -> tuple[str | bool | int | None, ...]:
        return (
            *(self.mount_path, self.read_only, self.cache, self.msize),
            *(self.suid, self.dev, self.posixacl, self.events),
        )

    def __str__(self) -> str:
        share = self.share if isinstance(self.share, str) else self.share.host_path
        how = ", read-only" if self.read_only else ""
        if isinstance(self.share, AddOptions):
            how += f", hides {len(self.share.hide)} patterns" if self.share.hide else ""
            how += f", owner={self.share.map_owner}" if self.share.map_owner else ""
        how += "".join(f", {name}" for name in ("suid", "dev", "posixacl", "events") if getattr(self, name))
        return f"share {share} (cache={self.cache}, msize={self.msize or 'auto'}{how})"


class MapKeywords(ShareKeywords, total=False):
    """The keywords of a mapping: those of `MountOptions` and, with a path, those of `AddOptions`."""

    cache: Cache
    msize: int | None
    suid: bool
    dev: bool
    posixacl: bool
    events: bool


def mapping_of(share: AddOptions | HostPath, guest_path: str, keywords: MapKeywords) -> MountOptions:
    """Return the options of a mapping, from the share's `AddOptions` or a path, and keywords.

    With a path, `read_only` makes the share read-only, and so the mount. With `AddOptions`, which say this of the
    share, it makes only the mount read-only. Raises `InvalidOptions`.
    """
    arguments.only_known("a mapping", keywords, MapKeywords.__annotations__)
    canonical_guest_path(guest_path)  # before the host is looked at
    said: dict[str, Any] = dict(keywords)
    alone = () if isinstance(share, AddOptions) else ("read_only",)
    of_share = {name: said.pop(name) for name in ("allowed_names", "hide", "map_owner", *alone) if name in said}
    return MountOptions(options_of(share, cast("ShareKeywords", of_share)), guest_path, **said)


def canonical_guest_path(path: str) -> str:
    """Return the one spelling of a path in the guest, which is POSIX whatever the host is.

    Raises `InvalidOptions` for a relative path, for "/", and for one with "..", which leads elsewhere behind a symlink.
    """
    if not isinstance(path, str):
        arguments.refuse_type("guest path", path, _GUEST_PATH)
    if not path.startswith("/"):
        arguments.refuse_value("guest path", path, _GUEST_PATH)
    if "\0" in path or "\n" in path:
        msg = f"guest path {path!r}: it contains a NUL or a newline: give a path without it"
        raise InvalidOptions(msg)
    if ".." in path.split("/"):
        msg = f"guest path {path!r}: write it without '..', which leads elsewhere behind a symlink"
        raise InvalidOptions(msg)
    try:
        encoded = path.encode()
    except UnicodeEncodeError as error:
        msg = f"guest path {path!r} is not UTF-8, and the guest's documents hold nothing else: choose another path"
        raise InvalidOptions(msg) from error
    canonical = posixpath.normpath("/" + path.strip("/"))
    if canonical == "/":
        msg = f"guest path {path!r}: nothing can be mounted over the guest's root: choose a path below it"
        raise InvalidOptions(msg)
    if len(encoded) > _PATH_MAX:
        msg = f"guest path {path[:40]!r}... has {len(encoded)} bytes, and Linux takes {_PATH_MAX}: give a shorter one"
        raise InvalidOptions(msg)
    return canonical
