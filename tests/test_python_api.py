"""The library as a program sees it: without an event loop, in a forked child, at its end; and what objects show."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from tests.processes import DEADLINE

import uvmshare
from uvmshare import AddOptions, FileServer, Manager, MountManager, MountOptions, blocking, errors
from uvmshare.testing.client import NinePClient
from uvmshare.testing.connection import dial
from uvmshare.testing.fakes import FakeAgent, FakeVM

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

linux = pytest.mark.skipif(sys.platform != "linux", reason="the file server runs on Linux")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "project").mkdir()
    (tmp_path / "project/seen").write_text("yes")
    return tmp_path


def _run(place: Path, program: str) -> str:
    """Run a program to its end, and return what it printed."""
    head = f"import os, sys, uvmshare; place = {str(place)!r}; listen = ['unix:' + place + '/s']\n"
    done = subprocess.run(
        [sys.executable, "-c", head + program], check=True, capture_output=True, text=True, timeout=DEADLINE
    )
    return done.stdout


@linux
def test_a_program_without_an_event_loop_shares_a_directory(place: Path) -> None:
    with uvmshare.serve([f"unix:{place}/s"], security_model="none") as vm:
        with vm.share(place / "project", read_only=True) as share:
            with NinePClient.connect(vm.addresses[0], share.name, timeout=DEADLINE) as guest:
                assert guest.listdir() == [b"seen"]
            assert [each.name for each in vm.shares()] == [share.name]
        assert vm.shares() == ()
        assert "released" in repr(share)
        held = vm.share(place / "project")
        with pytest.raises(errors.InvalidState, match="no agent"):
            vm.map(place / "project", "/mnt/project")
        with pytest.raises(errors.InvalidState, match="no agent"):
            _ = vm.mount_manager
        assert "serving" in repr(vm)
    with pytest.raises(errors.ManagerClosed):
        vm.share(place / "project")
    assert "held" in repr(held)


@linux
def test_a_forked_child_is_told_which_process_made_it_and_never_hangs(place: Path) -> None:
    program = """
with uvmshare.serve(listen, security_model="none") as vm:
    vm.share(place + "/project")
    child = os.fork()
    if not child:
        release = lambda: vm.manager.release_owner("a")
        for use in (vm.shares, vm.close, lambda: vm.share(place), vm.manager.save, release):
            try:
                use()
            except uvmshare.UvmshareError as error:
                assert str(os.getppid()) in str(error) and "forked from it" in str(error), error
                print(type(error).__name__, flush=True)
        sys.exit(7)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), len(vm.shares()))
"""
    assert _run(place, program).split() == ["WrongProcess"] * 5 + ["7", "1"]


@linux
def test_a_process_of_multiprocessing_is_told_so_too(place: Path) -> None:
    program = """
import multiprocessing
def child():
    try:
        vm.shares()
    except uvmshare.errors.WrongProcess:
        print("told", flush=True)
with uvmshare.serve(listen, security_model="none") as vm:
    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    print(process.exitcode)
