"""What the process behind a control socket says: it is a VM's user's, and may be anything."""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import TYPE_CHECKING, TypeVar

import pytest
from tests.processes import DEADLINE

from uvmshare.errors import ComputeSystemError, FileServerError
from uvmshare.fileserver import control
from uvmshare.fileserver.link import Link
from uvmshare.fileserver.rundir.directory import CONTROL_SOCKET

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

T = TypeVar("T")
DEEP = b'{"id":1,"x":' + b"[" * 5000 + b"]" * 5000 + b"}"


@pytest.mark.parametrize(
    "answer",
    [
        control.encode(control.Reply(id=1, pid=-1)),
        control.encode(control.Reply(id=1, pid=1 << 40)),
        len(DEEP).to_bytes(4, "big") + DEEP,
        b"\xff" * 8,
        b"",
    ],
    ids=["a pid below 0", "a pid that is huge", "an answer nested too deeply", "a length that is huge", "nothing"],
)
def test_what_a_forged_supervisor_answers_is_an_error(tmp_path: Path, answer: bytes) -> None:
    async def test() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(65536)
            writer.write(answer)
            writer.close()

        server = await asyncio.start_unix_server(serve, str(tmp_path / CONTROL_SOCKET))
        with pytest.raises(FileServerError):
            await Link.find(str(tmp_path))
        server.close()

    asyncio.run(test())


def test_a_failure_of_a_class_that_needs_more_than_a_text_is_an_error_all_the_same() -> None:
    for kind in ("SharesLeft", "MountsLeft", "RestoreFailed", "UvmshareError", "NoSuchClass"):
        assert isinstance(control.to_exception(control.Failure(kind, "why")), Exception)
    assert isinstance(control.to_exception(control.Failure("MountsLeft", "why")), ComputeSystemError)


@pytest.mark.parametrize("late", [False, True], ids=["connected before", "connected after"])
def test_whoever_stops_looking_for_a_supervisor_leaves_no_connection(tmp_path: Path, late: bool) -> None:
    connects: list[Callable[[], object]] = []

    async def run(work: Callable[[], T], /) -> T:
        """Stand for a thread whose end nobody waits for: the one who waits is cancelled."""
        connects.append(work)
        if not late:
            work()
        raise asyncio.CancelledError

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / CONTROL_SOCKET))
        listening.listen()
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(Link.find(str(tmp_path), run=run))
        if late:
            connects[0]()
        theirs, _ = listening.accept()
        with theirs:
            theirs.settimeout(DEADLINE)
            assert theirs.recv(1) == b""
