"""Paths of the guest: whether the agent may mount there, what is mounted there, and who uses it.

What lives here: the look whether a path is below a directory of ``--allow``, walking to it without following a
symlink, unmounting, and the search for those who keep a mount busy. What must not: the option itself
(`uvmshare.guest.agent`), when to mount (`uvmshare.guest.table`), or mounting (`uvmshare.guest.work`). Standard library
only (Python 3.9): it runs in guests.

Sources: proc(5) for mountinfo, fdinfo and the links of a process; openat(2), umount2(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from typing import TYPE_CHECKING

from uvmshare.guest import wire
from uvmshare.guest.wire import RequestError
from uvmshare.linux import mountinfo

if TYPE_CHECKING:
    from collections.abc import Iterator

    from uvmshare.linux.mountinfo import Mounted

__all__ = [
    "allowed",
    "holders",
    "mount_number",
    "mounted_at",
    "opened",
    "remove_made",
    "umount",
    "unmount",
    "walk",
]

_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
_O_PATH = 0o10000000  # os.O_PATH is not on every system that type checkers look at
_DIRECTORY = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0) | _O_PATH
_PATH_MAX = 4095
"""PATH_MAX of Linux without its NUL."""
_MOST_HOLDERS = 5
"""So many of those who keep a mount busy are named: enough to act on, and one line."""


def mounted_at(path: str) -> Mounted | None:
    """Return what is mounted at just this path, the uppermost; None when it is no mount point."""
    return next((found for found in reversed(mountinfo.mounted()) if found.path == path), None)


def allowed(path: object, prefixes: list[str]) -> str:
    """Return the path if it is one below a prefix, written plainly. Raises `RequestError` otherwise."""
    if not isinstance(path, str) or not path.startswith("/") or "\0" in path or "\n" in path or not _is_short(path):
        raise RequestError(
            wire.INVALID, f"MountPath {str(path)[:80]!r}: want an absolute path of UTF-8, of {_PATH_MAX} bytes at most"
        )
    if path != "/" + "/".join(part for part in path.split("/") if part not in ("", ".", "..")):
        raise RequestError(
            wire.INVALID, f"MountPath {path[:80]!r}: write it plainly, without '..', '.', or double slashes"
        )
    if not any(path.startswith(prefix.rstrip("/") + "/") and path != prefix for prefix in prefixes):
        where = " or ".join(prefixes)
        raise RequestError(wire.REFUSED, f"{path} is not below {where}: mount there, or start the agent with --allow")
    return path


def _is_short(path: str) -> bool:
    try:
        return len(path.encode()) <= _PATH_MAX
    except UnicodeEncodeError:
        return False


@contextlib.contextmanager
def walk(path: str, prefixes: list[str], *, make: bool) -> Iterator[tuple[int, list[str]]]:
    """Give a descriptor of the directory above the path, and the directories that were made on the way and at its end.

    Each step is one name, and a symlink is refused: whoever can write below a prefix leads nowhere else.
    Directories that were made are removed again when the block raises. Raises `RequestError`.
    """
    at = next(prefix for prefix in prefixes if path.startswith(prefix.rstrip("/") + "/"))
    *names, last = path[len(at.rstrip("/")) + 1 :].split("/")
    made: list[str] = []
    opened: list[int] = []
    try:
        opened.append(os.open(at, _DIRECTORY))
        for name in names:
            _make(name, opened[-1], at, made, make=make)
            at = os.path.join(at, name)
            opened.append(os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=opened[-1]))
        _make(last, opened[-1], at, made, make=make)
        yield opened[-1], made
    except OSError as error:
        remove_made(made)
        raise RequestError(*_why(error, at)) from error
    except BaseException:
        remove_made(made)
        raise
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _make(name: str, above: int, at: str, made: list[str], *, make: bool) -> None:
    if make:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o755, dir_fd=above)
            made.append(os.path.join(at, name))


@contextlib.contextmanager
def opened(above: int, path: str) -> Iterator[int]:
    """Give a descriptor of the directory at the path, or of what is mounted there. Raises `RequestError`."""
    try:
        descriptor = os.open(os.path.basename(path), _DIRECTORY | os.O_NOFOLLOW, dir_fd=above)
    except OSError as error:
        raise RequestError(*_why(error, path)) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _why(error: OSError, at: str) -> tuple[str, str]:
    if error.errno == errno.ELOOP or (error.errno == errno.ENOTDIR and os.path.islink(at)):
        return wire.REFUSED, f"{at} is a symlink, and no mount goes through one: give the path that it leads to"
    if error.errno == errno.ENOTDIR:
        return wire.REFUSED, f"{at} is not a directory: a share is mounted on a directory"
    if error.errno == errno.ENOENT:
        return wire.NOT_FOUND, f"{at} is not there"
    return wire.FAILED, f"{at}: {error.strerror}"


def remove_made(made: list[str]) -> None:
    """Remove directories that were made for a mount, from the innermost; those that are in use stay."""
    for path in reversed(made):
        with contextlib.suppress(OSError):
            os.rmdir(path)


def mount_number(descriptor: int) -> int:
    """Return the ID of the mount that a descriptor is on (``mnt_id`` of proc(5))."""
    with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("mnt_id:"))


def unmount(path: str, prefixes: list[str], *, lazy: bool) -> None:
    """Unmount what is at the path, without following a symlink.

    Raises `RequestError`: "busy" names those who use it; with `lazy` it goes out of sight at once and ends with its
    last use.
    """
    with walk(path, prefixes, make=False) as (above, _):
        code = umount(f"/proc/self/fd/{above}/{os.path.basename(path)}", lazy=lazy)
    if code == 0:
        return
    if code == errno.EBUSY:
        users = holders(path)
        named = f"in use by {', '.join(users)}" if users else "in use, by whom /proc does not tell"
        raise RequestError(wire.BUSY, f"{path} is {named}: end that, or unmount lazily")
    if code in (errno.EINVAL, errno.ENOENT):
        raise RequestError(wire.NOT_FOUND, f"nothing is mounted at {path}")
    raise RequestError(wire.FAILED, f"{path}: {os.strerror(code)}")


def umount(name: str, *, lazy: bool) -> int:
    """Call umount2(2) and return 0 or the errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    failed = libc.umount2(os.fsencode(name), _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0))
    return ctypes.get_errno() if failed else 0


def holders(path: str) -> list[str]:
    """Name the processes that use what is mounted at the path, and how, as far as /proc tells; some of them."""
    found = []
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        use = _use(f"/proc/{pid}", path)
        if use:
            found.append(f"{_name(pid)} (pid {pid}, {use})")
    if len(found) > _MOST_HOLDERS:
        found[_MOST_HOLDERS:] = [f"{len(found) - _MOST_HOLDERS} more"]
    return found


def _use(process: str, path: str) -> str:
    with contextlib.suppress(OSError):
        for link, use in (("cwd", "working directory"), ("root", "root"), ("exe", "program")):
            if _below(os.readlink(f"{process}/{link}"), path):
                return use
        for number in os.listdir(f"{process}/fd"):
            with contextlib.suppress(OSError):
                target = os.readlink(f"{process}/fd/{number}")
                if _below(target, path):
                    return f"open {target}"
        with open(f"{process}/maps", encoding="utf-8", errors="replace") as file:
            if any(_below(line.split(None, 5)[-1].rstrip("\n"), path) for line in file if "/" in line):
                return "mapped file"
    return ""


def _below(target: str, path: str) -> bool:
    return target == path or target.startswith(path + "/")


def _name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip() or "?"
    except OSError:
        return "?"
