"""What events cost, row by row: how late they are, a large checkout, how soon directories are watched, and idling.

    make bench-events BENCH_ARGS="--json --quick latency"

What lives here: the rows, and how each is measured. What must not: what runs in the guest (`events_guest`). One real
guest over TCP, with an agent as users start it. Times are the host's: what the guest hears it sends back at once, and
the way back is in the figure, and measured beside it. CPU times are utime and stime of the processes, children that
ended included: of the mount process, and of the agent and its children in the guest.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from benchmarks import events_guest
from benchmarks.rows import command_line, read, tell
from uvmshare import AddOptions, FileServer, Manager
from uvmshare.fileserver.counters import Events
from uvmshare.guest.bundle import bundle
from uvmshare.mounts import AgentClient, MountManager
from uvmshare.testing.guest_vm import HOST, GuestVM
from uvmshare.testing.kernel import find_kernel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

Row = dict[str, Any]

ROWS: Final = ("latency", "checkout", "watched", "idle")
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_DEADLINE: Final = 600.0
_QUIET: Final = 20.0
"""Seconds without an event after which no more is waited for."""
_LOOK: Final = 0.02
"""Seconds between two questions how many directories are watched."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much there is to do; a try of the script does less."""

    saves: int = 100
    files: int = 10_000
    directories: tuple[int, ...] = (100, 500, 2_000)
    idle_seconds: float = 20.0


QUICK: Final = Sizes(10, 300, (20,), 2.0)


class Stage:
    """A guest with an agent, and a file server for it; `directory` is a scratch one of the host's."""

    def __init__(
        self, guest: GuestVM, server: FileServer, shares: Manager, agent: AgentClient, directory: Path
    ) -> None:
        """For `staged`."""
        self.guest = guest
        self.server = server
        self.shares = shares
        self.agent = agent
        self.mounts = MountManager(agent, shares=shares)
        self.directory = directory
        self._made = 0

    def make(self, directories: int) -> Path:
        """Return a new directory with so many below it, a hundred at most in each."""
        self._made += 1
        top = self.directory / f"share{self._made}"
        for number in range(directories):
            (top / f"p{number // 100}" / f"d{number % 100}").mkdir(parents=True)
        return top

    @asynccontextmanager
    async def mapped(self, top: Path, *, events: bool = True) -> AsyncIterator[str]:
        """Map a directory while the block lasts, and give its path in the guest."""
        path = f"/run/mnt/{top.name}"
        await self.mounts.map(AddOptions(top), path, owner="bench", events=events)
        try:
            (info,) = [each for each in self.mounts.mounts() if each.mount_path == path]
            if info.no_events:
                sys.exit(f"no events in this guest: {info.no_events}")
            yield path
        finally:
            await self.mounts.unmap(path, owner="bench", lazy=True)  # whatever the agent itself is at there

    async def pinned(self, path: str) -> int:
        """Return how many directories of a mount the agent holds."""
        (found,) = [each for each in await self.agent.listed() if each.mount_path == path]
        return 0 if found.pins is None else found.pins.directories

    async def until_pinned(self, path: str, directories: int) -> None:
        """Wait until so many are held."""
        async with asyncio.timeout(_DEADLINE):
            while await self.pinned(path) < directories:  # noqa: ASYNC110  an agent tells when it is asked
                await asyncio.sleep(_LOOK)

    async def server_cpu(self) -> float:
        """Return the CPU seconds of the mount processes so far."""
        shares = (await self.server.status()).shares
        return sum(_seconds(_stat(_read(f"/proc/{each.pid}/stat"))) for share in shares for each in share.mounts)

    async def agent_cpu(self) -> float:
        """Return the CPU seconds of the agent in the guest, and of all below it, so far."""
        text = await self.guest.check("cat /run/agent.pid; cat /proc/[0-9]*/stat 2>/dev/null; true")
        first, *lines = text.splitlines()
        stats = [_stat(line) for line in lines]
        family = {int(first)}
        for each in sorted(stats, key=lambda each: each[0]):
            if each[1] in family:
                family.add(each[0])
        return sum(_seconds(each) for each in stats if each[0] in family)

    async def counted(self) -> Events:
        """Return what the file server counted for events, of the mounts that there are."""
        shares = (await self.server.status(counters=True)).shares
        return Events.of([each.counted for share in shares for each in share.mounts if each.counted is not None])


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read()


