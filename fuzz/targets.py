"""What is fuzzed: any bytes at all, and what must hold whatever they are.

What lives here: the two targets, and how a session is fed. What must not: where the bytes come from: a corpus and
chance in the tests, coverage-guided mutation in `fuzz/run.py`.

The first byte of a session's input says how the rest becomes messages: even, and it is sent as it stands; odd, and it
is a list of (type, length, body), which get the right size words, so that mutations reach behind the framing.
"""

# ruff: noqa: INP001  a folder of scripts, not a package
from __future__ import annotations

import gc
import os
import shutil
import socket
import struct
import tempfile
import threading
from contextlib import suppress
from typing import Final

from uvmshare.errors import RemoteProtocolError
from uvmshare.fileserver.export import Export
from uvmshare.fileserver.handshake import Handshake
from uvmshare.fileserver.limits import Limits
from uvmshare.fileserver.session import Session
from uvmshare.hcs.schema import Plan9Share, Plan9ShareFlags
from uvmshare.ninep import messages
from uvmshare.ninep.constants import NOFID
from uvmshare.ninep.framing import FrameReader

__all__ = ["CANARY", "codec", "packed", "session"]

CANARY: Final = b"what the host keeps to itself"

_MSIZE: Final = 65536
_LIMITS: Final = Limits(msize=_MSIZE, fids=64, open_files=16, locks=16, xattr_bytes=65536, lock_wait_seconds=1e-6)
_REQUESTS: Final = sorted(number for number, cls in messages.BY_TYPE.items() if cls.__name__.startswith("T"))
_ENTRY: Final = struct.Struct("<BH")
_MOST: Final = 1 << 16


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


def _stream(data: bytes) -> bytes:
    """Make what is sent of a session's input."""
    if not data or data[0] % 2 == 0:
        return data[1:_MOST]
    frames: list[bytes] = []
    at = 1
    while at + _ENTRY.size <= len(data):
        index, length = _ENTRY.unpack_from(data, at)
        at += _ENTRY.size
        body = data[at : at + length]
        at += length
        frames.append(struct.pack("<IBH", 7 + len(body), _REQUESTS[index % len(_REQUESTS)], len(frames)) + body)
    return b"".join(frames)[:_MOST]


def session(data: bytes) -> None:
    """Serve any bytes as a guest's, after a good attach.

    Nothing but its end comes out of `run`, no descriptor is left, what lies outside is neither changed nor told, and
    each reply fits msize.
    """
    top = tempfile.mkdtemp(prefix="fuzz-")
    before = _descriptors()
    try:
        _serve(os.path.realpath(top), _stream(data), data[:1])
        gc.collect()  # directories that were renamed into one another hold each other
        assert _descriptors() == before, "descriptors were left open"
    finally:
        shutil.rmtree(top)


def _descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


def _serve(top: str, stream: bytes, choice: bytes) -> None:
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
    try:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            replies = bytearray()
            reader = threading.Thread(target=_collect, args=(ours, replies))
            served = Session(theirs, export, _LIMITS, log.append)
            sender = threading.Thread(target=_send, args=(ours, stream))
            reader.start()
            sender.start()
            attach = messages.Tattach(0, NOFID, b"root", b"0", 0)
            try:
                served.run((0, attach), _MSIZE, b"")
            finally:
                theirs.shutdown(socket.SHUT_RDWR)
                sender.join()
                reader.join()
            del served
    finally:
        export.close()
    _check_replies(bytes(replies), log)
    assert _state(outside) == told, "what lies outside was changed"


def _send(ours: socket.socket, stream: bytes) -> None:
    with suppress(OSError):  # the session may end before it has taken all
        ours.sendall(stream)
        ours.shutdown(socket.SHUT_WR)


def _collect(ours: socket.socket, into: bytearray) -> None:
    with suppress(OSError):
        while piece := ours.recv(1 << 18):
            into += piece


def _check_replies(replies: bytes, log: list[str]) -> None:
    assert CANARY not in replies, "what lies outside was told"
    reader = FrameReader(_MSIZE)
    reader.feed(replies)
    for frame in reader.messages():
        _, reply = messages.decode(frame)
        assert reply.type % 2 == 1, reply
    assert not reader.take_rest()
    assert not [line for line in log if "Error:" in line], log


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
