"""A guest that has a share, keeps its files open, and does not let go: every manner of refusing an unmount.

The file server is real, with its mount processes; the guest is a 9P client that keeps its fids, and an agent that
answers as each test says. What ends the guest's access must end it all the same.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest
from tests.daemon.harness import Home
from tests.processes import DEADLINE

from uvmshare import errors
from uvmshare.cli.main import run
from uvmshare.daemon import machine, mounts
from uvmshare.guest import wire
from uvmshare.mounts import engine
from uvmshare.testing.client import NinePClient as Guest9P

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.daemon.harness import Running

    from uvmshare.daemon.client import Client

TARGET = "/run/uvmshare/project"


class Agent:
    """An agent that mounts what it is asked for, and answers the removal of it in one of several wrong ways."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.manner = "honest"
        self.asked: list[str] = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen()
        self.stopped = False
        self.connections: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        greeting = {"uvmshare": "agent", "version": 1, "agent": "a", "boot": "b", "nonce": wire.new_nonce()}
        try:
            connection.sendall(wire.encode({**greeting, "token": False}))
            for line in connection.makefile("rb"):
                answer = self._answer(json.loads(line))
                if answer is not None:
                    connection.sendall(wire.encode(answer))
        except OSError:
            pass
        finally:
            connection.close()

    def _answer(self, message: dict[str, Any]) -> dict[str, Any] | None:
        good: dict[str, Any] = {"id": message["id"], "ok": True, "result": {"proof": ""}}
        if message["op"] == "list":
            listed = [{"mount_path": "/run/uvmshare/never", "share_name": "7", "port": 5640, "read_only": False,
                       "cache": "none", "msize": 8192, "state": "mounted", "again": 0}]  # fmt: skip
            return {**good, "result": listed if self.manner == "lists others" else []}
        if message["op"] != "modify":
            return good
        kind = message["request"]["RequestType"]
        self.asked.append(kind)
        if kind == "Add":
            return None if self.manner == "never mounts" else good
        return self._remove(good)

    def _remove(self, good: dict[str, Any]) -> dict[str, Any] | None:
        bad: dict[str, Any] = {"id": good["id"], "ok": False}
        if self.manner == "hangs up":
            self.connections[-1].shutdown(socket.SHUT_RDWR)
        answers: dict[str, dict[str, Any]] = {
            "busy": {**bad, "error": {"code": "busy", "message": "sh (pid 7) works in it"}},
            "error": {**bad, "error": {"code": "failed", "message": "no"}},
            "refused": {**bad, "error": {"code": "refused", "message": "not below what is allowed"}},
            "unknown": {**bad, "error": {"code": "unknown", "message": "perhaps"}},
            "no error": bad,
        }
        if self.manner in {"silent", "hangs up"}:
            return None
        if self.manner in answers:
            return answers[self.manner]
        return good  # "lies": done, it says, and keeps all

    def close(self) -> None:
        self.listener.close()
        for connection in self.connections:
            connection.close()


VETOES = ("busy", "error", "refused", "unknown", "no error", "silent", "hangs up", "lies", "lists others")


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with Home.made() as home:
        yield home


@pytest.fixture(scope="module")
def daemon(home: Home) -> Iterator[Running]:
    with home.running() as daemon:
        yield daemon


@pytest.fixture(scope="module")
def project(home: Home) -> str:
    path = home.directory("project")
    with open(f"{path}/secret", "w", encoding="ascii") as file:
        file.write("secret")
    return path


