"""What a person would pick instead, in one guest: QEMU's virtio-9p, virtiofsd, diod, and uvmshare over vsock and TCP.

    make bench-guest BENCH_ARGS="--kernel 6.12 --turns 3"

What lives here: the ways to share one directory, what programs do there, and the table. What must not: which cache mode
and msize are chosen (`mounting`). All is done in one guest, in turns, each time after a fresh mount. Beside the seconds
stand the requests that the guest's kernel sent, by its own trace (9P; of virtiofs where the kernel can trace it), and
the CPU seconds of the host's side: of the server, and of QEMU without its virtual CPU. The host's side of the vsock
device is Python here, a stand-in for a VMM's, and its CPU time is in no row.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from uvmshare import AddOptions, FileServer, Manager
from uvmshare.guest import mount
from uvmshare.testing.guest_vm import HOST, QEMU, GuestVM
from uvmshare.testing.kernel import find_kernel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

PLACE: Final = "/run/share"
CACHES: Final = ("none", "mmap", "loose")
_VIRTIOFSD: Final = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd")
"""Debian 12 has the one of QEMU 7.2 in qemu-system-common, Debian 13 a package of its own, written anew."""
_OF_VIRTIOFS: Final = {"none": "none", "mmap": "auto", "loose": "always"}
"""What of virtiofsd's comes nearest to a cache of 9P's client."""
_MSIZE: Final = 128 * 1024
_DIOD_MSIZE: Final = 64 * 1024
"""The most that diod takes."""
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_DEADLINE: Final = 3600.0
_START_SECONDS: Final = 60.0
_TRACES: Final = ("9p/9p_client_req", "fuse/fuse_request_send")
_NUMBER: Final = "/sys/kernel/tracing/events"


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much there is to do; a try of the script does less."""

    files: int = 10_000
    """In the git repository."""
    packed: int = 2_000
    sources: int = 8
    inserts: int = 200


def make_tree(directory: Path, sizes: Sizes) -> None:
    """Make what is worked on: a git repository, an archive of small files, C sources, and statements of SQL."""
    repository = directory / "repository"
    for number in range(sizes.files):
        path = repository / f"d{number // 100}" / f"file{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"the content of file {number}\n" * 5, encoding="ascii")
    git = ("git", "-c", "user.name=x", "-c", "user.email=x@localhost", "-C", str(repository))
    for words in (("init", "-q"), ("add", "-A"), ("commit", "-q", "-m", "all")):
        subprocess.run([*git, *words], check=True)
    modules = directory / "modules"
    for number in range(sizes.packed):
        path = modules / f"package{number // 20}" / "lib" / f"index{number % 20}.js"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("module.exports = 1;\n" * 50, encoding="ascii")
    subprocess.run(["tar", "-C", directory, "-cf", directory / "archive.tar", "modules"], check=True)
    shutil.rmtree(modules)
    (directory / "c").mkdir()
    for number in range(sizes.sources):
        text = "".join(f"int f{number}_{each}(int x) {{ return x * {each}; }}\n" for each in range(50))
        (directory / "c" / f"source{number}.c").write_text(f"#include <stdio.h>\n{text}", encoding="ascii")
    lines = ["CREATE TABLE t (id INTEGER PRIMARY KEY, word TEXT);"]
    lines += [f"INSERT INTO t VALUES ({each}, 'a word');" for each in range(sizes.inserts)]  # noqa: S608  numbers
    (directory / "inserts.sql").write_text("\n".join(lines) + "\n", encoding="ascii")


