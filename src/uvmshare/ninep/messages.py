"""Every message of 9P2000.L that Linux's client or a server of it sends.

What lives here: one class a message, its number and its layout, and the two functions between bytes
and messages. What must not: what a message does.

Source: diod's protocol.md for the ``.L`` messages, intro(5) and its section for the others; where
they differ from ``include/net/9p/9p.h`` of Linux, Linux wins. Strings are bytes: 9P names need not
be UTF-8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final, TypeVar

import msgspec

from uvmshare.errors import LocalProtocolError, RemoteProtocolError
from uvmshare.ninep.constants import HEADER_SIZE, NONUNAME
from uvmshare.ninep.types import Qid  # noqa: TC001  msgspec reads the annotations at run time
from uvmshare.ninep.wire import Layout

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvmshare.ninep.wire import Buffer


class Message(msgspec.Struct, frozen=True, gc=False):
    """What all messages have in common: a number and a layout."""

    type: ClassVar[int] = -1
    layout: ClassVar[Layout] = Layout("")

    def encode(self, tag: int) -> bytes:
        """Return the whole message with `tag`.

        Raises `LocalProtocolError` when a value does not fit its field.
        """
        return self.layout.write(self.type, tag, msgspec.structs.astuple(self))


BY_TYPE: Final[dict[int, type[Message]]] = {}
"""Every message class by its number."""

_M = TypeVar("_M", bound=type[Message])


def _message(number: int, layout: str = "") -> Callable[[_M], _M]:
    """Give a message class its number and layout, and enter it in `BY_TYPE`."""

    def enter(cls: _M) -> _M:
        cls.type = number
        cls.layout = Layout(layout)
        BY_TYPE[number] = cls
        return cls

    return enter


def decode(buffer: Buffer) -> tuple[int, Message]:
    """Read one whole message: its tag and itself.

    Raises `RemoteProtocolError` for anything that is not exactly one message of this protocol.
    """
    if len(buffer) < HEADER_SIZE:
        msg = f"{len(buffer)} bytes are no message: a header has {HEADER_SIZE}"
        raise RemoteProtocolError(msg)
    size = int.from_bytes(buffer[0:4], "little")
    if size != len(buffer):
        msg = f"the message says {size} bytes and has {len(buffer)}"
        raise RemoteProtocolError(msg)
    cls = BY_TYPE.get(buffer[4])
    if cls is None:
        msg = f"message type {buffer[4]} is not of 9P2000.L"
        raise RemoteProtocolError(msg)
    return int.from_bytes(buffer[5:7], "little"), cls(*cls.layout.read(buffer, HEADER_SIZE, size))


def expect(message: Message, cls: type[_R]) -> _R:
    """Return `message` when it is a `cls`; a peer that answers with something else breaks the protocol.

    Raises `RemoteProtocolError`.
    """
    if not isinstance(message, cls):
        msg = f"{type(message).__name__} came where {cls.__name__} was due"
        raise RemoteProtocolError(msg)
    return message


_R = TypeVar("_R", bound=Message)


def name_of(message_type: int) -> str:
    """Return the name of a message by its number, for logs."""
    cls = BY_TYPE.get(message_type)
    return f"type {message_type}" if cls is None else cls.__name__


@_message(7, "u32")
class Rlerror(Message, frozen=True):
    """An error as a Linux errno (protocol.md, lerror)."""

    ecode: int


@_message(8, "u32")
class Tstatfs(Message, frozen=True):
    """File system statistics of the file system that holds `fid` (protocol.md, statfs)."""

    fid: int


@_message(9, "u32 u32 u64 u64 u64 u64 u64 u64 u32")
class Rstatfs(Message, frozen=True):
    """The fields of statfs(2)."""

    fs_type: int
    bsize: int
    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int
    fsid: int
    namelen: int


@_message(12, "u32 u32")
class Tlopen(Message, frozen=True):
    """Open `fid` with Linux's flags (protocol.md, lopen)."""

    fid: int
    flags: int


@_message(13, "qid u32")
class Rlopen(Message, frozen=True):
    """`iounit` 0: the client goes by msize."""

    qid: Qid
    iounit: int


@_message(14, "u32 str u32 u32 u32")
class Tlcreate(Message, frozen=True):
    """Create `name` in the directory `fid` and open it; `fid` then is the file (protocol.md, lcreate)."""

    fid: int
    name: bytes
    flags: int
    mode: int
    gid: int


@_message(15, "qid u32")
class Rlcreate(Message, frozen=True):
    """See `Rlopen`."""

    qid: Qid
    iounit: int


@_message(16, "u32 str str u32")
class Tsymlink(Message, frozen=True):
    """Create the symbolic link `name` in the directory `fid` (protocol.md, symlink)."""

    fid: int
    name: bytes
    target: bytes
    gid: int


