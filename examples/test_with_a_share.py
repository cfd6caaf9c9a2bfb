"""Tests of a program that shares directories, without any VM: ``pytest test_with_a_share.py``.

`uvmshare.testing` has a 9P client, which stands for the guest, and a VM that answers, fails or loses its answer as a
test says.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from uvmshare import FileServer, Manager, OutcomeUnknown
from uvmshare.testing.client import NinePClient
from uvmshare.testing.fakes import FakeReply, FakeVM


async def stage(manager: Manager, project: str) -> str:
    """What is tested: give a VM a project, read-only. Return the share's name."""
    return await manager.add(project, read_only=True, owner="stage")


@contextlib.asynccontextmanager
async def serving(address: str) -> AsyncIterator[Manager]:
    """A file server for one VM, and its Manager."""
    async with FileServer(listen=[address]) as server, Manager(server) as manager:
        yield manager


@pytest.fixture
def project(tmp_path: Path) -> str:
    """A directory with a file in it."""
    directory = tmp_path / "project"
    directory.mkdir()
    (directory / "greeting.txt").write_text("hello")
    return str(directory)


def test_the_guest_reads_the_project_and_cannot_write_it(project: str, tmp_path: Path) -> None:
    """What a guest would see, through a real file server."""
    address = f"unix:{tmp_path}/vm.9p"

    async def story() -> None:
        async with serving(address) as manager:
            name = await stage(manager, project)
            guest = await asyncio.to_thread(NinePClient.connect, address, name)
            try:
                assert await asyncio.to_thread(guest.read_file, "greeting.txt") == b"hello"
                with pytest.raises(OSError, match="Read-only"):
                    await asyncio.to_thread(guest.write_file, "new.txt", b"")
            finally:
                guest.close()

    asyncio.run(story())


def test_a_vm_whose_answer_is_lost_keeps_nothing(project: str) -> None:
    """What the program does when nobody knows whether the VM has the share."""

    async def story() -> None:
        vm = FakeVM()
        async with Manager(vm) as manager:
            vm.replies.append(FakeReply.LOSE_AFTER)  # the VM has added it, and says nothing
            with pytest.raises(OutcomeUnknown):
                await stage(manager, project)
            assert manager.shares() == ()

    asyncio.run(story())
