#!/usr/bin/env python3
"""Show what a guest's kernel makes of a share that is taken away: ``python contrib/guest/kernel_quirks.py [KERNEL]``.

KERNEL is a series, such as 6.1; the newest that is found unless given. It boots guests and prints what each program
was told, over vsock (in Firecracker's way) and over TCP:

- twelve threads that read when the share is removed, when its mount process is killed, and when the VMM cuts the
  connection;
- write(2), fsync(2) and close(2) after a removal, in each cache mode;
- umount(8) after a removal with ``cache=loose`` and data that was not written yet: whether the kernel complains.

docs/guest-kernel.md says what was seen. Nothing here passes or fails: the quirks are the kernel's.
"""

from __future__ import annotations

import asyncio
import collections
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from uvmshare import AddOptions, FileServer, Manager
from uvmshare.errors import GuestFailed, UvmshareError
from uvmshare.guest import mount
from uvmshare.testing.guest_vm import HOST, GuestVM
from uvmshare.testing.kernel import find_kernel

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from uvmshare.testing.kernel import GuestKernel

ROUNDS = 3
PORT = 7000
DEADLINE = 120.0
PYTHON = "python3 -I -S"
UNTIL_LOST = Path(__file__).with_name("until_lost.py")

WRITER = """
import errno, os, sys
def told(call):
    try:
        return str(call())
    except OSError as error:
        return errno.errorcode[error.errno]
file = os.open("f", os.O_RDWR)
open("/run/busy", "w").close()
open("/run/gone").close()
print("write:", *[told(lambda: os.write(file, b"x" * 100)) for _ in range(8)])
print("fsync:", told(lambda: os.fsync(file)), "close:", told(lambda: os.close(file)))
"""
"""What a program sees that has a file open when its share goes."""

DIRTY = """
import mmap, os
for number in range(40):
    with open(f"made-{number}", "w+b") as file:
        file.write(os.urandom(300_000))
        file.flush()
        if number % 4 == 0:
            mapped = mmap.mmap(file.fileno(), 0)
            mapped[:4096] = bytes(4096)
"""
"""Leaves data in the guest's page cache that the host does not have."""