@_message(17, "qid")
class Rsymlink(Message, frozen=True):
    """The new link."""

    qid: Qid


@_message(18, "u32 str u32 u32 u32 u32")
class Tmknod(Message, frozen=True):
    """Create a node in the directory `dfid` (protocol.md, mknod)."""

    dfid: int
    name: bytes
    mode: int
    major: int
    minor: int
    gid: int


@_message(19, "qid")
class Rmknod(Message, frozen=True):
    """The new node."""

    qid: Qid


@_message(20, "u32 u32 str")
class Trename(Message, frozen=True):
    """Rename `fid` to `name` in the directory `dfid` (protocol.md, rename)."""

    fid: int
    dfid: int
    name: bytes


@_message(21)
class Rrename(Message, frozen=True):
    """Done."""


@_message(22, "u32")
class Treadlink(Message, frozen=True):
    """Read the target of a symbolic link (protocol.md, readlink)."""

    fid: int


@_message(23, "str")
class Rreadlink(Message, frozen=True):
    """The target."""

    target: bytes


@_message(24, "u32 u64")
class Tgetattr(Message, frozen=True):
    """The attributes of `fid`, those of `request_mask` at least (protocol.md, getattr)."""

    fid: int
    request_mask: int


@_message(25, "u64 qid u32 u32 u32 u64 u64 u64 u64 u64 u64 u64 u64 u64 u64 u64 u64 u64 u64 u64")
class Rgetattr(Message, frozen=True):
    """The fields of stat(2); `valid` says which of them hold."""

    valid: int
    qid: Qid
    mode: int
    uid: int
    gid: int
    nlink: int
    rdev: int
    size: int
    blksize: int
    blocks: int
    atime_sec: int
    atime_nsec: int
    mtime_sec: int
    mtime_nsec: int
    ctime_sec: int
    ctime_nsec: int
    btime_sec: int
    btime_nsec: int
    gen: int
    data_version: int


@_message(26, "u32 u32 u32 u32 u32 u64 u64 u64 u64 u64")
class Tsetattr(Message, frozen=True):
    """Change the attributes that `valid` names (protocol.md, setattr)."""

    fid: int
    valid: int
    mode: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0
    atime_sec: int = 0
    atime_nsec: int = 0
    mtime_sec: int = 0
    mtime_nsec: int = 0


@_message(27)
class Rsetattr(Message, frozen=True):
    """Done."""


@_message(30, "u32 u32 str")
class Txattrwalk(Message, frozen=True):
    """Make `newfid` read the extended attribute `name` of `fid`, or their list when it is empty."""

    fid: int
    newfid: int
    name: bytes


@_message(31, "u64")
class Rxattrwalk(Message, frozen=True):
    """The size of what `newfid` reads."""

    size: int


@_message(32, "u32 str u64 u32")
class Txattrcreate(Message, frozen=True):
    """Make `fid` write the extended attribute `name`; it is set when the fid is clunked."""

    fid: int
    name: bytes
    attr_size: int
    flags: int


@_message(33)
class Rxattrcreate(Message, frozen=True):
    """Ready for the value."""


@_message(40, "u32 u64 u32")
class Treaddir(Message, frozen=True):
    """Entries of the open directory `fid` from `offset` on, at most `count` bytes (protocol.md, readdir)."""

    fid: int
    offset: int
    count: int


@_message(41, "data")
class Rreaddir(Message, frozen=True):
    """Whole entries; none at the end. See `uvmshare.ninep.types.decode_entries`."""

    data: bytes | memoryview


@_message(50, "u32 u32")
class Tfsync(Message, frozen=True):
    """Write what `fid` has changed to stable storage; the data alone when `datasync` is not 0."""

    fid: int
    datasync: int


@_message(51)
class Rfsync(Message, frozen=True):
    """Done."""


@_message(52, "u32 u8 u32 u64 u64 u32 str")
class Tlock(Message, frozen=True):
    """Take or drop a POSIX lock (protocol.md, lock)."""

    fid: int
    lock_type: int
    flags: int
    start: int
    length: int
    proc_id: int
    client_id: bytes


@_message(53, "u8")
class Rlock(Message, frozen=True):
    """A `LockStatus`."""

    status: int


@_message(54, "u32 u8 u64 u64 u32 str")
class Tgetlock(Message, frozen=True):
    """Which lock stands in the way of this one? (protocol.md, getlock)."""

    fid: int
    lock_type: int
    start: int
    length: int
    proc_id: int
    client_id: bytes


@_message(55, "u8 u64 u64 u32 str")
class Rgetlock(Message, frozen=True):
    """The lock in the way, or type UNLCK."""

    lock_type: int
    start: int
    length: int
    proc_id: int
    client_id: bytes


