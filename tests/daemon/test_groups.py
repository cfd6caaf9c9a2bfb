"""One control group a VM: all its processes are in it, with the limits that it has, and none survives the VM."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from tests.daemon.harness import supervisor_of
from tests.processes import DEADLINE, kill
from tests.root import require_root

from uvmshare import errors
from uvmshare.daemon import groups, machine
from uvmshare.daemon.documents import NewVm, Use
from uvmshare.daemon.groups import Group, Groups, check_limits, exceeds
from uvmshare.daemon.identity import Identity
from uvmshare.fileserver import link
from uvmshare.fileserver.device import FileServer
from uvmshare.testing.client import NinePClient as Guest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.daemon.harness import Home


@contextmanager
def hierarchy() -> Iterator[str]:
    """Where cgroup v2 is mounted; here for the test if it is nowhere."""
    with open("/proc/self/mountinfo", encoding="utf-8") as table:
        for line in table:
            words = line.split()
            if words[words.index("-") + 1] == "cgroup2" and words[3] == "/" and os.access(words[4], os.W_OK):
                yield words[4]
                return
    place = tempfile.mkdtemp(prefix="cgroup2-")
    subprocess.run(["mount", "-t", "cgroup2", "none", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)
        os.rmdir(place)


@pytest.fixture
def top() -> Iterator[str]:
    """A real group, as systemd would delegate it."""
    require_root("making control groups needs root")
    with hierarchy() as root:
        made = tempfile.mkdtemp(prefix="uvmshare-test-", dir=root)
        try:
            yield made
        finally:
            for name in os.listdir(made):
                if os.path.isdir(f"{made}/{name}"):
                    asyncio.run(Group(f"{made}/{name}").end())
            asyncio.run(Group(made).end())


def members(group: str) -> set[int]:
    with open(f"{group}/cgroup.procs", encoding="ascii") as file:
        return {int(line) for line in file}


def test_all_processes_of_a_vm_are_in_its_group_and_none_survives_it(top: str, home: Home) -> None:
    home.settings.cgroup = top
    with home.running() as daemon, home.client() as client:
        vm = daemon.add_vm()
        assert vm.cgroup == f"{top}/vm-0-vm"
        share = daemon.add_share(home.directory("shared"), read_only=True)
        with Guest.connect(vm.addresses[0], share.name, timeout=DEADLINE):
            supervisor = supervisor_of(home, 0)
            assert supervisor in members(vm.cgroup)
            assert len(members(vm.cgroup)) == 2, "and its mount process"
            assert os.getpid() not in members(vm.cgroup)
        # What code that was run in there could have left: a process of its own, in a session of its own.
        with subprocess.Popen(["sleep", "1000"], start_new_session=True) as stray:
            groups._write(vm.cgroup, "cgroup.procs", str(stray.pid))
            client.vms.remove("vm", force=True)
            assert stray.wait(DEADLINE) == -9
        assert not os.path.exists(vm.cgroup)


def test_a_supervisor_that_is_started_again_is_in_the_group_too(top: str, home: Home) -> None:
    home.settings.cgroup = top
    with home.running() as daemon, home.client() as client:
        vm = daemon.add_vm()
        assert vm.cgroup is not None
        first = supervisor_of(home, 0)
        kill(first)
        daemon.add_share(home.directory("shared"), read_only=True)  # it waits for the next one
        assert supervisor_of(home, 0) != first
        assert supervisor_of(home, 0) in members(vm.cgroup)
    with home.running(), home.client() as client:
        assert client.vms()[0].cgroup == vm.cgroup, "the next daemon finds it"


@pytest.mark.parametrize("grouped", [True, False], ids=["with a group", "without"])
def test_a_vm_that_was_never_found_ends_with_all_its_processes_or_the_answer_says_what_may_be_left(
    top: str, home: Home, monkeypatch: pytest.MonkeyPatch, *, grouped: bool
) -> None:
    home.settings.cgroup = top if grouped else None
    with home.running() as daemon:
        vm = daemon.add_vm()
        share = daemon.add_share(home.directory("shared"), read_only=True)
    supervisor = supervisor_of(home, 0)

    class NeverFound:
        async def start(self) -> FileServer:
            await asyncio.Event().wait()
            raise AssertionError

    def never(*_: Any, **__: Any) -> NeverFound:
        return NeverFound()

    monkeypatch.setattr(machine, "_LAST_FIND_SECONDS", 0)
    with Guest.connect(vm.addresses[0], share.name, timeout=DEADLINE) as guest:
        monkeypatch.setattr(FileServer, "connect", never)
        with home.running(found=False) as daemon, home.client() as client:
            assert client.vms.get("vm").state == "finding"
            removed = client.vms.remove("vm", force=True)
            assert client.vms() == []
            (event,) = [each for each in client.events("0", follow=False) if each and each.kind == "vm.removed"]
            assert event.detail == {"left": removed.left}
            if grouped:
                assert removed.left is None
                assert not os.path.exists(f"{top}/vm-0-vm")
                with pytest.raises((OSError, EOFError)):
                    guest.listdir("")
                # Another one of that name begins with nothing of it.
                again = daemon.add_vm()
                assert again.shares == 0
                with pytest.raises((OSError, EOFError)):
                    Guest.connect(again.addresses[0], share.name, timeout=DEADLINE)
            else:
                assert removed.left is not None
                assert "guest reach what was shared" in removed.left
                assert f"end the processes of {home.settings.run_dir}/vms/0/vm" in removed.left
                guest.listdir("")
                monkeypatch.undo()
                kill(supervisor)
                # Not ended in order: whoever gets the name has none of its shares all the same.
                again = daemon.add_vm()
                with pytest.raises((OSError, EOFError)):
                    guest.listdir("")
                with pytest.raises((OSError, EOFError)):
                    Guest.connect(again.addresses[0], share.name, timeout=DEADLINE)


def test_a_supervisor_that_does_not_say_that_it_ends_is_told_in_the_answer(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.settings.cgroup = None
    monkeypatch.setattr(link, "_END_SECONDS", 0.1)
    with home.running() as daemon, home.client() as client:
        daemon.add_vm()
        os.kill(supervisor_of(home, os.getuid()), signal.SIGSTOP)
        left = client.vms.remove("vm").left
        assert left is not None
        assert "does not answer, and may go on with its mounts" in left


class Fake:
    """A directory with the files that the kernel would have in a group."""

    def __init__(self, path: Path, controllers: str = "cpu io memory pids") -> None:
        self.path = path
        for name, content in {
            "cgroup.controllers": controllers,
            "cgroup.procs": "",
            "cgroup.subtree_control": controllers,
        }.items():
            (path / name).write_text(content)

    @staticmethod
    def enable(monkeypatch: pytest.MonkeyPatch) -> None:
        """Have what is written to the list of controllers change nothing, since all of them are enabled."""
        write = groups._write

        def written(directory: str, name: str, text: str) -> None:
            if name != "cgroup.subtree_control":
                write(directory, name, text)

        monkeypatch.setattr(groups, "_write", written)

    def child(self, name: str) -> Path:
        made = self.path / name
        made.mkdir()
        for each in (*groups.LIMITS, "cgroup.procs", "cgroup.kill"):
            (made / each).write_text("")
        (made / "memory.current").write_text("3145728\n")
        (made / "pids.current").write_text("2\n")
        (made / "cpu.stat").write_text("usage_usec 1500000\nuser_usec 1\n")
        return made


def test_limits_are_written_into_a_vms_group_and_its_use_is_read_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Fake(tmp_path)
    fake.enable(monkeypatch)
    fake.child("daemon")
    made = fake.child("vm-0-vm")
    limits = {"memory.max": "1048576", "pids.max": "9", "cpu.max": "5000 10000", "io.max": "8:0 rbps=1"}
    group = Groups.at(str(tmp_path)).of((0, "vm"), limits)
    assert {name: (made / name).read_text() for name in limits} == limits
    assert group.use() == Use(memory=3145728, processes=2, cpu_seconds=1.5)


def test_the_daemon_leaves_a_group_that_it_divides(tmp_path: Path) -> None:
    fake = Fake(tmp_path)
    own = fake.child("daemon")
    (tmp_path / "cgroup.procs").write_text(f"{os.getpid()}\n")
    Groups.at(str(tmp_path))
    assert (own / "cgroup.procs").read_text() == str(os.getpid())


def test_a_limit_whose_controller_was_not_delegated_is_refused(tmp_path: Path) -> None:
    fake = Fake(tmp_path, "pids")
    fake.child("daemon")
    fake.child("vm-0-vm")
    with pytest.raises(errors.FileServerError, match="'memory' was not delegated"):
        Groups.at(str(tmp_path)).of((0, "vm"), {"memory.max": "1"})


@pytest.mark.parametrize("within", ["", "/daemon"])
def test_a_group_is_divided_only_if_it_was_delegated(
    within: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = tmp_path / "system.slice" / "uvmshare.service"
    unit.mkdir(parents=True)
    Fake(unit).child("daemon")
    table = tmp_path / "cgroup"
    table.write_text(f"1:name=systemd:/\n0::/system.slice/uvmshare.service{within}\n")
    assert Groups.delegated(proc=str(table), root=str(tmp_path)) is None
    own = Groups.delegated(marked=False, proc=str(table), root=str(tmp_path))
    assert own is not None, "a user's unit says itself that it is delegated"
    assert own.top == str(unit)
    assert Groups.delegated(marked=False, proc=str(table), root=str(tmp_path / "version-1")) is None

    def attribute(path: str, name: str) -> bytes:
        assert path == str(unit)
        return b"1" if name == "user.delegate" else b""

    monkeypatch.setattr(os, "getxattr", attribute)
    found = Groups.delegated(proc=str(table), root=str(tmp_path))
    assert found is not None
    assert found.top == str(unit)
    assert Groups.delegated(proc=str(tmp_path / "none"), root=str(tmp_path)) is None


def test_without_cgroup_kill_the_processes_are_killed_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Fake(tmp_path).child("vm-0-vm")
    (made / "cgroup.kill").unlink()
    with subprocess.Popen(["sleep", "1000"]) as process:
        (made / "cgroup.procs").write_text(f"{process.pid}\n")
        rmdir = os.rmdir

        def remove(path: str) -> None:
            for name in os.listdir(path):  # the kernel's files are no files
                os.unlink(f"{path}/{name}")
            rmdir(path)

        monkeypatch.setattr(os, "rmdir", remove)
        asyncio.run(Group(str(made)).end())
        assert process.wait(DEADLINE) == -9


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("memory.max", "1G"),
        ("memory.max", "-1"),
        ("cpu.max", "1 2 3"),
        ("cpu.max", "1000 0"),
        ("cpu.weight", "0"),
        ("io.max", "8:0"),
        ("cgroup.procs", "1"),
        ("../x", "1"),
        ("pids.max", "1\n2"),
    ],
)
def test_what_is_no_limit_is_refused(name: str, value: str) -> None:
    with pytest.raises(errors.InvalidOptions, match="limit"):
        check_limits({name: value})


@pytest.mark.parametrize(
    ("name", "wanted", "most", "more"),
    [
        ("memory.max", "10", "9", True),
        ("memory.max", "9", "10", False),
        ("memory.max", "max", "10", True),
        ("memory.max", "10", "max", False),
        ("cpu.max", "50000", "60000 100000", False),
        ("cpu.max", "50000 10000", "60000 100000", True),
        ("cpu.max", "max 10000", "60000 100000", True),
        ("io.max", "8:0 rbps=1", "8:0 rbps=1", False),
        ("io.max", "8:0 rbps=2", "8:0 rbps=1", True),
    ],
)
def test_a_user_may_ask_for_less_than_the_daemons_limit(
    name: str,
    wanted: str,
    most: str,
    more: bool,
    home: Home,
) -> None:
    assert exceeds(name, wanted, most) == more
    with home.running() as daemon:
        assert daemon.daemon is not None
        service = daemon.daemon.service
        service._places.groups = Groups("/nowhere")
        service._places.group_limits = {name: most}
        new = NewVm(id="vm", cgroup={name: wanted})
        service._check_group(Identity(0, 0), new)
        if more:
            with pytest.raises(errors.OperationDenied, match="at most here"):
                service._check_group(Identity(12345, 12345), new)
        else:
            service._check_group(Identity(12345, 12345), new)


def test_limits_without_a_group_to_divide_are_refused_and_the_daemon_says_so(home: Home) -> None:
    home.settings.cgroup = None
    with home.running() as daemon, home.client() as client:
        with pytest.raises(errors.InvalidOptions, match="no control group to divide"):
            daemon.add_vm(cgroup={"pids.max": "9"})
        assert any("no control group" in note for note in client.info().notes)
        assert daemon.add_vm().cgroup is None
