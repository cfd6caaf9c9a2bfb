"""What a guest is told of the root of a share with allowed names; which names these are, `tree` and `boundary` ask.

What lives here: attributes and names of such a directory. What must not: its listing (`listing`), that a guest changes
nothing of it (`mount.handlers`) and walks to no other name (`tree`, `boundary`).

The directory itself is not shared. Mode and owner are told as they are, because the guest's kernel decides by them
who may enter. All else would tell of the other names: how many directories there are (links), how many names (size,
blocks), when somebody comes and goes (times, and the version of its qid), and a cookie of a listing is made of the
next name, allowed or not. So the host's directory is never read: the allowed names are looked for one by one.
"""

from __future__ import annotations

import os
import stat
import time
from typing import TYPE_CHECKING, Final

from uvmshare.fileserver import syscalls
from uvmshare.fileserver.digest import blake2b

if TYPE_CHECKING:
    from uvmshare.fileserver.mount.files.hidden import Hidden

__all__ = ["AllowedNames"]

_NS: Final = 1_000_000_000

_LINKS: Final = 1
"""What file systems tell that do not count the directories in one (btrfs): find(1) relies on no number then."""


class AllowedNames:
    """The names of `root`, a descriptor, that exist for the guest."""

    def __init__(
        self, root: int, names: frozenset[bytes], hidden: Hidden | None = None, *, may_wait: bool = False
    ) -> None:
        """With `may_wait`, also look at what is mounted over a name, whose file system may never answer."""
        self._hidden = hidden
        self._may_wait = may_wait
        self.has_mounts = True
        """Whether anything may be mounted over one of them."""
        self.names = tuple(sorted(names))
        self._root = root
        self._there: dict[bytes, tuple[int, int]] | None = None
        self._changed = 0

    def look(self, name: bytes) -> os.stat_result | None:
        """Return what lstat(2) says of a name, None when it is not there, or hidden.

        Of what is mounted there, a number is told and no type: a walk to it, which may wait, tells all. Where it
        depends on the type whether it is hidden, the name is not told then.
        """
        try:
            found = self._found(name)
        except syscalls.MountCrossed:
            number = int.from_bytes(blake2b(name, digest_size=6).digest())
            found = os.stat_result((0, number, *[0] * 8))
            kinds = [True, False]
        except OSError:
            return None
        else:
            kinds = [stat.S_ISDIR(found.st_mode)]
        hidden = self._hidden
        is_shown = hidden is None or all(hidden.shows(name, lambda kind=kind: kind) for kind in kinds)  # type: ignore[misc]  # mypy cannot type a lambda's default
        return found if is_shown else None

    def _found(self, name: bytes) -> os.stat_result:
        if self._may_wait or not self.has_mounts:
            return os.stat(name, dir_fd=self._root, follow_symlinks=False)
        descriptor = syscalls.open_entry(name, self._root)
        try:
            return os.fstat(descriptor)
        finally:
            os.close(descriptor)

    def path_of(self, name: bytes) -> bytes:
        """Return a path of a name, for calls that take no descriptor of its directory."""
        return b"/proc/self/fd/%d/%s" % (self._root, name)

    def told(self, found: os.stat_result) -> os.stat_result:
        """Return what a guest is told of the root, whose fstat(2) is `found`.

        Its times are those of the listing as the guest has it, so that programs that look for new names by them
        find these: at first the newest change of an allowed file, then when one was seen to come, go or be replaced.
        """
        every = {name: there for name in self.names if (there := self.look(name)) is not None}
        numbers = {name: (there.st_dev, there.st_ino) for name, there in every.items()}
        if self._there is None:
            self._changed = max((there.st_ctime_ns for there in every.values()), default=0)
        elif self._there != numbers:
            self._changed = max(time.time_ns(), self._changed + 1)
        self._there = numbers
        seconds = self._changed // _NS
        plain = (found.st_mode, found.st_ino, found.st_dev, _LINKS, found.st_uid, found.st_gid, 0, *[seconds] * 3)
        times = dict.fromkeys(("st_atime_ns", "st_mtime_ns", "st_ctime_ns"), self._changed)
        return os.stat_result(plain, {**times, "st_rdev": 0, "st_blocks": 0, "st_blksize": found.st_blksize})
