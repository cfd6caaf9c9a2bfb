"""A synchronous 9P2000.L client: the guest's place in tests and demonstrations.

    with NinePClient.connect("unix:/run/vm1.9p", "0") as guest:
        guest.mkdir("logs")
        guest.write_file("logs/first", b"hello")
        print(guest.listdir("logs"))

What lives here: fids, paths, and a method for each thing that one does to files. What must not: bytes,
tags and sockets (`uvmshare.testing.connection`, whose methods `NinePClient` has too: `rpc`, `send`, `wait`,
`recv`, `send_raw`).

A path is relative to the attached root and may start with "/". Every component goes to the server as it
stands, also ".", ".." and what another system would not take; symbolic links are never followed, since
that is the guest's business in 9P. Names that the server gives are bytes.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Self

from uvmshare.errors import RemoteProtocolError
from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import (
    AT_REMOVEDIR,
    DEFAULT_MSIZE,
    IO_HEADER_SIZE,
    MAXWELEM,
    NOFID,
    NONUNAME,
    VERSION,
    GetattrMask,
    OpenFlag,
    QidType,
    SetattrValid,
)
from uvmshare.ninep.types import decode_entries
from uvmshare.testing.connection import DEFAULT_TIMEOUT, NinePConnection, dial

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from uvmshare.ninep.types import DirectoryEntry

__all__ = ["NinePClient"]

_NS: Final = 1_000_000_000

Name = str | bytes
"""A path or a name; text is sent as UTF-8."""


def _bytes(name: Name) -> bytes:
    return name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape")


def _split(path: Name) -> list[bytes]:
    return [part for part in _bytes(path).split(b"/") if part]


class NinePClient(NinePConnection):
    """A 9P session. `NinePClient.connect` does the handshake; `NinePClient(socket)` leaves it to the caller.

    Every method raises `OSError` with the errno that the server answered, `ConnectionClosed` when the
    connection ended, `TimeoutError` when no answer came in time, and `RemoteProtocolError` when the
    server broke the protocol.
    """

    def __init__(self, connected: socket.socket, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        super().__init__(connected, timeout=timeout)
        self.root = NOFID
        """The fid of the attached root."""
        self._free_fids: list[int] = []
        self._next_fid = 0

    @classmethod
    def connect(
        cls,
        address: str | socket.socket,
        aname: Name,
        *,
        msize: int = DEFAULT_MSIZE,
        uname: Name = "root",
        n_uname: int = NONUNAME,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Self:
        """Connect to `address` (see `dial`) or use a connected socket, and attach to the share `aname`.

        `msize` is the most bytes in a message that this end offers, `n_uname` the uid to act as,
        `timeout` the seconds that the server has for each answer.
        """
        client = cls(dial(address, timeout=timeout) if isinstance(address, str) else address, timeout=timeout)
        try:
            client.version(msize)
            client.root = client.attach(aname, uname=uname, n_uname=n_uname)
        except BaseException:
            client.close()
            raise
        return client

    # The session

    def version(self, msize: int = DEFAULT_MSIZE, version: bytes = VERSION) -> int:
        """Begin a session and return its msize; all fids of an earlier one are gone (version(5))."""
        self.limit_replies(msize)
        reply = self.ask(m.Tversion(msize, version), m.Rversion)
        if reply.version != version or reply.msize > msize:
            msg = f"offered {version!r} and msize {msize}; the server wants {reply.version!r} and {reply.msize}"
            raise RemoteProtocolError(msg)
        self.limit_replies(reply.msize)
        self.root = NOFID
        self._free_fids.clear()
        self._next_fid = 0
        return reply.msize

    def attach(self, aname: Name, *, uname: Name = "", n_uname: int = NONUNAME) -> int:
        """Attach to a share and return a fid for its root (attach(5))."""
        fid = self.new_fid()
        try:
            self.ask(m.Tattach(fid, NOFID, _bytes(uname), _bytes(aname), n_uname), m.Rattach)
        except OSError:
            self.free_fid(fid)
            raise
        return fid

    def new_fid(self) -> int:
        """Return a fid that is not in use."""
        if self._free_fids:
            return self._free_fids.pop()
        self._next_fid += 1
        return self._next_fid - 1

    def free_fid(self, fid: int) -> None:
        """Take back a fid that the server does not have, or no longer."""
        self._free_fids.append(fid)

    def clunk(self, fid: int) -> None:
        """Forget a fid; it is gone even when this fails (clunk(5))."""
        try:
            self.ask(m.Tclunk(fid), m.Rclunk)
        finally:
            self.free_fid(fid)

    # Fids and open files

    def walk(self, path: Name = "", *, start: int | None = None) -> int:
        """Return a new fid for `path`, from the root or from the fid `start`.

        A walk that gets only part of the way raises FileNotFoundError, as Linux's client does: the
        server says no more than how far it got.
        """
        names = _split(path)
        newfid = self.new_fid()
        at = self.root if start is None else start
        first = True
        while first or names:
            part, names = names[:MAXWELEM], names[MAXWELEM:]
            try:
                reply = self.ask(m.Twalk(at, newfid, tuple(part)), m.Rwalk)
                if len(reply.qids) > len(part):
                    msg = f"Rwalk has {len(reply.qids)} qids for {len(part)} names"
                    raise RemoteProtocolError(msg)
                if len(reply.qids) < len(part):
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), _bytes(path))
            except OSError:
                if first:
                    self.free_fid(newfid)
                else:
                    self.clunk(newfid)
                raise
            at, first = newfid, False
        return newfid

    @contextmanager
    def walked(self, path: Name = "") -> Iterator[int]:
        """Give a fid for `path` and clunk it afterwards."""
        fid = self.walk(path)
        try:
            yield fid
        finally:
            self.clunk(fid)

    @contextmanager
    def _parent(self, path: Name) -> Iterator[tuple[int, bytes]]:
        """Give a fid for the directory that `path` is in, and its last name."""
        *above, name = _split(path) or [b""]
        with self.walked(b"/".join(above)) as fid:
            yield fid, name

    def open(self, path: Name, flags: int = OpenFlag.RDONLY) -> int:
        """Open a file or directory with Linux's flags and return its fid."""
        fid = self.walk(path)
        try:
            self.ask(m.Tlopen(fid, flags), m.Rlopen)
        except OSError:
            self.clunk(fid)
            raise
        return fid

    def create(self, path: Name, flags: int = OpenFlag.RDWR, mode: int = 0o644, *, gid: int = 0) -> int:
        """Create and open a file, and return its fid. CREATE is added to `flags`."""
        *above, name = _split(path) or [b""]
        fid = self.walk(b"/".join(above))
        try:
            self.ask(m.Tlcreate(fid, name, flags | OpenFlag.CREATE, mode, gid), m.Rlcreate)
        except OSError:
            self.clunk(fid)
            raise
        return fid

    def read(self, fid: int, offset: int, count: int) -> bytes:
        """Read at most `count` bytes of an open file in one message; b"" is the end."""
        data = bytes(self.ask(m.Tread(fid, offset, count), m.Rread).data)
        if len(data) > count:
            msg = f"Rread has {len(data)} bytes where {count} were asked for"
            raise RemoteProtocolError(msg)
        return data

    def write(self, fid: int, offset: int, data: bytes) -> int:
        """Write all of `data` to an open file, in as many messages as it takes; return its length."""
        done, most = 0, self.msize - IO_HEADER_SIZE
        while True:
            part = data[done : done + most]
            count = self.ask(m.Twrite(fid, offset + done, part), m.Rwrite).count
            if count > len(part) or (part and not count):
                msg = f"Rwrite says {count} where {len(part)} bytes were sent"  # 0 loops Linux's client for ever
                raise RemoteProtocolError(msg)
            done += count
            if done >= len(data):
                return done

    def readdir(self, fid: int, *, count: int | None = None) -> list[DirectoryEntry]:
        """Read a whole open directory, at most `count` bytes a message: "." and ".." too, if they come."""
        entries: list[DirectoryEntry] = []
        offset = 0
        while True:
            some = self.readdir_some(fid, offset, count)
            if not some:
                return entries
            entries += some
            offset = some[-1].offset

    def readdir_some(self, fid: int, offset: int, count: int | None = None) -> list[DirectoryEntry]:
        """Read the entries behind `offset` that fit into `count` bytes; none is the end."""
        count = self.msize - IO_HEADER_SIZE if count is None else count
        data = self.ask(m.Treaddir(fid, offset, count), m.Rreaddir).data
        if len(data) > count:
            msg = f"Rreaddir has {len(data)} bytes where {count} were asked for"
            raise RemoteProtocolError(msg)
        return list(decode_entries(data))

    def getattr(self, fid: int, request_mask: int = GetattrMask.BASIC) -> m.Rgetattr:
        """Return the attributes of a fid."""
        return self.ask(m.Tgetattr(fid, request_mask), m.Rgetattr)

    def setattr(
        self,
        fid: int,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
    ) -> None:
        """Change those attributes of a fid that are given; times are nanoseconds since 1970.

        Send a Tsetattr with `rpc` to set a time to the server's now.
        """
        bits = {
            SetattrValid.MODE: mode,
            SetattrValid.UID: uid,
            SetattrValid.GID: gid,
            SetattrValid.SIZE: size,
            SetattrValid.ATIME | SetattrValid.ATIME_SET: atime_ns,
            SetattrValid.MTIME | SetattrValid.MTIME_SET: mtime_ns,
        }
        valid = sum(int(bit) for bit, value in bits.items() if value is not None)
        times = (*divmod(atime_ns or 0, _NS), *divmod(mtime_ns or 0, _NS))
        self.ask(m.Tsetattr(fid, valid, mode or 0, uid or 0, gid or 0, size or 0, *times), m.Rsetattr)

    def fsync(self, fid: int, *, datasync: bool = False) -> None:
        """Have the server put what an open fid changed on stable storage; with `datasync` the data alone."""
        self.ask(m.Tfsync(fid, int(datasync)), m.Rfsync)

    # Paths

    def stat(self, path: Name = "") -> m.Rgetattr:
        """Return the attributes of a path."""
        with self.walked(path) as fid:
            return self.getattr(fid)

    def exists(self, path: Name) -> bool:
        """Say whether there is anything at a path, a dangling symbolic link included."""
        try:
            self.clunk(self.walk(path))
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def statfs(self, path: Name = "") -> m.Rstatfs:
        """Return the statistics of the file system that holds a path."""
        with self.walked(path) as fid:
            return self.ask(m.Tstatfs(fid), m.Rstatfs)

    def mkdir(self, path: Name, mode: int = 0o755, *, gid: int = 0) -> None:
        """Create a directory."""
        with self._parent(path) as (dfid, name):
            self.ask(m.Tmkdir(dfid, name, mode, gid), m.Rmkdir)

    def symlink(self, target: Name, path: Name, *, gid: int = 0) -> None:
        """Create a symbolic link at `path` that says `target`."""
        with self._parent(path) as (dfid, name):
            self.ask(m.Tsymlink(dfid, name, _bytes(target), gid), m.Rsymlink)

    def readlink(self, path: Name) -> bytes:
        """Return what a symbolic link says."""
        with self.walked(path) as fid:
            return self.ask(m.Treadlink(fid), m.Rreadlink).target

    def link(self, existing: Name, path: Name) -> None:
        """Create a hard link at `path` to what is at `existing`."""
        with self.walked(existing) as fid, self._parent(path) as (dfid, name):
            self.ask(m.Tlink(dfid, fid, name), m.Rlink)

    def mknod(self, path: Name, mode: int, major: int = 0, minor: int = 0, *, gid: int = 0) -> None:
        """Create a node; `mode` has its type and permissions."""
        with self._parent(path) as (dfid, name):
            self.ask(m.Tmknod(dfid, name, mode, major, minor, gid), m.Rmknod)

    def rename(self, old: Name, new: Name) -> None:
        """Rename, over what is at `new` if need be."""
        with self._parent(old) as (olddir, oldname), self._parent(new) as (newdir, newname):
            self.ask(m.Trenameat(olddir, oldname, newdir, newname), m.Rrenameat)

    def unlink(self, path: Name) -> None:
        """Remove what is not a directory."""
        with self._parent(path) as (dfid, name):
            self.ask(m.Tunlinkat(dfid, name, 0), m.Runlinkat)

    def rmdir(self, path: Name) -> None:
        """Remove an empty directory."""
        with self._parent(path) as (dfid, name):
            self.ask(m.Tunlinkat(dfid, name, AT_REMOVEDIR), m.Runlinkat)

    def read_file(self, path: Name) -> bytes:
        """Return the whole content of a file."""
        fid = self.open(path)
        try:
            content = bytearray()
            while data := self.read(fid, len(content), self.msize - IO_HEADER_SIZE):
                content += data
            return bytes(content)
        finally:
            self.clunk(fid)

    def write_file(self, path: Name, data: bytes, *, mode: int = 0o644) -> None:
        """Make `data` the whole content of a file; `mode` is for a new one."""
        try:
            fid = self.open(path, OpenFlag.WRONLY | OpenFlag.TRUNC)
        except FileNotFoundError:
            fid = self.create(path, OpenFlag.WRONLY, mode)
        try:
            if data:
                self.write(fid, 0, data)
        finally:
            self.clunk(fid)

    def entries(self, path: Name = "") -> list[DirectoryEntry]:
        """Return the entries of a directory, without "." and ".."."""
        fid = self.open(path, OpenFlag.RDONLY | OpenFlag.DIRECTORY)
        try:
            return [entry for entry in self.readdir(fid) if entry.name not in {b".", b".."}]
        finally:
            self.clunk(fid)

    def listdir(self, path: Name = "") -> list[bytes]:
        """Return the names in a directory in the server's order, without "." and ".."."""
        return [entry.name for entry in self.entries(path)]

    def walk_tree(self, path: Name = "") -> Iterator[tuple[bytes, m.Rgetattr]]:
        """Give everything below a directory: its path below it, and its attributes; parents come first.

        Names are in order of their bytes, so that two walks of one tree give the same. Symbolic links
        are given and not followed.
        """
        top = b"/".join(_split(path))
        waiting = [b""]
        while waiting:
            at = waiting.pop()
            full = b"/".join(part for part in (top, at) if part)
            if at:
                attributes = self.stat(full)
                yield at, attributes
                if not attributes.qid.type & QidType.DIR:
                    continue
            names = sorted(self.listdir(full), reverse=True)
            waiting += [at + b"/" + name if at else name for name in names]
