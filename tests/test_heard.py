"""What the library's loggers say of the background: of supervisors, agents, and what is seen to again."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import TYPE_CHECKING

import pytest
from tests.processes import DEADLINE, kill
from tests.virtual_time import settle

from uvmshare import AddOptions, AgentClient, FileServer, Manager, MountManager, errors
from uvmshare.heard import logger
from uvmshare.testing.agents import ScriptedStreams, greeted, healthy
from uvmshare.testing.fakes import FakeAgent, FakeReply, FakeVM
from uvmshare.testing.schedule import run

if TYPE_CHECKING:
    from pathlib import Path

    from uvmshare.testing.agents import Talk


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "uvmshare")
    return caplog


def said(heard: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.name, record.levelname) for record in heard.records if record.name.startswith("uvmshare")]


@pytest.mark.skipif(sys.platform != "linux", reason="the file server runs on Linux")
def test_a_supervisor_that_dies_is_heard_and_so_are_the_next_one_and_the_end(
    tmp_path: Path, heard: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with asyncio.timeout(DEADLINE), FileServer([f"unix:{tmp_path}/9p"], run_dir=tmp_path / "run") as server:
            again = asyncio.Event()
            server.on_takeover(lambda _: again.set())
            kill((await server.status()).pid)
            await again.wait()
        async with asyncio.timeout(DEADLINE), FileServer([f"unix:{tmp_path}/other"]) as server:
            kill((await server.status()).pid)
            await server.wait_exit()

    asyncio.run(test())
    assert said(heard) == [("uvmshare.fileserver", level) for level in ("WARNING", "INFO", "ERROR")]
    died, serves, ended = (record.getMessage() for record in heard.records if record.name.startswith("uvmshare"))
    assert str(tmp_path / "run") in died
    assert str(tmp_path / "run") in serves
    assert "ended" in ended


def test_an_agent_that_is_reached_and_lost_is_heard(heard: pytest.LogCaptureFixture) -> None:
    def hangs_up(talk: Talk, _: object = None) -> None:
        talk.hang_up()

    async def test() -> None:
        streams = ScriptedStreams(greeted(hangs_up), healthy)
        async with AgentClient("unix:/nowhere", streams=streams) as client:
            assert await client.listed() == ()

    run(test())
    assert said(heard) == [("uvmshare.agent", level) for level in ("INFO", "WARNING", "INFO")]
    assert "unix:/nowhere was lost: " in heard.records[1].getMessage()


def test_a_share_that_is_seen_to_again_is_heard(heard: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        vm = FakeVM()
        vm.replies.extend([FakeReply.LOSE_AFTER, FakeReply.FAIL])
        manager = Manager(vm)
        with pytest.raises(errors.UvmshareError):
            await manager.add(AddOptions("/", read_only=True))
        assert said(heard) == [("uvmshare.shares", "INFO")]
        assert "share 0 is seen to again later: remove of share 0" in heard.records[0].getMessage()
        await manager.aclose()

    run(test())


def test_a_mount_that_is_seen_to_again_is_heard(heard: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        agent = FakeAgent()
        agent.replies.extend([FakeReply.LOSE_AFTER, FakeReply.FAIL])
        mounts = MountManager(agent, shares=Manager(FakeVM()))
        with pytest.raises(errors.UvmshareError):
            await mounts.map(AddOptions("/", read_only=True), "/mnt/x")
        await settle()
        assert set(said(heard)) == {("uvmshare.mounts", "INFO")}
        assert "mount /mnt/x is seen to again later: remove of /mnt/x" in heard.records[0].getMessage()
        await mounts.aclose()

    run(test())


def test_what_others_said_is_shown_in_one_line_and_no_record_keeps_more_than_the_text(
    heard: pytest.LogCaptureFixture,
) -> None:
    kept = errors.GuestAgentError("it said \x1b[31mred\n100 %s")
    logger("agent").warning("the agent at %s was lost: %s", "unix:/x", kept)
    (record,) = heard.records
    assert record.getMessage() == r"the agent at unix:/x was lost: it said \x1b[31mred\n100 %s"
    assert record.args == ()
