"""An initramfs for a guest, written without root: a newc cpio archive with busybox, modules and an init.

What lives here: the archive's format (the kernel's Documentation/driver-api/early-userspace/buffer-format.rst) and
what goes into it. What must not: starting a guest (`uvmshare.testing.guest_vm`), or what its init does.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from uvmshare.testing.kernel import read_module

if TYPE_CHECKING:
    from uvmshare.testing.kernel import GuestKernel

__all__ = ["Archive", "build"]

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"
_PAGE = 4


class Archive:
    """A newc cpio archive in memory, byte for byte the same for the same contents.

    Device nodes are entries like any other, which is why no root is needed. Parent directories
    are the caller's to add first: the kernel makes none.
    """

    def __init__(self) -> None:
        self._data = bytearray()
        self._names: set[str] = set()

    def directory(self, path: str, mode: int = 0o755) -> None:
        """Add a directory."""
        self._entry(path, stat.S_IFDIR | mode)

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Add a regular file."""
        self._entry(path, stat.S_IFREG | mode, data)

    def symlink(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._entry(path, stat.S_IFLNK | 0o777, os.fsencode(target))

    def character_device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Add a character device node."""
        self._entry(path, stat.S_IFCHR | mode, device=(major, minor))

    def finish(self) -> bytes:
        """Return the whole archive. It can still be added to afterwards."""
        return bytes(self._data) + _encode(_TRAILER, inode=0, mode=0)

    def _entry(self, path: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        """Append one entry. Raises `ValueError` for a path that is absolute, odd, repeated or has no parent here."""
        if not path or path != os.path.normpath(path) or path.startswith(("/", "..")) or "\0" in path:
            msg = f"{path!r}: an archive wants plain relative paths"
            raise ValueError(msg)
        if path in self._names:
            msg = f"{path!r} is in the archive already"
            raise ValueError(msg)
        parent = os.path.dirname(path)
        if parent and parent not in self._names:
            msg = f"{path!r}: its directory {parent!r} must be added first"
            raise ValueError(msg)
        self._names.add(path)
        self._data += _encode(path, inode=len(self._names), mode=mode, data=data, device=device)


def _encode(name: str, *, inode: int, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    encoded = os.fsencode(name) + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    owner = modified = checksum = 0
    fields = (inode, mode, owner, owner, links, modified, len(data), 0, 0, *device, len(encoded), checksum)
    header = _MAGIC + b"".join(b"%08X" % field for field in fields)
    return _padded(header + encoded) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _PAGE)


def build(*, busybox: str, init: str, kernel: GuestKernel, modules: tuple[str, ...]) -> bytes:
    """Return an initramfs whose ``/init`` is the shell script `init`.

    It holds busybox as ``/bin/busybox`` and ``/bin/sh``, and the `modules` with all they depend on as
    ``/modules/NN-NAME.ko``, numbered in the order in which they must be loaded. It is not compressed:
    unpacking costs an emulated guest more than reading.

    Raises `GuestUnavailable` when the kernel lacks a module.
    """
    archive = Archive()
    for path in ("bin", "dev", "host", "mnt", "modules", "proc", "root", "run", "sys", "tmp"):
        archive.directory(path)
    archive.character_device("dev/console", 5, 1)  # the kernel opens it for init before anything is mounted
    archive.character_device("dev/null", 1, 3, mode=0o666)
    with open(busybox, "rb") as file:
        archive.file("bin/busybox", file.read(), mode=0o755)
    archive.symlink("bin/sh", "busybox")
    for number, path in enumerate(kernel.load_order(modules)):
        name = os.path.basename(path).removesuffix(".xz")
        archive.file(f"modules/{number:02}-{name}", read_module(path))
    archive.file("init", init.encode(), mode=0o755)
    return archive.finish()
