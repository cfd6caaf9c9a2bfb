"""How a mount is asked for and told: what the agent chooses, access control lists, and agents that know of neither."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from tests.agent.conftest import serving

from uvmshare.errors import GuestAgentError, MountRefused, OutcomeUnknown
from uvmshare.guest import mount as guest_mount
from uvmshare.guest import wire
from uvmshare.mounts import MountManager
from uvmshare.mounts.interfaces import Mounted
from uvmshare.mounts.options import MountOptions

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Sequence

    from tests.agent.conftest import Bench


def shown(bench: Bench) -> list[str]:
    """Return the options that the kernel shows of the only mount."""
    (entry,) = json.loads((bench.kernel / "mounts.json").read_text())
    options: list[str] = entry[4].split(",")
    return options


@pytest.mark.parametrize("read_only", [False, True])
def test_what_the_agent_chooses_is_told_by_every_answer_and_stays(bench: Bench, read_only: bool) -> None:
    expected = guest_mount.choose("auto", None, read_only=read_only)

    async def test() -> None:
        await bench.start_agent()
        wanted = MountOptions("0", f"{bench.allow}/a", read_only=read_only)
        async with bench.client() as client, MountManager(client) as mounts:
            assert (await mounts.mount(wanted, owner="a")).chosen == expected
            assert set(expected.split(",")) <= set(shown(bench))
            (listed,) = await client.listed()
            assert (listed.cache, listed.msize, listed.chosen) == ("auto", None, expected)
            assert await mounts.settle() == ()
            assert [mount.state.name for mount in mounts.mounts()] == ["MOUNTED"], "it is what was asked for"

            await bench.end_agent()
            await bench.start_agent()
            async with bench.client() as another, MountManager(another) as again:
                assert (await again.mount(wanted)).chosen == expected, "another agent found it as it is"
                assert bench.server.asked == ["0"]

    bench.run(test)


def test_access_control_lists_are_kept_when_it_is_mounted_again(bench: Bench) -> None:
    async def test() -> None:
        await bench.start_agent()
        async with bench.client() as client, MountManager(client) as mounts:
            wanted = MountOptions("0", f"{bench.allow}/a", posixacl=True, cache="loose", msize=8192)
            assert (await mounts.mount(wanted)).chosen == "cache=loose,msize=8192"
            assert "posixacl" in shown(bench)
            with pytest.raises(MountRefused, match="is taken by share 0"):
                await client.add_mapped_directory(bench.mount("a", cache="loose"))
            bench.server.cut()

            async def is_again() -> bool:
                return (await client.listed())[0].again == 1

            await bench.until(is_again)
            assert "posixacl" in shown(bench)
            assert [found.posixacl for found in await client.mapped_directories()] == [True]

    bench.run(test)


def test_a_kernel_that_passes_over_access_control_lists_has_no_mount_and_the_host_is_told(bench: Bench) -> None:
    async def test() -> None:
        (bench.kernel / "passed-over").write_text("posixacl")
        await bench.start_agent()
        async with bench.client() as client:
            wanted = replace(bench.mount("a/b"), posixacl=True)
            with pytest.raises(GuestAgentError, match="CONFIG_9P_FS_POSIX_ACL"):
                await client.add_mapped_directory(wanted)
            assert bench.mounted() == []
            assert await client.listed() == ()
            assert not list(bench.allow.iterdir()), "the directories that were made for it must go with it"
            assert (await client.add_mapped_directory(bench.mount("a/b"))).chosen == "cache=none,msize=8192"

    bench.run(test)


def speaking(
    features: Sequence[str], answer: dict[str, Any], asked: list[dict[str, Any]], *, hang_up_after: int = -1
) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """Return an agent that notes down what it is asked to mount, and gives one answer to all of it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        greeting = {"uvmshare": "agent", "version": 1, "agent": "x", "boot": "x", "nonce": "x", "release": "0.0.9"}
        writer.write(wire.encode({**greeting, **({"features": features} if features else {})}))
        await reader.readline()
        writer.write(wire.encode({"id": 0, "ok": True, "result": {"proof": ""}}))
        while line := await reader.readline():
            message = json.loads(line)
            asked.append(message)
            if len(asked) == hang_up_after:
                break
            writer.write(wire.encode({"id": message["id"], "ok": True, "result": answer}))
        writer.close()

    return serve


