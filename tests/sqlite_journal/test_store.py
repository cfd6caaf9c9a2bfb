"""The journal's file: that it says what was appended, whatever became of its disk or its process meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uvmshare.errors import JournalDamaged, JournalError, JournalFull, JournalReadOnly, JournalTooNew
from uvmshare.share import journal
from uvmshare.share.journal import Begun, Changed, JournalledShare, JournalState
from uvmshare.share.manager import Manager
from uvmshare.share.options import AddOptions
from uvmshare.share.recovery import Done
from uvmshare.share.state import ShareLife
from uvmshare.sqlite_journal.journal import SqliteJournal
from uvmshare.sqlite_journal.store import APPLICATION_ID, MIGRATIONS, JournalFile, _row_sum
from uvmshare.testing.fakes import ListingFakeVM

if TYPE_CHECKING:
    from uvmshare.share.journal import Record
    from uvmshare.share.recovery import RecoveryReport

HERE = Path(__file__).parent
ONE = AddOptions(os.path.dirname(__file__), read_only=True)
ONLY = AddOptions(os.path.dirname(__file__), allowed_names=("a", "b'\u00e9\""))
NAMES = st.sampled_from(["0", "1", "2", "10"])
RECORDS = st.one_of(
    st.builds(journal.NamesReserved, st.integers(0, 20)),
    st.builds(journal.Begun, NAMES, st.sampled_from(ShareLife), st.sampled_from([ONE, ONLY])),
    st.builds(journal.Changed, NAMES, st.sampled_from(ShareLife)),
    st.builds(journal.Forgotten, NAMES),
    *(st.builds(kind, NAMES, st.sampled_from("ab")) for kind in (journal.Referred, journal.Unreferred)),
    st.builds(journal.AnonymousReferences, NAMES, st.integers(0, 3)),
)


def write(store: JournalFile, *records: Record, vm: str = "vm") -> None:
    store.write([(vm, records)])


def life(name: str) -> list[Record]:
    """A share that somebody holds."""
    return [
        journal.Begun(name, ShareLife.ADDING, ONE),
        journal.Changed(name, ShareLife.ADDED),
        journal.Referred(name, f"owner {name}"),
    ]


def expected(records: list[Record]) -> JournalState:
    state = JournalState()
    for record in records:
        state.apply(record)
    return state


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["x", "y"]), st.lists(RECORDS, max_size=8)), max_size=6))
def test_the_file_says_what_the_records_amount_to_for_each_vm(batches: list[tuple[str, list[Record]]]) -> None:
    with (
        tempfile.TemporaryDirectory() as directory,
        closing(JournalFile(os.path.join(directory, "journal.db"))) as store,
    ):
        for vm, records in batches:
            write(store, *records, vm=vm)
        for vm in "xy":
            wanted = expected([record for of, records in batches for record in records if of == vm])
            found = store.load(vm)
            assert found.next_name == wanted.next_name
            assert found.shares == wanted.shares
            assert list(found.shares) == sorted(wanted.shares, key=int)


def test_what_was_written_is_there_when_the_file_is_opened_again(tmp_path: Path) -> None:
    path = str(tmp_path / "journal.db")
    with closing(JournalFile(path)) as store:
        write(store, *life("3"))
        wanted = store.load("vm")
    with closing(JournalFile(path)) as store:
        assert store.load("vm") == wanted == expected(life("3"))
        assert store.vms() == ("vm",)


def test_a_transaction_is_whole_or_not_at_all(tmp_path: Path) -> None:
    with closing(JournalFile(str(tmp_path / "journal.db"))) as store:
        write(store, *life("0"))
        with pytest.raises(TypeError):
            write(store, *life("1"), journal.Changed(None, ShareLife.ADDED))  # type: ignore[arg-type]  # what no caller can do
        assert store.load("vm") == expected(life("0"))
        write(store, *life("2"), vm="another")
        assert store.vms() == ("vm", "another")


def test_a_vm_that_is_gone_for_good_is_forgotten_alone(tmp_path: Path) -> None:
    with closing(JournalFile(str(tmp_path / "journal.db"))) as store:
        write(store, *life("0"))
        write(store, *life("0"), vm="another")
        store.forget_vm("vm")
        store.forget_vm("never seen")
        assert store.vms() == ("another",)
        assert store.load("vm") == JournalState()
        assert store.load("another") == expected(life("0"))
        write(store, *life("1"))
        assert list(store.load("vm").shares) == ["1"]


def test_the_file_does_not_grow_with_what_has_come_and_gone(tmp_path: Path) -> None:
    path = str(tmp_path / "journal.db")
    with closing(JournalFile(path)) as store:
        for name in range(2000):
            write(store, *life(str(name)))
            write(store, journal.Changed(str(name), ShareLife.REMOVING), journal.Forgotten(str(name)))
    assert os.path.getsize(path) < 100_000
    assert not os.path.exists(path + "-wal")


def test_a_file_that_was_large_once_gives_its_space_back(tmp_path: Path) -> None:
    path = str(tmp_path / "journal.db")
    many = range(20_000)
    with closing(JournalFile(path)) as store:
        store.write([("vm", [record for name in many for record in life(str(name))])])
        store.write([("vm", [journal.Forgotten(str(name)) for name in many])])
        store.tidy()
        assert store.load("vm") == JournalState(20_000)
    assert os.path.getsize(path) < 3 << 19


# ---------------------------------------------------------------------- what a disk can do


def torn_copies(path: Path) -> tuple[bytes, bytes, list[JournalState]]:
    """Write ten transactions and return the file and its log as they lie there, and what holds after each."""
    states = [JournalState()]
    store = JournalFile(str(path))
    for name in range(10):
        write(store, *life(str(name)))
        states.append(store.load("vm"))
    file, log = path.read_bytes(), path.with_name(path.name + "-wal").read_bytes()
    store.close()
    return file, log, states


def opened_with(path: Path, file: bytes, log: bytes) -> JournalState:
    shutil.rmtree(path.parent)
    path.parent.mkdir()
    path.write_bytes(file)
    path.with_name(path.name + "-wal").write_bytes(log)
    with closing(JournalFile(str(path))) as store:
        return store.load("vm")


def test_a_log_that_was_cut_off_anywhere_loses_whole_transactions_from_its_end_and_nothing_else(
    tmp_path: Path,
) -> None:
    path = tmp_path / "torn" / "journal.db"
    path.parent.mkdir()
    file, log, states = torn_copies(path)
    whole = 0
    for length in [*range(0, len(log), 997), len(log)]:
        found = states.index(opened_with(path, file, log[:length]))
        assert found >= whole, "a longer log says less"
        whole = found
    assert whole == 10, "and all of it says all"


def test_a_log_with_a_hole_of_rubbish_ends_there(tmp_path: Path) -> None:
    path = tmp_path / "torn" / "journal.db"
    path.parent.mkdir()
    file, log, states = torn_copies(path)
    chance = random.Random(1)
    for _ in range(40):
        at = chance.randrange(len(log) - 512)
        torn = log[:at] + chance.randbytes(512) + log[at + 512 :]
        assert opened_with(path, file, torn) in states


def test_what_a_damaged_file_says_is_right_or_it_is_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "torn" / "journal.db"
    path.parent.mkdir()
    with closing(JournalFile(str(path))) as store:
        for name in range(40):
            write(store, *life(str(name)))
        whole = store.load("vm")
    file = path.read_bytes()
    chance = random.Random(1)
    told = 0
    for number in range(1000):
        at = chance.randrange(len(file) - 512)
        flipped = bytes([file[at] ^ (1 << chance.randrange(8))]) if number % 3 else bytes(512)
        damaged = file[:at] + flipped + file[at + len(flipped) :]
        try:
            assert opened_with(path, damaged, b"") == whole
        except JournalTooNew:
            assert damaged[60:64] != file[60:64], "the version, and nothing else, says so"
        except JournalDamaged:
            told += 1
    assert told > 150
    with pytest.raises(JournalDamaged, match=r"damaged.*journal\.md"):
        opened_with(path, file[: len(file) // 2], b"")


def test_what_is_no_journal_is_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_bytes(b"This is not SQLite's." * 100)
    with pytest.raises(JournalDamaged, match="not a database"):
        JournalFile(str(text))
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    with pytest.raises(JournalDamaged, match="no journal of uvmshare"):
        JournalFile(str(other))
    assert text.read_bytes().startswith(b"This is")
    with closing(sqlite3.connect(other)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("theirs",)]


def test_a_row_that_makes_no_sense_is_damage(tmp_path: Path) -> None:
    path = str(tmp_path / "journal.db")
    for column, value in (("life", "'removing'"), ("allowed_names", "'[1'"), ("name", "7"), ("host_path", "'/'")):
        with closing(JournalFile(path)) as store:
            write(store, *life("0"))
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(f"UPDATE shares SET {column} = {value}")
        with closing(JournalFile(path)) as store:
            with pytest.raises(JournalDamaged, match="makes no sense"):
                store.load("vm")
            store.forget_vm("vm")


def test_a_full_disk_is_said_and_nothing_is_half_written(tmp_path: Path) -> None:
    with closing(JournalFile(str(tmp_path / "journal.db"))) as store:
        write(store, *life("0"))
        pages = store._pragma("page_count")
        store._pragma(f"max_page_count = {pages}")
        with pytest.raises(JournalFull, match="free some"):
            store.write([("vm", [record for name in range(1, 500) for record in life(str(name))])])
        assert store.load("vm") == expected(life("0"))
        store._pragma("max_page_count = 1000000")
        write(store, *life("1"))
        assert list(store.load("vm").shares) == ["0", "1"]


def test_a_file_that_became_read_only_is_said(tmp_path: Path) -> None:
    with closing(JournalFile(str(tmp_path / "journal.db"))) as store:
        write(store, *life("0"))
        store._pragma("query_only = ON")
        with pytest.raises(JournalReadOnly, match="cannot be written to"):
            write(store, *life("1"))
        assert store.load("vm") == expected(life("0"))


def test_where_no_file_can_be_is_said(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="there is no directory"):
        JournalFile(str(tmp_path / "nowhere" / "journal.db"))
    with pytest.raises(JournalError, match="is a directory"):
        JournalFile(str(tmp_path))


# ---------------------------------------------------------------------- versions


def test_a_journal_of_a_later_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "journal.db")
    JournalFile(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    before = (tmp_path / "journal.db").read_bytes()
    with pytest.raises(JournalTooNew, match="a later uvmshare"):
        JournalFile(path)
    assert (tmp_path / "journal.db").read_bytes() == before


def test_a_journal_of_the_first_version_says_the_same_in_the_latest(tmp_path: Path) -> None:
    path = str(tmp_path / "journal.db")
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in MIGRATIONS[0]:
            connection.execute(statement)
        connection.execute("PRAGMA user_version = 1")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("INSERT INTO vms (vm, next_name) VALUES ('vm', 9)")
        connection.execute(
            "INSERT INTO shares VALUES (1, 3, 'added', ?, 0, ?, 2)", (ONLY.host_path, json.dumps(ONLY.allowed_names))
        )
        connection.execute("INSERT INTO refs (vm, name, owner) VALUES (1, 3, 'b'), (1, 3, 'a')")
    share = JournalledShare("3", ONLY.of_directory(None), ShareLife.ADDED, ("b", "a"), 2)
    for _ in range(2):
        with closing(JournalFile(path)) as store:
            assert store.load("vm") == JournalState(9, {"3": share})
    with closing(JournalFile(path)) as store:
        write(store, *life("9"))
        assert store.load("vm").next_name == 10
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)


def journal_of_the_second_version(path: str) -> None:
    """Make one as it was before a share's directory was written down."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.create_function("row_sum", -1, _row_sum)
        for statement in (*MIGRATIONS[0], *MIGRATIONS[1]):
            connection.execute(statement)
        connection.execute("PRAGMA user_version = 2")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("INSERT INTO vms (vm, next_name) VALUES ('vm', 4)")
        connection.execute(
            "INSERT INTO shares (vm, name, phase, host_path, read_only, allowed_names) VALUES (1, 3, 'added', ?, 0, ?)",
            (ONLY.host_path, json.dumps(ONLY.allowed_names)),
        )
        connection.execute("UPDATE vms SET sum = row_sum(id, vm, next_name)")
        connection.execute(
            "UPDATE shares SET sum = row_sum(vm, name, phase, host_path, read_only, allowed_names, anonymous)"
        )


