"""What the daemon itself remembers across its restarts: its VMs, who holds which mount, and who has a lease on what.

What lives here: one SQLite file and its tables. What must not: shares and who holds them, which the Manager's
journal keeps; deadlines, which start afresh when the daemon does (nobody could renew while it was away).
"""

from __future__ import annotations

import os
import sqlite3
from typing import TYPE_CHECKING, Final

import msgspec

from uvmshare.daemon.documents import NewVm
from uvmshare.daemon.identity import Identity
from uvmshare.errors import UNREADABLE, DaemonError
from uvmshare.mounts.cache import Cache
from uvmshare.printable import printable
from uvmshare.share.options import AddOptions
from uvmshare.sqlite_journal.private import make_private
from uvmshare.wording import reason_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType
    from typing import Any, Self

    from uvmshare.mounts.options import MountOptions

__all__ = ["DaemonStore", "LeaseKey", "MountLease", "MountRecord", "ShareLease", "VmKey", "VmRecord", "name_for"]

_MIGRATIONS: Final = (
    """
CREATE TABLE vm (uid INTEGER, id TEXT, record BLOB NOT NULL, PRIMARY KEY (uid, id)) WITHOUT ROWID;
CREATE TABLE lease (
    vm_uid INTEGER, vm_id TEXT, key BLOB, seconds REAL NOT NULL, PRIMARY KEY (vm_uid, vm_id, key)
) WITHOUT ROWID;
CREATE TABLE mount (vm_uid INTEGER, vm_id TEXT, path TEXT, owner TEXT, record BLOB NOT NULL,
    PRIMARY KEY (vm_uid, vm_id, path, owner)
) WITHOUT ROWID;
""",
    # Whether a mount is suid and dev. Nobody could ask for these before.
    """
UPDATE mount SET record = CAST(json_set(CAST(record AS TEXT), '$.suid', json('false'), '$.dev', json('false')) AS BLOB);
""",
    # Rows may say what is hidden. Nothing changes in them, but an earlier version, which would show it, stops here.
    "",
    # Whether a mount keeps access control lists. None did before.
    """
UPDATE mount SET record = CAST(json_set(CAST(record AS TEXT), '$.posixacl', json('false')) AS BLOB);
""",
    # Whether what is changed on the host is an event in the guest. Nobody could ask for this before.
    """
UPDATE mount SET record = CAST(json_set(CAST(record AS TEXT), '$.events', json('false')) AS BLOB);
""",
)
"""What makes each version of the file from the one before; the first from nothing."""

VmKey = tuple[int, str]
"""The user to whom a VM belongs, and its id: each user names their own."""


def name_for(who: Identity, vm: VmKey) -> str:
    """Return what `who` has to call a VM: root names other users' VMs UID:ID."""
    return vm[1] if vm[0] == who.uid else f"{vm[0]}:{vm[1]}"


class VmRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """A VM as it was asked for, and with whose rights its file server runs."""

    identity: Identity
    wanted: NewVm
    unreadable: str | None = None
    """Why what was written down of it cannot be used; then its user and its id are all that is known. Never stored."""
    tenant: str = ""
    """Whose VM it is in the fleet; empty for this host's own."""
    offered: str = ""
    """To which tenant of the fleet its user offers it. It stays this host's own, with its id and its place here."""
    arriving: bool = False
    """Whether it is being added with what it brought along from another host: what is there of it is not all yet."""
    joined: str = ""
    """Which tenant has it in the fleet since they took it on; empty before that, and when it was given back."""

    @property
    def id(self) -> str:
        """What its user calls it on this host: a fleet's VM is TENANT:ID. No other id has a colon."""
        return f"{self.tenant}:{self.wanted.id}" if self.tenant else self.wanted.id

    @property
    def key(self) -> VmKey:
        """What the daemon knows it by."""
        return (self.identity.uid, self.id)