@_message(70, "u32 u32 str")
class Tlink(Message, frozen=True):
    """Make the hard link `name` to `fid` in the directory `dfid` (protocol.md, link)."""

    dfid: int
    fid: int
    name: bytes


@_message(71)
class Rlink(Message, frozen=True):
    """Done."""


@_message(72, "u32 str u32 u32")
class Tmkdir(Message, frozen=True):
    """Make the directory `name` in the directory `dfid` (protocol.md, mkdir)."""

    dfid: int
    name: bytes
    mode: int
    gid: int


@_message(73, "qid")
class Rmkdir(Message, frozen=True):
    """The new directory."""

    qid: Qid


@_message(74, "u32 str u32 str")
class Trenameat(Message, frozen=True):
    """Rename (protocol.md, renameat)."""

    olddirfid: int
    oldname: bytes
    newdirfid: int
    newname: bytes


@_message(75)
class Rrenameat(Message, frozen=True):
    """Done."""


@_message(76, "u32 str u32")
class Tunlinkat(Message, frozen=True):
    """Remove `name` from the directory `dirfd`; flag `AT_REMOVEDIR` for a directory."""

    dirfd: int
    name: bytes
    flags: int


@_message(77)
class Runlinkat(Message, frozen=True):
    """Done."""


@_message(100, "u32 str")
class Tversion(Message, frozen=True):
    """Begin a session: the largest message and the protocol (version(5))."""

    msize: int
    version: bytes


@_message(101, "u32 str")
class Rversion(Message, frozen=True):
    """What the session goes by."""

    msize: int
    version: bytes


@_message(102, "u32 str str u32")
class Tauth(Message, frozen=True):
    """Ask for an authentication fid (attach(5))."""

    afid: int
    uname: bytes
    aname: bytes
    n_uname: int


@_message(103, "qid")
class Rauth(Message, frozen=True):
    """The authentication file."""

    aqid: Qid


@_message(104, "u32 u32 str str u32")
class Tattach(Message, frozen=True):
    """Make `fid` the root of the share `aname` (attach(5))."""

    fid: int
    afid: int
    uname: bytes
    aname: bytes
    n_uname: int = NONUNAME


@_message(105, "qid")
class Rattach(Message, frozen=True):
    """The root."""

    qid: Qid


@_message(108, "u16")
class Tflush(Message, frozen=True):
    """Forget the request `oldtag` (flush(5))."""

    oldtag: int


@_message(109)
class Rflush(Message, frozen=True):
    """`oldtag` may be used again."""


@_message(110, "u32 u32 str*")
class Twalk(Message, frozen=True):
    """Make `newfid` what the names lead to from `fid` (walk(5))."""

    fid: int
    newfid: int
    names: tuple[bytes, ...] = ()


@_message(111, "qid*")
class Rwalk(Message, frozen=True):
    """A qid for each name that was there; `newfid` exists when there are as many as names."""

    qids: tuple[Qid, ...]


@_message(116, "u32 u64 u32")
class Tread(Message, frozen=True):
    """At most `count` bytes of the open file `fid` from `offset` on (read(5))."""

    fid: int
    offset: int
    count: int


@_message(117, "data")
class Rread(Message, frozen=True):
    """The data; none at the end of the file."""

    data: bytes | memoryview


@_message(118, "u32 u64 data")
class Twrite(Message, frozen=True):
    """Write `data` to the open file `fid` at `offset` (write(5))."""

    fid: int
    offset: int
    data: bytes | memoryview


@_message(119, "u32")
class Rwrite(Message, frozen=True):
    """How many bytes were written."""

    count: int


@_message(120, "u32")
class Tclunk(Message, frozen=True):
    """Forget `fid` (clunk(5))."""

    fid: int


@_message(121)
class Rclunk(Message, frozen=True):
    """Done."""


@_message(122, "u32")
class Tremove(Message, frozen=True):
    """Remove the file and clunk `fid`, which goes even when the removal fails (remove(5))."""

    fid: int


@_message(123)
class Rremove(Message, frozen=True):
    """Done."""


def frame_of(cls: type[Message]) -> tuple[Callable[..., bytes], int, int]:
    """Return how a message made of numbers and qids alone is packed: the function, the size and the number.

    The function takes size, number, tag and the numbers; a qid stands as its three. For replies at speed:
    no message object is made, and no call but that of `struct`.
    """
    frame = cls.layout.frame
    if frame is None:
        msg = f"{cls.__name__} has fields of variable length"
        raise LocalProtocolError(msg)
    return frame.pack, frame.size, cls.type


def packer(cls: type[Message]) -> Callable[..., bytes]:
    """Return a function of (tag, flat numbers...) that packs such a message as `frame_of` tells of."""
    pack, size, number = frame_of(cls)

    def packed(tag: int, *values: int) -> bytes:
        return pack(size, number, tag, *values)

    return packed