def _stat(line: str) -> tuple[int, int, int]:
    """Read /proc/PID/stat: the process, its parent, and the ticks of it and its children that ended."""
    fields = line.rpartition(") ")[2].split()
    return int(line.split(" ", 1)[0]), int(fields[1]), sum(map(int, fields[11:15]))


def _seconds(stat: tuple[int, int, int]) -> float:
    return stat[2] / _TICKS


@asynccontextmanager
async def staged(kernel: str, say: Callable[[str], None]) -> AsyncIterator[Stage]:
    """Boot a guest, and start what it needs."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp")))
        os.chmod(directory, 0o755)  # noqa: S103  the guest's users go in
        guest = await stack.enter_async_context(
            await GuestVM.start(root="host", kernel=find_kernel(kernel), memory_mib=768, progress=say)
        )
        server = await stack.enter_async_context(FileServer(listen=["tcp:127.0.0.1:0"]))
        shares = await stack.enter_async_context(Manager(server))
        port = int(server.addresses[0].rpartition(":")[2])
        agent = AgentClient("tcp:127.0.0.1:0", accept=True, server_port=port, token="bench", timeout=_DEADLINE)  # noqa: S106  nobody's secret
        stack.push_async_callback(agent.aclose)
        await agent.start()
        program = directory / "uvmshare-guest"
        program.write_bytes(bundle())
        say("starting the agent")
        ways = f"--connect tcp:{HOST}:{agent.port} --server tcp:{HOST} --allow /run/mnt --state /run/agent"
        await guest.check(
            f"mkdir -p /run/mnt; UVMSHARE_AGENT_TOKEN=bench python3 -I -S {program} agent {ways} "
            ">/run/agent.log 2>&1 & echo $! >/run/agent.pid"
        )
        await agent.reached(timeout=_DEADLINE)
        made = Stage(guest, server, shares, agent, directory)
        stack.push_async_callback(made.mounts.aclose)
        yield made


class Listener:
    """What a program of the guest hears."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """For `listening`."""
        self._reader = reader
        self._writer = writer

    async def line(self, within: float = _DEADLINE) -> tuple[str, str]:
        """Return the next line: two words. Raises `TimeoutError` when there is none in time, `EOFError` at the end."""
        async with asyncio.timeout(within):
            said = await self._reader.readline()
        if not said:
            msg = "what listens in the guest has ended"
            raise EOFError(msg)
        what, _, name = said.decode().rstrip("\n").partition(" ")
        return what, name

    async def until(self, name: str) -> None:
        """Wait for the first event of a name."""
        while (await self.line())[1] != name:
            pass

    async def quiet(self) -> None:
        """Pass over what comes, until nothing has come for a moment."""
        try:
            while True:
                await self.line(within=0.1 + random.random() / 10)  # noqa: S311  so that no period of the server's is met
        except TimeoutError:
            pass

    def close(self) -> None:
        """Hear no more."""
        self._writer.close()

    async def echo(self) -> float:
        """Return how long a word takes to the guest and back, in seconds."""
        begun = time.perf_counter()
        self._writer.write(b"echo -\n")
        while (await self.line())[0] != "echo":
            pass
        return time.perf_counter() - begun


@asynccontextmanager
async def listening(stage: Stage, path: str) -> AsyncIterator[tuple[Listener, int]]:
    """Listen in the guest to all directories below a path while the block lasts; gives how many there are, too."""
    came: asyncio.Queue[Listener] = asyncio.Queue()

    def met(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.put_nowait(Listener(reader, writer))

    server = await asyncio.start_server(met, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    program = f"python3 -I -S {events_guest.__file__} {HOST} {port} {path}"
    await stage.guest.check(f"{program} >/run/listener.log 2>&1 & echo $! >/run/listener.pid")
    listener = None
    try:
        async with asyncio.timeout(_DEADLINE):
            listener = await came.get()
        yield listener, int((await listener.line())[1])
    finally:
        await stage.guest.run("kill $(cat /run/listener.pid)")
        server.close()
        if listener is not None:
            listener.close()


async def measure_latency(stage: Stage, sizes: Sizes) -> Row:
    """Return how long after a save on the host a program of the guest hears of it, in milliseconds."""
    top = stage.make(10)
    file = top / "p0" / "d3" / "saved"
    file.write_text("before")
    took = []
    async with stage.mapped(top) as path:
        await stage.until_pinned(path, 12)
        async with listening(stage, path) as (listener, _):
            echoes = [await listener.echo() for _ in range(20)]
            for number in range(sizes.saves):
                await listener.quiet()
                begun = time.perf_counter()
                file.write_text(str(number))
                await listener.until("p0/d3/saved")
                took.append(1000 * (time.perf_counter() - begun))
    took.sort()
    return {
        "median_ms": round(statistics.median(took), 1),
        "p95_ms": round(took[int(0.95 * (len(took) - 1))], 1),
        "longest_ms": round(took[-1], 1),
        "n": len(took),
        "way_to_the_guest_and_back_ms": round(1000 * statistics.median(echoes), 1),
    }


def _git(repository: Path, top: Path, *words: str) -> None:
    git = ("git", "-c", "user.name=x", "-c", "user.email=x@localhost", f"--git-dir={repository}", f"--work-tree={top}")
    subprocess.run([*git, *words], check=True, stdout=subprocess.DEVNULL)


def _write_files(top: Path, files: int, text: str) -> list[str]:
    names = [f"p0/d{number % 100}/file{number}.txt" for number in range(files)]
    for name in names:
        (top / name).write_text(f"{text} {name}\n" * 5, encoding="ascii")
    return names


async def measure_checkout(stage: Stage, sizes: Sizes) -> Row:
    """Return what becomes of a checkout that replaces all files of a watched tree."""
    top, repository = stage.make(100), stage.directory / "repository"

    def prepare() -> list[str]:
        _git(repository, top, "init", "-q", "-b", "one")
        _write_files(top, sizes.files, "one")
        _git(repository, top, "add", "-A")
        _git(repository, top, "commit", "-q", "-m", "one")
        _git(repository, top, "checkout", "-q", "-b", "two")
        names = _write_files(top, sizes.files, "two")
        _git(repository, top, "commit", "-q", "-a", "-m", "two")
        return names

    left = set(await asyncio.to_thread(prepare))
    events, overflows, late = 0, 0, False
    async with stage.mapped(top) as path:
        await stage.until_pinned(path, 102)
        async with listening(stage, path) as (listener, _):
            await listener.quiet()
            before, server_cpu, agent_cpu = await stage.counted(), await stage.server_cpu(), await stage.agent_cpu()
            begun = time.perf_counter()
            running = asyncio.create_task(asyncio.to_thread(_git, repository, top, "checkout", "-q", "one"))
            ended, times = begun, list[float]()
            running.add_done_callback(lambda _: times.append(time.perf_counter() - begun))
            while left:
                try:
                    _, name = await listener.line(within=_QUIET if running.done() else _DEADLINE)
                except TimeoutError:
                    late = True
                    break
                ended = time.perf_counter()
                overflows += name == "overflow"
                events += 1
                left.discard(name)
            await running
            await listener.quiet()
            server_cpu = await stage.server_cpu() - server_cpu
            agent_cpu = await stage.agent_cpu() - agent_cpu
            after = await stage.counted()
        (listed,) = [each for each in await stage.agent.listed() if each.mount_path == path]
    assert listed.pins is not None
    return {
        "files": sizes.files,
        "git_s": round(times[0], 2),
        "all_heard_s": None if late else round(ended - begun, 2),
        "names_not_heard": len(left),
        "events_read": events,
        "queue_overflows_in_the_guest": overflows,
        "server_cpu_s": round(server_cpu, 2),
        "agent_cpu_s": round(agent_cpu, 2),
        "server": {
            name: value - getattr(before, name)
            for name, value in msgspec.structs.asdict(after).items()
            if name != "watched"
        },
        "agent": msgspec.structs.asdict(listed.pins.events) if listed.pins.events is not None else None,
    }


async def measure_watched(stage: Stage, sizes: Sizes) -> Row:
    """Return how long after the call of map the mount is ready, and all directories are watched, in seconds."""
    found: Row = {}
    for directories in sizes.directories:
        top = stage.make(directories)
        all_of_them = 1 + directories + -(-directories // 100)
        begun = time.perf_counter()
        async with stage.mapped(top) as path:
            ready = time.perf_counter() - begun
            first = await stage.pinned(path)
            await stage.until_pinned(path, all_of_them)
            found[str(all_of_them)] = {
                "ready_s": round(ready, 2),
                "watched_when_ready": first,
                "all_watched_s": round(time.perf_counter() - begun, 2),
            }
    return found


async def measure_idle(stage: Stage, sizes: Sizes) -> Row:
    """Return the CPU time of both sides while nothing changes: of a mount with events, and of one without."""
    found: Row = {"seconds": sizes.idle_seconds}
    for events in (True, False):
        top = stage.make(100)
        async with stage.mapped(top, events=events) as path:
            if events:
                await stage.until_pinned(path, 102)
            async with listening(stage, path) as (listener, _):
                await listener.quiet()
                await stage.agent_cpu()
                server_cpu, agent_cpu = await stage.server_cpu(), await stage.agent_cpu()
                await asyncio.sleep(sizes.idle_seconds)
                name = "with_events" if events else "without"
                server_cpu, agent_cpu = await stage.server_cpu() - server_cpu, await stage.agent_cpu() - agent_cpu
                found[name] = {"server_cpu_s": round(server_cpu, 2), "agent_cpu_s": round(agent_cpu, 2)}
    return found


_MEASURED: Final = {
    "latency": measure_latency,
    "checkout": measure_checkout,
    "watched": measure_watched,
    "idle": measure_idle,
}


def _about(stage: Stage) -> Row:
    cpu = next(line for line in Path("/proc/cpuinfo").read_text(encoding="ascii").splitlines() if "model name" in line)
    return {
        "guest": f"Linux {stage.guest.release} under {stage.guest.accelerator}",
        "host": f"Linux {platform.release()}, {os.cpu_count()} x {cpu.partition(':')[2].strip()}",
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 1),
    }


async def measure(kernel: str, rows: list[str], sizes: Sizes, say: Callable[[str], None]) -> Row:
    """Measure some rows in one guest."""
    async with staged(kernel, say) as stage:
        found: Row = {"about": _about(stage)}
        for row in rows:
            say(row)
            found[row] = {**await _MEASURED[row](stage, sizes), "load": round(os.getloadavg()[0], 1)}
            say(f"{row}: {json.dumps(found[row])}")
    return found


def main() -> None:
    """Measure what was asked for."""
    parser = command_line(__doc__, ROWS)
    parser.add_argument("--kernel", default="6.12", help="the guest's (%(default)s)")
    parser.add_argument("--files", type=int, help=f"in the checkout ({Sizes().files}); fewer for a slow guest")
    chosen = read(parser, ROWS)
    begun = time.monotonic()

    def say(line: str) -> None:
        sys.stderr.write(f"[{time.monotonic() - begun:4.0f} s] {line}\n")

    sizes = QUICK if chosen.quick else Sizes()
    sizes = replace(sizes, files=chosen.files or sizes.files)
    found = asyncio.run(measure(chosen.kernel, chosen.rows, sizes, say))
    tell(found, as_json=chosen.json, quick=chosen.quick)


if __name__ == "__main__":
    main()
