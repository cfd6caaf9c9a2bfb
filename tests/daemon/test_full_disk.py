"""A guest that fills the disk under the daemon's state loses its directories all the same."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from tests.daemon.harness import Home

from uvmshare.errors import UvmshareError
from uvmshare.testing.client import NinePClient as Guest9P

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.daemon.harness import Running


class Disk:
    """The file system of a daemon's state: 1 MiB, which fills up and is freed."""

    def __init__(self, path: str) -> None:
        self.path = path
        os.makedirs(path, mode=0o700)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M,mode=0700", "ours", path], check=True)

    def fill(self) -> None:
        """Leave no byte."""
        with open(f"{self.path}/ballast", "ab", buffering=0) as ballast, suppress(OSError):
            while True:
                ballast.write(bytes(512))

    def free(self) -> None:
        with suppress(FileNotFoundError):
            os.unlink(f"{self.path}/ballast")

    def close(self) -> None:
        subprocess.run(["umount", "-l", self.path], check=True)


@pytest.fixture
def home() -> Iterator[Home]:
    with Home.made() as home:
        yield home


@pytest.fixture
def disk(home: Home) -> Iterator[Disk]:
    disk = Disk(home.settings.state_dir)
    try:
        yield disk
    finally:
        disk.free()
        with home.running(), home.client() as client:
            client.vms.remove("vm", force=True)
        home.had_vms = False
        disk.close()


def reads(home: Home, share: str) -> bool:
    try:
        with Guest9P.connect(f"unix:{home.folder}/vm.9p", share) as guest:
            return bool(guest.read(guest.open("secret"), 0, 6))
    except (OSError, EOFError, UvmshareError):
        return False


def shares(running: Running) -> list[str]:
    with running.home.client() as client:
        return [share.name for share in client.shares("vm")]


@pytest.mark.parametrize("fill_first", [True, False], ids=["full when it is added to", "full afterwards"])
def test_a_lease_that_ends_while_the_disk_is_full_ends_the_share(home: Home, disk: Disk, fill_first: bool) -> None:
    path = home.directory("project")
    with open(f"{path}/secret", "w", encoding="ascii") as file:
        file.write("secret")
    with home.running() as daemon:
        daemon.add_vm()
        share = daemon.add_share(path, owner="one", lease=2)
        if fill_first:
            disk.fill()
            with suppress(UvmshareError):  # as far as there is room in the log
                daemon.add_share(path, owner="two", lease=2)
        disk.fill()
        assert reads(home, share.name)
        daemon.pass_time(2)
        assert not reads(home, share.name)
        disk.free()
        daemon.pass_time(60)
        daemon.add_share(home.directory("other"), owner="other")
        assert len(shares(daemon)) == 1
    with home.running() as daemon:
        assert len(shares(daemon)) == 1


def test_what_is_taken_by_force_while_the_disk_is_full_is_off_the_vm(home: Home, disk: Disk) -> None:
    path = home.directory("project")
    with open(f"{path}/secret", "w", encoding="ascii") as file:
        file.write("secret")
    with home.running() as daemon:
        daemon.add_vm()
        for owner in ("one", "two", "three"):
            share = daemon.add_share(path, owner=owner)
        disk.fill()
        with home.client() as client, suppress(UvmshareError):
            client.shares.release("vm", share.name, force=True)
        assert not reads(home, share.name)
        disk.free()
        with home.client() as client:
            client.shares.release("vm", share.name, force=True)
        assert shares(daemon) == []
