"""What the process behind a control socket says: it is a VM's user's, and may be anything."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import pytest

from uvmshare.errors import ComputeSystemError, FileServerError
from uvmshare.fileserver import control
from uvmshare.fileserver.link import Link
from uvmshare.fileserver.rundir.directory import CONTROL_SOCKET

if TYPE_CHECKING:
    from pathlib import Path

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

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
