"""A file server goes on looking for its supervisor, whatever it meets there: what is there is another user's."""

from __future__ import annotations

import asyncio
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from tests.forked import started

from uvmshare.testing.schedule import run

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

from uvmshare.errors import FileServerError
from uvmshare.fileserver.device import FileServer
from uvmshare.fileserver.link import Link

if TYPE_CHECKING:
    from uvmshare.fileserver import control
    from uvmshare.testing.schedule import VirtualLoop


forked_supervisors = started()

FAILURES = [
    FileServerError("it does not answer"),
    OSError(5, "broken"),
    KeyError("a defect"),
    RecursionError("nested too deeply"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no reason"),
    ExceptionGroup("several", [ValueError()]),
    TimeoutError(),
]


class FakeLink:
    """As much of a link as starting again needs."""

    broken = None
    on_end: Any = None

    def __init__(self, *, ended: bool) -> None:
        self.ended = ended
        self.greeting = SimpleNamespace(addresses=(), notes=(), lost=())
        self.left = False

    async def has_ended(self) -> bool:
        return self.ended

    async def leave(self) -> None:
        self.left = True


def test_whatever_is_met_there_it_is_looked_for_again_and_everybody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    failures, next_link = list(FAILURES), FakeLink(ended=False)

    async def find_or_start(*_: object) -> FakeLink:
        if failures:
            raise failures.pop(0)
        return next_link

    monkeypatch.setattr(Link, "find_or_start", find_or_start)
    told: list[object] = []

    def fails(_: control.Reply) -> None:
        msg = "a defect"
        raise KeyError(msg)

    async def test() -> None:
        first: Any = FakeLink(ended=True)
        server = FileServer.connect("/nowhere", modify_timeout=1.0)
        server._link, server._is_started = first, True
        server.on_takeover(fails)
        server.on_takeover(told.append)
        server._note_end()
        restarting = server._restarting
        assert restarting is not None
        await restarting
        assert await server._require_link() is next_link  # type: ignore[comparison-overlap]  # it is a fake
        assert first.left
        assert (failures, told, server._trouble) == ([], [next_link.greeting], "")
        loop = cast("VirtualLoop", asyncio.get_running_loop())
        assert len(loop.noise) == 1, "the callback that failed"
        loop.noise.clear()

    run(test())


@pytest.mark.parametrize("failure", FAILURES, ids=repr)
def test_a_channel_that_failed_in_any_way_can_be_left(failure: Exception) -> None:
    async def fail() -> None:
        raise failure

    async def wait_closed() -> None:
        pass

    async def test() -> None:
        link = Link.__new__(Link)
        link._listening = asyncio.create_task(fail())
        await asyncio.wait({link._listening})
        link._writer = SimpleNamespace(close=lambda: None, wait_closed=wait_closed)  # type: ignore[assignment]  # a fake
        link._process = None
        link._forget_process = lambda: None  # type: ignore[method-assign]  # there is none
        await link.leave()

    run(test())
