"""The agent inside a real guest: mounts that come and go, and come back by themselves.

The file with the agent is the one that `uvmshare guest agent --print` writes, run by the guest's Python without
anything of this project in reach. How long mounts took to come back is printed, and no test asks for it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest
from tests.guest.transports import VSOCK
from tests.processes import kill

from uvmshare import AddOptions, FileServer, Manager
from uvmshare.errors import MountBusy, MountConflict, MountRefused
from uvmshare.guest.bundle import bundle
from uvmshare.mounts import AgentClient, MountManager, MountOptions

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator
    from pathlib import Path
    from typing import TypeVar

    from tests.guest.transports import Transport

    from uvmshare.mounts.report import ListedMount

    T = TypeVar("T")

pytestmark = pytest.mark.guest

TOKEN = "a secret of this test"
DEADLINE = 120.0
"""Seconds until a test that hangs is ended. Nothing is measured with it."""


class Bench:
    """A guest with an agent, a file server, and the managers of both."""

    def __init__(self, runner: asyncio.Runner, transport: Transport, directory: Path) -> None:
        self.runner = runner
        self.transport = transport
        self.guest = transport.guest
        self.directory = directory
        self.file = directory / "uvmshare-guest"
        self.file.write_bytes(bundle())
        self.made = 0
        self.arguments = ""
        """Of each agent that is started."""

    def run(self, coroutine: Coroutine[object, object, T]) -> T:
        return self.runner.run(coroutine)

    def sh(self, command: str) -> str:
        return self.run(self.guest.check(command))

    async def start(self) -> None:
        self.server = await FileServer(listen=[self.transport.address()]).start()
        self.port = self.transport.port(self.server.addresses[0])
        self.shares = Manager(self.server)
        address = self.transport.address()
        self.agent = await AgentClient(
            address, accept=True, server_port=self.port, token=TOKEN, timeout=DEADLINE
        ).start()
        # Of TCP the system chose the port; the other addresses have theirs.
        self.dialled = self.transport.host(self.agent.port or self.transport.port(address))
        self.mounts = MountManager(self.agent, shares=self.shares)
        await self.start_agent()

    async def start_agent(self, more: str = "") -> None:
        """Start one, and return when it is reached: it, and not the one before it whose end was not heard of yet."""
        before = self.agent.info
        await self.guest.check(
            f"UVMSHARE_AGENT_TOKEN='{TOKEN}' python3 -I -S {self.file} agent --connect {self.dialled} "
            f"--server {self.transport.host()} --allow /run/mnt --state /run/agent --check-every 0.5 "
            f"{self.arguments} {more} >>/run/agent.log 2>&1 & echo $! >/run/agent.pid"
        )
        while await self.agent.reached(timeout=DEADLINE) is before:
            await self.agent._changed.wait()

    async def end_agent(self, how: str = "TERM") -> None:
        """End it, and return when the next one may start: what it had locked is free once it and its children ended."""
        await self.guest.check(f"kill -{how} $(cat /run/agent.pid); flock /run/agent/lock true")

    async def close(self) -> None:
        await self.mounts.aclose()
        await self.shares.aclose()
        await self.agent.aclose()
        await self.guest.run("kill $(cat /run/agent.pid); rm -r /run/agent /run/agent.log")
        await self.server.aclose()

    def share(self, *, read_only: bool = False) -> AddOptions:
        """Return a directory of its own with a file in it."""
        self.made += 1
        made = self.directory / f"share{self.made}"
        made.mkdir()
        (made / "f").write_text("text")
        return AddOptions(made, read_only=read_only)

    def listed(self, path: str) -> ListedMount:
        return next(found for found in self.run(self.agent.listed()) if found.mount_path == path)

    def until(self, holds: Callable[[], Awaitable[bool]]) -> None:
        """Wait until something holds; only the test's deadline ends that."""

        async def wait() -> None:
            while not await holds():  # noqa: ASYNC110  a guest has no event to wait for
                await asyncio.sleep(0.02)

        self.run(wait())

    def until_back(self, path: str, times: int) -> ListedMount:
        """Wait until the agent has mounted the path again so often."""

        async def back() -> bool:
            found = [found for found in await self.agent.listed() if found.mount_path == path]
            return bool(found) and found[0].again >= times and found[0].state == "mounted"

        self.until(back)
        return self.listed(path)


