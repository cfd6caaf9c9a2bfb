"""What tests with a real guest share: a file server for it, and mounts there.

What lives here: `Host`. What must not: the guest itself, and how it reaches its host (`conftest`, `transports`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvmshare import FileServer, Manager

if TYPE_CHECKING:
    import asyncio

    from tests.guest.transports import Transport

    from uvmshare import AddOptions
    from uvmshare.testing.guest_vm import GuestResult

__all__ = ["Host"]


class Host:
    """The host's side: a file server for the guest, and the manager of its shares."""

    def __init__(self, runner: asyncio.Runner, transport: Transport) -> None:
        self.runner = runner
        self.transport = transport
        self.guest = transport.guest
        self.server = runner.run(FileServer(listen=[transport.address()]).start())
        self.manager = Manager(self.server)
        (address,) = self.server.addresses
        self.port = transport.port(address)
        self._mounted = 0

    def add(self, options: AddOptions) -> str:
        return self.runner.run(self.manager.add(options))

    def remove(self, name: str) -> None:
        self.runner.run(self.manager.remove(name))

    def run(self, command: str) -> GuestResult:
        return self.runner.run(self.guest.run(command))

    def check(self, command: str) -> str:
        return self.runner.run(self.guest.check(command))

    def mount(self, share: str, **options: str | int) -> str:
        """Mount a share on a new directory of the guest's, and return its path there."""
        self._mounted += 1
        at = f"/run/mnt/{self._mounted}"
        given: dict[str, str | int] = {"msize": 262144, **options}
        self.check(f"mkdir -p {at} && {self.transport.mount(self.port, share, at, **given)}")
        return at

    def unmount(self, at: str) -> None:
        self.check(f"umount {at}")

    def close(self) -> None:
        self.run("umount -l /run/mnt/*; rm -r /run/mnt")  # what a test that failed has left
        self.runner.run(self.manager.aclose())
        self.runner.run(self.server.aclose())
