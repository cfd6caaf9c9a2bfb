"""Who mounts the shares of `uvmshare demo`: a real Linux guest under QEMU, or the project's own 9P client.

What lives here: the few things that the demonstration asks of a guest, done by either. What must not: the
demonstration's steps, or any judgement of what came out.
"""

from __future__ import annotations

import asyncio
import hashlib
import shlex
import stat
import sys
from typing import TYPE_CHECKING, Protocol

from uvmshare.errors import UvmshareError
from uvmshare.guest import mount
from uvmshare.testing.client import NinePClient
from uvmshare.testing.guest_vm import HOST, QEMU

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvmshare.testing.guest_vm import GuestVM

__all__ = ["ClientGuest", "DemoGuest", "QemuGuest"]

_DEADLINE = 300.0
"""Seconds for anything asked of a guest; hashing the tree, the longest, takes about three under emulation."""


class DemoGuest(Protocol):
    """A guest as the demonstration uses it.

    Shares are mounted read-write, also the read-only ones, so that it is the host's server that refuses. What may
    fail returns the guest's own words for the error, or None when it worked.
    """

    description: str

    async def mount(self, share: str) -> str | None:
        """Mount the share of that name."""

    async def unmount(self, share: str) -> str | None:
        """Unmount it again, whether the host still has it or not."""

    async def write_digests(self, share: str, into: str, name: str) -> str | None:
        """Write a line "SHA-256  ./path" for each regular file of one share into a new file of another."""

    async def create(self, share: str, name: str) -> str | None:
        """Make an empty file at the top of the share."""

    async def list(self, share: str) -> str | None:
        """Read the share's top directory."""


class QemuGuest:
    """A Linux guest: the kernel's own 9P client, over its vsock device, or QEMU's user network where it has none."""

    def __init__(self, vm: GuestVM, address: str) -> None:
        self.vm = vm
        self._port = address.rpartition(":")[2]
        if vm.vsock is not None:
            way = f"over vsock, whose host's side is {vm.vsock.flavour}'s unix sockets"
        else:
            way = f"over TCP, because {QEMU} has no vhost-user-vsock-pci here"
        self.description = f"Linux {vm.release} under QEMU ({vm.accelerator}), its own 9P client {way}"

    async def mount(self, share: str) -> str | None:
        """Mount it on a directory below /run that is called as the share is."""
        if self.vm.vsock is not None:  # the guest's root is the host's: this Python is there, and this program
            program = shlex.join([sys.executable, "-I", "-S", mount.__file__])
            return await self._try(f"{program} vsock:2:{self._port} {share} /run/{share} --msize 262144")
        options = f"trans=tcp,port={self._port},version=9p2000.L,aname={share},msize=262144"
        return await self._try(f"mkdir -p /run/{share} && mount -t 9p -o {options} {HOST} /run/{share}")

    async def unmount(self, share: str) -> str | None:
        """Unmount it with umount(8)."""
        return await self._try(f"umount /run/{share}")

    async def write_digests(self, share: str, into: str, name: str) -> str | None:
        """Run find and sha256sum."""
        hashing = "find . -type f -print0 | xargs -0 sha256sum"
        return await self._try(f"cd /run/{share} && {hashing} > /run/{into}/{shlex.quote(name)}")

    async def create(self, share: str, name: str) -> str | None:
        """Run touch."""
        return await self._try(f"touch /run/{share}/{shlex.quote(name)}")

    async def list(self, share: str) -> str | None:
        """Run ls."""
        return await self._try(f"ls /run/{share} > /dev/null")

    async def _try(self, command: str) -> str | None:
        result = await self.vm.run(command, timeout=_DEADLINE)
        return (result.text.strip() or f"exit status {result.status}") if result.status else None


class ClientGuest:
    """The project's own 9P client in a guest's place, where there is no QEMU."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._mounts: dict[str, NinePClient] = {}
        self.description = "no guest: the project's own 9P client, in this process"

    async def mount(self, share: str) -> str | None:
        """Connect and attach to it."""

        def connect() -> None:
            self._mounts[share] = NinePClient.connect(self._address, share)

        return await self._try(connect)

    async def unmount(self, share: str) -> str | None:
        """Close its connection."""
        self._mounts.pop(share).close()
        return None

    async def write_digests(self, share: str, into: str, name: str) -> str | None:
        """Walk the tree, read each file and hash it here."""

        def write() -> None:
            source = self._mounts[share]
            lines = [
                hashlib.sha256(source.read_file(path)).hexdigest().encode() + b"  ./" + path + b"\n"
                for path, attributes in source.walk_tree()
                if stat.S_ISREG(attributes.mode)
            ]
            self._mounts[into].write_file(name, b"".join(lines))

        return await self._try(write)

    async def create(self, share: str, name: str) -> str | None:
        """Create it, and close it again."""
        return await self._try(lambda: self._mounts[share].write_file(name, b""))

    async def list(self, share: str) -> str | None:
        """Read the directory."""
        return await self._try(self._mounts[share].listdir)

    def close(self) -> None:
        """Close the connections that are still open."""
        for client in self._mounts.values():
            client.close()

    async def _try(self, action: Callable[[], object]) -> str | None:
        try:
            await asyncio.to_thread(action)
        except (OSError, UvmshareError) as error:
            return str(error)
        return None