class MountRecord(msgspec.Struct, frozen=True):
    """A mount that somebody holds: enough to ask for it again."""

    vm: VmKey
    mount_path: str
    owner: str
    """As the MountManager knows it: "UID/NAME"."""
    host_path: str
    read_only: bool
    allowed_names: tuple[str, ...]
    cache: Cache
    msize: int | None
    suid: bool
    dev: bool
    posixacl: bool
    events: bool
    directory: str | None = None
    """`AddOptions.directory` of its share, in what this version wrote."""
    hide: tuple[str, ...] = ()
    map_owner: str | None = None

    @classmethod
    def of(cls, vm: VmKey, owner: str, options: MountOptions) -> Self:
        """Return the record of a mount with a share of its own."""
        share = options.share
        assert isinstance(share, AddOptions), "this daemon asks for no others"
        return cls(
            vm=vm,
            mount_path=options.mount_path,
            owner=owner,
            host_path=share.host_path,
            read_only=share.read_only,
            allowed_names=share.allowed_names,
            cache=options.cache,
            msize=options.msize,
            suid=options.suid,
            dev=options.dev,
            posixacl=options.posixacl,
            events=options.events,
            directory=share.directory,
            hide=share.hide,
            map_owner=share.map_owner,
        )


class MountLease(msgspec.Struct, frozen=True, tag="mount"):
    """What one lease is on: a reference of an owner to a mount."""

    vm: VmKey
    owner: str
    mount_path: str


class ShareLease(msgspec.Struct, frozen=True, tag="share", omit_defaults=True):
    """What one lease is on: a reference of an owner to a share, named by its options.

    The options, not the share's name: they are known before the share is added, so that no crash can leave a
    reference behind whose lease nobody wrote down. Nor which directory it is: that is another one after each boot.
    """

    vm: VmKey
    owner: str
    """As the Manager knows it: "UID/NAME"."""
    host_path: str
    read_only: bool
    allowed_names: tuple[str, ...]
    hide: tuple[str, ...] = ()
    map_owner: str | None = None
    """Both are left out where they say nothing: a row is found again by its bytes, and older ones have neither."""


_records = msgspec.json.Decoder(VmRecord)
LeaseKey = ShareLease | MountLease

_keys: msgspec.json.Decoder[LeaseKey] = msgspec.json.Decoder(LeaseKey)
_mounts = msgspec.json.Decoder(MountRecord)
_NOT_UNDERSTOOD: Final = (*UNREADABLE, TypeError)
"""What decoding a row raises that is damaged, or that another version wrote with other limits."""


