"""The file: its tables, what each record changes in them, and what SQLite's errors mean.

What lives here: `JournalFile`, synchronous, for one thread. What must not: threads, event loops, or who may write.

The tables hold what the records amount to, not the records: a share that is forgotten leaves nothing behind but
the number of its name, so that the file is as large as what is shared, not as long as its history.
"""

from __future__ import annotations

import os
import sqlite3
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING, Final, assert_never

import msgspec

from uvmshare.errors import (
    UNREADABLE,
    JournalDamaged,
    JournalError,
    JournalFull,
    JournalInUse,
    JournalReadOnly,
    JournalTooNew,
)
from uvmshare.share.journal import (
    AnonymousReferences,
    Begun,
    Changed,
    Forgotten,
    JournalledShare,
    JournalState,
    NamesReserved,
    Referred,
    Unreferred,
)
from uvmshare.share.options import AddOptions
from uvmshare.share.state import ShareLife
from uvmshare.sqlite_journal.private import make_private
from uvmshare.wording import reason_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from uvmshare.share.journal import Record

__all__ = ["APPLICATION_ID", "MIGRATIONS", "JournalFile"]

APPLICATION_ID: Final = 0x75766D73
"""'uvms': what `file(1)` and SQLite's own tools tell this file by."""

_SUM_OF_SHARE: Final = (
    "row_sum(vm, name, life, host_path, read_only, allowed_names, anonymous, directory, hide, map_owner)"
)

MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        "CREATE TABLE vms (id INTEGER PRIMARY KEY, vm TEXT NOT NULL UNIQUE, next_name INTEGER NOT NULL DEFAULT 0)",
        """CREATE TABLE shares (
            vm INTEGER NOT NULL, name INTEGER NOT NULL, phase TEXT NOT NULL,
            host_path TEXT NOT NULL, read_only INTEGER NOT NULL, allowed_names TEXT NOT NULL,
            anonymous INTEGER NOT NULL DEFAULT 0,
            PRIMARY KEY (vm, name)
        ) WITHOUT ROWID""",
        """CREATE TABLE refs (
            id INTEGER PRIMARY KEY, vm INTEGER NOT NULL, name INTEGER NOT NULL, owner TEXT NOT NULL,
            UNIQUE (vm, name, owner)
        )""",
    ),
    (
        # SQLite sums its log, and not its tables: a bit that flips there would be another path, or another owner.
        "ALTER TABLE vms ADD COLUMN sum INTEGER NOT NULL DEFAULT 0",
        "UPDATE vms SET sum = row_sum(id, vm, next_name)",
        "ALTER TABLE shares ADD COLUMN sum INTEGER NOT NULL DEFAULT 0",
        "UPDATE shares SET sum = row_sum(vm, name, phase, host_path, read_only, allowed_names, anonymous)",
        "ALTER TABLE refs ADD COLUMN sum INTEGER NOT NULL DEFAULT 0",
        "UPDATE refs SET sum = row_sum(vm, name, owner)",
    ),
    (
        # A path alone does not say which directory it led to. NULL: nobody knows.
        "ALTER TABLE shares ADD COLUMN directory TEXT",
        # A row that was damaged stays so: its sum is left as it is.
        """UPDATE shares SET sum = row_sum(vm, name, phase, host_path, read_only, allowed_names, anonymous, directory)
            WHERE sum = row_sum(vm, name, phase, host_path, read_only, allowed_names, anonymous)""",
    ),
    (
        # Shares of before hide nothing, and each file's owner is its own.
        "ALTER TABLE shares ADD COLUMN hide TEXT NOT NULL DEFAULT '[]'",
        "ALTER TABLE shares ADD COLUMN map_owner TEXT",
        """UPDATE shares SET sum = row_sum(
                vm, name, phase, host_path, read_only, allowed_names, anonymous, directory, hide, map_owner)
            WHERE sum = row_sum(vm, name, phase, host_path, read_only, allowed_names, anonymous, directory)""",
    ),
    (
        # The words are those of `ShareLife`, which tells more. Of what was in doubt nothing else was known; what
        # somebody held while it was being added had been lost by the VM.
        "ALTER TABLE shares RENAME COLUMN phase TO life",
        """UPDATE shares SET life = 'doubtful', sum = row_sum(
                vm, name, 'doubtful', host_path, read_only, allowed_names, anonymous, directory, hide, map_owner)
            WHERE life = 'in doubt' AND sum = row_sum(
                vm, name, life, host_path, read_only, allowed_names, anonymous, directory, hide, map_owner)""",
        """UPDATE shares SET life = 'restoring', sum = row_sum(
                vm, name, 'restoring', host_path, read_only, allowed_names, anonymous, directory, hide, map_owner)
            WHERE life = 'adding' AND sum = row_sum(
                vm, name, life, host_path, read_only, allowed_names, anonymous, directory, hide, map_owner)
            AND (anonymous > 0 OR EXISTS (SELECT 1 FROM refs WHERE refs.vm = shares.vm AND refs.name = shares.name))""",
    ),
)
"""What leads from each version of the schema to the next, from an empty file on. Never change one that was released."""

