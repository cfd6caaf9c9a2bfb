"""What root holds in a user's VM: that user is told of its existence by nothing that the daemon says to them.

Whatever root has there carries `MARK`: paths, names, owners, patterns. Nothing that the VM's user can ask for may.
"""

from __future__ import annotations

import itertools
import os
import re
import select
import shutil
import signal
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.daemon.guests import guest, replace
from tests.daemon.harness import supervisor_of
from tests.daemon.test_users import ALICE, User, as_user
from tests.processes import DEADLINE, kill
from tests.root import needs_root

from uvmshare import errors
from uvmshare.daemon.event_kinds import EventKind
from uvmshare.mounts.engine import share_owner
from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import GetattrMask
from uvmshare.share.options import AddOptions
from uvmshare.testing.client import NinePClient as Caller

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.daemon.guests import Guest
    from tests.daemon.harness import Home, Running

    from uvmshare.daemon.client import Client
    from uvmshare.daemon.documents import Event

if sys.platform == "win32":
    pytest.skip("the daemon runs on Linux", allow_module_level=True)
from tests.fuse import HungFuse

__all__ = ["guest"]

pytestmark = needs_root

MARK = "h1dden"

OF_THE_WHOLE_VM = {
    *(EventKind.VM_ADDED, EventKind.VM_REMOVED, EventKind.VM_FOUND, EventKind.VM_FAILED, EventKind.VM_GONE),
    *(EventKind.VM_UNLIMITED, EventKind.VM_UNENDED, EventKind.VM_UNSETTLED),
    *(EventKind.VM_RESTARTED, EventKind.AGENT_REACHED, EventKind.AGENT_LOST),
}
"""Events that carry nothing of a share, so that nothing of another user's is in them."""

AFTER_A_RESTART = {EventKind.MOUNT_RESTORED, EventKind.MOUNT_GIVEN_UP}


class Scene:
    """A VM of Alice's in which root holds things, and what each of them is told."""

    def __init__(self, daemon: Running, guest: Guest, root: Client) -> None:
        self.daemon, self.guest, self.root = daemon, guest, root
        os.chmod(guest.socket, 0o666)
        self.alice = User(daemon, ALICE)
        self.address = self.alice.add_vm(agent=f"unix:{guest.socket}")
        self.vm = f"{ALICE}:vm"
        self.names: set[str] = set()
        """The shares that root has, or had."""
        self.kinds: set[str] = set()
        """Of the events in which root is told of the mark."""

    def directory(self, name: str) -> str:
        return self.daemon.home.directory(f"{MARK}-{name}")

    def share(self, name: str, **more: Any) -> str:
        self.names.add(found := self.root.shares.add(self.vm, self.directory(name), read_only=True, **more).name)
        return found

    def map(self, name: str, guest_path: str, **more: Any) -> str:
        path = self.directory(name)
        mount = self.root.mounts.map(self.vm, path, f"{self.guest.allow}/{guest_path}", read_only=True, **more)
        assert mount.share is not None
        self.names.add(mount.share)
        return mount.share

    def events(self, client: Client) -> list[Event]:
        return [event for event in client.events("0", follow=False) if event is not None]

    def wait_for(self, kind: str, nth: int = 0) -> Event:
        of_kind = (event for event in self.root.events("0") if event is not None and event.kind == kind)
        return next(itertools.islice(of_kind, nth, None))

    def check(self) -> None:
        """Ask for everything as Alice, and see that nothing of root's is in it."""
        told = self.events(self.root)
        self.kinds |= {event.kind for event in told if event.owner == MARK or MARK in str(event.detail)}
        self.names |= {event.share for event in told if event.owner == MARK and event.share is not None}
        operations = [each.id for each in self.root.operations()]
        for what, said in as_user(ALICE, lambda: list(self._everything(operations))):
            assert MARK not in said, what
        for event in self.alice.do(self.events):
            assert event.share not in self.names, event
        (vm,) = self.alice.do(lambda client: client.vms())
        assert (vm.shares, vm.mounts) == (0, 0)

    def _everything(self, operations: list[str]) -> Iterator[tuple[str, str]]:
        fills = {"vm": ["vm"], "share": sorted(self.names, key=int)[-4:], "operation": operations[-2:]}
        fills["owner"] = ["nobody"]
        with self.daemon.home.http() as http:
            paths = http.get("/v1/openapi.json").json()["paths"]
            assert len(paths) > 12, paths
            for path, methods in paths.items():
                for url in _filled(path, fills):
                    for method in methods:
                        for query, body in _asked(method, path, self.alice.folder, self.guest.allow):
                            what = f"{method} {url}{query} {body}"
                            answer = http.request(method, f"{url}{query}", json=body)
                            yield what, f"{answer.headers}{answer.text}"
            yield "metrics", http.get("/metrics").text


def _filled(path: str, fills: dict[str, list[str]]) -> list[str]:
    """Return the path with every value in each of its places."""
    place = re.search(r"{(\w+)}", path)
    if place is None:
        return [path]
    return [url for value in fills[place[1]] for url in _filled(path.replace(place[0], value), fills)]


def _asked(method: str, path: str, own: str, allow: str) -> list[tuple[str, Any]]:
    """Return the queries and the bodies of requests that change nothing of Alice's, or are refused."""
    if method == "get":
        return [("?since=0&follow=false", None)] if path.endswith("/events") else [("", None)]
    if method == "put":
        return [("", {})]
    if method == "post":
        return [("", {"path": own, "guest_path": f"{allow}/taken", "read_only": True})] if "mounts" in path else []
    if path.endswith("mounts"):
        return [(f"?guest_path={allow}/taken{more}", None) for more in ("", "&force=true", "&lazy=true", "&uid=0")]
    if path.endswith("{vm}"):
        return [("", None)]
    return [(more, None) for more in ("", "?force=true", "?uid=0", "?owner=nobody") if "owners" not in path or not more]


