"""The agent and its client, with real processes and sockets, and a kernel that only notes down its mounts."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tests.processes import DEADLINE
from tests.root import require_root

from uvmshare.errors import GuestAgentError, MountBusy, MountNotFound, MountRefused, OutcomeUnknown
from uvmshare.guest import agent
from uvmshare.mounts import MountManager, MountOptions, agent_client

if TYPE_CHECKING:
    from pathlib import Path

    from tests.agent.conftest import Bench


def test_mounts_come_and_go(bench: Bench) -> None:
    async def test() -> None:
        await bench.start_agent()
        async with bench.client() as client:
            mount = bench.mount("a/b")
            await client.add_mapped_directory(mount)
            await client.add_mapped_directory(mount)  # what is there is left as it is
            assert bench.server.asked == ["0"]
            assert bench.mounted() == ["a/b"]
            assert await client.mapped_directories() == (mount,)
            (found,) = await client.health(within=DEADLINE)
            assert (found.status, found.mount_path) == ("ok", mount.mount_path)
            with pytest.raises(MountRefused, match="is taken by share 0"):
                await client.add_mapped_directory(bench.mount("a/b", cache="mmap"))
            with pytest.raises(MountNotFound):
                await client.remove_mapped_directory(bench.mount("a/b", "7"))
            await client.remove_mapped_directory(mount)
            assert not bench.mounted()
            assert not os.listdir(bench.allow), "the directories that were made for it must go with it"
            with pytest.raises(MountNotFound, match="share 0 is not mounted on"):
                await client.remove_mapped_directory(mount)

    bench.run(test)


def test_the_mount_manager_drives_it(bench: Bench) -> None:
    async def test() -> None:
        await bench.start_agent()
        async with bench.client(server_port=7) as client, MountManager(client) as mounts:
            path = f"{bench.allow}/x"
            await mounts.mount(MountOptions("3", path), owner="a")
            await mounts.mount(MountOptions("3", path), owner="b")
            (listed,) = await client.listed()
            assert (listed.share_name, listed.port, listed.state) == ("3", 7, "mounted")
            await mounts.unmount(path, owner="a")
            assert bench.mounted() == ["x"]
        assert not bench.mounted()

    bench.run(test)


@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.ENOENT, "the server has no share '5'"), (errno.EIO, "closed the connection")],
)
def test_a_mount_that_fails_says_why_and_leaves_nothing(bench: Bench, code: int, words: str) -> None:
    async def test() -> None:
        bench.server.answers["5"] = code
        await bench.start_agent()
        async with bench.client() as client:
            with pytest.raises(GuestAgentError, match=words):
                await client.add_mapped_directory(bench.mount("a", "5"))
            assert not os.listdir(bench.allow)
            assert not await client.listed()

    bench.run(test)


def test_without_a_server_it_says_so(bench: Bench) -> None:
    async def test() -> None:
        await bench.server.stop()
        await bench.start_agent()
        async with bench.client() as client:
            with pytest.raises(GuestAgentError, match="nothing listens there"):
                await client.add_mapped_directory(bench.mount("a"))

    bench.run(test)


def test_a_mute_server_is_given_up_and_nothing_is_left(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_client, "_GRACE", DEADLINE)

    async def test() -> None:
        bench.server.answers["0"] = None
        await bench.start_agent()
        async with bench.client(timeout=0.2) as client:
            with pytest.raises(GuestAgentError, match=r"did not answer within 0\.2 s") as raised:
                await client.add_mapped_directory(bench.mount("a"))
            assert not isinstance(raised.value, OutcomeUnknown)
            assert not bench.mounted()
            assert not await client.listed()

    bench.run(test)


def test_a_busy_mount_stays_unless_it_may_go_lazily(bench: Bench) -> None:
    async def test() -> None:
        bench.note("busy", "a")
        await bench.start_agent()
        async with bench.client() as client:
            await client.add_mapped_directory(bench.mount("a"))
            held = os.open(bench.allow / "a", os.O_RDONLY)
            with pytest.raises(MountBusy, match=rf"\(pid {os.getpid()}, open {bench.allow}/a\)"):
                await client.remove_mapped_directory(bench.mount("a"))
            os.close(held)
            with pytest.raises(MountBusy, match="by whom /proc does not tell"):
                await client.remove_mapped_directory(bench.mount("a"))
            assert bench.mounted() == ["a"]
            await client.remove_mapped_directory(bench.mount("a"), lazy=True)
            assert not bench.mounted()

    bench.run(test)


def test_a_mount_that_only_the_agent_itself_reads_is_not_busy(bench: Bench) -> None:
    async def met() -> bool:
        return (bench.kernel / "met-reader").exists()

    async def test() -> None:
        os.mkfifo(bench.kernel / "fifo")
        bench.note("slow", "a")
        await bench.start_agent()
        async with bench.client() as client:
            await client.add_mapped_directory(bench.mount("a"))
            asked = asyncio.create_task(client.health(within=DEADLINE))
            reading = await asyncio.to_thread(open, bench.kernel / "fifo", "w")
            removing = asyncio.create_task(client.remove_mapped_directory(bench.mount("a")))
            await bench.until(met)
            reading.close()
            await asked
            await removing
            assert not bench.mounted()

    bench.run(test)


# ---------------------------------------------------------------------- lost connections of mounts


def test_a_mount_whose_connection_is_lost_is_mounted_again(bench: Bench) -> None:
    async def test() -> None:
        await bench.start_agent()
        async with bench.client() as client:
            await client.add_mapped_directory(bench.mount("a/b"))
            bench.server.answers["0"] = errno.ENOENT
            bench.server.cut()
            await bench.server.until_asked(3)  # it goes on trying
            assert bench.mounted() == ["a/b"], "the dead one must stay until there is a new one"
            (found,) = await client.listed()
            assert found.state == "broken"
            (health,) = await client.health()
            assert health.status == "dead"
            del bench.server.answers["0"]

            async def back() -> bool:
                (found,) = await client.listed()
                return found.state == "mounted" and found.again == 1 and found.last_gap is not None

            await bench.until(back)
            assert bench.mounted() == ["a/b"]
            assert not [name for name in os.listdir(bench.state) if name.startswith("aside")]
            await client.remove_mapped_directory(bench.mount("a/b"))
            assert not os.listdir(bench.allow)

    bench.run(test)


def test_a_broken_mount_can_be_removed_and_asked_for_again(bench: Bench) -> None:
    async def test() -> None:
        bench.note("busy", "a", "b")
        await bench.start_agent()
        async with bench.client() as client:
            for name in "ab":
                await client.add_mapped_directory(bench.mount(name))
            bench.server.answers["0"] = errno.ENOENT
            bench.server.cut()
            await bench.server.until_asked(4)
            await client.remove_mapped_directory(bench.mount("a"))  # of a dead one nobody has any use: lazily
            assert bench.mounted() == ["b"]
            with pytest.raises(GuestAgentError, match="no share"):
                await client.add_mapped_directory(bench.mount("b"))
            assert not bench.mounted(), "a failed mount leaves nothing, and the old one was dead"
            assert not await client.listed()

    bench.run(test)


def test_an_agent_that_was_killed_finds_its_mounts_and_those_that_died_meanwhile(bench: Bench) -> None:
    async def test() -> None:
        await bench.start_agent()
        async with bench.client() as client:
            await client.add_mapped_directory(bench.mount("a"))
            await bench.end_agent(signal.SIGKILL)
            await bench.start_agent("--check-every", "0.05")
            assert await client.mapped_directories() == (bench.mount("a"),)
            assert bench.server.asked == ["0"]
            bench.note("dead", "a")  # it has no socket of it any more, and finds out by reading
            await bench.server.until_asked(2)
            bench.note("dead")
            await client.remove_mapped_directory(bench.mount("a"))
            assert not bench.mounted()

    bench.run(test)


def test_what_was_unmounted_while_no_agent_ran_is_mounted_again(bench: Bench) -> None:
    async def test() -> None:
        await bench.start_agent()
        async with bench.client() as client:
            await client.add_mapped_directory(bench.mount("a"))
            await bench.end_agent()
            (bench.kernel / "mounts.json").unlink()
            await bench.start_agent()
            await bench.server.until_asked(2)
            await client.remove_mapped_directory(bench.mount("a"))

    bench.run(test)


def test_an_agent_that_was_killed_while_it_mounted_is_asked_again(bench: Bench) -> None:
    async def test() -> None:
        bench.server.answers["0"] = None
        await bench.start_agent()
        async with bench.client() as client:
            adding = asyncio.create_task(client.add_mapped_directory(bench.mount("a")))
            await bench.server.until_asked(1)
            await bench.end_agent(signal.SIGKILL)
            del bench.server.answers["0"]
            await bench.start_agent()
            await adding
            assert bench.server.asked == ["0", "0"]
            assert bench.mounted() == ["a"]

    bench.run(test)


def test_a_mount_that_an_earlier_agent_did_not_live_to_note_is_removed_all_the_same(bench: Bench) -> None:
    async def test() -> None:
        await bench.start_agent()
        async with bench.client() as client:
            await client.add_mapped_directory(bench.mount("a"))
            await bench.end_agent(signal.SIGKILL)
            (bench.state / "mounts.json").write_text("no JSON")
            await bench.start_agent()
            assert not await client.listed()
            assert "cannot be read" in bench.log()
            await client.remove_mapped_directory(bench.mount("a"))
            assert not bench.mounted()

    bench.run(test)


FORKS = """
import os, signal, sys
from uvmshare.guest import agent
agent._lock(sys.argv[1])
if os.fork() == 0:
    os.write(1, b".")
    os.read(0, 1)
    os._exit(0)
