"""What the daemon keeps is for its own eyes, and no guest writes to it."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
from contextlib import closing
from typing import TYPE_CHECKING

import msgspec
import pytest

from uvmshare import errors
from uvmshare.daemon import store
from uvmshare.daemon.store import DaemonStore, MountRecord, ShareLease
from uvmshare.sqlite_journal import SqliteJournal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.daemon.harness import Home, Running

    from uvmshare.daemon.client import Client


def modes(folder: str) -> dict[str, int]:
    """The permissions of every regular file below a directory."""
    found = {}
    for where, _, names in os.walk(folder):
        for name in names:
            there = os.lstat(os.path.join(where, name))
            if stat.S_ISREG(there.st_mode):
                found[name] = stat.S_IMODE(there.st_mode)
    return found


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("no_umask")
def test_state_files_are_their_owners_alone_whatever_the_umask(home: Home) -> None:
    with home.running() as daemon:
        daemon.add_vm()
        daemon.add_share(home.directory("project"), lease=30)
        found = modes(home.settings.state_dir)
        assert {"daemon.sqlite", "daemon.sqlite-wal", "journal.sqlite", "journal.sqlite-wal"} <= found.keys()
        of_vms = modes(f"{home.settings.run_dir}/vms")
        assert {"lock", "shares"} <= of_vms.keys()
        assert {name for name, mode in {**found, **of_vms}.items() if mode & 0o177} == set()


def test_state_files_that_others_could_read_are_narrowed(tmp_path: Path) -> None:
    store, journal = tmp_path / "daemon.sqlite", tmp_path / "journal.sqlite"
    open_both(store, journal)
    wide = [store, journal, *(tmp_path / f"{name}-wal" for name in ("daemon.sqlite", "journal.sqlite"))]
    for path in wide:
        path.touch()
        path.chmod(0o664)
    open_both(store, journal)
    assert {name: mode for name, mode in modes(str(tmp_path)).items() if mode & 0o177} == {}


@pytest.mark.parametrize(
    ("version", "unknown"), [(1, {"suid", "dev", "posixacl", "events"}), (2, {"posixacl", "events"}), (4, {"events"})]
)
def test_mounts_of_an_earlier_daemon_are_asked_for_as_it_had_them(
    tmp_path: Path, version: int, unknown: set[str]
) -> None:
    path = tmp_path / "daemon.sqlite"
    suid = "suid" not in unknown
    mounts = [
        MountRecord((0, "vm"), f"/mnt/{n}", "0/job", "/srv/ü", True, ("a",), "none", 8192, suid, False, False, False)
        for n in "ab"
    ]
    with sqlite3.connect(path) as earlier:
        for statement in store._MIGRATIONS[0].split(";"):
            earlier.execute(statement)
        for mount in mounts:
            since = {*unknown, "directory", "hide", "map_owner"}
            record = {name: getattr(mount, name) for name in mount.__struct_fields__ if name not in since}
            row = (0, "vm", mount.mount_path, "0/job", msgspec.json.encode(record))
            earlier.execute("INSERT INTO mount VALUES (?, ?, ?, ?, ?)", row)
        earlier.execute(f"PRAGMA user_version = {version}")
    earlier.close()
    for _ in range(2):
        with DaemonStore(path) as opened:
            assert opened.mounts((0, "vm")) == mounts
    with closing(sqlite3.connect(path)) as later:
        later.execute("PRAGMA user_version = 99")
    with pytest.raises(errors.DaemonError, match="a later version"):
        DaemonStore(path)
    with closing(sqlite3.connect(path)) as later:  # nothing holds its lock
        later.execute("PRAGMA user_version = 98")


def test_a_lease_of_an_earlier_daemon_is_found_again_by_its_bytes(tmp_path: Path) -> None:
    """Rows are deleted by what they are: one more field in all of them would leave the older ones for ever."""
    plain = ShareLease((0, "vm"), "0/job", "/srv/x", True, ())
    row = b'{"type":"share","vm":[0,"vm"],"owner":"0/job","host_path":"/srv/x","read_only":true,"allowed_names":[]}'
    assert msgspec.json.encode(plain) == row
    hiding = ShareLease((0, "vm"), "0/job", "/srv/x", True, (), ("x",), "1/1:0/0")
    with DaemonStore(tmp_path / "daemon.sqlite") as opened:
        for lease in (plain, hiding):
            opened.put_lease(lease, 5.0)
        assert set(opened.leases((0, "vm"))) == {plain, hiding}
        opened.drop_leases([plain])
        assert set(opened.leases((0, "vm"))) == {hiding}


def open_both(store: Path, journal: Path) -> None:
    """Open and close both files; the journal is opened when it is first read."""
    with DaemonStore(store), SqliteJournal(journal) as opened:
        asyncio.run(load(opened))


async def load(journal: SqliteJournal) -> None:
    await journal.for_vm("vm").load()


@pytest.mark.parametrize("place", ["", "state", "run", "run/vms", "state/deeper"])
def test_a_guest_may_write_to_nothing_that_holds_what_the_daemon_keeps(
    place: str, home: Home, daemon: Running, client: Client
) -> None:
    daemon.add_vm()
    path = home.directory(place, 0o700) if place else home.folder
    for only in ((), *(((os.path.basename(path),),) if place and "/" not in place else ())):
        shared = home.folder if only else path
        with pytest.raises(errors.AccessDenied, match=r"(keeps its state|run directory).*read-only"):
            client.shares.add("vm", shared, only=only)
        client.shares.add("vm", shared, only=only, read_only=True)
    client.shares.add("vm", home.folder, only=("project",))


def test_a_single_state_file_is_not_shared_for_writing_either(home: Home, daemon: Running, client: Client) -> None:
    daemon.add_vm()
    with pytest.raises(errors.AccessDenied, match="keeps its state"):
        client.shares.add("vm", f"{home.settings.state_dir}/daemon.sqlite")
