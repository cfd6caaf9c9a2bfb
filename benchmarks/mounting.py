"""Measure what cache modes and msize do for a guest: ``python -m benchmarks.mounting --kernel 6.1 --transport tcp``.

What lives here: booting a guest, mounting one share in many ways, and the table. What must not: what is done in the
guest (`mounting_work`), and which way is chosen (`uvmshare.guest.mount.choose`). For each way it prints the
milliseconds, the least of the turns, and how many requests the client sent, which do not depend on what else the
machine does.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from typing import TYPE_CHECKING, Final

from benchmarks import mounting_work
from benchmarks.mounting_work import LARGE, SMALL, WORK
from uvmshare import AddOptions, FileServer, Manager
from uvmshare.guest import mount
from uvmshare.testing.guest_vm import HOST, GuestVM
from uvmshare.testing.kernel import find_kernel

if TYPE_CHECKING:
    from collections.abc import Callable

TREE: Final = os.path.abspath(os.path.join(os.path.dirname(__file__), ".."))
PLACE: Final = "/run/share"
PIPES: Final = ("/run/asked", "/run/told")
WAYS: Final = (
    *(f"cache=none,msize={kib << 10}" for kib in (64, 128, 256, 512, 1024)),
    *("cache=mmap,msize=262144", "cache=mmap,directio,msize=262144"),
    *("cache=readahead,msize=262144", "cache=loose,msize=262144"),
)
SINCE_6_4: Final = ("readahead", "directio")

Found = dict[str, dict[str, tuple[float, int]]]
"""By way and by work: the least seconds, and the requests."""


def make_tree(directory: str) -> None:
    """Make what is worked on: small files in two directories, a large one, a git repository."""
    for name in ("small", "looked-at"):
        os.mkdir(f"{directory}/{name}")
        for number in range(SMALL):
            with open(f"{directory}/{name}/{number:03}", "wb") as file:
                file.write(b"x" * 4096)
    with open(f"{directory}/large", "wb") as file:
        file.write(os.urandom(LARGE))
    shutil.copytree(f"{TREE}/src", f"{directory}/repository", ignore=shutil.ignore_patterns("__pycache__"))
    git = ("git", "-c", "user.name=x", "-c", "user.email=x@localhost", "-C", f"{directory}/repository")
    for words in (("init", "-q"), ("add", "-A"), ("commit", "-q", "-m", "all")):
        subprocess.run([*git, *words], check=True)


async def requests(server: FileServer) -> int:
    """Return how many requests all mounts have sent."""
    mounts = [each for share in (await server.status(counters=True)).shares for each in share.mounts]
    return sum(sum(each.counted.operations.values()) for each in mounts if each.counted is not None)


async def measure(kernel: str, transport: str, turns: int, say: Callable[[str], None]) -> Found:
    """Boot a guest and measure."""
    directory, sockets = tempfile.mkdtemp(dir="/var/tmp"), tempfile.mkdtemp(prefix="v-", dir="/tmp")
    os.chmod(directory, 0o755)  # noqa: S103  the guest's users go in
    make_tree(directory)
    found: Found = defaultdict(dict)
    vsock = f"{sockets}/v" if transport == "vsock" else None
    guest = await GuestVM.start(root="host", kernel=find_kernel(kernel), memory_mib=768, vsock=vsock)
    try:
        listen = "tcp:127.0.0.1:0" if vsock is None else f"firecracker:{vsock}:5640"
        server = await FileServer(listen=[listen], security_model="passthrough").start()
        manager = Manager(server)
        share = await manager.add(AddOptions(directory))
        port = server.addresses[0].rpartition(":")[2]
        address = f"tcp:{HOST}:{port}" if vsock is None else f"vsock:2:{port}"
        worker = f"python3 -I -S {mounting_work.__file__} {PLACE} {mount.__file__} {' '.join(PIPES)}"
        await guest.check(f"mkdir {PLACE}; mkfifo {' '.join(PIPES)}; {worker} </dev/null >/run/log 2>&1 &")

        async def ask(words: str) -> float:
            return float(await guest.check(f"echo {words} >{PIPES[0]}; cat {PIPES[1]}"))

        is_old = tuple(map(int, kernel.split("."))) < (6, 4)
        for _ in range(turns):
            for way in WAYS:
                if is_old and any(word in way for word in SINCE_6_4):
                    continue
                options = f"version=9p2000.L,aname={share},uname=root,access=client,{way}"
                assert not await ask(f"mount {address} {options}"), await guest.check("cat /run/log")
                for number, name in enumerate(WORK):
                    before = await requests(server)
                    seconds = await ask(str(number))
                    least = min(seconds, found[way].get(name, (seconds, 0))[0])
                    found[way][name] = (least, await requests(server) - before)
                assert not await ask("umount")
                say(f"{kernel} {transport} {way}")
        await manager.aclose()
        await server.aclose()
    finally:
        await guest.aclose()
        shutil.rmtree(directory)
        shutil.rmtree(sockets)
    return found


def table(found: Found) -> str:
    """Return the figures as Markdown: a row a way; milliseconds, and requests in brackets."""
    lines = [("mounted with", *WORK), ("---",) * (1 + len(WORK))]
    for way, by_name in found.items():
        cells = (f"{by_name[name][0] * 1000:.0f} ({by_name[name][1]})" for name in WORK)
        lines.append((f"`{way}`", *cells))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    """Measure one kernel over one transport, and print the table."""
    parser = argparse.ArgumentParser(description="Measure what cache modes and msize do for a guest.")
    parser.add_argument("--kernel", default="6.12")
    parser.add_argument("--transport", choices=("tcp", "vsock"), default="tcp")
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    found = asyncio.run(measure(given.kernel, given.transport, given.turns, lambda line: print(line, file=sys.stderr)))  # noqa: T201  progress
    print(table(found))  # noqa: T201  what it is for


if __name__ == "__main__":
    main()