_GIT: Final = "git -c safe.directory=* -C repository status --porcelain"
WORK: Final = {
    "git status": _GIT,
    "git status again": _GIT,
    "unpack": "tar -xf /run/archive.tar && rm -r modules",
    "search": "{ command -v rg >/dev/null && rg -q --no-ignore nothing-has-this repository; } || "
    "grep -rq nothing-has-this repository; true",
    "C build": "for each in c/*.c; do gcc -O1 -c -o ${each%.c}.o $each || exit 1; done; rm c/*.o",
    "SQLite inserts": "sqlite3 new.db <inserts.sql && rm -f new.db*",
}
"""What is done in the share, in this order after each mount; "git status" so begins with nothing in the cache."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to share: its name, the guest's command that mounts it, and whose CPU time is its server's."""

    name: str
    mounts: str
    serving: Callable[[], Sequence[int]]


def cpu_of(pid: int) -> float:
    """Return the CPU seconds of a process so far; those of one that has ended are 0."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(") ")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS


def family(pid: int) -> list[int]:
    """Return a process and all below it."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            found += map(int, task.read_text(encoding="ascii").split())
    return found


def cpu_of_qemu(pid: int) -> float:
    """Return the CPU seconds of QEMU's threads but the virtual CPU's: its devices and its network."""
    used = 0.0
    for task in Path(f"/proc/{pid}/task").iterdir():
        stat = (task / "stat").read_text(encoding="ascii")
        name, fields = stat[stat.index("(") : stat.rindex(")")], stat.rpartition(") ")[2].split()
        if "CPU" not in name:
            used += (int(fields[11]) + int(fields[12])) / _TICKS
    return used


def qemu_below(pid: int) -> int:
    """Return the process of the guest that this one started."""
    for each in family(pid):
        if Path(f"/proc/{each}/comm").read_text(encoding="ascii").strip() == QEMU[:15]:
            return each
    msg = f"no {QEMU} is below process {pid}"
    raise RuntimeError(msg)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


class Peers:
    """What serves the directory beside uvmshare, as far as this host has it."""

    def __init__(self, directory: str, sockets: str, stack: ExitStack) -> None:
        """Start diod and a virtiofsd for each cache. Raises `OSError`, and `RuntimeError` when one does not start."""
        self.arguments = [
            *("-fsdev", f"local,id=peer,path={directory},security_model=passthrough,multidevs=remap"),
            *("-device", "virtio-9p-pci,fsdev=peer,mount_tag=peer"),
        ]
        self.ways: list[Way] = [
            Way(f"virtio-9p, {cache}", _mount_9p(f"trans=virtio,msize={_MSIZE}", "peer", cache), tuple)
            for cache in CACHES
        ]
        diod = shutil.which("diod") or "/usr/sbin/diod"
        if os.path.exists(diod):
            port = _free_port()
            command = (diod, "-f", "-n", "-N", "-L", "stderr", "-e", directory, "-l", f"127.0.0.1:{port}")
            diod_pid = self._start(stack, command)
            options = f"trans=tcp,port={port},uname=root,aname={directory},msize={_DIOD_MSIZE}"
            self.ways += [
                Way(f"diod, {cache}", _mount_9p(options, HOST, cache), lambda: family(diod_pid)) for cache in CACHES
            ]
        virtiofsd = next(filter(os.path.exists, _VIRTIOFSD), None)
        for cache in CACHES if virtiofsd else ():
            path = f"{sockets}/fs-{cache}"
            words = ["-o", f"source={directory},cache={_OF_VIRTIOFS[cache]}"]
            if virtiofsd != _VIRTIOFSD[0]:
                words = [f"--shared-dir={directory}", f"--cache={_OF_VIRTIOFS[cache].replace('none', 'never')}"]
            pid = self._start(stack, (str(virtiofsd), f"--socket-path={path}", *words), path)
            self.arguments += [
                *("-chardev", f"socket,id=fs-{cache},path={path}"),
                *("-device", f"vhost-user-fs-pci,chardev=fs-{cache},tag=fs-{cache}"),
            ]
            name = f"virtiofsd, {_OF_VIRTIOFS[cache]}"
            self.ways.append(Way(name, f"mount -t virtiofs fs-{cache} {PLACE}", lambda pid=pid: family(pid)))  # type: ignore[misc]  # mypy cannot type a lambda's default

    def _start(self, stack: ExitStack, command: Sequence[str], socket_path: str = "") -> int:
        process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        stack.callback(process.terminate)
        end = time.monotonic() + _START_SECONDS
        while socket_path and not os.path.exists(socket_path):
            if process.poll() is not None or time.monotonic() > end:
                msg = f"{command[0]} does not listen at {socket_path}"
                raise RuntimeError(msg)
            time.sleep(0.01)
        return process.pid


