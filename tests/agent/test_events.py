"""A mount with events, as agent and host speak of it: what runs for it, and where it is told that there are none.

What the child that holds its directories says is the test's here. What it does is in tests/guest/test_events.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from uvmshare.errors import GuestAgentError
from uvmshare.mounts import MountManager
from uvmshare.mounts.options import MountOptions
from uvmshare.testing.fakes import FakeAgent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, TextIO

    from tests.agent.conftest import Bench

    from uvmshare.mounts.interfaces import GuestMount


def children(bench: Bench) -> list[str]:
    """Return the agent's processes that live."""
    pid = bench.agents[-1].pid
    found = []
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        for child in file.read().split():
            with contextlib.suppress(FileNotFoundError), open(f"/proc/{child}/stat") as stat:
                if stat.read().rpartition(")")[2].split()[0] != "Z":
                    found.append(child)
    return found


def wanted(bench: Bench, name: str = "a", **how: Any) -> GuestMount:
    return replace(bench.mount(name), **{"events": True, **how})


def says(file: TextIO, **events: object) -> None:
    """Have the child that holds the directories say that it holds one, and this of its events."""
    file.write(json.dumps({"directories": 1, "full": False, "events": events}) + "\n")
    file.flush()


@contextlib.contextmanager
def holder(bench: Bench) -> Iterator[asyncio.Task[TextIO]]:
    """Give what the next such child hears, once it listens."""
    path = bench.kernel / "says"
    os.mkfifo(path)
    opened = asyncio.get_running_loop().create_task(asyncio.to_thread(open, path, "w"))
    yield opened
    opened.result().close()


def test_without_events_nothing_holds_a_directory_and_no_process_is_beside_the_mount(bench: Bench) -> None:
    async def test() -> None:
        await bench.start_agent()
        async with bench.client() as client:
            assert (await client.add_mapped_directory(wanted(bench, events=False))).no_events is None

            async def none_lives() -> bool:
                return not children(bench)

            await bench.until(none_lives)
            (listed,) = await client.listed()
            assert (listed.events, listed.no_events, listed.pins) == (False, "", None)

            with holder(bench) as opened:
                adding = asyncio.ensure_future(client.add_mapped_directory(wanted(bench, "b")))
                says(await opened, repeated=0, failed=0, ended="")
                assert (await adding).no_events is None
                assert len(children(bench)) == 1, "the one that is asked for"
            (_, listed) = await client.listed()
            assert listed.events
            assert listed.pins is not None

    bench.run(test)


def test_events_that_end_are_told_with_their_reason_and_the_host_is_made_to_ask(bench: Bench) -> None:
    async def test() -> None:
        await bench.start_agent()
        async with bench.client() as client, MountManager(client) as mounts:
            with holder(bench) as opened:
                options = MountOptions("0", f"{bench.allow}/a", events=True)
                adding = asyncio.ensure_future(mounts.mount(options))
                says(await opened, repeated=0, failed=0, ended="the agent lacks CAP_FOWNER")
                assert (await adding).no_events == "the agent lacks CAP_FOWNER"
                raw = await bench.raw()
                await raw.greet("me")
                before = (await raw.ask(id=1, op="ping"))["result"]["changes"]
                says(opened.result(), repeated=3, failed=1, ended="")

                async def was_told() -> bool:
                    return bool((await raw.ask(id=1, op="ping"))["result"]["changes"] != before)

                await bench.until(was_told)
                await mounts.settle()
                assert [mount.no_events for mount in mounts.mounts()] == [None]
                (listed,) = await client.listed()
                assert listed.pins is not None
                assert listed.pins.events is not None
                assert (listed.pins.events.repeated, listed.pins.events.failed) == (3, 1)
                (health,) = (await client.report()).mounts
                assert (health.events, health.no_events, health.pins) == (True, "", listed.pins)
            # The child ends with what it hears, and so do the events.

            async def are_over() -> bool:
                (listed,) = await client.listed()
                return bool(listed.no_events)

            await bench.until(are_over)
            await mounts.settle()
            (mount,) = mounts.mounts()
            assert mount.no_events is not None
            assert "has ended" in mount.no_events
            raw.writer.close()

    bench.run(test)