_PAGES_BETWEEN_CHECKPOINTS: Final = 1000
"""SQLite's own default: 4 MiB of log, then it goes into the tables."""

_LOG_BYTES_KEPT: Final = 4 << 20
_FREE_PAGES_KEPT: Final = 256
"""Pages that are given back to the file system only beyond this many: they are needed again soon."""

_BUSY_SECONDS: Final = 5.0
"""How long to wait for a reader that holds the file up, such as a backup."""


class JournalFile:
    """One open journal file.

    Every method raises `JournalError`, or a child of it that says more; afterwards the file is as it was.
    """

    def __init__(self, path: str) -> None:
        """Open the file, or make it. The caller has the right to write it."""
        self._path = path
        self._vm_ids: dict[str, int] = {}
        make_private(path)
        try:
            self._connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)
        except sqlite3.Error as error:
            raise _meaning(path, error) from error
        try:
            self._open()
        except sqlite3.Error as error:
            self.close()
            raise _meaning(path, error) from error
        except UnicodeDecodeError as error:  # SQLite names what it found
            self.close()
            raise JournalDamaged(_damaged(path, reason_of(error))) from error
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        self._connection.create_function("row_sum", -1, _row_sum, deterministic=True)
        self._check_whose()
        version = self._pragma("user_version")
        if not isinstance(version, int) or version > len(MIGRATIONS):
            msg = (
                f"{self._path}: a later uvmshare wrote this journal (format {version}, this one knows up to "
                f"{len(MIGRATIONS)}): use that version, or give another file"
            )
            raise JournalTooNew(msg)
        damage = self._pragma("quick_check(1)")
        if damage != "ok":
            raise JournalDamaged(_damaged(self._path, str(damage)))
        if version == 0:
            self._pragma("auto_vacuum = INCREMENTAL")
        if self._pragma("journal_mode = WAL") != "wal":
            msg = f"{self._path}: SQLite cannot keep a write-ahead log there: put the journal on a local disk"
            raise JournalError(msg)
        # FULL: each commit is on the disk when it returns, not only whole when the power fails.
        self._pragma("synchronous = FULL")
        self._pragma(f"wal_autocheckpoint = {_PAGES_BETWEEN_CHECKPOINTS}")
        self._pragma(f"journal_size_limit = {_LOG_BYTES_KEPT}")
        for number in range(version, len(MIGRATIONS)):
            self._migrate(number)

    def _check_whose(self) -> None:
        application = self._pragma("application_id")
        (tables,) = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application != APPLICATION_ID and (application or tables):
            msg = f"{self._path}: this SQLite file is no journal of uvmshare: give another path"
            raise JournalDamaged(msg)

    def _migrate(self, number: int) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in MIGRATIONS[number]:
                self._connection.execute(statement)
            self._pragma(f"user_version = {number + 1}")
            self._pragma(f"application_id = {APPLICATION_ID}")
            self._connection.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise

    def _pragma(self, text: str) -> object:
        row = self._connection.execute(f"PRAGMA {text}").fetchone()
        return row[0] if row else None

    def close(self) -> None:
        """Close the file. What was written stays, whether this succeeds or not."""
        with suppress(sqlite3.Error):
            self._connection.close()

    # ------------------------------------------------------------------ reading

    def vms(self) -> tuple[str, ...]:
        """Return the ids of the VMs that anything was ever written down of, in the order in which they came."""
        try:
            return tuple(vm for (vm,) in self._connection.execute("SELECT vm FROM vms ORDER BY id"))
        except sqlite3.Error as error:
            raise _meaning(self._path, error) from error

    def load(self, vm: str) -> JournalState:
        """Return what is written down of a VM."""
        state = JournalState()
        try:
            row = self._connection.execute("SELECT id, next_name, sum FROM vms WHERE vm = ?", (vm,)).fetchone()
            if row is None:
                return state
            number, next_name, row_sum = row
            _check_sum(row_sum, number, vm, next_name)
            state.next_name = next_name
            owners: dict[int, list[str]] = {}
            for name, owner, row_sum in self._connection.execute(
                "SELECT name, owner, sum FROM refs WHERE vm = ? ORDER BY id", (number,)
            ):
                _check_sum(row_sum, number, name, owner)
                owners.setdefault(name, []).append(owner)
            for *row, row_sum in self._connection.execute(
                "SELECT name, life, host_path, read_only, allowed_names, anonymous, directory, hide, map_owner, sum "
                "FROM shares WHERE vm = ? ORDER BY name",
                (number,),
            ):
                _check_sum(row_sum, number, *row)
                name, life, path, read_only, allowed, anonymous, directory, hide, map_owner = row
                options = AddOptions.recalled(
                    path,
                    read_only=bool(read_only),
                    allowed_names=msgspec.json.decode(allowed, type=tuple[str, ...]),
                    hide=msgspec.json.decode(hide, type=tuple[str, ...]),
                    map_owner=map_owner,
                    directory=directory,
                )
                share = JournalledShare(str(name), options, ShareLife(life), tuple(owners.pop(name, ())), anonymous)
                state.shares[share.name] = share
                state.next_name = max(state.next_name, name + 1)
            if owners:
                msg = f"share {min(owners)} has owners, and is not there"
                raise ValueError(msg)
        except sqlite3.Error as error:
            raise _meaning(self._path, error) from error
        except (TypeError, *UNREADABLE) as error:
            raise JournalDamaged(
                _damaged(self._path, f"what it says of VM {vm!r} makes no sense ({reason_of(error)})")
            ) from error
        return state

    # ------------------------------------------------------------------ writing

    def write(self, batches: Iterable[tuple[str, Sequence[Record]]]) -> None:
        """Write the records of these VMs down, in one transaction: all of them or none."""
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                for vm, records in batches:
                    self._write_one(self._id_of(vm), records)
                self._connection.execute("COMMIT")
            except BaseException:
                self._roll_back()
                raise
        except sqlite3.Error as error:
            raise _meaning(self._path, error) from error

    def forget_vm(self, vm: str) -> None:
        """Remove everything that is written down of a VM, the numbers of its names too."""
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                number = self._id_of(vm)
                for table in ("refs", "shares"):
                    self._connection.execute(f"DELETE FROM {table} WHERE vm = ?", (number,))  # noqa: S608  two names above
                self._connection.execute("DELETE FROM vms WHERE id = ?", (number,))
                self._connection.execute("COMMIT")
            except BaseException:
                self._roll_back()
                raise
            finally:
                self._vm_ids.pop(vm, None)
        except sqlite3.Error as error:
            raise _meaning(self._path, error) from error

    def tidy(self) -> None:
        """Give free pages beyond some back to the file system. Failing does no harm."""
        with suppress(sqlite3.Error):
            free = self._pragma("freelist_count")
            if isinstance(free, int) and free > _FREE_PAGES_KEPT:
                # A step frees one page and gives no row, after which execute() would stop; this steps to the end.
                self._connection.executescript(f"PRAGMA incremental_vacuum({free - _FREE_PAGES_KEPT})")

    def _roll_back(self) -> None:
        self._vm_ids.clear()  # one that was new is not there
        with suppress(sqlite3.Error):
            self._connection.execute("ROLLBACK")

    def _id_of(self, vm: str) -> int:
        number = self._vm_ids.get(vm)
        if number is None:
            self._connection.execute("INSERT OR IGNORE INTO vms (vm) VALUES (?)", (vm,))
            (number,) = self._connection.execute("SELECT id FROM vms WHERE vm = ?", (vm,)).fetchone()
            self._set_next_name(number, "next_name")
            self._vm_ids[vm] = number
        return number

    def _write_one(self, vm: int, records: Sequence[Record]) -> None:
        execute = self._connection.execute
        names_seen = 0
        for record in records:
            match record:
                case Begun():
                    self._write_share(vm, record.name, record.life, record.options)
                    names_seen = max(names_seen, int(record.name) + 1)
                case Changed():
                    self._change(vm, record.name, "life", record.life.value)
                    self._set_directory(vm, record.name, record.directory)
                case AnonymousReferences():
                    self._change(vm, record.name, "anonymous", record.count)
                case Forgotten():
                    execute("DELETE FROM refs WHERE vm = ? AND name = ?", (vm, int(record.name)))
                    execute("DELETE FROM shares WHERE vm = ? AND name = ?", (vm, int(record.name)))
                case Referred():
                    execute(
                        "INSERT OR IGNORE INTO refs (vm, name, owner, sum) "
                        "SELECT vm, name, ?1, row_sum(vm, name, ?1) FROM shares WHERE vm = ?2 AND name = ?3",
                        (record.owner, vm, int(record.name)),
                    )
                case Unreferred():
                    execute(
                        "DELETE FROM refs WHERE vm = ? AND name = ? AND owner = ?", (vm, int(record.name), record.owner)
                    )
                case NamesReserved():
                    names_seen = 0
                    lowest = "SELECT coalesce(max(name) + 1, 0) FROM shares WHERE vm = ?1"
                    self._set_next_name(vm, f"max(?2, ({lowest}))", record.below)
                case _:
                    assert_never(record)
        if names_seen:
            self._set_next_name(vm, "max(next_name, ?2)", names_seen)

    def _write_share(self, vm: int, name: str, life: ShareLife, options: AddOptions) -> None:
        allowed = msgspec.json.encode(options.allowed_names).decode()
        row = (
            *(vm, int(name), life.value, options.host_path, int(options.read_only), allowed, 0, options.directory),
            *(msgspec.json.encode(options.hide).decode(), options.map_owner),
        )
        inserted = self._connection.execute(
            "INSERT OR IGNORE INTO shares "
            "(vm, name, life, host_path, read_only, allowed_names, anonymous, directory, hide, map_owner, sum) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*row, _row_sum(*row)),
        )
        if inserted.rowcount == 0:
            self._change(vm, name, "life", life.value)
            self._set_directory(vm, name, options.directory)

    def _set_directory(self, vm: int, name: str, directory: str | None) -> None:
        if directory is not None:  # what is known stays so
            self._change(vm, name, "directory", directory)

    def _change(self, vm: int, name: str, column: str, value: object) -> None:
        """Set the life, the anonymous references or the directory of a share, if it is there."""
        new_sum = _SUM_OF_SHARE.replace(column, "?1")
        self._connection.execute(
            f"UPDATE shares SET {column} = ?1, sum = {new_sum} WHERE vm = ?2 AND name = ?3",  # noqa: S608  three columns
            (value, vm, int(name)),
        )

    def _set_next_name(self, vm: int, expression: str, *values: int) -> None:
        self._connection.execute(f"UPDATE vms SET next_name = {expression} WHERE id = ?1", (vm, *values))  # noqa: S608  ours
        self._connection.execute("UPDATE vms SET sum = row_sum(id, vm, next_name) WHERE id = ?", (vm,))