def test_an_older_agent_is_asked_for_what_it_knows_and_never_for_what_it_would_pass_over(bench: Bench) -> None:
    async def test() -> None:
        asked: list[dict[str, Any]] = []
        async with serving(speaking((), {}, asked), bench.socket), bench.client() as client:
            wanted = replace(bench.mount("a"), cache="auto", msize=None)
            assert await client.add_mapped_directory(wanted) == Mounted()
            assert not {"cache", "msize"} & asked[0]["options"].keys(), "it mounts as it always did"
            assert await client.add_mapped_directory(bench.mount("b", cache="mmap")) == Mounted()
            assert (asked[1]["options"]["cache"], asked[1]["options"]["msize"]) == ("mmap", 8192)
            with pytest.raises(
                MountRefused, match=r"\(uvmshare 0\.0\.9\) is too old for posixacl: put the present one"
            ):
                await client.add_mapped_directory(replace(wanted, posixacl=True))
            with pytest.raises(
                MountRefused, match=r"\(uvmshare 0\.0\.9\) knows nothing of events: put the present one for Python"
            ):
                await client.add_mapped_directory(replace(wanted, events=True))
            assert len(asked) == 2, "it was not asked"

    bench.run(test)


def test_what_an_older_agent_has_is_what_was_asked_for_where_it_was_to_choose(bench: Bench) -> None:
    async def test() -> None:
        listed = {"mount_path": f"{bench.allow}/a", "share_name": "0", "port": 5640, "cache": "none", "msize": 131072}
        answer: Any = [listed]
        asked: list[dict[str, Any]] = []
        async with serving(speaking((), answer, asked), bench.socket), bench.client() as client:
            mounts = MountManager(client)
            assert (await mounts.mount(MountOptions("0", f"{bench.allow}/a"))).chosen is None
            await mounts.settle()
            assert [message["op"] for message in asked].count("modify") == 1, "nothing is mounted again"
            (found,) = await client.mapped_directories()
            assert not replace(found, cache="auto", msize=8192).is_met_by(found)
            assert not replace(found, posixacl=True).is_met_by(found)

    bench.run(test)


def test_an_older_agent_in_the_place_of_one_that_was_asked_leaves_the_outcome_unknown(bench: Bench) -> None:
    async def test() -> None:
        first: list[dict[str, Any]] = []
        second: list[dict[str, Any]] = []
        wanted = replace(bench.mount("a"), posixacl=True)
        later: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]] = speaking((), {}, second)
        now = speaking(wire.FEATURES, {}, first, hang_up_after=1)

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await (later if first else now)(reader, writer)

        async with serving(serve, bench.socket), bench.client() as client:
            with pytest.raises(OutcomeUnknown, match="another one than the one that was asked"):
                await client.add_mapped_directory(wanted)
            assert [message["options"]["posixacl"] for message in first] == [True]
            assert second == []

    bench.run(test)


@pytest.mark.parametrize("chosen", [7, None, "x" * 300, ["cache=none"]])
def test_an_agent_that_says_no_word_of_what_it_chose_has_mounted_all_the_same(bench: Bench, chosen: object) -> None:
    async def test() -> None:
        asked: list[dict[str, Any]] = []
        async with serving(speaking(wire.FEATURES, {"chosen": chosen}, asked), bench.socket), bench.client() as client:
            assert await client.add_mapped_directory(bench.mount("a")) == Mounted()

    bench.run(test)