@pytest.mark.parametrize("how", [{}, {"read_only": True}], ids=["writable", "read-only"])
def test_where_there_can_be_none_the_mount_is_there_and_says_why(bench: Bench, how: dict[str, Any]) -> None:
    async def test() -> None:
        await bench.start_agent()
        async with bench.client() as client, MountManager(client) as mounts:
            mount = await mounts.mount(MountOptions("0", f"{bench.allow}/a", events=True, **how))
            assert bench.mounted() == ["a"]
            assert re.search("docs/events.md|open_tree", mount.no_events or ""), "this file server tells nothing"

    bench.run(test)


@pytest.mark.parametrize("flags", [{}, {"suid": True, "dev": True}], ids=["nosuid", "suid"])
def test_of_a_read_only_mount_with_events_the_file_system_is_writable_and_nowhere_to_be_written(
    bench: Bench, flags: dict[str, Any]
) -> None:
    def shown() -> list[tuple[str, set[str]]]:
        kept = {"ro", "ro-here", "nosuid", "nodev"}
        entries = json.loads((bench.kernel / "mounts.json").read_text())
        return [(os.path.relpath(entry[1], bench.allow), kept & set(entry[4].split(","))) for entry in entries]

    there = [("a", {"ro-here", *(f"no{name}" for name in ("suid", "dev") if name not in flags)})]

    async def test() -> None:
        await bench.start_agent()
        async with bench.client() as client:
            await client.add_mapped_directory(wanted(bench, read_only=True, **flags))
            assert shown() == there
            bench.server.cut()

            async def is_again() -> bool:
                return (await client.listed())[0].again == 1

            await bench.until(is_again)
            assert shown() == there
            await client.remove_mapped_directory(wanted(bench, read_only=True, **flags))
            (bench.kernel / "no-remount").write_text("yes")
            with pytest.raises(GuestAgentError, match="cannot be made read-only"):
                await client.add_mapped_directory(wanted(bench, read_only=True, **flags))
            assert shown() == [], "what could not be made read-only is mounted nowhere"
            await client.add_mapped_directory(wanted(bench, read_only=True, events=False))
            assert shown() == [("a", {"ro", "nosuid", "nodev"})]

    bench.run(test)


def test_an_agent_that_is_started_again_holds_the_directories_of_a_mount_with_events(bench: Bench) -> None:
    async def test() -> None:
        await bench.start_agent()
        async with bench.client() as client:
            with holder(bench) as opened:
                adding = asyncio.ensure_future(client.add_mapped_directory(wanted(bench)))
                says(await opened, repeated=0, failed=0, ended="")
                await adding
                await bench.end_agent()
            (bench.kernel / "says").unlink()
        with holder(bench) as opened:
            await bench.start_agent()
            says(await opened, repeated=0, failed=0, ended="")
            async with bench.client() as client:
                assert [found.events for found in await client.mapped_directories()] == [True]

    bench.run(test)


def test_what_an_agent_says_of_events_when_it_mounts_and_later_is_what_the_mount_shows() -> None:
    async def test() -> None:
        agent = FakeAgent()
        agent.no_events = "no capability"
        async with MountManager(agent) as mounts:
            mount = await mounts.mount(MountOptions("0", "/mnt/x", events=True))
            assert mount.no_events == "no capability"
            for told in (None, "the file server is an older one"):
                agent.mounts["/mnt/x"] = replace(agent.mounts["/mnt/x"], no_events=told)
                await mounts.settle()
                assert [mount.no_events for mount in mounts.mounts()] == [told]

    asyncio.run(test())