def _row_sum(*values: object) -> int:
    """Return a checksum of a row: CRC-32 finds every single bit that flipped, and all but 1 of 2**32 other damage."""
    return zlib.crc32(repr(values).encode("utf-8", "surrogatepass"))


def _check_sum(found: object, *values: object) -> None:
    if found != _row_sum(*values):
        msg = "its checksum is wrong"
        raise ValueError(msg)


# ---------------------------------------------------------------------- what SQLite's errors mean


def _damaged(path: str, reason: str) -> str:
    return (
        f"{path}: this journal is damaged: {reason}: move it and what lies beside it (-wal, -shm) away and begin a "
        f"new one, as docs/journal.md says"
    )


_DAMAGE: Final = (
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    # The statements are always the same ones: what does not fit them is the file.
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_SCHEMA,
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_MISMATCH,
    None,  # no error of SQLite's own: text that is not UTF-8
)


def _meaning(path: str, error: sqlite3.Error) -> JournalError:
    """Return what an error of SQLite's says about the journal, with what can be done about it."""
    code = getattr(error, "sqlite_errorcode", None)
    primary = code & 0xFF if code is not None else None
    if primary == sqlite3.SQLITE_FULL:
        return JournalFull(f"{path}: no space is left for the journal: free some on its disk; nothing is lost")
    if primary in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
        return JournalReadOnly(f"{path}: the journal cannot be written to ({error}): make its file system writable")
    if primary in _DAMAGE:
        return JournalDamaged(_damaged(path, str(error)))
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return JournalInUse(f"{path}: another program holds the journal up ({error}): end it, such as a long backup")
    if primary == sqlite3.SQLITE_CANTOPEN:
        return _cannot_open(path, error)
    return JournalError(f"{path}: the journal cannot be read or written: {error}: see the host's log for its disk")


def _cannot_open(path: str, error: sqlite3.Error) -> JournalError:
    directory = os.path.dirname(path) or "."
    if os.path.isdir(path):
        return JournalError(f"{path} is a directory: give the path of a file for the journal")
    if not os.path.isdir(directory):
        return JournalError(f"{path}: there is no directory {directory}: make it, or give another path")
    if not os.access(directory, os.W_OK) or (os.path.exists(path) and not os.access(path, os.W_OK)):
        return JournalReadOnly(f"{path}: the journal cannot be written to ({error}): let this user write there")
    return JournalError(f"{path}: the journal cannot be opened: {error}: see that its file is whole, or give another")