def _mount_9p(options: str, source: str, cache: str) -> str:
    return f"mount -t 9p -o version=9p2000.L,access=client,cache={cache},{options} {source} {PLACE}"


async def ways_of_ours(stack: AsyncExitStack, directory: str, vsock: str) -> list[Way]:
    """Start one file server on vsock and TCP, and return its ways."""
    listen = ["tcp:127.0.0.1:0", f"firecracker:{vsock}:5640"]
    server = await stack.enter_async_context(FileServer(listen=listen, security_model="passthrough"))
    manager = await stack.enter_async_context(Manager(server))
    share = await manager.add(AddOptions(directory))
    pid = (await server.status()).pid
    assert pid is not None
    tcp = next(each for each in server.addresses if each.startswith("tcp:"))
    addresses = {"TCP": f"tcp:{HOST}:{tcp.rpartition(':')[2]}", "vsock": "vsock:2:5640"}
    program = f"/usr/bin/python3 -I -S {mount.__file__}"
    return [
        Way(
            f"uvmshare, {transport}, {cache}",
            f"{program} --cache {cache} --msize {_MSIZE} {address} {share} {PLACE}",
            lambda: family(pid),
        )
        for transport, address in addresses.items()
        for cache in CACHES
    ]


@dataclass(slots=True)
class Measured:
    """What one piece of work took."""

    seconds: float
    requests: int | None
    server_cpu: float


async def count(guest: GuestVM) -> int | None:
    """Return how many requests the guest's kernel has sent; None where it cannot tell."""
    told = await guest.run(f"cat {_NUMBER}/{_TRACES[0]}/hist {_NUMBER}/{_TRACES[1]}/hist 2>/dev/null")
    hits = [int(line.partition(":")[2]) for line in told.text.splitlines() if line.strip().startswith("Hits:")]
    return sum(hits) if hits else None


async def measure_way(guest: GuestVM, way: Way, qemu: int) -> dict[str, Measured]:
    """Mount, do everything, and unmount."""
    found: dict[str, Measured] = {}
    await guest.check(way.mounts, timeout=_DEADLINE)
    traced = not way.name.startswith("virtiofsd") or (await guest.run(f"test -e {_NUMBER}/{_TRACES[1]}")).status == 0
    try:
        for name, command in WORK.items():
            requests = await count(guest)
            used = cpu_of_qemu(qemu) + sum(map(cpu_of, way.serving()))
            told = await guest.check(
                f"cd {PLACE}; read begun _ </proc/uptime; ( {command} ) >/dev/null || exit 1; "
                "read ended _ </proc/uptime; echo $begun $ended",
                timeout=_DEADLINE,
            )
            begun, ended = map(float, told.split()[-2:])
            used = cpu_of_qemu(qemu) + sum(map(cpu_of, way.serving())) - used
            sent = await count(guest)
            counted = None if sent is None or requests is None or not traced else sent - requests
            found[name] = Measured(ended - begun, counted, used)
    finally:
        await guest.check(f"cd /; umount {PLACE}")
    return found