def test_a_journal_that_knows_no_directories_says_the_same_and_learns_them(tmp_path: Path) -> None:
    path = str(tmp_path / "journal.db")
    journal_of_the_second_version(path)
    with closing(JournalFile(path)) as store:
        known = store.load("vm").shares["3"]
        assert known == JournalledShare("3", ONLY.of_directory(None), ShareLife.ADDED)
        store.write([("vm", [Changed("3", ShareLife.ADDED, ONLY.directory)])])
    with closing(JournalFile(path)) as store:
        assert store.load("vm").shares["3"].options == ONLY
        store.write([("vm", [Changed("3", ShareLife.ADDED)])])  # what is known stays so
        assert store.load("vm").shares["3"].options == ONLY


def test_a_journal_that_knows_nothing_of_hiding_says_the_same_and_learns_it(tmp_path: Path) -> None:
    path = str(tmp_path / "journal.db")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.create_function("row_sum", -1, _row_sum)
        for statements in MIGRATIONS[:3]:
            for statement in statements:
                connection.execute(statement)
        connection.execute("PRAGMA user_version = 3")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("INSERT INTO vms (vm, next_name) VALUES ('vm', 4)")
        connection.execute("UPDATE vms SET sum = row_sum(id, vm, next_name)")
        row = (1, 3, "added", ONLY.host_path, 0, json.dumps(ONLY.allowed_names), 0, ONLY.directory)
        connection.execute("INSERT INTO shares VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (*row[:7], _row_sum(*row), row[7]))
    hiding = AddOptions(ONLY.host_path, hide=["b", "!a", "é*"], map_owner="1000:0")
    with closing(JournalFile(path)) as store:
        assert store.load("vm").shares == {"3": JournalledShare("3", ONLY, ShareLife.ADDED)}
        store.write([("vm", [Begun("5", ShareLife.ADDING, hiding), Changed("5", ShareLife.ADDED)])])
    with closing(JournalFile(path)) as store:
        assert store.load("vm").shares["5"].options == hiding
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE shares SET hide = '[]' WHERE name = 5")
    with closing(JournalFile(path)) as store, pytest.raises(JournalDamaged, match="checksum"):
        store.load("vm")


def test_a_journal_that_the_fourth_version_wrote_says_in_more_words_what_it_said(tmp_path: Path) -> None:
    path = str(tmp_path / "journal.db")
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript((HERE / "version_4.sql").read_text())
    with closing(JournalFile(path)) as store:
        state = store.load("vm")
        other = store.load("another")
    assert state.next_name == 64
    assert {name: (share.life, share.owners, share.anonymous) for name, share in state.shares.items()} == {
        "0": (ShareLife.PENDING, (), 0),
        "1": (ShareLife.ADDING, (), 0),
        "2": (ShareLife.RESTORING, ("b", "a"), 0),
        "3": (ShareLife.RESTORING, (), 2),
        "4": (ShareLife.ADDED, ("a",), 1),
        "5": (ShareLife.REMOVING, ("a",), 0),
        "6": (ShareLife.DOUBTFUL, (), 0),
        "7": (ShareLife.NOT_OURS, (), 0),
    }
    assert state.shares["4"].options == AddOptions.recalled(
        "/srv/4", read_only=True, allowed_names=("a", "b"), hide=("*.key",), map_owner="1000:0"
    )
    assert (other.next_name, [share.life for share in other.shares.values()]) == (3, [ShareLife.ADDED])


def test_a_manager_goes_on_from_a_journal_that_the_fourth_version_wrote(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "journal.db")) as connection:
        connection.executescript((HERE / "version_4.sql").read_text())
    vm = ListingFakeVM()
    vm.shares = {
        str(name): AddOptions.recalled(f"/srv/{name}", read_only=False, allowed_names=(), directory=None)
        for name in (1, 5, 6, 7)
    }

    async def next_life(file: SqliteJournal) -> RecoveryReport:
        manager = Manager(vm, journal=file.for_vm("vm"))
        report = await manager.recover()
        await manager.detach()
        return report

    with SqliteJournal(tmp_path / "journal.db") as file:
        report = asyncio.run(next_life(file))
        assert {share.name: share.done for share in report} == {
            "0": Done.KEPT,
            "1": Done.TAKEN_OUT,
            "2": Done.ADDED_AGAIN,
            "3": Done.ADDED_AGAIN,
            "4": Done.ADDED_AGAIN,
            "5": Done.TAKEN_OUT,
            "6": Done.TAKEN_OUT,
            "7": Done.LEFT_ALONE,
        }
        assert report.unsettled == ()
    assert set(vm.shares) == {"2", "3", "4", "7"}


def test_a_row_that_was_damaged_before_a_migration_is_damaged_after_it(tmp_path: Path) -> None:
    path = str(tmp_path / "journal.db")
    journal_of_the_second_version(path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE shares SET host_path = '/srv/another'")
    with closing(JournalFile(path)) as store, pytest.raises(JournalDamaged, match="checksum"):
        store.load("vm")


def test_a_migration_that_was_cut_off_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "journal.db")
    with closing(JournalFile(path)) as store:
        write(store, *life("0"))
    broken = (*MIGRATIONS, ("ALTER TABLE vms ADD COLUMN more INTEGER", "this is no SQL"))
    monkeypatch.setattr("uvmshare.sqlite_journal.store.MIGRATIONS", broken)
    with pytest.raises(JournalError, match="syntax error"):
        JournalFile(path)
    monkeypatch.undo()
    with closing(JournalFile(path)) as store:
        assert store.load("vm") == expected(life("0"))