"""
    assert _run(place, program).split() == ["told", "0"]


@linux
def test_a_program_that_ends_without_closing_ends(place: Path) -> None:
    assert _run(place, "vm = uvmshare.serve(listen, security_model='none'); print(vm.share(place).name)") == "0\n"
    with pytest.raises(OSError, match=r"refused|No such file"):
        dial(f"unix:{place}/s", timeout=DEADLINE)


def test_managers_show_what_they_are_of_and_what_they_have() -> None:
    vm, agent = FakeVM(), FakeAgent()
    manager = Manager(vm)
    assert repr(manager) == f"<Manager of {vm!r}: 0 shares>"
    assert repr(MountManager(agent, shares=manager)) == f"<MountManager of {agent!r}: 0 mounts>"
    with blocking.Manager(vm) as waiting:
        assert repr(waiting) == f"<blocking.Manager of {vm!r}>"
    assert repr(waiting) == f"<blocking.Manager of {vm!r}: closed>"


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "listen": (lambda: FileServer("unix:/x"), "listen is 'unix:/x': pass a list of addresses"),
    "nothing to listen on": (lambda: FileServer([]), "listen is empty"),
    "model": (
        lambda: FileServer(["unix:/x"], security_model="passthru"),  # type: ignore[arg-type]  # mypy sees it too
        "security_model is 'passthru': pass 'mapped-xattr', 'passthrough' or 'none'; did you mean 'passthrough'",
    ),
    "links": (lambda: FileServer(["unix:/x"], links="hard"), "links is 'hard': pass 'mapped' or 'real'"),  # type: ignore[arg-type]  # as above
    "flag": (lambda: FileServer(["unix:/x"], allow_remote=1), "allow_remote is 1: pass True or False"),  # type: ignore[arg-type]  # as above
    "uids": (lambda: FileServer(["unix:/x"], allow_uids=["root"]), "allow_uids has 'root' in it: pass a list of uids"),  # type: ignore[list-item]  # as above
    "mode": (lambda: FileServer(["unix:/x"], socket_mode=0o1000), "socket_mode is 512: pass a whole number"),
    "limits": (lambda: FileServer(["unix:/x"], limits={}), "limits is {}: pass Limits"),  # type: ignore[arg-type]  # as above
    "seconds": (lambda: FileServer(["unix:/x"], modify_timeout=-1), "modify_timeout is -1: pass seconds above 0"),
    "user": (lambda: FileServer(["unix:/x"], run_as=5), "run_as is 5: pass a uid, a gid"),  # type: ignore[arg-type]  # as above
    "served": (lambda: uvmshare.serve("unix:/x"), "listen is 'unix:/x'"),
    "VM": (lambda: Manager("firecracker:/x"), "vm is 'firecracker:/x': pass a FileServer, a UtilityVM"),  # type: ignore[arg-type]  # as above
    "class": (lambda: Manager(FileServer), "vm is <class .*FileServer.*>: pass a FileServer"),  # type: ignore[arg-type]  # as above
    "journal": (lambda: Manager(FakeVM(), journal="/x.db"), "journal is '/x.db': pass SqliteJournal"),  # type: ignore[arg-type]  # as above
    "agent": (lambda: MountManager("unix:/x"), "agent is 'unix:/x': pass an AgentClient"),  # type: ignore[arg-type]  # as above
    "shares": (lambda: MountManager(FakeAgent(), shares="x"), "shares is 'x': pass the Manager"),  # type: ignore[arg-type]  # as above
    "path": (lambda: AddOptions(5), "host_path is 5: pass a str or a pathlib.Path"),  # type: ignore[arg-type]  # as above
    "names": (lambda: AddOptions("/", allowed_names="a"), "allowed_names is 'a': pass a list of names"),
    "patterns": (lambda: AddOptions("/", hide=5), "hide is 5: pass a list of patterns"),  # type: ignore[arg-type]  # as above
    "map": (lambda: AddOptions("/", map_owner=5), "map_owner is 5: pass a str"),  # type: ignore[arg-type]  # as above
    "cache": (lambda: MountOptions("0", "/x", cache="all"), "cache is 'all': pass 'auto'"),  # type: ignore[arg-type]  # as above
}


@linux
@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_argument_is_one_line_before_anything_starts(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: Any, **__: Any) -> None:
        pytest.fail("something was started")

    monkeypatch.setattr(subprocess, "Popen", started)
    make, words = WRONG[what]
    with pytest.raises(errors.InvalidOptions, match=words) as raised:
        make()
    assert "\n" not in str(raised.value)


def test_the_library_says_nothing_unless_somebody_listens() -> None:
    import uvmshare.heard

    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("uvmshare").handlers)
    assert uvmshare.heard.logger("shares").name == "uvmshare.shares"


def test_a_missing_extra_is_one_line_with_the_command() -> None:
    program = """
import sys, uvmshare
sys.modules["httpcore"] = None
try:
    uvmshare.Client
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout == "uvmshare.Client needs httpcore, which is not installed: pip install 'uvmshare[daemon]'\n"