class DaemonStore:
    """The file. Every call is small, written before it returns, and safe against the end of the process.

    Raises `DaemonError` when the file cannot be used. One daemon at a time: it is locked while it is open.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)
        try:
            make_private(self._path)
            self._db = sqlite3.connect(self._path, isolation_level=None, timeout=0.0)
        except (sqlite3.Error, OSError) as error:
            raise self._failed(error) from error
        try:
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode = WAL")
            # Losing the last moments with the host's power loses nothing: the VMs went with it.
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._migrate()
        except (sqlite3.Error, OSError) as error:
            self._db.close()
            raise self._failed(error) from error
        except BaseException:
            self._db.close()
            raise

    def _failed(self, error: Exception) -> DaemonError:
        if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
            return DaemonError(f"{self._path}: another daemon uses it: give each its own --state-dir")
        return DaemonError(
            f"{self._path}: {reason_of(error)}: see that the file is whole and its file system can be written to"
        )

    def _migrate(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > len(_MIGRATIONS):
            msg = f"{self._path}: a later version of uvmshare wrote it: use that one"
            raise DaemonError(msg)
        for statements in _MIGRATIONS[version:]:
            for statement in statements.split(";"):
                self._db.execute(statement)
        self._db.execute(f"PRAGMA user_version = {len(_MIGRATIONS)}")
        self._db.execute("COMMIT")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Again is a no-op."""
        self._db.close()

    def _write(self, statement: str, *rows: tuple[object, ...]) -> None:
        try:
            with self._db:
                self._db.executemany(statement, rows)
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def _read(self, statement: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def check(self) -> None:
        """See that the file can be written to: write what is there already. Raises `DaemonError`."""
        try:
            self._db.execute(f"PRAGMA user_version = {len(_MIGRATIONS)}")
        except sqlite3.Error as error:
            raise self._failed(error) from error

    # Where a host that follows a fleet has got to. The table is made by the first that does: no other file has it.

    def fleet_place(self) -> tuple[int, int] | None:
        """Return the cluster and the revision that were followed last; None for a host that has followed none."""
        if not self._read("SELECT 1 FROM sqlite_master WHERE name = 'fleet'"):
            return None
        found = self._read("SELECT cluster, revision FROM fleet")
        return (int(found[0][0]), int(found[0][1])) if found else None

    def put_fleet_place(self, cluster: int, revision: int) -> None:
        """Remember which cluster is followed, and to which revision."""
        self._write("CREATE TABLE IF NOT EXISTS fleet (one INTEGER PRIMARY KEY, cluster TEXT, revision INTEGER)", ())
        self._write("INSERT OR REPLACE INTO fleet VALUES (1, ?, ?)", (str(cluster), revision))

    def drop_fleet_place(self) -> None:
        """Forget which cluster was followed."""
        if self.fleet_place() is not None:
            self._write("DELETE FROM fleet", ())

    def vms(self) -> list[VmRecord]:
        """Return every VM. One of which any row cannot be understood says why, and costs no other VM anything."""
        rows = self._read("SELECT uid, id, record FROM vm ORDER BY uid, id")
        return [self._vm((uid, id_), record) for uid, id_, record in rows]

    def _vm(self, key: VmKey, record: bytes) -> VmRecord:
        what = "settings"
        try:
            found = _records.decode(record)
            if found.key != key:
                raise ValueError("they are another VM's")  # noqa: EM101, TRY003  it is caught just below
            what = "leases"
            self.leases(key)
            what = "mounts"
            self.mounts(key)
        except _NOT_UNDERSTOOD as error:
            why = printable(reason_of(error))
            unusable = (
                f"its {what}, as they were written down in {self._path}, cannot be used ({why}), "
                "and what it shares stays as it is"
            )
            return VmRecord(Identity(key[0], key[0]), NewVm(id=key[1]), unusable)
        return found

    def put_vm(self, record: VmRecord) -> None:
        """Remember a VM."""
        self._write("INSERT OR REPLACE INTO vm VALUES (?, ?, ?)", (*record.key, msgspec.json.encode(record)))

    def drop_vm(self, key: VmKey) -> None:
        """Forget a VM, its leases and its mounts."""
        self._write("DELETE FROM mount WHERE vm_uid = ? AND vm_id = ?", key)
        self._write("DELETE FROM lease WHERE vm_uid = ? AND vm_id = ?", key)
        self._write("DELETE FROM vm WHERE uid = ? AND id = ?", key)

    def leases(self, vm: VmKey) -> dict[LeaseKey, float]:
        """Return the leases of a VM and their lengths in seconds. Raises `ValueError` and others for what is none."""
        found: dict[LeaseKey, float] = {}
        for row, seconds in self._read("SELECT key, seconds FROM lease WHERE vm_uid = ? AND vm_id = ?", vm):
            key = _keys.decode(row)
            if key.vm != vm or not isinstance(seconds, float) or not seconds > 0:
                msg = f"a lease of {seconds!r} s on {key!r}"
                raise ValueError(msg)
            found[key] = seconds
        return found

    def put_lease(self, key: LeaseKey, seconds: float) -> None:
        """Remember a lease."""
        self._write("INSERT OR REPLACE INTO lease VALUES (?, ?, ?, ?)", (*key.vm, msgspec.json.encode(key), seconds))

    def drop_leases(self, keys: Iterable[LeaseKey]) -> None:
        """Forget leases."""
        rows = [(*key.vm, msgspec.json.encode(key)) for key in keys]
        self._write("DELETE FROM lease WHERE vm_uid = ? AND vm_id = ? AND key = ?", *rows)

    def mounts(self, vm: VmKey) -> list[MountRecord]:
        """Return the mounts of a VM that somebody holds. Raises `ValueError` and others for what is none."""
        rows = self._read("SELECT record FROM mount WHERE vm_uid = ? AND vm_id = ? ORDER BY path, owner", vm)
        found = [_mounts.decode(record) for (record,) in rows]
        for each in found:
            if each.vm != vm:
                msg = f"a mount of another VM, {each.vm!r}"
                raise ValueError(msg)
        return found

    def put_mount(self, record: MountRecord) -> None:
        """Remember that somebody holds a mount, or is going to ask for it."""
        row = (*record.vm, record.mount_path, record.owner, msgspec.json.encode(record))
        self._write("INSERT OR REPLACE INTO mount VALUES (?, ?, ?, ?, ?)", row)

    def drop_mount(self, vm: VmKey, mount_path: str, owner: str) -> None:
        """Forget that somebody holds a mount."""
        self._write(
            "DELETE FROM mount WHERE vm_uid = ? AND vm_id = ? AND path = ? AND owner = ?", (*vm, mount_path, owner)
        )
