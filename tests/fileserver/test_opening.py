"""What may hang is opened by a child, which is waited for so long and no longer."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from tests.processes import await_answer, kill
from tests.root import needs_root

from uvmshare.errors import AccessDenied, FileServerError, HostPathHangs, InvalidState, OutcomeUnknown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.fileserver.harness import Device

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

from tests.fuse import HungFuse

from uvmshare.fileserver.log import Log
from uvmshare.fileserver.mounttable import may_hang
from uvmshare.fileserver.supervisor import opening
from uvmshare.fileserver.supervisor.loop import Loop
from uvmshare.fileserver.supervisor.opening import Opened, Opener, Wanted


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def opener(loop: Loop) -> Opener:
    return Opener(loop, Log())


def _open(root: Path, text: str = "") -> Opened:
    return Opened(os.open(root, os.O_PATH), text or str(os.getpid()))


@pytest.mark.parametrize("hangs", [True, False])
def test_a_descriptor_and_what_is_said_of_it_come_back(opener: Opener, root: Path, *, hangs: bool) -> None:
    opened = opener.open(Wanted(str(root), lambda: _open(root), hangs))
    assert os.path.samestat(os.fstat(opened.root), os.stat(root))
    assert (opened.directory == str(os.getpid())) is not hangs
    os.close(opened.root)


@pytest.mark.parametrize("hangs", [True, False])
def test_so_does_what_is_wrong(opener: Opener, root: Path, *, hangs: bool) -> None:
    def refuse() -> Opened:
        msg = "not for you"
        raise AccessDenied(msg)

    with pytest.raises(AccessDenied, match="not for you"):
        opener.open(Wanted(str(root), refuse, hangs))


def test_a_child_that_finds_an_error_of_the_host_or_ends_is_an_error(opener: Opener, root: Path) -> None:
    def ends() -> Opened:
        os._exit(1)

    with pytest.raises(FileServerError, match="ended"):
        opener.open(Wanted(str(root), ends, hangs=True))
    with pytest.raises(FileServerError, match="No such file"):
        opener.open(Wanted(str(root), lambda: _open(root / "missing"), hangs=True))


def test_a_child_has_no_descriptor_of_its_supervisor(opener: Opener, root: Path) -> None:
    kept = os.open(root, os.O_PATH)  # such as the lock of a run directory

    def look() -> Opened:
        descriptors = [int(name) for name in os.listdir("/proc/self/fd")]
        alive = []
        for each in descriptors:
            with suppress(OSError):  # that of the listing itself
                os.fstat(each)
                alive.append(each)
        return _open(root, str(sum(each > 2 for each in alive)))

    opened = opener.open(Wanted(str(root), look, hangs=True))
    assert opened.directory == "1", "its socket"
    for each in (kept, opened.root):
        os.close(each)


def test_many_are_opened_beside_each_other_and_answers_keep_their_order(opener: Opener, root: Path) -> None:
    wanted = [Wanted(str(root), lambda each=each: _open(root, str(each)), each % 3 > 0) for each in range(50)]  # type: ignore[misc]  # mypy cannot type a lambda's default
    opened = opener.open_all(wanted)
    said = []
    for each in opened:
        assert isinstance(each, Opened)
        said.append(each.directory)
        os.close(each.root)
    assert said == [str(each) for each in range(50)]


def test_a_child_that_does_not_answer_is_given_up_and_its_path_asked_for_no_more_until_it_ended(
    opener: Opener, loop: Loop, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, holding = os.pipe()
    kills: list[int] = []
    monkeypatch.setattr(opening, "_PATIENCE", 0.01)
    monkeypatch.setattr("signal.pidfd_send_signal", lambda pidfd, number: kills.append(number))  # it does not end
    waiting = os.fdopen(held, "rb")
    wanted = Wanted(str(root), lambda: _wait(f"/proc/{os.getppid()}/fd/{waiting.fileno()}"), hangs=True)
    with pytest.raises(HostPathHangs, match="no answer within"):
        opener.open(wanted)
    with pytest.raises(HostPathHangs, match="it hung before"):
        opener.open(wanted)
    assert len(kills) == 1
    os.close(holding)
    loop.turn(None)  # it has ended
    monkeypatch.setattr(opening, "_PATIENCE", 60.0)
    opened = opener.open(Wanted(str(root), lambda: _open(root), hangs=True))
    os.close(opened.root)
    waiting.close()


def _wait(path: str) -> Opened:
    with open(path, "rb") as pipe:
        pipe.read()
    os._exit(0)


@needs_root
def test_a_look_at_the_table_of_mounts_says_what_may_hang(tmp_path: Path) -> None:
    top = str(tmp_path.resolve())
    assert not may_hang(top)
    assert not may_hang(f"{top}/missing")
    for path in (f"{top}/\0", f"{top}/\ud800"):
        assert not may_hang(path), "no path at all"
    os.symlink("/", f"{top}/link")
    for path in (f"{top}/link/tmp", f"{top}/link", f"{top}/", f"{top}/../x", "x", ""):
        assert may_hang(path), path
    with HungFuse(tmp_path / "shown", tmp_path / "point") as fuse:
        fuse.hang_all()
        for path in (f"{top}/point", f"{top}/point/below", top, "/"):
            assert may_hang(path), path
        assert not may_hang(f"{top}/shown")
        assert not may_hang(f"{top}/pointed")


@needs_root
def test_an_add_of_what_hangs_is_an_error_and_the_server_goes_on(
    start_device: Callable[..., Device], root: Path, tmp_path: Path
) -> None:
    device = start_device(security_model="none")
    with HungFuse(tmp_path / "shown", tmp_path / "point") as fuse:
        fuse.hang_all()
        for reason in ("no answer within", "it hung before"):
            with pytest.raises(HostPathHangs, match=reason):
                device.share(fuse.point)
        name = device.share(root)
        with device.connect(name) as client:
            assert client.read_file("file") == b"content"
        fuse.release()

        def added() -> bool:
            with suppress(HostPathHangs):
                device.share(fuse.point)
                return True
            return False

        await_answer(added, wanted=True)


def _paths(device: Device) -> list[str] | None:
    """The paths of the shares; None while a supervisor takes over."""
    try:
        return [each.path for each in device.run(device.server.status()).shares]
    except (OutcomeUnknown, InvalidState):
        return None


@needs_root
@pytest.mark.long
def test_a_supervisor_takes_over_what_does_not_hang(
    start_device: Callable[..., Device], root: Path, tmp_path: Path
) -> None:
    device = start_device(security_model="none", run_dir=tmp_path / "run")
    with HungFuse(tmp_path / "shown", tmp_path / "point") as fuse:
        (tmp_path / "shown" / "below").mkdir()
        device.share(fuse.point)
        device.share(fuse.point / "below")
        device.share(root)
        fuse.hang_all()
        kill(device.pid())
        await_answer(lambda: _paths(device), [str(root)])
        lost = device.server.lost
        assert {each.path for each in lost} == {str(fuse.point), str(fuse.point / "below")}
        assert all("its file system hangs" in each.reason for each in lost)
        fuse.release()
