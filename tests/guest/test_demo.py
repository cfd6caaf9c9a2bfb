"""The demonstration: it holds with the client and with a guest, and fails loudly when a step does not hold."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from uvmshare.cli.main import run as command
from uvmshare.cli.pictures import SafeConsole
from uvmshare.demo import steps as demo
from uvmshare.demo.guest import ClientGuest
from uvmshare.demo.states import RecordingVM, ShareHistory, draw
from uvmshare.errors import GuestUnavailable, InvalidDocument, OutcomeUnknown, ShareNotFound
from uvmshare.hcs.schema import RequestType
from uvmshare.share.interfaces import NamedShare
from uvmshare.share.options import AddOptions
from uvmshare.share.state import ShareState
from uvmshare.testing import guest_vm

if TYPE_CHECKING:
    from pathlib import Path


def run(guest: str) -> tuple[int, str]:
    """Run the demonstration and return its status and what it showed."""
    console = SafeConsole(file=io.StringIO(), width=200)
    status = asyncio.run(demo.run_demo(guest=guest, console=console))
    assert isinstance(console.file, io.StringIO)
    return status, console.file.getvalue()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small tree in the place of the project's own, which other tests may be writing to."""
    tree = tmp_path / "project"
    (tree / "src" / "deep").mkdir(parents=True)
    (tree / "src" / "deep" / "empty").touch()
    (tree / "src" / "code.py").write_bytes(b"x" * 300_000)
    (tree / "README").write_text("read me\n")
    (tree / "link").symlink_to("README")
    monkeypatch.setattr(demo, "_own_tree", lambda: demo.tree_options(str(tree)))
    return tree


def test_every_step_holds_with_the_projects_own_client(project: Path) -> None:
    status, shown = run("client")
    assert status == 0, shown
    assert shown.count("✓") == 10
    assert "3 files, 300,008 bytes: all the same" in shown
    assert "the same name, 0, and no second modify call: Add 0, Add 1" in shown
    assert "Read-only file system" in shown
    assert "Everything held." in shown


@pytest.mark.long
@pytest.mark.guest
def test_every_step_holds_with_a_linux_guest(project: Path) -> None:
    status, shown = run("qemu")
    assert status == 0, shown
    assert "its own 9P client over vsock" in shown
    assert "the daemon dials the agent at firecracker:" in shown
    assert "3 files, 300,008 bytes: all the same" in shown
    assert "Input/output error" in shown
    assert "a server in the guest reloads" in shown
    assert "the guest's kernel woke it up" in shown


@pytest.mark.guest
@pytest.mark.long
def test_without_the_vsock_device_the_guest_comes_over_tcp_and_the_demonstration_says_so(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest_vm, "_VSOCK_DEVICE", "no-such-device")
    status, shown = run("qemu")
    assert status == 0, shown
    assert "its own 9P client over TCP, because qemu-system-x86_64 has no vhost-user-vsock-pci here" in shown
    assert "left out: the agent here is a shell script" in shown


def test_hidden_files_are_not_shared(project: Path) -> None:
    (project / ".venv").mkdir()
    (project / ".venv" / "big").touch()
    files, _ = demo.digests(demo.tree_options(str(project)))
    assert sorted(files) == [b"./README", b"./src/code.py", b"./src/deep/empty"]


class MountsNothing(ClientGuest):
    async def mount(self, share: str) -> str | None:
        return "No such device"


class HashesWrongly(ClientGuest):
    async def write_digests(self, share: str, into: str, name: str) -> str | None:
        self._mounts[into].write_file(name, b"0" * 64 + b"  ./README\n")
        return None


class WritesNonsense(ClientGuest):
    async def write_digests(self, share: str, into: str, name: str) -> str | None:
        self._mounts[into].write_file(name, b"nonsense\n")
        return None


class WritesWhereItMust(ClientGuest):
    async def create(self, share: str, name: str) -> str | None:
        return None


class ReadsWhatIsGone(ClientGuest):
    async def list(self, share: str) -> str | None:
        return None


class LosesTheOtherShareToo(ClientGuest):
    async def list(self, share: str) -> str | None:
        return await super().list(share) or (await super().list("0") and "EIO")


class CannotUnmount(ClientGuest):
    async def unmount(self, share: str) -> str | None:
        return "Device or resource busy"


class MountsWhatIsGone(ClientGuest):
    async def mount(self, share: str) -> str | None:
        await super().mount(share)
        return None


@pytest.mark.parametrize(
    ("guest", "why"),
    [
        (MountsNothing, "could not mount share 0: No such device"),
        (HashesWrongly, "3 of 3 files differ"),
        (WritesNonsense, "is not what sha256sum writes"),
        (WritesWhereItMust, "it could"),
        (ReadsWhatIsGone, "the guest still reads it"),
        (LosesTheOtherShareToo, "the other share went with it: EIO"),
        (CannotUnmount, "cannot unmount it: Device or resource busy"),
        (MountsWhatIsGone, "could mount it again"),
    ],
)
def test_a_step_that_does_not_hold_fails_it_loudly(
    project: Path, monkeypatch: pytest.MonkeyPatch, guest: type[ClientGuest], why: str
) -> None:
    monkeypatch.setattr(demo, "ClientGuest", guest)
    status, shown = run("client")
    assert status == 1
    assert "✗" in shown
    assert "the demonstration FAILED" in shown
    assert why in shown
    assert "Everything held" not in shown


def test_an_add_that_does_not_fail_fails_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rmdir = os.rmdir

    def rmdir_but_one(path: str, *, dir_fd: int | None = None) -> None:
        if not path.endswith("/absent"):
            rmdir(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "rmdir", rmdir_but_one)
    status, shown = run("client")
    assert status == 1
    assert "a directory that is gone was shared as 2" in shown


