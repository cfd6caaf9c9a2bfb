"""How an agent is reached: hybrid vsock, TCP, and an agent that dials the host."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from typing import TYPE_CHECKING

import pytest
from tests.agent.conftest import serving

from uvmshare.address import parse
from uvmshare.errors import AgentUnreachable
from uvmshare.mounts.channel import Acceptor

if TYPE_CHECKING:
    from tests.agent.conftest import Bench


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
        async with serving(vmm, path), bench.client(f"firecracker:{path}") as client:
            if answer.startswith(b"OK"):
                assert await client.listed() == ()
            else:
                await bench.until_it_failed(client)
                with pytest.raises(AgentUnreachable, match="nothing in the guest listens on port 5641"):
                    await client.reached(timeout=0.01)
        assert asked[0] == b"CONNECT 5641\n"

    bench.run(test)


def test_over_tcp(bench: Bench) -> None:
    async def test() -> None:
        # Its being bound keeps the port from all others; the agent may have it, since nobody listens on it (socket(7)).
        with socket.socket() as keeping:
            keeping.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            keeping.bind(("127.0.0.1", 0))
            port = keeping.getsockname()[1]
            await bench.start_agent("--listen", f"tcp:127.0.0.1:{port}")
            async with bench.client(f"tcp:127.0.0.1:{port}") as client:
                assert await client.listed() == ()
                assert client.port == port

    bench.run(test)


@pytest.mark.parametrize("kind", ["unix", "tcp", "firecracker"])
def test_an_agent_that_dials_out_dials_again(bench: Bench, kind: str) -> None:
    async def test() -> None:
        path = f"{bench.directory}/host"
        address = {"unix": f"unix:{path}", "tcp": "tcp:127.0.0.1:0", "firecracker": f"firecracker:{path}:9"}[kind]
        async with bench.client(address, accept=True) as client:
            with pytest.raises(AgentUnreachable, match="has not dialled yet"):
                await client.reached(timeout=0.01)
            dialled = {"unix": f"unix:{path}", "tcp": f"tcp:127.0.0.1:{client.port}", "firecracker": f"unix:{path}_9"}
            if kind != "tcp":
                assert str(client.address.with_port(client.port)) == address
            await bench.start_agent("--connect", dialled[kind])
            await client.add_mapped_directory(bench.mount("a"))
            await bench.end_agent(signal.SIGKILL)
            await bench.start_agent("--connect", dialled[kind])
            assert await client.mapped_directories() == (bench.mount("a"),)
        if kind == "unix":
            assert "host" not in os.listdir(bench.directory)
            async with bench.client(address, accept=True) as client:  # it goes on dialling
                assert await client.mapped_directories() == (bench.mount("a"),)

    bench.run(test)


def test_whoever_dials_in_the_moment_of_the_end_is_hung_up_on(bench: Bench) -> None:
    async def test() -> None:
        acceptor = await Acceptor.start(parse(f"unix:{bench.directory}/host"), None)
        ours, theirs = socket.socketpair()
        await acceptor.aclose()
        await acceptor._take(theirs)  # which the loop does a moment after it took the connection
        reader, writer = await asyncio.open_connection(sock=ours)
        assert await reader.read() == b""
        writer.close()

    bench.run(test)


def test_the_newest_that_dials_counts(bench: Bench) -> None:
    async def test() -> None:
        path = f"{bench.directory}/host"
        async with bench.client(f"unix:{path}", accept=True) as client:
            mute = [await bench.raw(path) for _ in range(3)]
            for raw in mute[:2]:
                raw.writer.close()
            await bench.start_agent("--connect", f"unix:{path}")
            mute[2].writer.close()
            assert await client.listed() == ()

    bench.run(test)