@pytest.fixture
def client(daemon: Running, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    for module in (mounts, engine):  # how long a guest may take is no matter here
        monkeypatch.setattr(module, "REVOKE_GRACE", 0.05)
    monkeypatch.setattr(machine, "_LAST_UNMOUNT_SECONDS", 0.05)
    with daemon.home.client() as client:
        yield client


@pytest.fixture
def agent(home: Home, daemon: Running, client: Client) -> Iterator[Agent]:
    agent = Agent(f"{home.folder}/agent")
    daemon.add_vm(agent=f"unix:{agent.path}")
    try:
        yield agent
    finally:
        agent.close()
        os.unlink(agent.path)
        client.vms.remove("vm", force=True)


class Reader:
    """A guest that keeps a file open."""

    def __init__(self, home: Home, share: str) -> None:
        self.guest = Guest9P.connect(f"unix:{home.folder}/vm.9p", share)
        self.fid = self.guest.open("secret")
        assert self.reads()

    def reads(self) -> bool:
        try:
            return self.guest.read(self.fid, 0, 6) == b"secret"
        except (OSError, EOFError, errors.UvmshareError):
            return False

    def close(self) -> None:
        self.guest.close()


@pytest.fixture
def reader(home: Home, client: Client, agent: Agent, project: str) -> Iterator[Reader]:
    assert agent.manner == "honest"
    mount = client.mounts.map("vm", project, TARGET, owner="job", lease=2)
    assert mount.share is not None
    reader = Reader(home, mount.share)
    yield reader
    reader.close()


def kinds(client: Client) -> list[str]:
    return [event.kind for event in client.events("0", follow=False) if event is not None]


@pytest.mark.parametrize("manner", VETOES)
def test_a_guest_loses_the_directory_when_its_lease_ends_whatever_its_agent_answers(
    manner: str, daemon: Running, client: Client, agent: Agent, reader: Reader
) -> None:
    agent.manner = manner
    daemon.pass_time(2)
    assert not reader.reads()
    assert client.shares("vm") == []
    assert kinds(client)[-1] == "lease.ended"
    for mount in client.mounts("vm"):
        assert (mount.state, mount.share, mount.references) == ("revoked", None, ())


@pytest.mark.parametrize("manner", ["busy", "silent", "lies"])
def test_a_mount_that_is_taken_by_force_is_gone_whatever_the_agent_answers(
    manner: str, client: Client, agent: Agent, reader: Reader, project: str
) -> None:
    client.mounts.map("vm", project, TARGET, owner="other")
    agent.manner = manner
    left = client.mounts.unmap("vm", TARGET, force=True)
    assert not reader.reads()
    assert (left.released, left.ended, left.references, left.mounts) == (True, True, (), ())
    assert (left.guest is None) == (manner == "lies")
    assert client.shares("vm") == []
    assert kinds(client)[-2:] == ["mount.revoked"] * 2


def test_what_was_taken_away_may_be_had_again_when_the_agent_says_that_it_is_unmounted(
    client: Client, agent: Agent, reader: Reader, project: str
) -> None:
    agent.manner = "busy"
    assert client.mounts.unmap("vm", TARGET, force=True).guest is not None
    (dead,) = client.mounts("vm")
    assert (dead.state, dead.path, dead.references) == ("revoked", project, ())
    wanted: dict[str, Any] = {"path": project, "guest_path": TARGET, "owner": "job"}
    with pytest.raises(errors.MountBusy):
        client.mounts.map("vm", **wanted)
    assert client.shares("vm") == []
    agent.manner = "honest"
    again = client.mounts.map("vm", **wanted)
    assert (again.state, again.share != dead.share) == ("mounted", True)
    assert not reader.reads()


def test_a_mount_that_is_never_answered_is_taken_by_force_and_its_request_ends(
    home: Home, client: Client, agent: Agent, project: str
) -> None:
    agent.manner = "never mounts"
    failures: list[BaseException] = []

    def ask() -> None:
        with home.client() as mine:
            try:
                mine.mounts.map("vm", project, TARGET, owner="job")
            except errors.UvmshareError as error:
                failures.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    followed = client.events("0")
    with home.client() as watching:
        while "Add" not in agent.asked:
            assert asking.is_alive()
            watching.info()
        (share,) = watching.shares("vm")
        reader = Reader(home, share.name)
        assert watching.shares.get("vm", share.name).references == ()
        left = watching.shares.release("vm", share.name, force=True)
        assert left.ended
        assert not reader.reads()
        reader.close()
    asking.join(DEADLINE)
    assert [type(failure) for failure in failures] == [errors.MountRevoked]
    del followed


def test_removing_a_share_that_a_mount_holds_fails_and_says_which_and_for_whom(
    client: Client, agent: Agent, reader: Reader
) -> None:
    (share,) = client.shares("vm")
    with pytest.raises(errors.StillInUse, match=f"job.*{TARGET}.*--force"):
        client.shares.release("vm", share.name)
    assert reader.reads()
    agent.manner = "busy"
    left = client.shares.release("vm", share.name, force=True)
    assert (left.ended, left.released) == (True, True)
    assert not reader.reads()


def test_a_release_says_who_else_holds_the_directory(
    client: Client, agent: Agent, reader: Reader, project: str
) -> None:
    del agent
    (share,) = client.shares("vm")
    client.shares.add("vm", project, owner="direct")
    with pytest.raises(errors.StillInUse, match="job"):
        client.shares.release("vm", share.name, owner="direct")
    client.shares.add("vm", project, owner="one")
    client.shares.add("vm", project, owner="two")
    with pytest.raises(errors.StillInUse, match=r"one.*two.*share rm --force"):
        client.mounts.unmap("vm", TARGET, force=True)
    assert client.mounts("vm") == []
    assert reader.reads(), "others hold it"
    left = client.shares.release("vm", share.name, owner="one")
    assert (left.released, left.ended, [each.owner for each in left.references]) == (True, False, ["two"])
    left = client.shares.release("vm", share.name, owner="nobody")
    assert (left.released, left.ended) == (False, False)
    assert client.shares.release("vm", share.name, owner="two").ended
    assert not reader.reads()


def test_the_commands_fail_where_the_guest_keeps_the_directory(
    client: Client, agent: Agent, reader: Reader, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UVMSHARE_HOST", client.host)
    (share,) = client.shares("vm")

    def failed(*args: str) -> str:
        capfd.readouterr()
        assert run(args) == 1
        told = capfd.readouterr()
        assert told.out == ""
        return told.err

    assert TARGET in failed("share", "rm", "vm", share.name)
    assert "not held by 'default'; held by job: --owner job" in failed("unmap", "vm", TARGET)
    agent.manner = "busy"
    assert "works in it" in failed("unmap", "vm", TARGET, "--owner", "job", "--lazy")
    assert reader.reads()
    capfd.readouterr()
    assert run(["unmap", "vm", TARGET, "--force"]) == 0
    told = capfd.readouterr()
    assert told.out == f"{TARGET}\n"
    assert "may still have it, dead" in told.err
    assert not reader.reads()


@pytest.mark.parametrize("end", [lambda client: client.vms.remove("vm", force=True)], ids=["vm rm --force"])
def test_a_vm_that_is_removed_takes_everything_along(
    end: Callable[[Client], None], daemon: Running, client: Client, agent: Agent, reader: Reader
) -> None:
    agent.manner = "error"
    end(client)
    assert not reader.reads()
    daemon.add_vm(agent=f"unix:{agent.path}")  # for what comes after


def test_an_owner_that_is_released_by_force_has_nothing_left(client: Client, agent: Agent, reader: Reader) -> None:
    agent.manner = "busy"
    with pytest.raises(errors.MountBusy):
        client.owners.release("job")
    assert reader.reads()
    client.owners.release("job", force=True)
    assert not reader.reads()