def holds_and_mounts(scene: Scene) -> None:
    scene.share("forced", owner=MARK)
    scene.share("plain", owner=MARK, lease=50.0, only=(f"{MARK}.txt",), hide=(f"*.{MARK}",))
    scene.map("mapped", "taken", owner=MARK, lease=50.0)
    scene.map("kept", MARK, owner=MARK)
    scene.root.shares.begin_add(scene.vm, scene.directory("begun"), read_only=True, owner=MARK)


def begins_the_guest_anew(scene: Scene) -> None:
    guest = scene.guest
    guest.end()
    os.unlink(f"{guest.kernel}/mounts.json")
    shutil.rmtree(f"{guest.folder}/state")
    guest.start()
    os.chmod(guest.socket, 0o666)
    paths = {scene.wait_for("mount.remounted", nth).detail["guest_path"] for nth in range(2)}
    assert paths == {f"{guest.allow}/{MARK}", f"{guest.allow}/taken"}


def loses_a_directory_and_the_supervisor(scene: Scene) -> None:
    os.rmdir(scene.directory("forced"))
    scene.root.shares(scene.vm)
    kill(supervisor_of(scene.daemon.home, ALICE))
    scene.wait_for("vm.restarted")


def leaves_a_process_in_the_kernel(scene: Scene, shown: Path) -> None:
    with HungFuse(shown, Path(scene.directory("ws")) / MARK) as fuse:
        (shown / MARK).write_bytes(b"")
        name = scene.share("ws", owner=MARK)
        with Caller.connect(scene.address, name) as caller:
            fid = caller.walk(f"{MARK}/{MARK}")
            fuse.hang(MARK)
            caller.send(m.Tgetattr(fid, int(GetattrMask.BASIC)))
            fuse.wait_until_asked()
            assert scene.root.shares.release(scene.vm, name, owner=MARK).left_behind
            assert MARK in str(scene.root.vms.examine(scene.vm)), "root is told"
            scene.check()
            caller.drain()
            fuse.release()


def gives_back_and_lets_leases_end(scene: Scene) -> None:
    at = f"{scene.guest.allow}/{MARK}"
    with pytest.raises(errors.StillInUse):
        scene.root.shares.release(scene.vm, scene.map("kept", MARK, owner=MARK), owner=MARK)
    scene.daemon.pass_time(51.0)
    scene.root.mounts.unmap(scene.vm, at, owner=MARK)
    scene.map("kept", MARK, owner=MARK)
    scene.root.mounts.unmap(scene.vm, at, owner=MARK, force=True)
    scene.root.shares.release(scene.vm, scene.share("taken-away", owner=MARK), force=True)
    scene.root.shares.release(scene.vm, scene.share("given-back", owner=MARK), owner=MARK)


def cannot_give_back_at_once(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease that ends, and a mount's share of which nothing is written down, while the VM refuses to remove."""
    machine = scene.daemon.service.machines[ALICE, "vm"]
    manager = machine.require()
    remove, refusals = manager.remove, [errors.FileServerError(f"no: {MARK}") for _ in range(2)]

    async def refuses_twice(name: str, **more: Any) -> None:
        if refusals:
            raise refusals.pop()
        await remove(name, **more)

    async def stray() -> None:
        options = AddOptions(scene.directory("stray"), read_only=True)
        scene.names.add(await manager.add(options, owner=share_owner(f"{scene.guest.allow}/{MARK}")))
        await scene.daemon.service.mounts.release_strays(machine)

    scene.share("overdue", owner=MARK, lease=5.0)
    monkeypatch.setattr(manager, "remove", refuses_twice)
    scene.daemon.pass_time(6.0)
    scene.daemon.call(stray)


def test_nothing_that_a_user_is_told_is_of_what_another_holds_in_their_vm(
    home: Home, guest: Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with home.running() as daemon, home.client() as root:
        scene = Scene(daemon, guest, root)
        for step in (
            holds_and_mounts,
            begins_the_guest_anew,
            loses_a_directory_and_the_supervisor,
            partial(leaves_a_process_in_the_kernel, shown=tmp_path / "shown"),
            gives_back_and_lets_leases_end,
            partial(cannot_give_back_at_once, monkeypatch=monkeypatch),
        ):
            step(scene)
            scene.check()
    missing = {*EventKind} - scene.kinds - OF_THE_WHOLE_VM - AFTER_A_RESTART
    assert not missing, "an event that this test does not bring about, or that has nothing of a share in it"


def test_nothing_of_what_another_holds_is_told_after_a_restart(home: Home, guest: Guest) -> None:
    with home.running() as daemon, home.client() as root:
        scene = Scene(daemon, guest, root)
        scene.map("restored", "restored", owner=MARK)
        scene.map("given-up", "given-up", owner=MARK)
    supervisor = supervisor_of(home, ALICE)
    with open(os.pidfd_open(supervisor), "rb") as ended:
        os.kill(supervisor, signal.SIGTERM)  # it ends in order, and nobody serves the directory
        assert select.select([ended], [], [], DEADLINE)[0]
    replace(f"{home.folder}/{MARK}-given-up")
    with home.running() as daemon, home.client() as root:
        scene.daemon, scene.root = daemon, root
        for kind in AFTER_A_RESTART:
            scene.wait_for(kind)
        scene.check()
    assert scene.kinds >= AFTER_A_RESTART
