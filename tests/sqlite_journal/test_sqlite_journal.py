"""One writer thread for many: group commit, one writer at a time, and what becomes of those who wait."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from uvmshare.errors import JournalDamaged, JournalError, JournalInUse
from uvmshare.share import journal
from uvmshare.share.journal import JournalState
from uvmshare.share.options import AddOptions
from uvmshare.share.state import ShareLife
from uvmshare.sqlite_journal import SqliteJournal
from uvmshare.sqlite_journal.store import JournalFile

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from uvmshare.share.journal import Record

ONE = AddOptions(os.path.dirname(__file__), read_only=True)


def life(name: str) -> list[Record]:
    return [
        journal.Begun(name, ShareLife.ADDING, ONE),
        journal.Changed(name, ShareLife.ADDED),
        journal.Referred(name, "a"),
    ]


def test_what_was_appended_is_loaded_by_the_next_process(tmp_path: Path) -> None:
    async def first() -> None:
        with SqliteJournal(tmp_path / "journal.db") as file:
            of_vm = file.for_vm("vm1")
            assert await of_vm.load() == JournalState()
            await of_vm.append(life("0"))

    async def second() -> None:
        with SqliteJournal(tmp_path / "journal.db") as file:
            state = await file.for_vm("vm1").load()
            assert state.shares["0"].life is ShareLife.ADDED
            assert await file.vms() == ("vm1",)
            await file.forget_vm("vm1")
            assert await file.vms() == ()

    asyncio.run(first())
    asyncio.run(second())


def test_what_comes_while_the_disk_is_busy_goes_into_one_transaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_the_disk, go_on = threading.Event(), threading.Event()
    transactions: list[int] = []
    write = JournalFile.write

    def slow(store: JournalFile, batches: Iterable[tuple[str, Sequence[Record]]]) -> None:
        gathered = list(batches)
        transactions.append(len(gathered))
        at_the_disk.set()
        assert go_on.wait(60)
        write(store, gathered)

    monkeypatch.setattr(JournalFile, "write", slow)

    async def many() -> None:
        with SqliteJournal(tmp_path / "journal.db") as file:
            parts = [file.for_vm(f"vm{number}") for number in range(20)]
            for part in parts:
                await part.load()
            first = asyncio.create_task(parts[0].append(life("0")))
            await asyncio.to_thread(at_the_disk.wait, 60)
            rest = [asyncio.create_task(part.append(life("1"))) for part in parts]
            await asyncio.sleep(0)
            assert not any(task.done() for task in [first, *rest])
            go_on.set()
            await asyncio.gather(first, *rest)
            assert len(await file.vms()) == 20

    asyncio.run(many())
    assert transactions == [1, 20]


def test_records_that_cannot_be_written_fail_their_own_caller_alone(tmp_path: Path) -> None:
    async def both() -> None:
        with SqliteJournal(tmp_path / "journal.db") as file:
            good, bad = file.for_vm("good"), file.for_vm("bad")
            await good.load()
            await bad.load()
            outcomes = await asyncio.gather(
                good.append(life("0")),
                bad.append([journal.Referred("x", "a")]),
                good.append(life("1")),
                return_exceptions=True,
            )
            assert [type(outcome) for outcome in outcomes] == [type(None), ValueError, type(None)]
            assert list((await good.load()).shares) == ["0", "1"]

    asyncio.run(both())


def test_a_manager_that_was_replaced_writes_nothing_any_more(tmp_path: Path) -> None:
    async def both() -> None:
        with SqliteJournal(tmp_path / "journal.db") as file:
            old, new = file.for_vm("vm"), file.for_vm("vm")
            with pytest.raises(JournalInUse, match="never loaded"):
                await old.append(life("0"))
            await old.load()
            await old.append(life("0"))
            await new.load()
            with pytest.raises(JournalInUse, match="another Manager has taken over VM 'vm'"):
                await old.append(life("1"))
            assert list((await new.load()).shares) == ["0"]

    asyncio.run(both())


def test_a_second_process_is_told_which_one_has_the_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    script = (
        "import asyncio, sys\n"
        "from uvmshare.sqlite_journal import SqliteJournal\n"
        "from uvmshare.errors import JournalInUse\n"
        "try:\n"
        "    asyncio.run(SqliteJournal(sys.argv[1]).vms())\n"
        "except JournalInUse as error:\n"
        "    print(error)\n"
        "else:\n"
        "    print('free')\n"
    )

    def ask() -> str:
        command = [sys.executable, "-c", script, str(path)]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout

    async def hold() -> None:
        with SqliteJournal(path) as file:
            await file.vms()
            assert f"process {os.getpid()} has this journal open" in ask()
            with SqliteJournal(path) as again, pytest.raises(JournalInUse, match="this process has"):
                await again.vms()

    asyncio.run(hold())
    assert ask() == "free\n"


def test_a_journal_that_could_not_be_opened_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "not yet" / "journal.db"

    async def later() -> None:
        with SqliteJournal(path) as file:
            with pytest.raises(JournalError, match="there is no directory"):
                await file.for_vm().load()
            path.parent.mkdir()
            path.write_text("rubbish" * 100)
            with pytest.raises(JournalDamaged):
                await file.for_vm().load()
            path.unlink()
            assert await file.for_vm().load() == JournalState()

    asyncio.run(later())


def test_a_caller_that_is_cancelled_leaves_what_it_appended(tmp_path: Path) -> None:
    async def cancelled() -> None:
        with SqliteJournal(tmp_path / "journal.db") as file:
            part = file.for_vm()
            await part.load()
            task = asyncio.create_task(part.append(life("0")))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert list((await part.load()).shares) == ["0"]

    asyncio.run(cancelled())


def test_a_closed_journal_says_so(tmp_path: Path) -> None:
    async def closed() -> None:
        file = SqliteJournal(tmp_path / "journal.db")
        part = file.for_vm()
        await part.load()
        file.close()
        file.close()
        with pytest.raises(JournalError, match="was closed"):
            await part.append(life("0"))

    asyncio.run(closed())
    with pytest.raises(TypeError, match="the id of a VM: a str"):
        SqliteJournal(tmp_path / "journal.db").for_vm(1)  # type: ignore[arg-type]  # that is the point


def test_an_event_loop_that_ended_is_not_waited_for(tmp_path: Path) -> None:
    file = SqliteJournal(tmp_path / "journal.db")

    async def ends_at_once() -> None:
        await file.for_vm().load()

        async def append() -> None:
            await file.for_vm("other").load()

        asyncio.ensure_future(append())  # noqa: RUF006  left behind is the point

    asyncio.run(ends_at_once())
    file.close()


def test_a_flood_of_one_vms_appends_keeps_anothers_waiting_for_two_transactions_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_the_disk, go_on = threading.Event(), threading.Event()
    transactions: list[set[str]] = []
    write = JournalFile.write

    def slow(store: JournalFile, batches: Iterable[tuple[str, Sequence[Record]]]) -> None:
        gathered = list(batches)
        transactions.append({vm for vm, _ in gathered})
        at_the_disk.set()
        assert go_on.wait(60)
        write(store, gathered)

    monkeypatch.setattr(JournalFile, "write", slow)

    async def both() -> None:
        with SqliteJournal(tmp_path / "journal.db") as file:
            flood, other = file.for_vm("flood"), file.for_vm("other")
            await flood.load()
            await other.load()
            first = asyncio.create_task(flood.append(life("0")))
            await asyncio.to_thread(at_the_disk.wait, 60)
            many = [asyncio.create_task(flood.append(life(str(number)))) for number in range(1, 200)]
            asked = asyncio.create_task(other.append(life("0")))
            more = [asyncio.create_task(flood.append(life(str(number)))) for number in range(200, 400)]
            await asyncio.sleep(0)
            go_on.set()
            await asyncio.gather(first, asked, *many, *more)

    asyncio.run(both())
    assert transactions == [{"flood"}, {"flood", "other"}]
