"""The table of shares as a file in the run directory: what a new supervisor takes over from a dead one.

What lives here: `ShareTable`, and the form of the file. What must not: processes, or what is done with what
is read (`supervisor.takeover`).

A line a record: a mark, a CRC-32, and JSON; the first is the server's configuration, each other one a share::

    + 1c291ca3 {"version":2,"boot":"4f6c...","configuration":{...}}
    + 9d5ed678 {"serial":1,"root":"...","document":{...}}
    - b8f4a0d2 {"serial":2,"root":"...","document":{...}}

Adding appends a line. Removing turns its mark to ``-``, one byte in its place, which no crash leaves half
done and which needs no room on a full disk; the first line's is turned when the whole server is to end. A
line that breaks off at the end was never answered for, and is not there. The file is written before the
answer that depends on it, but not brought to the disk: what it tells is void once the host has started
anew, because no VM and no mount is left then, and the boot's id is in it to see that.
"""

from __future__ import annotations

import errno
import os
import stat
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import msgspec

from uvmshare.errors import UNREADABLE, DiskFull, FileServerError
from uvmshare.fileserver import control  # noqa: TC001  msgspec reads the annotations
from uvmshare.hcs import schema
from uvmshare.linux.boot import boot_id
from uvmshare.wording import reason_of

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ShareTable", "ShareTableContents", "Start", "TakenShare"]

_VERSION: Final = 2
_READABLE: Final = (1, _VERSION)
"""Version 1 has nothing that is hidden or mapped. One that knows it alone must not read the next: it would show all."""
_MARKS: Final = (b"+", b"-")
_HEAD: Final = len("+ 00000000 ")
_LARGEST: Final = 256 << 20
_LONGEST_HEADER: Final = 1 << 20
_WORTH_REWRITING: Final = 64
"""Removed lines that do no harm; past that, once they outnumber the others, the file is written anew."""


class TakenShare(msgspec.Struct, frozen=True, omit_defaults=True):
    """One share: a number that no other share of this server has, what its root is, its document and what it lacks."""

    serial: int
    root: str
    document: schema.Plan9Share
    hide: tuple[str, ...] = ()
    map_owner: str | None = None

    @property
    def beside(self) -> schema.Beside:
        """What the document does not say, but for the directory."""
        return schema.Beside(hide=self.hide, map_owner=self.map_owner)


class _Header(msgspec.Struct, frozen=True):
    version: int
    boot: str
    configuration: control.Configuration


class Start(msgspec.Struct, frozen=True):
    """What the first line of a share_table says."""

    configuration: control.Configuration
    boot: str
    ended: bool


class ShareTableContents(msgspec.Struct, frozen=True):
    """What a share_table says. Once `ended`, the server was told to end, and `entries` are none."""

    configuration: control.Configuration
    boot: str
    entries: tuple[TakenShare, ...]
    removed: tuple[TakenShare, ...]
    ended: bool

    @property
    def last_serial(self) -> int:
        """The highest number that was given."""
        return max((entry.serial for entry in (*self.entries, *self.removed)), default=0)


_encoder = msgspec.json.Encoder()
_headers = msgspec.json.Decoder(_Header)
_entries = msgspec.json.Decoder(TakenShare)