def test_a_second_modify_call_fails_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class CountsDouble(RecordingVM):
        async def add_plan9(self, share: NamedShare) -> str | None:
            directory = await super().add_plan9(share)
            self.calls.append(self.calls[-1])
            return directory

    monkeypatch.setattr(demo, "RecordingVM", CountsDouble)
    status, shown = run("client")
    assert status == 1
    assert "two adds made the modify calls" in shown


def test_without_qemu_it_says_so_and_takes_the_client(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_vm, "QEMU", "qemu-that-nobody-has")
    status, shown = run("auto")
    assert status == 0
    assert "qemu-that-nobody-has is not on PATH" in shown
    assert "own 9P client" in shown
    with pytest.raises(GuestUnavailable):
        run("qemu")


def test_a_file_system_without_xattrs_is_served_all_the_same(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_has_xattrs", lambda path: False)
    status, shown = run("client")
    assert status == 0, shown
    assert "security model none" in shown


def test_xattrs_are_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(path: str, name: bytes, value: bytes) -> None:
        raise OSError(errno.ENOTSUP, "")

    assert demo._has_xattrs("/proc") is False
    monkeypatch.setattr(os, "setxattr", refuse)
    assert demo._has_xattrs(str(tmp_path)) is False
    monkeypatch.setattr(sys, "platform", "win32")
    assert demo._has_xattrs(str(tmp_path)) is False


def test_the_command_gives_the_status(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["demo", "--guest", "client"]) == 0
    assert "Everything held." in capsys.readouterr().out


def test_an_interruption_is_status_130(monkeypatch: pytest.MonkeyPatch) -> None:
    async def interrupted(*, guest: str) -> int:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.Event().wait()
        return 0

    monkeypatch.setattr(demo, "run_demo", interrupted)
    assert command(["demo"]) == 130


def test_other_systems_are_told_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert command(["demo"]) == 1
    assert "needs a Linux host" in capsys.readouterr().err


class Scripted:
    """A VM that ends each call as it is told."""

    def __init__(self, *outcomes: Exception | None) -> None:
        self.outcomes = list(outcomes)

    async def add_plan9(self, share: NamedShare) -> None:
        outcome = self.outcomes.pop(0)
        if outcome is not None:
            raise outcome

    remove_plan9 = add_plan9


ADD, REMOVE = RequestType.ADD, RequestType.REMOVE
PENDING, ADDED, INVALID, REMOVED = (
    ShareState.PENDING,
    ShareState.ADDED,
    ShareState.INVALID,
    ShareState.REMOVED,
)


@pytest.mark.parametrize(
    ("calls", "states"),
    [
        ([(ADD, None)], [PENDING, ADDED]),
        ([(ADD, None), (REMOVE, None)], [PENDING, ADDED, REMOVED]),
        ([(ADD, None), (REMOVE, ShareNotFound())], [PENDING, ADDED, REMOVED]),
        ([(ADD, None), (REMOVE, InvalidDocument())], [PENDING, ADDED, ADDED]),
        ([(ADD, InvalidDocument())], [PENDING, INVALID]),
        ([(ADD, OutcomeUnknown()), (REMOVE, TimeoutError()), (REMOVE, None)], [PENDING, INVALID, INVALID, REMOVED]),
    ],
)
def test_the_states_are_those_of_the_table(
    calls: list[tuple[RequestType, Exception | None]], states: list[ShareState]
) -> None:
    async def play() -> RecordingVM:
        recorder = RecordingVM(Scripted(*(outcome for _, outcome in calls)))
        for kind, outcome in calls:
            call = recorder.add_plan9 if kind is ADD else recorder.remove_plan9
            share = NamedShare("0", AddOptions.recalled("/a/b", read_only=False))
            if outcome is None:
                await call(share)
            else:
                with pytest.raises(type(outcome)):
                    await call(share)
        return recorder

    recorder = asyncio.run(play())
    assert recorder.calls == [(kind, "0") for kind, _ in calls]
    assert [state for state, _ in recorder.histories["0"].visits] == states


def test_the_picture_has_a_row_a_share_and_a_column_a_state() -> None:
    console = SafeConsole(file=io.StringIO(), width=80)
    console.print(
        draw(
            {
                "0": ShareHistory("/srv/[red]tree", visits=[(PENDING, 0.1), (ADDED, 0.2), (REMOVED, 9.3)]),
                "1": ShareHistory("/srv/gone", visits=[(PENDING, 0.4), (INVALID, 0.5)]),
            }
        )
    )
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert [cell.strip() for cell in lines[2].strip("┃").split("┃")] == [
        "share",
        "directory",
        *(state.value for state in ShareState),
    ]
    assert lines[4].split("│")[2:7] == [" [red]tree ", " ●  0.1 ──▶ ", " ●  0.2 ──▶ ", " ────────── ", " ●  9.3  "]
    assert lines[5].split("│")[3:7] == [" ●  0.4 ──▶ ", " ────────── ", " ●  0.5     ", "         "]


def test_it_finds_its_own_tree() -> None:
    options = demo._own_tree()
    assert options.read_only
    assert "src" in options.allowed_names
    assert os.path.exists(os.path.join(options.host_path, "src", "uvmshare", "demo", "steps.py"))


def test_an_installed_package_shares_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "lib" / "uvmshare"
    (package / "demo").mkdir(parents=True)
    monkeypatch.setattr(demo, "__file__", str(package / "demo" / "steps.py"))
    options = demo._own_tree()
    assert (options.host_path, options.read_only, options.allowed_names) == (str(package), True, ())