class Tried:
    """A guest, a file server for it, and how it mounts."""

    def __init__(self, guest: GuestVM, server: FileServer, directory: Path) -> None:
        self.guest = guest
        self.server = server
        self.manager = Manager(server)
        self.directory = directory

    async def share(self, transport: str, options: str) -> str:
        """Share a directory with a file, mount it, and return the share's name."""
        self.directory.mkdir(exist_ok=True)
        (self.directory / "f").write_bytes(bytes(1 << 20))
        name = await self.manager.add(AddOptions(self.directory))
        if transport == "vsock":
            cache = options.removeprefix("cache=")
            command = f"{PYTHON} {mount.__file__} vsock:2:{PORT} {name} /run/tried --cache {cache}"
        else:
            port = self.server.addresses[1].rpartition(":")[2]
            given = f"trans=tcp,port={port},version=9p2000.L,aname={name},msize=131072,{options}"
            command = f"mkdir -p /run/tried && mount -t 9p -o {given} {HOST} /run/tried"
        await self.guest.check(command, timeout=DEADLINE)
        return name

    async def remove(self, name: str) -> None:
        """Take it away in order."""
        await self.manager.remove(name)

    async def kill(self, name: str) -> None:
        """Kill its mount process."""
        for share in (await self.server.status()).shares:
            for each in share.mounts:
                os.kill(each.pid, signal.SIGKILL)
        await self.manager.remove(name)

    async def cut(self, name: str) -> None:
        """Have the VMM end its connection with a reset."""
        assert self.guest.vsock is not None
        self.guest.vsock.reset(PORT)
        await self.manager.remove(name)

    async def readers(self, transport: str, end: Callable[[str], Awaitable[None]]) -> str:
        """Say what those who read were told."""
        name = await self.share(transport, "cache=none")
        await self.guest.check("rm -f /run/busy /run/over; mkfifo /run/busy /run/over")
        program = f"(cd /run/tried && {PYTHON} {UNTIL_LOST} /run/said /run/busy /run/over) & cat /run/busy"
        await self.guest.check(program, timeout=DEADLINE)
        await end(name)
        _, *told = (await self.guest.check("cat /run/over /run/said", timeout=DEADLINE)).split()
        await self.guest.check("umount /run/tried")
        return "+".join(told)

    async def writer(self, transport: str, options: str) -> str:
        """Say what one was told who writes after the removal."""
        name = await self.share(transport, options)
        await self.guest.write_file("/run/writer.py", WRITER.encode())
        await self.guest.check("rm -f /run/busy /run/gone /run/over; mkfifo /run/busy /run/gone /run/over")
        program = f"(cd /run/tried && {PYTHON} /run/writer.py >/run/said 2>&1; cd /; : >/run/over) & cat /run/busy"
        await self.guest.check(program, timeout=DEADLINE)
        await self.remove(name)
        told = await self.guest.check(": >/run/gone; cat /run/over /run/said", timeout=DEADLINE)
        await self.guest.check("umount /run/tried")
        return ", ".join(told.split("\n")[:2])

    async def dirty(self, transport: str) -> str:
        """Say what came of an unmount with data that was not written; the guest may be of no use afterwards."""
        name = await self.share(transport, "cache=loose")
        await self.guest.write_file("/run/dirty.py", DIRTY.encode())
        await self.guest.check(f"cd /run/tried && {PYTHON} /run/dirty.py; dmesg -C", timeout=DEADLINE)
        await self.remove(name)
        try:
            unmounted = await self.guest.run("umount /run/tried", timeout=DEADLINE)
            said = (await self.guest.run("dmesg | grep -E 'BUG|Oops|RIP|WARNING|Call Trace'", timeout=DEADLINE)).text
        except GuestFailed as error:
            return f"the guest did not answer any more: {str(error)[:300]}"
        return f"umount ended with {unmounted.status}; the kernel said {said.strip() or 'nothing'}"


def say(line: str) -> None:
    """Tell the user."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def look(kernel: GuestKernel, directory: str, transport: str) -> None:
    """Try everything over one transport, in a guest of its own."""
    uds_path = f"{directory}/v-{transport}"
    listen = [f"firecracker:{uds_path}:{PORT}", "tcp:127.0.0.1:0"]
    async with (
        await GuestVM.start(root="host", kernel=kernel, vsock=uds_path) as guest,
        FileServer(listen) as server,
    ):
        tried = Tried(guest, server, Path(directory) / "shared")
        ends = {"removed": tried.remove, "its mount process killed": tried.kill}
        if transport == "vsock":
            ends["cut by the VMM"] = tried.cut
        for how, end in ends.items():
            seen = collections.Counter([await tried.readers(transport, end) for _ in range(ROUNDS)])
            say(f"{kernel.release} {transport}: {how}: {', '.join(f'{n} x {told}' for told, n in seen.items())}")
        for options in ("cache=none", "cache=mmap", "cache=loose"):
            say(f"{kernel.release} {transport}: {options}: {await tried.writer(transport, options)}")
        for number in range(ROUNDS):
            told = await tried.dirty(transport)
            say(f"{kernel.release} {transport}: cache=loose, not written yet, {number + 1}: {told}")
            if not told.endswith("said nothing"):
                break  # nothing that this guest does from now on means anything
        await tried.manager.aclose()


async def run(series: str | None) -> None:
    """Try it over both."""
    kernel = find_kernel(series)
    with tempfile.TemporaryDirectory(prefix="q-", dir="/tmp") as directory:  # a unix socket's path is short
        for transport in ("vsock", "tcp"):
            await look(kernel, directory, transport)


def main() -> int:
    """Do as the command line says."""
    try:
        asyncio.run(run(sys.argv[1] if len(sys.argv) > 1 else None))
    except (UvmshareError, OSError) as error:
        say(f"FAILED: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
