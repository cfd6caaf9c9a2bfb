"""What the daemon wrote down once and cannot use any more: a row costs its own VM, and nobody else anything."""

from __future__ import annotations

import json
import os
import select
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
from tests.daemon.harness import supervisor_of
from tests.processes import DEADLINE

from uvmshare import errors
from uvmshare.daemon.store import DaemonStore

if TYPE_CHECKING:
    from tests.daemon.harness import Home

UID = os.getuid()
REASONS = {
    "limits": r"its settings.* cannot be used.*listen.*more than 16 items.*remove the VM",
    "damage": r"its settings.* cannot be used",
    "another": r"its settings.* another VM's",
    "lease": r"its leases.* cannot be used",
    "mount": r"its mounts.* cannot be used",
    "journal": r"damaged.*makes no sense",
}


def spoil(home: Home) -> None:
    """Write what another version may have written, with a limit that it did not have, or what a disk may return."""
    with sqlite3.connect(f"{home.settings.state_dir}/daemon.sqlite") as store:

        def record(vm: str) -> Any:
            return json.loads(store.execute("SELECT record FROM vm WHERE id = ?", (vm,)).fetchone()[0])

        def rewrite(vm: str, content: bytes) -> None:
            store.execute("UPDATE vm SET record = ? WHERE id = ?", (content, vm))

        of_limits = record("limits")
        of_limits["wanted"]["listen"] *= 17
        rewrite("limits", json.dumps(of_limits).encode())
        rewrite("damage", b"\xff" + json.dumps(record("damage")).encode()[1:])
        rewrite("another", json.dumps(record("healthy")).encode())
        lease, mount = (UID, "lease", b'{"type":"none"}', 1.0), (UID, "mount", "/mnt/x", f"{UID}/a", b"[" * 5000)
        store.execute("INSERT INTO lease VALUES (?, ?, ?, ?)", lease)
        store.execute("INSERT INTO mount VALUES (?, ?, ?, ?, ?)", mount)
    store.close()
    with sqlite3.connect(f"{home.settings.state_dir}/journal.sqlite") as journal:
        journal.execute(
            "UPDATE shares SET host_path = '/' WHERE vm = (SELECT id FROM vms WHERE vm = ?)", (f"{UID}/journal",)
        )
    journal.close()


def test_a_row_that_cannot_be_used_costs_its_own_vm_which_is_told_and_can_be_removed(home: Home) -> None:
    path = home.directory("project")
    with home.running() as daemon:
        for vm in (*REASONS, "healthy"):
            daemon.add_vm(vm)
            daemon.add_share(path, vm, read_only=True, lease=None if vm == "journal" else 30)
    spoil(home)
    with home.running() as daemon, home.client() as client:
        assert client.vms.get("healthy").state == "running"
        assert [each.lease for each in client.shares("healthy")[0].references] == [30]
        daemon.pass_time(30)
        assert client.shares("healthy") == []
        for vm, reason in REASONS.items():
            assert client.vms.get(vm).state == "failed"
            with pytest.raises(errors.FileServerError, match=reason):
                daemon.add_share(path, vm)
        with pytest.raises(errors.AlreadyThere):
            client.vms.add("limits")
        for vm in REASONS:
            supervisor = os.pidfd_open(supervisor_of(home, UID, vm))
            assert client.vms.remove(vm).left is None
            assert select.select([supervisor], [], [], DEADLINE)[0], "its file server has ended"
            os.close(supervisor)
        assert [vm.id for vm in client.vms()] == ["healthy"]
        assert daemon.add_vm("limits").shares == 0
    with home.running(), home.client() as client:
        assert {vm.id: vm.state for vm in client.vms()} == {"healthy": "running", "limits": "running"}


def test_a_store_that_sqlite_cannot_read_is_an_error_with_its_path(home: Home) -> None:
    os.makedirs(home.settings.state_dir)
    path = f"{home.settings.state_dir}/daemon.sqlite"
    with DaemonStore(path) as store:
        store._db.execute("DROP TABLE vm")
        with pytest.raises(errors.DaemonError, match=r"daemon\.sqlite.*see that the file is whole"):
            store.vms()
