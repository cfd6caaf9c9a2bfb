"""Three members of etcd in network namespaces behind one bridge, and what can happen to them.

A link that is down loses packets without a word, as a cable that is out does; on loopback nothing does that. Each has a
disk of its own where that is asked for, which can be full.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import signal
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import pytest
from tests.etcd.member import QUICK, Member, program
from tests.processes import DEADLINE

from uvmshare.errors import StoreError
from uvmshare.etcd.administration import Administration
from uvmshare.etcd.client import EtcdStore
from uvmshare.etcd.endpoints import Endpoints

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Cluster", "cluster_in"]

MEMBERS: Final = 3
_NUMBERS: Final = itertools.count()
_FULL: Final = "full"
"""The file that fills a disk."""


def ip(*arguments: str) -> None:
    """Run ip(8)."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"


class Cluster:
    """Three members. The test's own process is at the bridge, and reaches all of them."""

    def __init__(self, folder: Path, *more: str, disk: int | None = None) -> None:
        self._disks = [] if disk is None else [folder / f"disk{number}" for number in range(MEMBERS)]
        self._disk_bytes = disk
        self._restored = 0
        # At most 15 characters make the name of an interface; the process and a number make it this test's own.
        self._tag = f"{os.getpid() % 0xFFFFF:x}{next(_NUMBERS)}"
        self._net = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"
        self._bridge = f"eb{self._tag}"
        names = range(MEMBERS)
        self._initial = ",".join(f"m{number}=http://{self.address(number)}:2380" for number in names)
        self.members = [
            Member(
                f"m{number}",
                (self._disks[number] if self._disks else folder) / f"m{number}",
                self._arguments(number, more),
                self._inside(number),
                folder / f"m{number}.log",
            )
            for number in names
        ]

    def address(self, number: int) -> str:
        return f"{self._net}.{number + 10}"

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(f"http://{self.address(number)}:2379" for number in range(MEMBERS))

    def _space(self, number: int) -> str:
        return f"etcd-{self._tag}-{number}"

    def _inside(self, number: int) -> list[str]:
        return ["ip", "netns", "exec", self._space(number)]

    def _link(self, number: int) -> str:
        return f"ev{self._tag}{number}"

    def _arguments(self, number: int, more: tuple[str, ...]) -> list[str]:
        address = self.address(number)
        return [
            f"--listen-client-urls=http://{address}:2379",
            f"--advertise-client-urls=http://{address}:2379",
            f"--listen-peer-urls=http://{address}:2380",
            f"--initial-advertise-peer-urls=http://{address}:2380",
            f"--initial-cluster={self._initial}",
            *QUICK,
            *more,
        ]

    def begin(self) -> None:
        """Make the network and start the members."""
        ip("link", "add", self._bridge, "type", "bridge")
        ip("addr", "add", f"{self._net}.1/24", "dev", self._bridge)
        ip("link", "set", self._bridge, "up")
        for number in range(MEMBERS):
            space, link = self._space(number), self._link(number)
            ip("netns", "add", space)
            ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
            ip("link", "set", link, "master", self._bridge, "up")
            ip("-n", space, "addr", "add", f"{self.address(number)}/24", "dev", "eth0")
            ip("-n", space, "link", "set", "eth0", "up")
            ip("-n", space, "link", "set", "lo", "up")
        for disk in self._disks:
            disk.mkdir()
            size = f"size={self._disk_bytes}"
            subprocess.run(["mount", "-t", "tmpfs", "-o", size, "etcd", str(disk)], check=True)
        for member in self.members:
            member.start()

    def end(self) -> None:
        """End the members and take the network away."""
        for member in self.members:
            member.kill()
        for disk in self._disks:
            subprocess.run(["umount", str(disk)], capture_output=True, check=False)
        for number in range(MEMBERS):
            subprocess.run(["ip", "netns", "del", self._space(number)], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", self._bridge], capture_output=True, check=False)

    # What happens to members.

    def cut(self, number: int) -> None:
        """Cut its link: to the others, and to every client."""
        ip("link", "set", self._link(number), "down")

    def mend(self, number: int) -> None:
        ip("link", "set", self._link(number), "up")

    def stop(self, number: int) -> None:
        self.members[number].signal(signal.SIGSTOP)

    def go_on(self, number: int) -> None:
        self.members[number].signal(signal.SIGCONT)

    def kill(self, number: int) -> None:
        self.members[number].kill()

    def start(self, number: int) -> None:
        self.members[number].start()

    def fill(self, number: int) -> None:
        """Have no room be left on its disk."""
        left = os.statvfs(self._disks[number])
        size, end = left.f_bavail * left.f_frsize, 0
        with (self._disks[number] / _FULL).open("wb") as file:
            while size >= left.f_frsize:  # the member writes meanwhile
                try:
                    os.posix_fallocate(file.fileno(), end, size)
                except OSError:
                    size //= 2
                else:
                    end += size

    def free(self, number: int) -> None:
        """Have room on its disk again, as an administrator makes it."""
        (self._disks[number] / _FULL).unlink()

    async def leader(self) -> int:
        """Return the number of the member that leads."""
        async with asyncio.timeout(DEADLINE):
            while True:
                for number, url in enumerate(self.urls):
                    store = EtcdStore(Endpoints((url,), timeout=1))
                    try:
                        status = await Administration(store).status()
                    except StoreError:
                        continue
                    finally:
                        await store.close()
                    if status.leader == status.header.member_id:
                        return number

    async def all_well(self) -> None:
        """Wait until every member answers with what the majority has."""
        for url in self.urls:
            store = EtcdStore(Endpoints((url,), timeout=DEADLINE))
            try:
                await store.get("/")
            finally:
                await store.close()

    # Backups.

    def _etcdctl(self, *arguments: str) -> None:
        environment = {**os.environ, "ETCDCTL_API": "3"}
        done = subprocess.run(
            [program("etcdctl"), *arguments], capture_output=True, text=True, check=False, env=environment
        )
        assert done.returncode == 0, done.stderr

    def back_up(self, path: Path, number: int = 0) -> None:
        """Write a backup, as administrators do: of one member, which is asked first for all that is acknowledged."""
        self._etcdctl(f"--endpoints={self.urls[number]}", "get", "/")
        self._etcdctl(f"--endpoints={self.urls[number]}", "snapshot", "save", str(path))

    def restore(self, path: Path) -> None:
        """Stop all members, and start them as another cluster with what a backup has, as docs/fleet.md says."""
        for member in self.members:
            member.kill()
        self._restored += 1
        for number, member in enumerate(self.members):
            shutil.rmtree(member.data)
            self._etcdctl(
                "snapshot",
                "restore",
                str(path),
                f"--name={member.name}",
                f"--data-dir={member.data}",
                f"--initial-cluster={self._initial}",
                f"--initial-cluster-token=restored-{self._restored}",
                f"--initial-advertise-peer-urls=http://{self.address(number)}:2380",
            )
        for member in self.members:
            member.start()


@contextmanager
def cluster_in(folder: Path, *more: str, disk: int | None = None) -> Iterator[Cluster]:
    """Three members that are running, for as long as the block; with `disk`, each on one of so many bytes."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    cluster = Cluster(folder, *more, disk=disk)
    try:
        cluster.begin()
        yield cluster
    finally:
        cluster.end()