class ShareTable:
    """A file that the living supervisor writes, and no other process."""

    def __init__(self, path: str, configuration: control.Configuration, entries: Iterable[TakenShare]) -> None:
        """Write it anew, in the place of the one before it. Raises `OSError`; that one is left alone then."""
        self._path = path
        self._header = _Header(_VERSION, boot_id(), configuration)
        self._entries = {entry.serial: entry for entry in entries}
        self._offsets: dict[int, int] = {}
        self._descriptor = -1
        self._size = 0
        self._removed = 0
        self._write_anew()

    @classmethod
    def read(cls, path: str) -> ShareTableContents | None:
        """Read what is in such a file; None when there is none.

        Raises `FileServerError` when it cannot be understood.
        """
        try:
            data = _content(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(path, error.strerror or reason_of(error)) from error
        lines = data.split(b"\n")
        lines.pop()  # what follows the last newline: nothing, or a line that broke off
        try:
            start = _start(lines[:1])
            found = [(mark, _entries.decode(body)) for mark, body in map(_split, lines[1:])]
        except UNREADABLE as error:
            raise _unreadable(path, reason_of(error)) from error
        return ShareTableContents(
            configuration=start.configuration,
            boot=start.boot,
            entries=tuple(entry for mark, entry in found if mark == b"+" and not start.ended),
            removed=tuple(entry for mark, entry in found if mark == b"-" or start.ended),
            ended=start.ended,
        )

    @classmethod
    def read_start(cls, path: str) -> Start | None:
        """Read its first line alone, which is what another user's process needs; None when there is no such file.

        Raises `FileServerError` when it cannot be understood.
        """
        try:
            data = _content(path, _LONGEST_HEADER)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(path, error.strerror or reason_of(error)) from error
        line, newline, _ = data.partition(b"\n")
        try:
            return _start([line] if newline else [])
        except UNREADABLE as error:
            raise _unreadable(path, reason_of(error)) from error

    def add(self, entry: TakenShare) -> None:
        """Put a share down. Raises `DiskFull` or `FileServerError`; then it is not in the file."""
        line = _line(entry)
        try:
            self._append(line)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
            raise _not_written(self._path, error) from error
        self._offsets[entry.serial] = self._size
        self._size += len(line)
        self._entries[entry.serial] = entry

    def remove(self, serial: int) -> None:
        """Strike a share out. Raises `DiskFull` or `FileServerError`; then it is still in the file."""
        try:
            os.pwrite(self._descriptor, b"-", self._offsets[serial])
        except OSError as error:
            raise _not_written(self._path, error) from error
        del self._offsets[serial], self._entries[serial]
        self._removed += 1
        if self._removed > max(_WORTH_REWRITING, len(self._entries)):
            with suppress(OSError):  # no room: it goes on as it is
                self._write_anew()

    def end(self) -> None:
        """Strike out everything at once, because the server ends. Never raises."""
        with suppress(OSError):
            os.pwrite(self._descriptor, b"-", 0)

    def discard(self) -> None:
        """Remove the file, which says nothing any more."""
        with suppress(OSError):
            os.unlink(self._path)
        os.close(self._descriptor)

    def _append(self, line: bytes) -> None:
        written = os.pwrite(self._descriptor, line, self._size)
        while written < len(line):
            written += os.pwrite(self._descriptor, line[written:], self._size + written)

    def _write_anew(self) -> None:
        lines = [_line(self._header), *map(_line, self._entries.values())]
        made = f"{self._path}.new"
        descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.fchmod(descriptor, 0o600)  # one that a process left there half written may be wider
            data = memoryview(b"".join(lines))
            while data:
                data = data[os.write(descriptor, data) :]
            os.rename(made, self._path)
        except BaseException:
            os.close(descriptor)
            with suppress(OSError):
                os.unlink(made)
            raise
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = descriptor
        self._size = len(lines[0])
        self._removed = 0
        for serial, line in zip(self._entries, lines[1:], strict=True):
            self._offsets[serial] = self._size
            self._size += len(line)


def _start(lines: list[bytes]) -> Start:
    """Return what the first of the lines says. Raises one of `UNREADABLE`."""
    if not lines:
        msg = "it has no first line"
        raise ValueError(msg)
    mark, body = _split(lines[0])
    header = _headers.decode(body)
    if header.version not in _READABLE:
        msg = f"its version is {header.version}, and this is {_VERSION}"
        raise ValueError(msg)
    return Start(header.configuration, header.boot, ended=mark == b"-")


def _content(path: str, most: int = _LARGEST) -> bytes:
    """Read the file, at most that many bytes of it. Raises `OSError`, also for what no share_table is.

    Root reads it in another user's directory: what is put there in its place must not lead root elsewhere, hold it up
    or fill its memory.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_size > _LARGEST:
            raise OSError(errno.EINVAL, f"it is no table of shares: no file, or larger than {_LARGEST} bytes")
        return file.read(most)


def _line(record: _Header | TakenShare) -> bytes:
    body = _encoder.encode(record)
    return b"+ %08x %s\n" % (zlib.crc32(body), body)


def _split(line: bytes) -> tuple[bytes, bytes]:
    """Check a line; give its mark and its JSON. Raises `ValueError`."""
    mark, body = line[:1], line[_HEAD:]
    if mark not in _MARKS or line[1:_HEAD] != b" %08x " % zlib.crc32(body):
        msg = f"a line is damaged: {line[:60]!r}"
        raise ValueError(msg)
    return mark, body


def _unreadable(path: str, reason: str) -> FileServerError:
    return FileServerError(
        f"the table of shares {path!r} cannot be read: {reason}; remove it to start anew, which ends the mounts that "
        "were served from there"
    )


def _not_written(path: str, error: OSError) -> DiskFull | FileServerError:
    msg = f"the table of shares {path!r} cannot be written: {error.strerror or error}; nothing was changed"
    return DiskFull(msg) if error.errno in _NO_ROOM else FileServerError(msg)


_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)
