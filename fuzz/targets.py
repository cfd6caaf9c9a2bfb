"""What is fuzzed: any bytes at all, and what must hold whatever they are.

What lives here: the three targets, and how each is fed. What must not: where the bytes come from: a corpus and
chance in the tests, coverage-guided mutation in `fuzz/run.py`.

The first byte of a session's input says how the rest becomes messages: even, and it is sent as it stands; odd, and it
is a list of (type, length, body), which get the right size words, so that mutations reach behind the framing. From
`_LARGE` on it is such a list with writes that are large enough to be spliced, and what an input says of a write is how
much data it has; see `large`.

The first byte of an agent's input says who hears the rest: the host (`_GUEST` is not set), as what an agent says, or
the agent in a guest, as what a host says. `_GREETED` is set where the first words were said already. The second byte is
the length of the pieces in which it comes.
"""

# ruff: noqa: INP001  a folder of scripts, not a package
from __future__ import annotations

import argparse
import asyncio
import functools
import gc
import hashlib
import os
import shutil
import socket
import stat
import struct
import tempfile
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from uvmshare.errors import RemoteProtocolError, UvmshareError
from uvmshare.fileserver import speed
from uvmshare.fileserver.export import Export
from uvmshare.fileserver.handshake import Handshake
from uvmshare.fileserver.limits import Limits
from uvmshare.fileserver.mount.serving import Serving
from uvmshare.guest import agent as guest_agent
from uvmshare.guest import wire
from uvmshare.guest.mount import ServerAddress
from uvmshare.guest.session import HostSession
from uvmshare.hcs.schema import Plan9Share, Plan9ShareFlags
from uvmshare.mounts.agent_client import AgentClient
from uvmshare.mounts.interfaces import GuestMount
from uvmshare.ninep import messages
from uvmshare.ninep.constants import NOFID
from uvmshare.ninep.framing import FrameReader
from uvmshare.testing.agents import GREETING, ScriptedStreams, healthy
from uvmshare.testing.schedule import VirtualLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from uvmshare.testing.agents import Talk

__all__ = ["CANARY", "agent", "codec", "large", "packed", "session"]

CANARY: Final = b"what the host keeps to itself"

_MSIZE: Final = 65536
_LIMITS: Final = Limits(msize=_MSIZE, fids=64, open_files=16, locks=16, xattr_bytes=65536, lock_wait_seconds=1e-6)
_REQUESTS: Final = sorted(number for number, cls in messages.BY_TYPE.items() if cls.__name__.startswith("T"))
_ENTRY: Final = struct.Struct("<BH")
_MOST: Final = 1 << 16

_COMPARES: Final = speed.compiled is not None
"""Whether each session is served twice, with the compiled hot path and without; then nothing runs aside in either."""

_LARGE: Final = 0xF0
_THREADS_SECONDS: Final = 60.0
_ALONE: Final = 8
"""Bit of the first byte: the session has the process's working directory, and walks as a mount process does."""
_LARGE_MSIZE: Final = 1 << 20
_LARGE_MOST: Final = 4 << 20
_LARGE_HEAD: Final = struct.Struct("<BIB")
"""The first byte, how many bytes of the stream are sent (0: all), and how many numbers of bytes follow (modulo 8) after
which a receive of the server ends (0: it takes what there is)."""
_PIECE: Final = struct.Struct("<H")
_LARGE_WRITE: Final = struct.Struct("<IQHbb")
"""fid, offset, how many units of data, and what is wrong with the count and with the size word."""
_UNIT: Final = 64
_DATA: Final = hashlib.shake_128(b"data").digest(2 << 20)