async def measure(kernel: str, turns: int, sizes: Sizes, only: str, say: Callable[[str], None]) -> Found:
    """Boot a guest and measure every way in turns."""
    found: Found = defaultdict(lambda: defaultdict(list))
    async with AsyncExitStack() as stack:
        plain = stack.enter_context(ExitStack())
        directory = stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp"))
        sockets = stack.enter_context(tempfile.TemporaryDirectory(prefix="v-", dir="/tmp"))
        os.chmod(directory, 0o755)  # noqa: S103  the guest's users go in
        say("making the files")
        await asyncio.to_thread(make_tree, Path(directory), sizes)
        peers = Peers(directory, sockets, plain)
        guest = await stack.enter_async_context(
            await GuestVM.start(
                root="host",
                kernel=find_kernel(kernel),
                memory_mib=768,
                modules=("virtiofs",),
                vsock=f"{sockets}/v",
                qemu_arguments=peers.arguments,
                progress=say,
            )
        )
        qemu = qemu_below(os.getpid())
        ways = [*peers.ways, *await ways_of_ours(stack, directory, f"{sockets}/v")]
        await guest.check(f"mkdir {PLACE}; mount -t tracefs tracefs /sys/kernel/tracing; true")
        for trace in _TRACES:
            await guest.run(f"echo hist:keys=common_pid >{_NUMBER}/{trace}/trigger")
        # The programs come over a file system of their own, and are read before anything is measured.
        await guest.check(
            f"cp {directory}/archive.tar /run; cp -r {directory}/c {directory}/inserts.sql /run; cd /run; "
            f"({WORK['C build']}); ({WORK['SQLite inserts']}); git --version; grep -q x inserts.sql; true",
            timeout=_DEADLINE,
        )
        for turn in range(turns):
            for way in ways if turn % 2 == 0 else reversed(ways):
                if only not in way.name:
                    continue
                say(f"turn {turn + 1}: {way.name}")
                for name, measured in (await measure_way(guest, way, qemu)).items():
                    found[way.name][name].append(measured)
    return found


Found = dict[str, dict[str, list[Measured]]]
"""By way and work, one a turn."""


def table(found: Found) -> Iterator[str]:
    """Give the lines of the table: a row a way; seconds, requests, and CPU seconds of the host's side."""
    yield f"| shared by | {' | '.join(WORK)} |"
    yield f"|{' --- |' * (1 + len(WORK))}"
    for way, by_name in found.items():
        cells = []
        for name in WORK:
            some = by_name[name]
            seconds = statistics.median(each.seconds for each in some)
            used = statistics.median(each.server_cpu for each in some)
            requests = some[-1].requests
            cells.append(f"{seconds:.2f} s ({'?' if requests is None else f'{requests:,}'}; {used:.2f} s)")
        yield f"| {way} | {' | '.join(cells)} |"


def main() -> None:
    """Measure, and print the table and what it is of."""
    parser = argparse.ArgumentParser(description="Compare ways to share a directory with a guest.")
    parser.add_argument("--kernel", default="6.12", help="the guest's (%(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="how often each way takes its turn (%(default)s)")
    parser.add_argument("--only", default="", metavar="TEXT", help="ways that have this in their names")
    parser.add_argument("--quick", action="store_true", help="a try: one turn of a tenth of the work")
    given = parser.parse_args()
    sizes = Sizes(300, 100, 2, 10) if given.quick else Sizes()
    before, begun = os.getloadavg()[0], time.monotonic()

    def say(line: str) -> None:
        sys.stderr.write(f"[{time.monotonic() - begun:4.0f} s] {line}\n")

    found = asyncio.run(measure(given.kernel, 1 if given.quick else given.turns, sizes, given.only, say))
    cpu = next(line for line in Path("/proc/cpuinfo").read_text(encoding="ascii").splitlines() if "model name" in line)
    sys.stdout.write(
        f"Linux {given.kernel} in the guest, on {os.cpu_count()} x {cpu.partition(':')[2].strip()}; "
        f"{sizes.files} files, {sizes.packed} unpacked, {sizes.sources} C sources, {sizes.inserts} inserts; "
        f"load average of the host {before:.1f} before, {os.getloadavg()[0]:.1f} after; seconds (requests; CPU seconds "
        "of server and devices)\n\n"
    )
    sys.stdout.writelines(f"{line}\n" for line in table(found))


if __name__ == "__main__":
    main()
