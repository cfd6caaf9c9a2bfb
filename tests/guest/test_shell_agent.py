"""The agent for guests without Python, in a guest that has nothing but busybox."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import pytest
from tests.guest.test_agent import DEADLINE, sleep_in

from uvmshare import AddOptions, FileServer, Manager
from uvmshare.errors import GuestAgentError, MountBusy, MountRefused
from uvmshare.guest import mount as beside
from uvmshare.mounts import AgentClient, MountManager, MountOptions
from uvmshare.testing.guest_vm import HOST, GuestVM

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.guest

SCRIPT = os.path.join(os.path.dirname(beside.__file__), "agent.sh")


async def read_script() -> bytes:
    def read() -> bytes:
        with open(SCRIPT, "rb") as file:
            return file.read()

    return await asyncio.to_thread(read)


@pytest.mark.long
def test_a_guest_with_busybox_alone_is_mapped_into(tmp_path: Path) -> None:
    """One test, because each needs the same guest and all of it takes a second once that is up."""

    async def test() -> None:
        (tmp_path / "f").write_text("text")
        options = AddOptions(tmp_path)
        server = await FileServer(listen=["tcp:127.0.0.1:0"]).start()
        port = int(server.addresses[0].rpartition(":")[2])
        async with (
            await GuestVM.start() as guest,
            AgentClient("tcp:127.0.0.1:0", accept=True, server_port=port, token="secret", timeout=DEADLINE) as client,
            Manager(server) as shares,
            MountManager(client, shares=shares) as mounts,
        ):
            await guest.write_file("/run/agent.sh", await read_script())
            start = (
                f"UVMSHARE_AGENT_TOKEN=secret sh /run/agent.sh --connect {HOST}:{client.port} --server {HOST} "
                f"--allow /run/mnt --check-every 0.2 >/run/agent.log 2>&1 & echo $! >/run/agent.pid"
            )
            await guest.check(start)
            assert (await client.reached(timeout=DEADLINE)).release == "shell"

            await mounts.map(options, "/run/mnt/a/b", owner="x")
            await mounts.map(options, "/run/mnt/a/b", owner="y")
            assert await guest.check("cat /run/mnt/a/b/f; grep -c ' 9p ' /proc/mounts") == "text1\n"
            (found,) = await client.mapped_directories()
            assert (found.mount_path, found.share_name) == ("/run/mnt/a/b", "0")
            assert [health.status for health in await client.health(within=DEADLINE)] == ["ok"]

            await guest.check(sleep_in("/run/mnt/a/b"))
            await mounts.unmap("/run/mnt/a/b", owner="x")
            with pytest.raises(MountBusy, match=r"in use: sleep \(pid [0-9]+\)"):
                await mounts.unmap("/run/mnt/a/b", owner="y")
            await guest.check("kill $(cat /run/sleep.pid); while readlink /proc/$(cat /run/sleep.pid)/cwd; do :; done")

            # A lost connection comes back by itself.
            (share,) = (await server.status()).shares
            os.kill(share.mounts[0].pid, signal.SIGKILL)
            while (await client.listed())[0].again == 0:  # noqa: ASYNC110  a guest has no event to wait for
                await asyncio.sleep(0.05)
            assert await guest.check("cat /run/mnt/a/b/f; grep -c ' 9p ' /proc/mounts") == "text1\n"

            await mounts.unmap("/run/mnt/a/b", owner="y")
            assert await guest.check("grep -c ' 9p ' /proc/mounts; ls /run/mnt") == "0\n"
            assert not shares.shares()

            await guest.check("ln -s /etc /run/mnt/link")
            for path, words in (("/etc/x", "not below /run/mnt"), ("/run/mnt/link/x", "is a symlink")):
                with pytest.raises(MountRefused, match=words):
                    await mounts.map(options, path)
            with pytest.raises(GuestAgentError, match="plain characters"):
                await mounts.map(options, "/run/mnt/a b")
            with pytest.raises(GuestAgentError, match="cannot mount share 77"):
                await mounts.mount(MountOptions("77", "/run/mnt/none"))
            listening = "sh /run/agent.sh --listen 5641 --no-token --allow /run/mnt --state /run/other >/run/log 2>&1 &"
            hello = r'{"id":0,"op":"hello","version":1,"client":"c"}\n{"id":1,"op":"dance"}\n'
            until = "until grep -q :1609 /proc/net/tcp*; do :; done"  # 5641 in hexadecimal
            said = await guest.check(f"{listening} {until}; printf '{hello}' | nc 127.0.0.1 5641")
            assert said.splitlines()[1] == '{"id":0,"ok":true,"result":{"proof":""}}'
            assert "there is no request dance" in said.splitlines()[2]
            report = await client.report()
            assert report.release == "shell"
            assert report.modules["9p"]
        await server.aclose()

    asyncio.run(test())
