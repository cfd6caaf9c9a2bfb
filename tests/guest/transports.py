"""The ways from a test guest to its host: TCP over QEMU's user network, or vsock in the flavour of either monitor.

What lives here: `Transport`: where a file server and an agent's client listen, and what the guest is told of that.
What must not: guests (`conftest`), or what is tested.
"""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING, Literal

from tests.guest import mounter

from uvmshare.guest import mount
from uvmshare.testing.guest_vm import HOST

if TYPE_CHECKING:
    from uvmshare.testing.guest_vm import GuestVM

__all__ = ["NEWER", "TRANSPORTS", "VSOCK", "Transport", "TransportName"]

TransportName = Literal["tcp", "firecracker", "cloud-hypervisor"]
TRANSPORTS: tuple[TransportName, ...] = ("firecracker", "tcp", "cloud-hypervisor")
VSOCK: tuple[TransportName, ...] = ("firecracker", "cloud-hypervisor")
NEWER = "firecracker-6.12"
"""What a test's parameter says for the guest with the newer kernel."""

_PORTS = itertools.count(7000)
"""Of vsock, whose listeners are never two at a time on one port."""


_UNTIL_LOST = os.path.join(os.path.dirname(__file__), "..", "..", "contrib", "guest", "until_lost.py")

_PIPES = "/run/mounter"
_MOUNTER = (
    f"[ -p {_PIPES}.in ] || {{ mkfifo {_PIPES}.in {_PIPES}.out; python3 -I -S {mounter.__file__} {mount.__file__} "
    f"{_PIPES}.in {_PIPES}.out </dev/null >/dev/null 2>&1 & }}"
)
_ANSWER = f'read -r status said <{_PIPES}.out && echo "$said" && [ "$status" = 0 ]'


class Transport:
    """One way, for one guest."""

    def __init__(self, name: TransportName, guest: GuestVM) -> None:
        self.name = name
        self.guest = guest
        if name != "tcp":
            assert guest.vsock is not None
            guest.vsock.flavour = name

    @property
    def newer(self) -> bool:
        """Whether the guest has the newer kernel."""
        return self.guest.release.startswith("6.12.")

    @property
    def is_vsock(self) -> bool:
        return self.name != "tcp"

    def address(self) -> str:
        """Return an address to listen on that nobody else has."""
        if self.name == "tcp":
            return "tcp:127.0.0.1:0"
        assert self.guest.vsock is not None
        return f"{self.name}:{self.guest.vsock.uds_path}:{next(_PORTS)}"

    @staticmethod
    def port(address: str) -> int:
        """Return the port of an address that was listened on."""
        return int(address.rpartition(":")[2])

    def host(self, port: int | None = None) -> str:
        """Return what the guest calls its host, with a port if there is one."""
        host = "vsock:2" if self.is_vsock else f"tcp:{HOST}"
        return host if port is None else f"{host}:{port}"

    def mount(self, port: int, share: str, at: str, **options: str | int) -> str:
        """Return the command that mounts a share on a directory that is there; `options` as the kernel has them."""
        if self.name == "tcp":
            given = "".join(f",{name}={value}" for name, value in options.items())
            return f"mount -t 9p -o trans=tcp,port={port},version=9p2000.L,aname={share}{given} {HOST} {at}"
        more = " ".join(f"--{name} {value}" for name, value in options.items())
        return f"{_MOUNTER}; echo {self.host(port)} {share} {at} {more} >{_PIPES}.in && {_ANSWER}"

    @staticmethod
    def use_until_lost(at: str) -> str:
        """Return the command that has twelve threads use a mount, with a file ``f``, and returns when they are at it.

        When the share is gone, /run/over says so, and then /run/said how many were told, and by which errors.
        """
        program = f"python3 -I -S {_UNTIL_LOST} /run/said /run/busy /run/over"
        return f"rm -f /run/busy /run/over; mkfifo /run/busy /run/over; (cd {at} && {program}) & cat /run/busy"