@pytest.fixture(scope="module")
def bench(runner: asyncio.Runner, transport: Transport, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = Bench(runner, transport, tmp_path_factory.mktemp("agent"))
    made.run(made.start())
    yield made
    made.run(made.close())


def tell(what: str, seconds: float | None) -> None:
    """Print a figure, and keep it where .cache/agent.json collects those of the last run."""
    assert seconds is not None
    print(f"{what}: {seconds:.3f} s")  # noqa: T201  the figures are what is of interest here
    path = os.path.join(os.path.dirname(__file__), "..", "..", ".cache", "agent.json")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    figures: dict[str, float] = {}
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            figures = json.load(file)
    figures[what] = round(seconds, 3)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(figures, file, indent=2, sort_keys=True)


def mount_processes(bench: Bench, name: str | None = None) -> list[int]:
    """Return the file server's mount processes: of one share, or of all."""
    shares = bench.run(bench.server.status()).shares
    return [mount.pid for share in shares if name in (None, share.name) for mount in share.mounts]


def cut(bench: Bench) -> None:
    """Kill the mount processes, and return when the file server has seen their end."""
    pids = mount_processes(bench)
    for pid in pids:
        kill(pid)

    async def seen() -> bool:
        shares = (await bench.server.status()).shares
        return not {mount.pid for share in shares for mount in share.mounts} & {*pids}

    bench.until(seen)


def sleep_in(directory: str) -> str:
    """Return a command that ends when sleep(1) works in a directory, and no more the shell that becomes it."""
    return (
        f"cd {directory} && (sleep 600 & echo $! >/run/sleep.pid) && "
        "until grep -qx sleep /proc/$(cat /run/sleep.pid)/comm; do :; done"
    )


def test_map_and_unmap_with_several_owners(bench: Bench) -> None:
    options = bench.share()
    began = time.monotonic()
    bench.run(bench.mounts.map(options, "/run/mnt/a/b", owner="first"))
    tell("share and mount", time.monotonic() - began)
    bench.run(bench.mounts.map(options, "/run/mnt/a/b", owner="second"))
    assert bench.sh("cat /run/mnt/a/b/f; grep -c /run/mnt/a/b /proc/mounts") == "text1\n"
    bench.run(bench.mounts.unmap("/run/mnt/a/b", owner="first"))
    assert bench.sh("cat /run/mnt/a/b/f") == "text"
    bench.run(bench.mounts.unmap("/run/mnt/a/b", owner="second"))
    assert not bench.shares.shares()
    assert bench.sh("grep -c /run/mnt /proc/mounts; ls /run/mnt") == "0\n", "what was made for it must be gone"


def test_options_reach_the_guest_and_another_form_is_refused(bench: Bench) -> None:
    options = bench.share()
    bench.run(bench.mounts.map(options, "/run/mnt/o", owner="a", read_only=True, cache="mmap", msize=16384))
    line = bench.sh("grep /run/mnt/o /proc/mounts")
    mmap = "cache=0x5" if bench.transport.newer else "mmap"  # how the kernels write it there
    for word in (" ro,", mmap, "msize=16384"):
        assert word in line
    with pytest.raises(MountConflict):
        bench.run(bench.mounts.map(options, "/run/mnt/o", owner="b"))
    bench.run(bench.mounts.unmap("/run/mnt/o", owner="a"))


def test_a_busy_mount_names_who_uses_it_and_goes_lazily(bench: Bench) -> None:
    bench.run(bench.mounts.map(bench.share(), "/run/mnt/busy", owner="a"))
    bench.sh(sleep_in("/run/mnt/busy"))
    with pytest.raises(MountBusy, match=r"in use by sleep \(pid [0-9]+, working directory\)"):
        bench.run(bench.mounts.unmap("/run/mnt/busy", owner="a"))
    assert len(bench.shares.shares()) == 1, "the share must not be pulled from under it"
    bench.run(bench.mounts.unmap("/run/mnt/busy", owner="a", lazy=True))
    assert not bench.shares.shares()
    bench.sh("kill $(cat /run/sleep.pid)")


@pytest.mark.parametrize(
    ("prepare", "path", "words"),
    [
        ("true", "/etc/x", "not below /run/mnt"),
        ("mkdir -p /run/mnt && ln -sfn /etc /run/mnt/link", "/run/mnt/link/x", "is a symlink"),
        ("ln -sfn /etc /run/mnt/link", "/run/mnt/link", "is a symlink"),
        ("touch /run/mnt/file", "/run/mnt/file", "not a directory"),
        (
            "mkdir -p /run/mnt/others && mount -t tmpfs others /run/mnt/others",
            "/run/mnt/others",
            "another mount, tmpfs",
        ),
    ],
)
def test_what_is_not_allowed_is_refused_and_leaves_nothing(bench: Bench, prepare: str, path: str, words: str) -> None:
    bench.sh(prepare)
    with pytest.raises(MountRefused, match=words):
        bench.run(bench.mounts.map(bench.share(), path))
    assert not bench.shares.shares()
    assert bench.sh("grep -c ' 9p .*trans=fd' /proc/mounts; ls /etc/x 2>&1 | grep -c 'No such'") == "0\n1\n"
    bench.run(bench.guest.run("umount /run/mnt/others; rm -r /run/mnt/*"))


def test_a_cut_connection_is_mounted_again_by_itself(bench: Bench) -> None:
    bench.run(bench.mounts.map(bench.share(), "/run/mnt/cut", owner="a"))
    for times in (1, 2):
        assert len(mount_processes(bench)) == 1
        cut(bench)
        found = bench.until_back("/run/mnt/cut", times)
        assert bench.sh("cat /run/mnt/cut/f; grep -c /run/mnt/cut /proc/mounts") == "text1\n"
    tell("a cut connection, until it is mounted again", found.last_gap)
    bench.run(bench.mounts.unmap("/run/mnt/cut", owner="a"))


@pytest.mark.transports("firecracker", over=VSOCK)  # TCP has keep-alives, and QEMU's user network forgets nothing
def test_those_who_wait_in_a_connection_that_the_host_forgot_come_back(bench: Bench) -> None:
    """As after a snapshot: nobody tells the guest, and it waits for an answer that never comes."""
    vsock = bench.guest.vsock
    assert vsock is not None
    name = bench.run(bench.mounts.map(bench.share(), "/run/mnt/forgot", owner="a")).share_name
    (stopped,) = mount_processes(bench, name)
    os.kill(stopped, signal.SIGSTOP)
    listing = "ls /run/mnt/forgot/ >/run/ls.log 2>&1 & echo $! >/run/ls.pid; wait $!; echo $? >/run/ls.status"
    bench.sh(f"rm -f /run/ls.*; ({listing}) &")
    bench.sh("until [ -s /run/ls.pid ] && grep -q p9 /proc/$(cat /run/ls.pid)/wchan; do :; done")
    before = bench.agent.info
    assert vsock.forget() >= 2, "the mount's connection and the agent's"
    os.kill(stopped, signal.SIGCONT)
    bench.until_back("/run/mnt/forgot", 1)
    assert bench.agent.info is not before
    bench.sh("until [ -s /run/ls.status ]; do sleep 0.1; done; grep -q '[1-9]' /run/ls.status")
    assert bench.run(bench.guest.run("grep 'said nothing' /run/agent.log")).status == 1, "it was found by a probe"
    assert bench.sh("cat /run/mnt/forgot/f") == "text"
    bench.run(bench.mounts.unmap("/run/mnt/forgot", owner="a"))


def test_an_agent_that_was_killed_finds_its_mounts_again(bench: Bench) -> None:
    bench.run(bench.mounts.map(bench.share(), "/run/mnt/kept", owner="a"))
    bench.run(bench.mounts.map(bench.share(), "/run/mnt/lost", owner="a"))
    bench.sh("exec 7</run/mnt/kept/f; (sleep 600 <&7 & echo $! >/run/sleep.pid)")
    bench.run(bench.end_agent("KILL"))
    began = time.monotonic()
    bench.run(bench.start_agent())
    tell("an agent that was killed, until it answers", time.monotonic() - began)
    assert {found.mount_path for found in bench.run(bench.agent.listed())} == {"/run/mnt/kept", "/run/mnt/lost"}
    assert bench.sh("cat /run/mnt/kept/f /run/mnt/lost/f; grep -c ' /run/mnt/' /proc/mounts") == "texttext2\n"
    # It has no socket of theirs any more, and finds a dead one by reading.
    cut(bench)
    gap = bench.until_back("/run/mnt/lost", 1).last_gap
    bench.until_back("/run/mnt/kept", 1)
    tell("the same, found by reading", gap)
    assert bench.sh("cat /run/mnt/kept/f /run/mnt/lost/f; kill $(cat /run/sleep.pid)") == "texttext"
    for path in ("/run/mnt/kept", "/run/mnt/lost"):
        bench.run(bench.mounts.unmap(path, owner="a"))


def test_a_mount_that_somebody_unmounted_is_mounted_again_when_the_host_settles(bench: Bench) -> None:
    bench.run(bench.mounts.map(bench.share(), "/run/mnt/gone", owner="a"))
    bench.sh("until umount /run/mnt/gone; do :; done")  # busy while the agent looks at it

    async def forgotten() -> bool:
        return not await bench.agent.listed()

    bench.until(forgotten)
    assert bench.run(bench.mounts.settle()) == ()

    async def there() -> bool:
        return (await bench.guest.run("cat /run/mnt/gone/f")).output == b"text"

    bench.until(there)
    bench.run(bench.mounts.unmap("/run/mnt/gone", owner="a"))


def test_a_mount_that_hangs_hangs_nothing_else(bench: Bench) -> None:
    name = bench.run(bench.mounts.map(bench.share(), "/run/mnt/hung", owner="a")).share_name
    bench.run(bench.mounts.map(bench.share(), "/run/mnt/well", owner="a"))
    (hung,) = mount_processes(bench, name)
    os.kill(hung, signal.SIGSTOP)
    try:
        health = {found.mount_path: found.status for found in bench.run(bench.agent.health(within=5))}
        assert health == {"/run/mnt/hung": "slow", "/run/mnt/well": "ok"}
        bench.run(bench.mounts.map(bench.share(), "/run/mnt/new", owner="a"))
        assert bench.sh("cat /run/mnt/new/f") == "text"
    finally:
        os.kill(hung, signal.SIGCONT)

    async def well() -> bool:
        return {found.status for found in await bench.agent.health()} == {"ok"}

    bench.until(well)
    for name in ("hung", "well", "new"):
        bench.run(bench.mounts.unmap(f"/run/mnt/{name}", owner="a"))


def test_a_hung_mount_is_cut_and_mounted_again_and_frees_those_who_wait_in_it(bench: Bench) -> None:
    bench.run(bench.end_agent())
    bench.run(bench.start_agent("--hung-after 1"))
    name = bench.run(bench.mounts.map(bench.share(), "/run/mnt/hung", owner="a")).share_name
    (hung,) = mount_processes(bench, name)
    os.kill(hung, signal.SIGSTOP)
    bench.sh("(ls /run/mnt/hung/ >/run/ls.log 2>&1; echo $? >/run/ls.status) & echo $! >/run/ls.pid")
    found = bench.until_back("/run/mnt/hung", 1)
    tell("a hung mount that was cut, until it is mounted again", found.last_gap)
    assert bench.sh("cat /run/mnt/hung/f") == "text"

    async def freed() -> bool:
        return (await bench.guest.run("grep -q '[1-9]' /run/ls.status")).status == 0

    bench.until(freed)
    os.kill(hung, signal.SIGKILL)
    bench.run(bench.mounts.unmap("/run/mnt/hung", owner="a"))


@pytest.mark.long
@pytest.mark.parametrize("read", [False, True], ids=["unread", "read"])
def test_a_hung_mount_can_be_unmounted(bench: Bench, monkeypatch: pytest.MonkeyPatch, *, read: bool) -> None:
    name = bench.run(bench.mounts.map(bench.share(), "/run/mnt/hung", owner="a")).share_name
    (hung,) = mount_processes(bench, name)
    os.kill(hung, signal.SIGSTOP)
    if read:  # the agent's own child hangs in it, and keeps it busy
        (health,) = bench.run(bench.agent.health(within=0.1))
        assert health.status == "slow"
    monkeypatch.setattr(bench.agent, "_timeout", 5.0)
    bench.run(bench.mounts.unmap("/run/mnt/hung", owner="a"))
    assert bench.sh("grep -c /run/mnt/hung /proc/mounts; true") == "0\n"
    assert not bench.shares.shares()


@pytest.mark.long
@pytest.mark.parametrize(("option", "first"), [("--peer-cid 1", b'{"uvmshare":"agent"'), ("", b"")])
@pytest.mark.transports("firecracker", over=("firecracker",))  # it has a road of its own
def test_on_vsock_the_host_alone_is_heard(bench: Bench, option: str, first: bytes) -> None:
    # The loopback of vsock has CID 1, and stands for a host only when it is told to.
    ask = (
        "import socket; s = socket.socket(socket.AF_VSOCK); s.connect((1, 5641)); "
        "print(s.recv(19).decode(), end='', flush=True)"
    )
    agent = f"python3 -I -S {bench.file} agent --state /run/vsock --allow /run/mnt {option}"
    bench.sh(f"({agent} >/run/vsock.log 2>&1 & echo $! >/run/vsock.pid)")
    try:
        bench.sh("until grep -q listening /run/vsock.log; do sleep 0.1; done")
        assert bench.run(bench.guest.run(f'python3 -I -S -c "{ask}"')).output == first
    finally:
        said = bench.sh("kill $(cat /run/vsock.pid); flock /run/vsock/lock true; cat /run/vsock.log; rm -r /run/vsock*")
    assert ("CID 1 is not the host's" in said) == (not first)


def test_the_agent_says_what_the_guest_can_do(bench: Bench) -> None:
    report = bench.run(bench.agent.report())
    assert report.kernel == bench.guest.release
    assert report.modules["9p"]
    assert report.modules["9pnet_fd"]
    assert report.root
    assert report.allow[0].path == "/run/mnt"


def test_an_agent_without_the_token_is_no_agent_of_ours(bench: Bench) -> None:
    with pytest.raises(MountRefused):
        bench.run(bench.mounts.mount(MountOptions("0", "/elsewhere")))
    second = bench.run(
        bench.guest.run(f"python3 -I -S {bench.file} agent --connect {bench.dialled} --state /run/agent")
    )
    assert second.status == 1
    assert "another agent (pid" in second.text