signal.pause()
"""


def test_an_agent_that_is_killed_while_it_forks_does_not_hinder_the_next(tmp_path: Path) -> None:
    """Its child has all that it had, until it closes that; here it does so when the test says so."""
    command = [sys.executable, "-c", FORKS, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.read(1) == b"."
        first.kill()
        first.wait(DEADLINE)
        os.close(agent._lock(str(tmp_path)))


def test_a_file_of_another_boot_says_nothing(bench: Bench) -> None:
    async def test() -> None:
        await bench.start_agent()
        async with bench.client() as client:
            await client.add_mapped_directory(bench.mount("a"))
            await bench.end_agent()
            kept = (bench.state / "mounts.json").read_text()
            (bench.state / "mounts.json").write_text(kept.replace('"boot": "', '"boot": "another'))
            (bench.kernel / "mounts.json").unlink()
            await bench.start_agent()
            assert not await client.listed()

    bench.run(test)


def test_an_agent_that_cannot_note_a_mount_does_not_make_it(bench: Bench) -> None:
    async def test() -> None:
        await bench.start_agent()
        async with bench.client() as client:
            await client.reached()
            (bench.state / "mounts.json.new").mkdir()
            with pytest.raises(GuestAgentError, match="cannot be written"):
                await client.add_mapped_directory(bench.mount("a"))
            assert not bench.server.asked
            assert "a restarted agent will not know" in bench.log()

    bench.run(test)


# ---------------------------------------------------------------------- health


def test_a_read_that_hangs_or_fails_is_told_and_hangs_nothing(bench: Bench) -> None:
    async def hangs() -> bool:
        return (bench.kernel / "hanging").exists()

    async def test() -> None:
        await bench.start_agent()
        async with bench.client() as client:
            for name in ("dead", "denied", "hang", "well"):
                await client.add_mapped_directory(bench.mount(name))
                if name != "well":
                    bench.note(name, name)
            asked = asyncio.create_task(client.health(within=10))
            await bench.until(hangs)
            (bench.kernel / "later").write_text("11")
            await client.listed()  # it looks at its clock when something happens
            health = {os.path.basename(found.mount_path): found.status for found in await asked}
            assert health == {"dead": "dead", "denied": "failing", "hang": "slow", "well": "ok"}
            (bench.kernel / "mounts.json").unlink()
            assert {found.status for found in await client.health()} == {"missing"}
            report = await client.report()
            assert report.mounts
            assert report.allow[0].path == str(bench.allow)

    bench.run(test)


def test_a_mount_that_nobody_can_read_is_cut_and_mounted_again(bench: Bench) -> None:
    async def test() -> None:
        await bench.start_agent("--hung-after", "0.01", "--check-every", "0.05")
        async with bench.client() as client:
            await client.add_mapped_directory(bench.mount("a"))
            bench.note("hang", "a")
            await bench.server.until_asked(2)
            assert "cutting its connection" in bench.log()

    bench.run(test)


# ---------------------------------------------------------------------- starting


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("--listen", "nowhere"), 2, "want vsock:CID"),
        (("--nonsense",), 2, "--help has examples"),
        (("--allow", ""), 2, "want a directory as an absolute path"),
        (("--allow", "mnt"), 2, "want a directory as an absolute path"),
        (("--state", ""), 2, "want a directory as an absolute path"),
        (("--listen", "tcp:0.0.0.0:1"), 1, "whoever reaches tcp:0.0.0.0:1 could mount"),
        (("--listen", "tcp:host.example:1"), 1, "whoever reaches"),
        (("--listen", "unix:/nonexistent/socket"), 1, "cannot listen on unix:/nonexistent/socket: No such file"),
        (("--listen", "tcp:localhost:1", "--token-file", "/nonexistent"), 1, "the token cannot be read"),
        (("--token-file", "/dev/null"), 1, "/dev/null is empty"),
        (
            ("--allow", "/dev/null/x"),
            1,
            "'/dev/null' is there, and is no directory: give another directory with --allow",
        ),
    ],
)
def test_what_cannot_start_says_why_in_one_line(
    bench: Bench, arguments: tuple[str, ...], status: int, words: str
) -> None:
    async def test() -> None:
        process = await bench.spawn(*arguments, capture=True)
        _, said = await process.communicate()
        assert process.returncode == status, said
        assert words in said.decode()
        assert said.count(b"\n") == 1

    bench.run(test)


@pytest.mark.parametrize(
    ("owner", "mode", "words"),
    [
        (65534, 0o700, "is uid 65534's, who could say there what is mounted"),
        (0, 0o770, "can be written to by others (mode 770)"),
        (0, 0o1777, "can be written to by others (mode 1777)"),
    ],
)
def test_a_state_that_somebody_else_can_write_is_not_believed(bench: Bench, owner: int, mode: int, words: str) -> None:
    if owner:
        require_root("only root can give a directory away")

    async def test() -> None:
        bench.state.mkdir()
        if owner:
            os.chown(bench.state, owner, owner)
        bench.state.chmod(mode)
        process = await bench.spawn(capture=True)
        _, said = await process.communicate()
        assert process.returncode == 1, said
        assert words in said.decode()
        assert said.count(b"\n") == 1
        assert os.listdir(bench.state) == []

    bench.run(test)


def test_two_agents_do_not_share_a_state(bench: Bench) -> None:
    async def test() -> None:
        await bench.start_agent()
        async with bench.client() as client:
            await client.reached()
            second = await bench.spawn("--listen", f"unix:{bench.directory}/other", capture=True)
            _, said = await second.communicate()
            assert second.returncode == 1
            assert f"another agent (pid {bench.agents[0].pid}) has {bench.state}" in said.decode()

    bench.run(test)


def test_systemd_is_told_when_it_is_ready(bench: Bench) -> None:
    async def test() -> None:
        path = str(bench.directory / "notify")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.bind(path)
            await bench.start_agent(environment={"NOTIFY_SOCKET": path})
            assert await asyncio.to_thread(notify.recv, 64) == b"READY=1"

    bench.run(test)
