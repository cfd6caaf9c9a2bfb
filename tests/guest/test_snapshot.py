"""Mounts come back by themselves after a guest was restored from a snapshot, or was started anew.

The guest's root is in memory, and Debian's Python is on a disk of its own that is only read: QEMU takes no snapshot of
a guest that has its root over virtio-9p.
"""

from __future__ import annotations

import asyncio
import glob
import os
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
from qemu.qmp import QMPClient
from tests.guest.test_agent import DEADLINE, tell

from uvmshare import AddOptions, FileServer, Manager
from uvmshare.guest.bundle import bundle
from uvmshare.mounts import AgentClient, MountManager
from uvmshare.testing.guest_vm import HOST, GuestVM

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = [pytest.mark.guest, pytest.mark.long]

PYTHON = os.path.realpath("/usr/bin/python3")
INSIDE = "/run/py"
"""Where the disk with Python is in the guest; what runs in it sees it as its root."""


def libraries(program: str) -> list[str]:
    """Return the shared libraries that a program or library needs."""
    said = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    return [word for line in said.splitlines() for word in line.split() if word.startswith("/")]


def make_disks(directory: Path) -> None:
    """Make a disk with Debian's Python and the agent, and one that snapshots go to."""
    root = directory / "root"
    standard = f"/usr/lib/{os.path.basename(PYTHON)}"
    leave_out = shutil.ignore_patterns("test", "idlelib", "tkinter", "__pycache__", "config-*")
    shutil.copytree(standard, f"{root}{standard}", ignore=leave_out, symlinks=False, ignore_dangling_symlinks=True)
    needed = {PYTHON}
    for program in (
        PYTHON,
        *glob.glob(f"{standard}/lib-dynload/_ctypes*.so"),
        *glob.glob(f"{standard}/lib-dynload/_h*"),
    ):
        needed.update(libraries(program))
    for path in needed:
        os.makedirs(f"{root}{os.path.dirname(path)}", exist_ok=True)
        shutil.copy(os.path.realpath(path), f"{root}{path}")
    for name in ("proc", "sys", "dev", "run"):
        (root / name).mkdir()
    (root / "agent").write_bytes(bundle())
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", "-d", root, directory / "py", "128M"], check=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", directory / "vm", "1G"], check=True)


class Bench:
    """A file server and its managers; guests come and go."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.guest: GuestVM | None = None
        self.qmp_path = str(directory / "qmp")

    async def start(self) -> None:
        self.server = await FileServer(listen=["tcp:127.0.0.1:0"]).start()
        port = int(self.server.addresses[0].rpartition(":")[2])
        self.shares = Manager(self.server)
        self.agent = await AgentClient("tcp:127.0.0.1:0", accept=True, server_port=port, timeout=DEADLINE).start()
        self.mounts = MountManager(self.agent, shares=self.shares)

    async def start_guest(self) -> GuestVM:
        guest = self.guest = await GuestVM.start(
            modules=("crc32c_generic", "virtio_blk", "ext4"),
            qemu_arguments=(
                *("-drive", f"if=none,id=py,file={self.directory}/py,format=raw,readonly=on"),
                *("-device", "virtio-blk-pci,drive=py"),
                *("-drive", f"if=none,id=vm,file={self.directory}/vm,format=qcow2"),
                *("-qmp", f"unix:{self.qmp_path},server=on,wait=off"),
            ),
        )
        await guest.check(
            f"mkdir {INSIDE} && mount -t ext4 -o ro /dev/vda {INSIDE} && "
            f"for name in proc sys dev run; do mount -o bind /$name {INSIDE}/$name; done"
        )
        await guest.check(
            f"chroot {INSIDE} {PYTHON} -I -S /agent agent --connect tcp:{HOST}:{self.agent.port} --server tcp:{HOST} "
            f"--allow /run/mnt --check-every 0.5 >/run/agent.log 2>&1 &"
        )
        return guest

    async def end_guest(self) -> None:
        if self.guest is not None:
            await self.guest.aclose()

    async def close(self) -> None:
        await self.end_guest()
        await self.agent.aclose()
        await self.server.aclose()


async def snapshots(path: str) -> AsyncIterator[str]:
    """Take a snapshot, and when asked again go back to it; QEMU's own words are what is given."""
    qmp = QMPClient("guest")
    await qmp.connect(path)
    for line in ("savevm here", "loadvm here"):
        said = await qmp.execute("human-monitor-command", {"command-line": line})
        assert said == "", said
        yield line
    await qmp.disconnect()


async def until_read(guest: GuestVM, path: str) -> float:
    """Return how many seconds it took until the guest could read the file."""
    began = time.monotonic()
    while (await guest.run(f"cat {INSIDE}{path}")).output != b"text":  # noqa: ASYNC110  a guest has no event to wait for
        await asyncio.sleep(0.05)
    return time.monotonic() - began


def test_mounts_come_back_after_a_snapshot_is_restored_and_after_the_guest_is_started_anew(tmp_path: Path) -> None:
    make_disks(tmp_path)
    (tmp_path / "share").mkdir()
    (tmp_path / "share" / "f").write_text("text")

    async def test() -> None:
        bench = Bench(tmp_path)
        await bench.start()
        try:
            await use(bench)
        finally:
            await bench.close()

    async def use(bench: Bench) -> None:
        guest = await bench.start_guest()
        options = AddOptions(tmp_path / "share")
        await bench.mounts.map(options, "/run/mnt/a", owner="a")
        await until_read(guest, "/run/mnt/a/f")
        again = (await bench.agent.listed())[0].again

        snapshot = snapshots(bench.qmp_path)
        assert await anext(snapshot) == "savevm here"
        assert await until_read(guest, "/run/mnt/a/f") < 600
        assert await anext(snapshot) == "loadvm here"
        tell("a snapshot restored, until the mount can be read", await until_read(guest, "/run/mnt/a/f"))
        assert [left async for left in snapshot] == []
        # The connection with the host is one that the restored guest does not know of any more: it comes back too.
        listed = await bench.agent.listed()
        assert [found.mount_path for found in listed] == ["/run/mnt/a"]
        assert listed[0].again >= again

        await bench.end_guest()
        guest = await bench.start_guest()
        began = time.monotonic()
        await until_read(guest, "/run/mnt/a/f")
        tell("a guest started anew, from the start of its agent", time.monotonic() - began)
        assert bench.mounts.mounts()[0].owners == ("a",)
        await bench.mounts.unmap("/run/mnt/a", owner="a")
        assert not bench.shares.shares()

    asyncio.run(test())