def codec(data: bytes) -> None:
    """Bytes are a message or raise `RemoteProtocolError`; a message is written and read back as itself.

    Fed in two pieces they are the same messages as in one; a handshake takes any.
    """
    try:
        tag, message = messages.decode(data)
    except RemoteProtocolError:
        pass
    else:
        again = message.encode(tag)
        assert again == data, (again, data)
        assert messages.decode(memoryview(again)) == (tag, message)
    whole = _frames(data, len(data))
    assert _frames(data, len(data) // 2) == whole
    assert _frames(data, 1) == whole
    with suppress(RemoteProtocolError):
        Handshake(_MSIZE).feed(data)


def _frames(data: bytes, cut: int) -> tuple[list[bytes], bool]:
    reader = FrameReader(_MSIZE)
    found: list[bytes] = []
    try:
        for piece in (data[:cut], data[cut:]):
            reader.feed(piece)
            found.extend(reader.messages())  # keeps what came before an error
    except RemoteProtocolError:
        return found, False
    return found, True


def packed(*requests: messages.Message) -> bytes:
    """Return the input for `session` that stands for these requests, as a list."""
    entries = []
    for request in requests:
        body = request.encode(0)[7:]
        entries.append(_ENTRY.pack(_REQUESTS.index(request.type), len(body)) + body)
    return b"\1" + b"".join(entries)


def large(
    *requests: messages.Message,
    end: int = 0,
    pieces: Sequence[int] = (),
    wrong: tuple[int, int] = (0, 0),
    bits: int = 0,
) -> bytes:
    """Return the input for `session` with large writes that stands for these requests.

    `wrong` is what is added to the count and to the size word of each write. `bits` are those of the first byte.
    """
    head = _LARGE_HEAD.pack(_LARGE | 1 | bits, end, len(pieces))
    entries = [head, *map(_PIECE.pack, pieces)]
    for request in requests:
        body = request.encode(0)[7:]
        if isinstance(request, messages.Twrite):
            body = _LARGE_WRITE.pack(request.fid, request.offset, len(request.data) // _UNIT, *wrong)
        entries.append(_ENTRY.pack(_REQUESTS.index(request.type), len(body)) + body)
    return b"".join(entries)


class _Stream(NamedTuple):
    """What is sent of a session's input. `pieces` are where the server's receives end, the last one first."""

    sent: bytes
    is_large: bool = False
    pieces: tuple[int, ...] = ()


def _stream(data: bytes) -> _Stream:
    if data and data[0] >= _LARGE:
        return _large_stream(data)
    if not data or data[0] % 2 == 0:
        return _Stream(data[1:_MOST])
    return _Stream(b"".join(_frames_of(data, 1))[:_MOST])


def _frames_of(data: bytes, at: int, *, is_large: bool = False) -> list[bytes]:
    frames: list[bytes] = []
    while at + _ENTRY.size <= len(data):
        index, length = _ENTRY.unpack_from(data, at)
        at += _ENTRY.size
        body = data[at : at + length]
        at += length
        number, wrong = _REQUESTS[index % len(_REQUESTS)], 0
        if is_large and number == messages.Twrite.type and len(body) >= _LARGE_WRITE.size:
            fid, offset, units, wrong_count, wrong = _LARGE_WRITE.unpack_from(body)
            written = _DATA[len(frames) : len(frames) + min(units * _UNIT, _LARGE_MSIZE)]
            body = struct.pack("<IQI", fid, offset, (len(written) + wrong_count) & 0xFFFFFFFF) + written
        frames.append(struct.pack("<IBH", max(0, 7 + len(body) + wrong), number, len(frames) & 0xFFFF) + body)
    return frames


def _large_stream(data: bytes) -> _Stream:
    if len(data) < _LARGE_HEAD.size:
        return _Stream(b"", is_large=True)
    _, end, count = _LARGE_HEAD.unpack_from(data)
    at = min(_LARGE_HEAD.size + _PIECE.size * (count % 8), len(data) // 2 * 2)
    pieces = [piece for (piece,) in _PIECE.iter_unpack(data[_LARGE_HEAD.size : at])]
    sent = b"".join(_frames_of(data, at, is_large=True))[:_LARGE_MOST]
    return _Stream(sent[: end or None], is_large=True, pieces=tuple(reversed(pieces)))


def session(data: bytes) -> None:
    """Serve any bytes as a guest's, after a good attach.

    Nothing but its end comes out of `run`, no descriptor is left, what lies outside is neither changed nor told, and
    each reply fits msize. Where large writes are spliced, replies and files are what they are where none is; where the
    compiled hot path serves, they are what they are where the handlers serve alone.
    """
    stream = _stream(data)
    served = _serve_alone(stream, data[:1])
    if speed.compiled is not None:
        _compare_compiled(served, _serve_alone(stream, data[:1], compiled=False))
    if stream.is_large:
        received = _serve_alone(stream, data[:1], splices=False)
        _compare(served, received)


class _Served(NamedTuple):
    """What came of a stream: the replies to writes, what the share has in it then, and what was logged."""

    written: dict[int, bytes]
    tree: dict[str, object]
    log: list[str]
    told: dict[int, object]
    """What each reply tells that is the same of two trees that were made alike."""


def _compare(served: _Served, received: _Served) -> None:
    """Hold one stream, spliced, against itself, received: only a write that it ends in the middle of may differ."""
    # Replies that waited to be sent when the protocol was broken are lost in either.
    for tag in served.written.keys() & received.written.keys():
        assert served.written[tag] == received.written[tag], "a write that is spliced has another answer"
    if not any("ended inside a message" in line for line in (*served.log, *received.log)):
        assert served.tree == received.tree, "a write that is spliced is another one"


def _compare_compiled(compiled: _Served, handled: _Served) -> None:
    """Hold one stream, served by the compiled hot path, against itself, served by the handlers on a tree of its own."""
    for tag in compiled.told.keys() & handled.told.keys():
        ours, theirs = compiled.told[tag], handled.told[tag]
        assert ours == theirs, f"the compiled hot path answers {ours}, the handlers {theirs}"
    assert compiled.tree == handled.tree, "the compiled hot path leaves another tree"


def _told(reply: messages.Message) -> object:
    """Return of a reply what two trees that were made alike have in common: no times, no inode numbers, no locks."""
    if isinstance(reply, messages.Rgetattr):
        return "Rgetattr", reply.mode, reply.uid, reply.gid, reply.nlink, reply.rdev, reply.size
    if isinstance(reply, messages.Rwalk):
        return "Rwalk", [qid.type for qid in reply.qids]
    if isinstance(reply, messages.Rlopen | messages.Rlcreate):
        return type(reply).__name__, reply.qid.type, reply.iounit
    if isinstance(reply, messages.Rread):
        return "Rread", bytes(reply.data)
    if isinstance(reply, messages.Rlerror | messages.Rwrite):
        return reply
    return type(reply).__name__


def _serve_alone(stream: _Stream, choice: bytes, *, splices: bool = True, compiled: bool = True) -> _Served:
    top = tempfile.mkdtemp(prefix="fuzz-")
    before = _descriptors()
    gc.disable()  # nothing may wait for it to be closed
    module, here = speed.compiled, os.open(".", os.O_PATH)
    try:
        speed.compiled = module if compiled else None  # for this session alone
        served = _serve(os.path.realpath(top), stream, choice, splices=splices)
        os.fchdir(here)
        os.close(here)
        end = time.monotonic() + _THREADS_SECONDS
        while _descriptors() != before and time.monotonic() < end:
            os.sched_yield()  # threads beside the session, which it does not wait for, hold what they work with
        assert _descriptors() == before, "descriptors were left open"
    finally:
        speed.compiled = module
        gc.enable()
        shutil.rmtree(top)
    return served


def _descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


class _Piecemeal(socket.socket):
    """A socket whose receives end where they are told to, the last of `pieces` first."""

    pieces: list[int]

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        piece = self.pieces.pop() if self.pieces else 0
        return super().recv_into(buffer, min(piece, len(buffer)) or nbytes, flags)


def _serve(top: str, stream: _Stream, choice: bytes, *, splices: bool) -> _Served:
    root, outside = os.path.join(top, "root"), os.path.join(top, "outside")
    os.makedirs(os.path.join(root, "directory", "below"))
    os.mkdir(outside)
    for path, content in ((f"{root}/file", b"content"), (f"{root}/directory/file", b""), (f"{outside}/canary", CANARY)):
        with open(path, "wb") as file:
            file.write(content)
    os.symlink("../outside", f"{root}/link")
    os.mkfifo(f"{root}/fifo")
    told = _state(outside)
    flags = Plan9ShareFlags.LINUX_METADATA if _has_attributes(root) else Plan9ShareFlags(0)
    share = Plan9Share(name="0", access_name="0", path=root, flags=int(flags))
    export = Export.open(share, "none" if choice and choice[0] & 2 else "mapped-xattr")
    log: list[str] = []
    msize = _LARGE_MSIZE if stream.is_large else _MSIZE
    try:
        ours, other = socket.socketpair()
        theirs: socket.socket = other
        if stream.pieces:
            theirs = _Piecemeal(fileno=other.detach())
            theirs.pieces = list(stream.pieces)
        with ours, theirs:
            replies = bytearray()
            reader = threading.Thread(target=_collect, args=(ours, replies))
            served: Any = Serving(theirs, export, msgspec.structs.replace(_LIMITS, msize=msize), log.append)
            if choice and choice[0] & _ALONE:
                served.tree.boundary.take_process(has_landlock=False)  # as a mount process does
            if stream.is_large or _COMPARES:
                served.run_aside = lambda *_: False  # in turn, so that two runs of it do the same
            if not splices:
                served.splicer = None
            sender = threading.Thread(target=_send, args=(ours, stream.sent))
            reader.start()
            sender.start()
            attach = messages.Tattach(0, NOFID, b"root", b"0", 1000 if choice and choice[0] & 4 else 0)
            try:
                served.run((0, attach), msize, b"")
            finally:
                theirs.shutdown(socket.SHUT_RDWR)
                sender.join()
                reader.join()
            del served
    finally:
        export.close()
    written, said = _check_replies(bytes(replies), log, msize)
    assert _state(outside) == told, "what lies outside was changed"
    return _Served(written, _contents(root), log, said)


def _send(ours: socket.socket, stream: bytes) -> None:
    with suppress(OSError):  # the session may end before it has taken all
        ours.sendall(stream)
        ours.shutdown(socket.SHUT_WR)


def _collect(ours: socket.socket, into: bytearray) -> None:
    with suppress(OSError):
        while piece := ours.recv(1 << 18):
            into += piece


def _check_replies(replies: bytes, log: list[str], msize: int) -> tuple[dict[int, bytes], dict[int, object]]:
    """Return the replies to writes, and errors, by their tags, and what all tell."""
    assert CANARY not in replies, "what lies outside was told"
    reader = FrameReader(msize)
    reader.feed(replies)
    found, told = {}, {}
    for frame in reader.messages():
        tag, reply = messages.decode(frame)
        told[tag] = _told(reply)
        assert reply.type % 2 == 1, reply
        if isinstance(reply, messages.Rwrite | messages.Rlerror):
            found[tag] = frame
    assert not reader.take_rest()
    assert not [line for line in log if "Error:" in line], log
    return found, told


def _contents(root: str) -> dict[str, object]:
    """Return what is in a tree: of each regular file, the size and the blocks that are not all zeros."""
    found: dict[str, object] = {}
    for directory, _, names in os.walk(root):
        found[directory[len(root) :]] = sorted(names)
        for path in (os.path.join(directory, name) for name in names):
            about = os.lstat(path)
            if stat.S_ISREG(about.st_mode):
                found[path[len(root) :]] = about.st_size, stat.S_IMODE(about.st_mode), _blocks(path)
    return found


def _blocks(path: str) -> dict[int, bytes]:
    blocks: dict[int, bytes] = {}
    with open(path, "rb") as file:
        at = 0
        while True:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA) // 4096 * 4096
            except OSError:  # there is no more
                return blocks
            block = os.pread(file.fileno(), 4096, at)
            if any(block):
                blocks[at] = block
            at += 4096


def _state(outside: str) -> object:
    found = [os.stat(path) for path in (outside, f"{outside}/canary")]
    with open(f"{outside}/canary", "rb") as file:
        content = file.read()
    listed = sorted(os.listdir(outside))
    return content, listed, [(one.st_mode, one.st_uid, one.st_gid, one.st_nlink, one.st_mtime_ns) for one in found]


def _has_attributes(root: str) -> bool:
    try:
        os.setxattr(root, "user.probe", b"1")
    except OSError:
        return False
    return True


# ---------------------------------------------------------------------- the agent, from both sides

_GUEST: Final = 1
_GREETED: Final = 2
_SILENT: Final = 4
"""The agent stays connected when it has said everything."""


def agent(data: bytes) -> None:
    """Whatever an agent says, the host reaches the next one; whatever a host says, the agent serves the next one."""
    if len(data) > 1:
        size = data[1] + 1
        pieces = [data[at : at + size] for at in range(2, len(data), size)]
        if data[0] & _GUEST:
            _guest_hears(pieces, greeted=bool(data[0] & _GREETED))
        else:
            loop = VirtualLoop()
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(_host_hears(pieces, greeted=bool(data[0] & _GREETED), silent=bool(data[0] & _SILENT)))
            assert not loop.noise, loop.noise


async def _host_hears(pieces: list[bytes], *, greeted: bool, silent: bool) -> None:
    def go_on(talk: Talk, rest: list[bytes]) -> None:
        if rest:
            talk.say(rest[0])
            asyncio.get_running_loop().call_soon(go_on, talk, rest[1:])
        elif not silent:
            talk.hang_up()

    def hostile(talk: Talk) -> None:
        def heard(request: dict[str, Any]) -> None:
            if request["op"] == "hello":
                talk.say({"id": 0, "ok": True, "result": {}})
            elif request["id"] == 1:
                go_on(talk, pieces)

        if greeted:
            talk.heard = heard
            talk.say(GREETING)
        else:
            go_on(talk, pieces)

    streams = ScriptedStreams(hostile, healthy)
    async with AgentClient("unix:/nowhere", streams=streams) as client:
        told: list[None] = []
        client.on_connect(lambda: told.append(None))
        mount = GuestMount("0", "/run/uvmshare/0", read_only=False, cache="none", msize=8192)
        asked = (client.listed(), client.health(), client.report(), client.add_mapped_directory(mount))
        for answer in await asyncio.gather(*asked, return_exceptions=True):
            assert not isinstance(answer, BaseException) or isinstance(answer, UvmshareError), answer
        # What an agent may say for ever is silence, and that has its time too.
        while streams.given == 1:  # noqa: ASYNC110  the loop's time is virtual
            await asyncio.sleep(1)
        await client.reached()
        await client.listed()
        assert told


class _NoMounts:
    """In the place of the agent's table: it answers, and mounts nothing."""

    records: Final[dict[str, Any]] = {}
    changes: Final = 0

    def add(self, _fields: object, _timeout: float, _wanted: object, answer: Callable[..., None]) -> None:
        answer({}, None)

    def remove(
        self, _fields: object, _timeout: float, _wanted: object, answer: Callable[..., None], *, lazy: bool
    ) -> None:
        answer({"lazy": lazy}, None)

    def health(self, _within: float, answer: Callable[..., None]) -> None:
        answer([])


@functools.cache
def _guest() -> tuple[Any, list[str]]:
    """Return an agent that mounts nothing, and its log; its directory is there as long as this process."""
    top = tempfile.TemporaryDirectory(prefix="uvmshare-fuzz-")
    options = argparse.Namespace(
        allow=[top.name],
        server=ServerAddress("unix", "/nowhere"),
        peer_cid=2,
        state=top.name,
        check_every=1.0,
        hung_after=1.0,
        pins=0,
    )
    made: Any = guest_agent.Agent(options, "")
    made._table._mountinfo.close()  # noqa: SLF001  what its table would do is not what is tried here
    made.directory, made._table = top, _NoMounts()  # noqa: SLF001  as above
    log: list[str] = []
    made.log = log.append
    return made, log


def _guest_hears(pieces: list[bytes], *, greeted: bool) -> None:
    served, log = _guest()
    log.clear()
    hello = wire.encode({"id": 0, "op": "hello", "version": 1, "client": "me", "nonce": "n"})
    _say(served, [hello, *pieces] if greeted else pieces)
    assert not [line for line in log if "defect" in line], log
    assert b'{"id":7,"ok":true,"result":{"changes":0}}' in _say(served, [hello, b'{"id":7,"op":"ping"}\n'])


def _say(served: Any, pieces: list[bytes]) -> bytes:
    """Say something to the agent and hang up, and return what it said."""
    ours, theirs = socket.socketpair()
    heard = bytearray()
    with ours:
        ended: list[None] = []
        session = HostSession(served, theirs, lambda: ended.append(None))
        served.sessions[session] = None
        for piece in pieces:
            if not session.open:
                break
            ours.sendall(piece)
            served.loop.turn()
            with suppress(BlockingIOError):
                heard += ours.recv(1 << 20, socket.MSG_DONTWAIT)
        ours.shutdown(socket.SHUT_WR)
        while session.open:
            served.loop.turn()
        assert ended
        with suppress(OSError):
            while piece := ours.recv(1 << 20):
                heard += piece
    return bytes(heard)
