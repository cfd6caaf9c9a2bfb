"""The agent and its client, with real processes and sockets, and a kernel that only notes down its mounts."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
from typing import TYPE_CHECKING, Any

import pytest

from uvmshare.errors import (
    AgentUnreachable,
    GuestAgentError,
    MountBusy,
    MountNotFound,
    MountRefused,
    OperationTimedOut,
    OutcomeUnknown,
)
from uvmshare.guest import wire
from uvmshare.mounts import AgentClient, MountManager, MountOptions, agent_client

if TYPE_CHECKING:
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
            (found,) = await client.health()
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


def test_a_mute_server_is_given_up_and_nothing_is_left(bench: Bench) -> None:
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
            await bench.start_agent()
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
    async def test() -> None:
        await bench.start_agent("--check-every", "600")
        async with bench.client() as client:
            for name in ("dead", "denied", "hang", "well"):
                await client.add_mapped_directory(bench.mount(name))
                if name != "well":
                    bench.note(name, name)
            health = {os.path.basename(found.mount_path): found.status for found in await client.health(within=0.3)}
            assert health == {"dead": "dead", "denied": "failing", "hang": "slow", "well": "ok"}
            (bench.kernel / "mounts.json").unlink()
            assert {found.status for found in await client.health()} == {"missing"}
            report = await client.report()
            assert report.mounts
            assert report.allow[0].path == str(bench.allow)

    bench.run(test)


def test_a_mount_that_nobody_can_read_is_cut_and_mounted_again(bench: Bench) -> None:
    async def test() -> None:
        await bench.start_agent("--hung-after", "0.01")
        async with bench.client() as client:
            await client.add_mapped_directory(bench.mount("a"))
            bench.note("hang", "a")
            await bench.server.until_asked(2)
            assert "cutting its connection" in bench.log()

    bench.run(test)


# ---------------------------------------------------------------------- the host's connection


def test_a_request_whose_answer_was_lost_is_sent_again(bench: Bench) -> None:
    async def test() -> None:
        await bench.start_agent()
        dropped: list[bytes] = []

        async def between(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            """Hand on what comes, but hang up instead of handing on the first answer to a modify request."""
            agent = await bench.raw()

            async def up() -> None:
                while line := await reader.readline():
                    agent.writer.write(line)
                agent.writer.close()

            upwards = asyncio.create_task(up())
            while line := await agent.reader.readline():
                if b'"result":{}' in line and not dropped:
                    dropped.append(line)
                    break
                writer.write(line)
            writer.close()
            await upwards

        path = str(bench.directory / "between")
        server = await asyncio.start_unix_server(between, path)
        async with AgentClient(f"unix:{path}") as client:
            await client.add_mapped_directory(bench.mount("a"))
            assert dropped
            assert bench.server.asked == ["0"], "it was asked twice and did it once"
        server.close()

    bench.run(test)


def test_a_newer_connection_ends_the_older_one_and_what_that_had_not_begun(bench: Bench) -> None:
    async def test() -> None:
        bench.server.answers["0"] = None
        await bench.start_agent()
        first = await bench.raw()
        await first.greet("me")
        settings = {"MountPath": f"{bench.allow}/a", "Port": 1, "ShareName": "0"}
        request = {"RequestType": "Add", "ResourceType": "MappedDirectory", "Settings": settings}
        first.writer.write(wire.encode({"id": 1, "op": "modify", "request": request, "timeout": 0.5}))
        await bench.server.until_asked(1)
        settings["ShareName"] = "1"
        first.writer.write(wire.encode({"id": 2, "op": "modify", "request": request}))
        assert (await first.ask(id=3, op="ping"))["id"] == 3
        second = await bench.raw()
        await second.greet("me")
        with pytest.raises(EOFError):
            await first.next()
        settings["ShareName"] = "2"
        answer = await second.ask(id=1, op="modify", request=request)
        assert answer["ok"]
        assert bench.server.asked == ["0", "2"]
        for raw in (first, second):
            raw.writer.close()

    bench.run(test)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"op": "dance"}, "no request 'dance'"),
        ({"request": 7}, "needs a request document"),
        ({"options": 7}, "needs a request document"),
        ({"timeout": 0}, "above 0"),
        ({"timeout": "long"}, "above 0"),
        ({"request": {"ResourceType": "NetworkAdapter"}}, "want MappedDirectory"),
        ({"request": {"ResourceType": "MappedDirectory"}}, "needs Settings"),
        ({"RequestType": "Update"}, "want Add or Remove"),
        ({"ShareName": "x"}, "decimal name"),
        ({"ShareName": "1,uname=x"}, "decimal name"),
        ({"Port": 0}, "the port of the file server"),
        ({"ReadOnly": 1}, "true or false"),
        ({"MountPath": "x"}, "absolute path"),
        ({"MountPath": "/mnt/../etc"}, "write it plainly"),
        ({"MountPath": 7}, "absolute path"),
        ({"MountPath": "/etc/x"}, "is not below"),
        ({"cache": 7}, "a word and a number"),
        ({"cache": "all"}, "none, loose, mmap, readahead"),
        ({"msize": 1}, "4096 to"),
    ],
)
def test_a_request_that_cannot_be_is_one_clear_line(bench: Bench, change: dict[str, Any], words: str) -> None:
    async def test() -> None:
        await bench.start_agent()
        raw = await bench.raw()
        await raw.greet("me")
        settings: dict[str, Any] = {"MountPath": f"{bench.allow}/a", "Port": 1, "ShareName": "0"}
        request: dict[str, Any] = {"RequestType": "Add", "ResourceType": "MappedDirectory", "Settings": settings}
        message: dict[str, Any] = {"id": 1, "op": "modify", "request": request, "options": {}}
        for name, value in change.items():
            parts = {"RequestType": request, "cache": message["options"], "msize": message["options"]}
            place = message if name in ("op", "request", "options", "timeout") else parts.get(name, settings)
            place[name] = value
        answer = await raw.ask(**message)
        assert not answer["ok"]
        assert words in answer["error"]["message"]
        assert "\n" not in answer["error"]["message"]
        assert not bench.server.asked
        raw.writer.close()

    bench.run(test)


@pytest.mark.parametrize(
    "sent",
    [
        b"no JSON\n",
        b"7\n",
        b'{"op":"ping"}\n',
        b'{"id":1,"op":"ping"}\n',  # before hello
        b"[" * 100_000 + b"\n",
        b"x" * (wire.MAX_LINE + 1),
        b"x" * wire.MAX_LINE + b"\n",
    ],
)
def test_what_is_not_of_the_protocol_ends_the_connection_and_nothing_else(bench: Bench, sent: bytes) -> None:
    async def test() -> None:
        await bench.start_agent()
        raw = await bench.raw()
        await raw.next()
        raw.writer.write(sent)
        with pytest.raises((EOFError, ConnectionError)):
            await raw.next()
        raw.writer.close()
        async with bench.client() as client:
            assert await client.listed() == ()

    bench.run(test)


@pytest.mark.parametrize(
    ("hello", "words"),
    [
        ({"version": 9}, "speaks version 1"),
        ({"client": ""}, "needs a client"),
        ({"nonce": 7}, "needs a client and a nonce"),
    ],
)
def test_a_hello_that_cannot_be_is_refused(bench: Bench, hello: dict[str, object], words: str) -> None:
    async def test() -> None:
        await bench.start_agent()
        raw = await bench.raw()
        await raw.next()
        answer = await raw.ask(**{"id": 0, "op": "hello", "version": 1, "client": "me", "nonce": "n", **hello})
        assert words in answer["error"]["message"]
        with pytest.raises(EOFError):
            await raw.next()
        raw.writer.close()

    bench.run(test)


def test_a_token_is_proven_by_both(bench: Bench) -> None:
    async def test() -> None:
        (bench.directory / "token").write_text("secret\n")
        await bench.start_agent("--token-file", str(bench.directory / "token"))
        async with bench.client(token="secret") as client:
            assert (await client.reached()).token
        for token, words in ((None, "asks for a token"), ("wrong", "is not this agent's")):
            async with bench.client(token=token) as client:
                with pytest.raises(AgentUnreachable, match=words):
                    await client.listed()
        await bench.end_agent()
        await bench.start_agent(environment={"UVMSHARE_AGENT_TOKEN": ""})
        async with bench.client(token="secret") as client:
            with pytest.raises(AgentUnreachable, match="started without a token"):
                await client.reached()

    bench.run(test)


@pytest.mark.parametrize(
    ("greeting", "words"),
    [
        ({"uvmshare": "other"}, "not an agent's greeting"),
        ({"version": 2}, "version 2 of the protocol"),
        ({"boot": 7}, "Expected `str`"),
        ({"token": True}, "did not prove"),
    ],
)
def test_what_is_no_agent_of_ours_is_not_trusted(bench: Bench, greeting: dict[str, object], words: str) -> None:
    async def test() -> None:
        async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            first = {"uvmshare": "agent", "version": 1, "agent": "x", "boot": "x", "nonce": "x"}
            writer.write(wire.encode({**first, **greeting}))
            await reader.readline()
            writer.write(wire.encode({"id": 0, "ok": True, "result": {"proof": "made up"}}))
            await reader.read()
            writer.close()

        server = await asyncio.start_unix_server(pretend, bench.socket)
        async with bench.client(token="secret" if "token" in greeting else None) as client:
            with pytest.raises(AgentUnreachable, match=words):
                await client.reached(timeout=0.3)
        server.close()

    bench.run(test)


def test_an_agent_that_cannot_be_reached_was_sent_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_client, "_GRACE", 0.05)

    async def test() -> None:
        client = bench.client(timeout=0.05)
        with pytest.raises(AgentUnreachable, match="not open"):
            await client.listed()
        async with client:
            assert client.info is None
            with pytest.raises(AgentUnreachable, match="is 'uvmshare guest agent' running"):
                await client.add_mapped_directory(bench.mount("a"))
        with pytest.raises(AgentUnreachable, match="not open"):
            await client.listed()

    bench.run(test)


def test_an_agent_that_does_not_answer_leaves_the_outcome_unknown(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_client, "_GRACE", 0.05)

    async def test() -> None:
        await bench.start_agent()
        async with bench.client(timeout=0.1) as client:
            await client.reached(timeout=20)
            bench.agents[0].send_signal(signal.SIGSTOP)
            with pytest.raises(OperationTimedOut, match=r"no answer to modify within 0\.15 s"):
                await client.add_mapped_directory(bench.mount("a"))
            bench.agents[0].send_signal(signal.SIGCONT)

    bench.run(test)


def test_a_client_that_is_closed_while_it_waits_leaves_the_outcome_unknown(bench: Bench) -> None:
    async def test() -> None:
        bench.server.answers["0"] = None
        await bench.start_agent()
        client = await bench.client().start()
        adding = asyncio.create_task(client.add_mapped_directory(bench.mount("a")))
        await bench.server.until_asked(1)
        await client.aclose()
        with pytest.raises(OutcomeUnknown, match="could then not be reached"):
            await adding

    bench.run(test)


def test_an_agent_that_says_nothing_any_more_is_dialled_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_client, "_SILENCE", 0.05)

    async def test() -> None:
        await bench.start_agent()
        async with bench.client() as client:
            reached = asyncio.Queue[None]()
            client.on_connect(lambda: reached.put_nowait(None))
            await reached.get()
            client.on_connect(lambda: None)
            bench.agents[0].send_signal(signal.SIGSTOP)

            async def lost() -> bool:
                return client.info is None

            await bench.until(lost)
            bench.agents[0].send_signal(signal.SIGCONT)
            await reached.get()
            assert await client.listed() == ()

    bench.run(test)


def test_an_answer_that_cannot_be_read_is_an_error(bench: Bench) -> None:
    async def test() -> None:
        async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            first = {"uvmshare": "agent", "version": 1, "agent": "x", "boot": "x"}
            writer.write(wire.encode(first))
            await reader.readline()
            writer.write(wire.encode({"id": 0, "ok": True, "result": {}}))
            for answer in ({"ok": True, "result": 7}, {"ok": False, "error": "no"}, {"ok": True}):
                await reader.readline()
                writer.write(wire.encode({"id": 99, "ok": True}) + wire.encode({"id": 1, **answer}))
                writer.write(wire.encode({"id": 2, **answer}))
            await reader.read()
            writer.close()

        server = await asyncio.start_unix_server(pretend, bench.socket)
        async with bench.client() as client:
            with pytest.raises(Exception, match="cannot be read"):
                await client.listed()
            with pytest.raises(GuestAgentError, match="no"):
                await client.listed()
        server.close()

    bench.run(test)


# ---------------------------------------------------------------------- addresses


@pytest.mark.parametrize("answer", [b"OK 1073741824\n", b"", b"no\n"])
def test_hybrid_vsock_is_asked_for_the_port(bench: Bench, answer: bytes) -> None:
    async def test() -> None:
        await bench.start_agent()
        asked: list[bytes] = []

        async def vmm(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.append(await reader.readline())
            writer.write(answer)
            if not answer.startswith(b"OK"):
                writer.close()
                return
            agent = await bench.raw()

            async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
                while data := await source.read(65536):
                    target.write(data)
                target.close()

            await asyncio.gather(pump(reader, agent.writer), pump(agent.reader, writer))

        path = str(bench.directory / "v.sock")
        server = await asyncio.start_unix_server(vmm, path)
        async with AgentClient(f"firecracker:{path}") as client:
            if answer.startswith(b"OK"):
                assert await client.listed() == ()
            else:
                with pytest.raises(AgentUnreachable, match="nothing in the guest listens on port 5641"):
                    await client.reached(timeout=0.3)
        assert asked[0] == b"CONNECT 5641\n"
        server.close()

    bench.run(test)


def test_over_tcp(bench: Bench) -> None:
    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        await bench.start_agent("--listen", f"tcp:127.0.0.1:{port}")
        async with AgentClient(f"tcp:127.0.0.1:{port}") as client:
            assert await client.listed() == ()
            assert client.port == port

    bench.run(test)


@pytest.mark.parametrize("kind", ["unix", "tcp", "firecracker"])
def test_an_agent_that_dials_out_dials_again(bench: Bench, kind: str) -> None:
    async def test() -> None:
        path = f"{bench.directory}/host"
        address = {"unix": f"unix:{path}", "tcp": "tcp:127.0.0.1:0", "firecracker": f"firecracker:{path}:9"}[kind]
        async with AgentClient(address, accept=True) as client:
            with pytest.raises(AgentUnreachable, match="has not dialled yet"):
                await client.reached(timeout=0.01)
            dialled = {"unix": f"unix:{path}", "tcp": f"tcp:127.0.0.1:{client.port}", "firecracker": f"unix:{path}_9"}
            await bench.start_agent("--connect", dialled[kind])
            await client.add_mapped_directory(bench.mount("a"))
            await bench.end_agent(signal.SIGKILL)
            await bench.start_agent("--connect", dialled[kind])
            assert await client.mapped_directories() == (bench.mount("a"),)
        if kind == "unix":
            assert "host" not in os.listdir(bench.directory)
            async with AgentClient(address, accept=True) as client:  # it goes on dialling
                assert await client.mapped_directories() == (bench.mount("a"),)

    bench.run(test)


def test_the_newest_that_dials_counts(bench: Bench) -> None:
    async def test() -> None:
        path = f"{bench.directory}/host"
        async with AgentClient(f"unix:{path}", accept=True) as client:
            mute = [await bench.raw(path) for _ in range(3)]
            for raw in mute[:2]:
                raw.writer.close()
            await bench.start_agent("--connect", f"unix:{path}")
            mute[2].writer.close()
            assert await client.listed() == ()

    bench.run(test)


# ---------------------------------------------------------------------- starting


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("--listen", "nowhere"), 2, "want vsock:CID"),
        (("--nonsense",), 2, "--help has examples"),
        (("--listen", "tcp:0.0.0.0:1"), 1, "whoever reaches tcp:0.0.0.0:1 could mount"),
        (("--listen", "tcp:host.example:1"), 1, "whoever reaches"),
        (("--listen", "unix:/nonexistent/socket"), 1, "cannot listen on unix:/nonexistent/socket: No such file"),
        (("--listen", "tcp:localhost:1", "--token-file", "/nonexistent"), 1, "the token cannot be read"),
        (("--token-file", "/dev/null"), 1, "/dev/null is empty"),
        (("--allow", "/dev/null/x"), 1, "/dev/null/x: Not a directory"),
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
