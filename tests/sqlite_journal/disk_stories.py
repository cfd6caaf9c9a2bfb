"""Stories of a journal on a file system of its own; run as ``python disk_stories.py STORY DIRECTORY``.

It takes the right to mount.

Prints how many times something was made to go wrong. What lives here: what happens and what has to hold.
"""

# ruff: noqa: ASYNC221, ASYNC230  nothing else runs in these event loops

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from uvmshare.errors import JournalDamaged, JournalError, JournalFull, JournalReadOnly, OutcomeNotWritten
from uvmshare.share.manager import Manager
from uvmshare.share.options import AddOptions
from uvmshare.share.recovery import Done
from uvmshare.sqlite_journal import SqliteJournal
from uvmshare.testing.fakes import ListingFakeVM

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20


def options(number: int) -> AddOptions:
    return AddOptions("/", allowed_names=(f"{number}" * 40,))


@contextmanager
def file_system(at: str, size: int) -> Iterator[str]:
    """Give an empty tmpfs of so many bytes."""
    os.makedirs(at, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", at], check=True)
    try:
        yield os.path.join(at, "journal.db")
    finally:
        subprocess.run(["umount", "-l", at], check=True)


async def adds_until_refused(manager: Manager, vm: ListingFakeVM, most: int) -> tuple[list[str], JournalError | None]:
    """Add until the journal refuses; the VM must not have been asked for what was refused."""
    names: list[str] = []
    for number in range(most):
        try:
            names.append(await manager.add(options(number), owner=f"owner {number}"))
        except JournalError as error:
            return names, error
    return names, None


async def full_at_every_size(directory: str) -> int:
    """Whatever there is space for, what was acknowledged is there when the next process looks, on a larger disk."""
    tried = 0
    for pages in range(1, 40, 3):
        vm = ListingFakeVM()
        with file_system(os.path.join(directory, "disk"), 32 * 1024 + pages * 4096) as path:
            names: list[str] = []
            with SqliteJournal(path) as journal:
                manager = Manager(vm, journal=journal.for_vm())
                try:
                    await manager.recover()
                    names, error = await adds_until_refused(manager, vm, 3000)
                    assert isinstance(error, JournalError), "3000 shares do not fit there"
                except JournalError as refused:
                    error = refused
                assert "journal.db" in str(error)
                tried += 1
            subprocess.run(["mount", "-o", "remount,size=16M", os.path.dirname(path)], check=True)
            with SqliteJournal(path) as journal:
                again = Manager(vm, journal=journal.for_vm())
                report = await again.recover()
                assert not report.unsettled
                held = {info.name: info.owners for info in again.shares()}
                assert held.keys() == vm.shares.keys()
                assert all(owners for owners in held.values())
                assert held.keys() >= set(names)
                # The last one may have been written down before its caller was told that it could not be.
                assert len(held) <= len(names) + 1
                await again.add(AddOptions(directory), owner="new")
    return tried


async def full_and_freed(directory: str) -> int:
    """While the disk is full nothing is added, what is released is off the VM, and with space it goes on by itself."""
    vm = ListingFakeVM()
    with file_system(os.path.join(directory, "disk"), MIB) as path, SqliteJournal(path) as journal:
        manager = Manager(vm, journal=journal.for_vm())
        await manager.add(options(0), owner="a")
        await manager.add(options(1), owner="a")
        ballast = os.path.join(os.path.dirname(path), "ballast")
        subprocess.run(["dd", "if=/dev/zero", f"of={ballast}", "bs=4096"], check=False, stderr=subprocess.DEVNULL)
        names, error = await adds_until_refused(manager, vm, 3000)
        assert isinstance(error, JournalFull), error
        assert "free some" in str(error)
        before, calls = manager.shares(), len(vm.calls)
        for _ in range(5):
            with pytest.raises(JournalFull):
                await manager.add(options(9999), owner="b")
        assert manager.shares() == before
        assert len(vm.calls) == calls
        with suppress(OutcomeNotWritten):
            await manager.remove("0", owner="a")
        assert "0" not in vm.shares
        os.unlink(ballast)
        await manager.remove("1", owner="a")
        await manager.add(options(9999), owner="b")
        await manager.detach()
        assert {"0", "1"}.isdisjoint((await journal.for_vm().load()).shares)
    return 6 + len(names)


async def read_only(directory: str) -> int:
    """A file system that is read-only is said before anything is touched; what is there is not changed."""
    vm = ListingFakeVM()
    with file_system(os.path.join(directory, "disk"), MIB) as path:
        with SqliteJournal(path) as journal:
            manager = Manager(vm, journal=journal.for_vm())
            await manager.add(options(0), owner="a")
            await manager.detach()
        subprocess.run(["mount", "-o", "remount,ro", os.path.dirname(path)], check=True)
        with SqliteJournal(path) as journal:
            manager = Manager(vm, journal=journal.for_vm())
            with pytest.raises(JournalReadOnly, match=r"let this user write|file system writable"):
                await manager.add(options(1), owner="a")
        assert len(vm.calls) == 1
        subprocess.run(["mount", "-o", "remount,rw", os.path.dirname(path)], check=True)
        with SqliteJournal(path) as journal:
            manager = Manager(vm, journal=journal.for_vm())
            (share,) = await manager.recover()
            assert (share.done, share.owners) == (Done.KEPT, ("a",))
            await manager.detach()
    return 1


async def damaged_and_begun_anew(directory: str) -> int:
    """A damaged journal touches nothing; moved away, a new one begins beside what the server still has."""
    vm = ListingFakeVM()
    path = os.path.join(directory, "journal.db")
    with SqliteJournal(path) as journal:
        manager = Manager(vm, journal=journal.for_vm())
        for number in range(3):
            await manager.add(options(number), owner="a")
        await manager.detach()
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(os.urandom(8192))
    with SqliteJournal(path) as journal:
        manager = Manager(vm, journal=journal.for_vm())
        with pytest.raises(JournalDamaged, match=r"docs/journal\.md"):
            await manager.recover()
    assert len(vm.calls) == 3
    os.rename(path, path + ".damaged")
    with SqliteJournal(path) as journal:
        manager = Manager(vm, journal=journal.for_vm())
        assert {share.done for share in await manager.recover()} == {Done.LEFT_ALONE}
        assert await manager.add(options(0), owner="a") == "3", "and no name is used again"
        assert vm.shares.keys() == {"0", "1", "2", "3"}
        report = await manager.recover(take_out_unknown=True)
        assert sum(share.done is Done.TAKEN_OUT for share in report) == 3
        assert vm.shares.keys() == {"3"}
        await manager.aclose()
    return 1


if __name__ == "__main__":
    print(asyncio.run(globals()[sys.argv[1]](sys.argv[2])))  # noqa: T201  the answer
