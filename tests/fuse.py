"""A file system in user space that stops answering when a test says so: fuse(4), spoken directly.

What lives here: `HungFuse`, which shows a directory of this host, asked by the kernel for every single thing. What must
not: what is tried on it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import pytest
from tests.processes import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Self

if sys.platform == "win32":
    pytest.skip("FUSE is Linux'", allow_module_level=True)

__all__ = ["OPCODES", "HungFuse"]

OPCODES: Final = {
    1: "LOOKUP", 2: "FORGET", 3: "GETATTR", 4: "SETATTR", 5: "READLINK", 6: "SYMLINK", 8: "MKNOD", 9: "MKDIR",
    10: "UNLINK", 11: "RMDIR", 12: "RENAME", 13: "LINK", 14: "OPEN", 15: "READ", 16: "WRITE", 17: "STATFS",
    18: "RELEASE", 20: "FSYNC", 21: "SETXATTR", 22: "GETXATTR", 23: "LISTXATTR", 24: "REMOVEXATTR", 25: "FLUSH",
    26: "INIT", 27: "OPENDIR", 28: "READDIR", 29: "RELEASEDIR", 30: "FSYNCDIR", 35: "CREATE", 36: "INTERRUPT",
    42: "BATCH_FORGET", 45: "RENAME2",
}  # fmt: skip
_UNANSWERED: Final = ("FORGET", "BATCH_FORGET", "INTERRUPT")

_IN: Final = struct.Struct("<IIQQIIIHH")
_OUT: Final = struct.Struct("<IiQ")
_ATTR: Final = struct.Struct("<6Q10I")
_ENTRY: Final = struct.Struct("<4Q2I")
_DIRENT: Final = struct.Struct("<QQII")
_SETATTR: Final = struct.Struct("<IIQQQQQQIIIIIIII")
_libc: Final = ctypes.CDLL(None, use_errno=True)
_PARALLEL_DIROPS: Final = 1 << 18
"""Else the kernel asks about one name of a directory after the other."""
_MNT_FORCE, _MNT_DETACH = 1, 2


class HungFuse:
    """The directory `shown` at `point`; both are made if need be. What `hang` names is not answered until `release`."""

    def __init__(self, shown: Path, point: Path) -> None:
        for each in (shown, point):
            each.mkdir(parents=True, exist_ok=True)
        self._paths = {1: os.fsencode(shown)}
        self._numbers = {os.fsencode(shown): 1}
        self._files: dict[int, int] = {}
        self._hangs: Callable[[str, bytes], bool] = lambda _opcode, _name: False
        self._changed = threading.Condition()
        self._held: list[tuple[str, bytes, bytes]] = []
        self.point = point
        self._device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._device},rootmode=40000,user_id=0,group_id=0,allow_other"
        if _libc.mount(b"fuse", os.fsencode(point), b"fuse", 6, options.encode()) < 0:
            number = ctypes.get_errno()
            os.close(self._device)
            raise OSError(number, os.strerror(number))
        self.device = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        self.device = os.stat(point).st_dev

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def hang(self, name: str, *opcodes: str) -> None:
        """Answer nothing about a file of that name, or only not these requests."""

        def hangs(opcode: str, asked: bytes) -> bool:
            return asked == name.encode() and (not opcodes or opcode in opcodes)

        with self._changed:
            self._hangs = hangs

    def hang_all(self) -> None:
        """Answer nothing at all."""
        with self._changed:
            self._hangs = lambda _opcode, _name: True

    def wait_until_asked(self, count: int = 1) -> None:
        """Wait until so many requests wait for an answer that does not come."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._held) >= count, DEADLINE), "nobody asks"

    @property
    def held(self) -> list[tuple[str, bytes]]:
        """The requests that are not answered, and the names that they are about."""
        with self._changed:
            return [(opcode, name) for opcode, name, _ in self._held]

    def release(self) -> None:
        """Answer everything, what was held too."""
        with self._changed:
            self._hangs = lambda _opcode, _name: False
            held, self._held = self._held, []
        for _, _, message in held:
            self._answer(message)

    def close(self) -> None:
        """Unmount, whoever waits for an answer."""
        _libc.umount2(os.fsencode(self.point), _MNT_FORCE)
        _libc.umount2(os.fsencode(self.point), _MNT_DETACH)
        self._thread.join(DEADLINE)
        os.close(self._device)
        for descriptor in self._files.values():
            os.close(descriptor)

    # The protocol

    def _serve(self) -> None:
        while True:
            try:
                message = os.read(self._device, (1 << 20) + 4096)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                    continue
                return  # unmounted
            opcode, name = self._about(message)
            with self._changed:
                if opcode not in (*_UNANSWERED, "INIT") and self._hangs(opcode, name):
                    self._held.append((opcode, name, message))
                    self._changed.notify_all()
                    continue
            self._answer(message)

    def _about(self, message: bytes) -> tuple[str, bytes]:
        """Return what a request asks, and the name of the file that it is about."""
        _, number, _, node, *_ = _IN.unpack_from(message)
        opcode = OPCODES.get(number, str(number))
        body = message[_IN.size :]
        at = {"LOOKUP": 0, "UNLINK": 0, "RMDIR": 0, "SYMLINK": 0, "MKDIR": 8, "MKNOD": 16, "CREATE": 16, "LINK": 8,
              "RENAME": 8, "RENAME2": 16}.get(opcode)  # fmt: skip
        if at is not None:
            return opcode, body[at:].split(b"\0")[0]
        return opcode, os.path.basename(self._paths.get(node, b"?"))

    def _answer(self, message: bytes) -> None:
        _, number, unique, node, *_ = _IN.unpack_from(message)
        opcode = OPCODES.get(number, "")
        if opcode in _UNANSWERED:
            return
        body, failure = b"", 0
        handler = getattr(self, f"_{opcode.lower()}", None)
        try:
            if handler is None:
                failure = errno.ENOSYS
            else:
                body = handler(node, message[_IN.size :]) or b""
        except OSError as error:
            failure = error.errno or errno.EIO
        with suppress(OSError):  # interrupted, or unmounted
            os.write(self._device, _OUT.pack(_OUT.size + len(body), -failure, unique) + body)

    def _attributes(self, path: bytes) -> bytes:
        found = os.lstat(path)
        times = (found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns)
        return _ATTR.pack(
            found.st_ino, found.st_size, found.st_blocks,
            *(each // 10**9 for each in times), *(each % 10**9 for each in times),
            found.st_mode, found.st_nlink, found.st_uid, found.st_gid, found.st_rdev, 4096, 0,
        )  # fmt: skip

    def _entry(self, path: bytes) -> bytes:
        attributes = self._attributes(path)
        number = self._numbers.setdefault(path, len(self._numbers) + 1)
        self._paths[number] = path
        return _ENTRY.pack(number, 0, 0, 0, 0, 0) + attributes

    def _below(self, node: int, name: bytes) -> bytes:
        return os.path.join(self._paths[node], name.split(b"\0")[0])

    def _open_file(self, path: bytes, flags: int) -> bytes:
        descriptor = os.open(path, flags & ~(os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_DIRECT) | os.O_CLOEXEC)
        self._files[descriptor] = descriptor
        return struct.pack("<QIi", descriptor, 0, 0)

    def _init(self, _node: int, _body: bytes) -> bytes:
        return struct.pack("<IIIIHHIIHHI7I", 7, 31, 0, _PARALLEL_DIROPS, 12, 9, 1 << 17, 1, 32, 0, 0, *[0] * 7)

    def _lookup(self, node: int, body: bytes) -> bytes:
        return self._entry(self._below(node, body))

    def _getattr(self, node: int, _body: bytes) -> bytes:
        return struct.pack("<QII", 0, 0, 0) + self._attributes(self._paths[node])

    def _setattr(self, node: int, body: bytes) -> bytes:
        path = self._paths[node]
        valid, _, _, size, _, atime, mtime, _, atimens, mtimens, _, mode, _, uid, gid, _ = _SETATTR.unpack_from(body)
        if valid & 1:
            os.chmod(path, mode & 0o7777)
        if valid & 6:
            os.chown(path, uid if valid & 2 else -1, gid if valid & 4 else -1, follow_symlinks=False)
        if valid & 8:
            os.truncate(path, size)
        if valid & 48 and not valid & 384:
            os.utime(path, ns=(atime * 10**9 + atimens, mtime * 10**9 + mtimens), follow_symlinks=False)
        return self._getattr(node, body)

    def _readlink(self, node: int, _body: bytes) -> bytes:
        return os.readlink(self._paths[node])

    def _symlink(self, node: int, body: bytes) -> bytes:
        name, target = body.split(b"\0")[:2]
        os.symlink(target, self._below(node, name))
        return self._entry(self._below(node, name))

    def _mknod(self, node: int, body: bytes) -> bytes:
        mode, rdev = struct.unpack_from("<II", body)
        os.mknod(self._below(node, body[16:]), mode, rdev)
        return self._entry(self._below(node, body[16:]))

    def _mkdir(self, node: int, body: bytes) -> bytes:
        os.mkdir(self._below(node, body[8:]), struct.unpack_from("<I", body)[0] & 0o7777)
        return self._entry(self._below(node, body[8:]))

    def _unlink(self, node: int, body: bytes) -> None:
        os.unlink(self._below(node, body))

    def _rmdir(self, node: int, body: bytes) -> None:
        os.rmdir(self._below(node, body))

    def _rename(self, node: int, body: bytes, at: int = 8) -> None:
        old, new = body[at:].split(b"\0")[:2]
        directory = struct.unpack_from("<Q", body)[0]
        before, behind = self._below(node, old), self._below(directory, new)
        os.rename(before, behind)
        for number, path in list(self._paths.items()):
            if path == before or path.startswith(before + b"/"):
                self._paths[number] = behind + path[len(before) :]
                self._numbers.pop(path, None)
                self._numbers[self._paths[number]] = number

    def _rename2(self, node: int, body: bytes) -> None:
        self._rename(node, body, 16)

    def _link(self, node: int, body: bytes) -> bytes:
        os.link(self._paths[struct.unpack_from("<Q", body)[0]], self._below(node, body[8:]))
        return self._entry(self._below(node, body[8:]))

    def _open(self, node: int, body: bytes) -> bytes:
        return self._open_file(self._paths[node], struct.unpack_from("<I", body)[0])

    def _create(self, node: int, body: bytes) -> bytes:
        flags, mode = struct.unpack_from("<II", body)
        path = self._below(node, body[16:])
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode & 0o7777))
        return self._entry(path) + self._open_file(path, flags)

    def _read(self, _node: int, body: bytes) -> bytes:
        descriptor, offset, size = struct.unpack_from("<QQI", body)
        return os.pread(descriptor, size, offset)

    def _write(self, _node: int, body: bytes) -> bytes:
        descriptor, offset, size = struct.unpack_from("<QQI", body)
        return struct.pack("<II", os.pwrite(descriptor, body[40 : 40 + size], offset), 0)

    def _statfs(self, _node: int, _body: bytes) -> bytes:
        return struct.pack("<5Q4I6I", 1000, 500, 500, 1000, 500, 4096, 255, 4096, 0, *[0] * 6)

    def _release(self, _node: int, body: bytes) -> None:
        os.close(self._files.pop(struct.unpack_from("<Q", body)[0]))

    def _flush(self, _node: int, _body: bytes) -> None:
        pass

    _fsync = _fsyncdir = _releasedir = _flush

    def _opendir(self, _node: int, _body: bytes) -> bytes:
        return struct.pack("<QIi", 0, 0, 0)

    def _readdir(self, node: int, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", body)
        entries = b""
        names = [b".", b"..", *sorted(os.listdir(self._paths[node]))]
        for place in range(offset, len(names)):
            name = names[place]
            found = os.lstat(os.path.join(self._paths[node], name))
            entry = _DIRENT.pack(found.st_ino, place + 1, len(name), found.st_mode >> 12) + name
            entry += bytes(-len(entry) % 8)
            if len(entries) + len(entry) > size:
                break
            entries += entry
        return entries

    def _sized(self, body: bytes, value: bytes) -> bytes:
        size = struct.unpack_from("<I", body)[0]
        if not size:
            return struct.pack("<II", len(value), 0)
        if len(value) > size:
            raise OSError(errno.ERANGE, "too small")
        return value

    def _getxattr(self, node: int, body: bytes) -> bytes:
        return self._sized(body, os.getxattr(self._paths[node], body[8:].split(b"\0")[0], follow_symlinks=False))

    def _listxattr(self, node: int, body: bytes) -> bytes:
        names = os.listxattr(self._paths[node], follow_symlinks=False)
        return self._sized(body, b"".join(name.encode() + b"\0" for name in names))

    def _setxattr(self, node: int, body: bytes) -> None:
        size, flags = struct.unpack_from("<II", body)
        name, _, value = body[8:].partition(b"\0")
        os.setxattr(self._paths[node], name, value[:size], flags, follow_symlinks=False)

    def _removexattr(self, node: int, body: bytes) -> None:
        os.removexattr(self._paths[node], body.split(b"\0")[0], follow_symlinks=False)
