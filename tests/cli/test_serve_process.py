"""`uvmshare serve` as its users start it: a process, signals, and a guest on a Unix socket."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from typing import IO, TYPE_CHECKING

import pytest
from tests.processes import DEADLINE, kill

from uvmshare.testing.client import NinePClient

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

assert sys.platform == "linux", "uvmshare serve runs on Linux"

UVMSHARE = [sys.executable, "-c", "import sys; from uvmshare.cli import main; sys.exit(main())"]


@pytest.fixture
def address() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:  # a Unix socket's path is short, pytest's are not
        yield f"unix:{folder}/9p"


@contextlib.contextmanager
def serving(args: Sequence[str]) -> Iterator[tuple[subprocess.Popen[bytes], list[dict[str, object]]]]:
    """A process that is ready, in a process group of its own, and the lines it printed."""
    process = subprocess.Popen([*UVMSHARE, "serve", *args], stdout=subprocess.PIPE, process_group=0)
    try:
        assert process.stdout is not None
        lines = [json.loads(process.stdout.readline())]
        while "ready" not in lines[-1]:
            lines.append(json.loads(process.stdout.readline()))
        yield process, lines
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(DEADLINE)
        stdout: IO[bytes] | None = process.stdout
        assert stdout is not None
        stdout.close()


def test_a_guest_reads_and_writes_while_it_serves(address: str, tmp_path: Path) -> None:
    project, out = tmp_path / "project", tmp_path / "out"
    project.mkdir()
    out.mkdir()
    (project / "hello").write_text("from the host")
    with serving(["--listen", address, f"{project}:ro", str(out)]) as (process, lines):
        assert lines == [
            {"share": "0", "path": str(project), "read_only": True},
            {"share": "1", "path": str(out), "read_only": False},
            {"ready": True, "addresses": [address]},
        ]
        with NinePClient.connect(address, "0") as guest:
            assert guest.read_file("hello") == b"from the host"
            with pytest.raises(OSError, match=r".") as refused:
                guest.write_file("new", b"")
            assert refused.value.errno == errno.EROFS
        with NinePClient.connect(address, "1") as guest:
            guest.write_file("answer", b"from the guest")
        assert (out / "answer").read_text() == "from the guest"
        process.terminate()
        assert process.wait(DEADLINE) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_cleanly_though_a_guest_is_connected(number: signal.Signals, address: str, tmp_path: Path) -> None:
    with serving(["--listen", address, str(tmp_path)]) as (process, _):
        guest = NinePClient.connect(address, "0")
        process.send_signal(number)
        assert process.wait(DEADLINE) == (130 if number == signal.SIGINT else 0), "as the help says"
        with guest, pytest.raises((OSError, EOFError)):
            guest.listdir("")
        assert not os.path.exists(address.removeprefix("unix:"))


def test_control_c_in_a_terminal_reaches_every_process_of_it(address: str, tmp_path: Path) -> None:
    with serving(["--listen", address, str(tmp_path)]) as (process, _):
        with NinePClient.connect(address, "0"):
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(DEADLINE) == 130
        assert not os.path.exists(address.removeprefix("unix:"))


def test_an_allow_list_hides_the_rest(address: str, tmp_path: Path) -> None:
    for name in ("shown", "hidden"):
        (tmp_path / name).write_text(name)
    with serving(["--listen", address, f"{tmp_path}:ro:only=shown"]) as (_, lines):
        assert lines[0]["only"] == ["shown"]
        with NinePClient.connect(address, "0") as guest:
            assert guest.read_file("shown") == b"shown"
            with pytest.raises(OSError, match=r".") as refused:
                guest.read_file("hidden")
            assert refused.value.errno == errno.ENOENT


def test_the_socket_has_the_mode_asked_for(address: str, tmp_path: Path) -> None:
    with serving(["--listen", address, "--socket-mode", "660", str(tmp_path)]):
        assert os.stat(address.removeprefix("unix:")).st_mode & 0o777 == 0o660


@pytest.fixture
def run_dir() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        yield f"{folder}/run"


def supervisor_of(run_dir: str) -> int:
    with open(f"{run_dir}/lock", encoding="ascii") as lock:
        return int(lock.read())


@pytest.mark.parametrize("supervisor_too", [False, True])
def test_after_kill_9_guests_go_on_and_the_same_command_goes_on_from_there(
    address: str, run_dir: str, tmp_path: Path, *, supervisor_too: bool
) -> None:
    kept, dropped, new = (tmp_path / name for name in ("kept", "dropped", "new"))
    for path in (kept, dropped, new):
        path.mkdir()
        (path / "file").write_bytes(path.name.encode())
    common = ["--listen", address, "--run-dir", run_dir, "--security-model", "none"]
    with contextlib.ExitStack() as guests:
        with serving([*common, str(dropped), str(kept)]) as (process, _):
            on_dropped, on_kept = (
                guests.enter_context(NinePClient.connect(address, name, timeout=DEADLINE)) for name in ("0", "1")
            )
            fid = on_kept.open("file", os.O_RDWR)
            supervisor = supervisor_of(run_dir)
            process.kill()
            process.wait(DEADLINE)
        assert on_dropped.read_file("file") == b"dropped"
        if supervisor_too:
            kill(supervisor)
        assert on_kept.read(fid, 0, 4) == b"kept"
        with serving([*common, str(kept), f"{new}:ro"]) as (process, lines):
            assert lines[0] == {"share": "1", "path": str(kept), "read_only": False}
            name = lines[1]["share"]  # never one that was used before
            assert name not in ("0", "1")
            assert lines[1:] == [
                {"share": name, "path": str(new), "read_only": True},
                {"ready": True, "addresses": [address]},
            ]
            assert (supervisor_of(run_dir) == supervisor) is not supervisor_too
            on_kept.write(fid, 0, b"KEPT")
            assert on_dropped.drain() == []  # it was not given any more
            with NinePClient.connect(address, str(name), timeout=DEADLINE) as on_new:
                assert on_new.read_file("file") == b"new"
            process.terminate()
            assert process.wait(DEADLINE) == 0
        assert on_kept.drain() == []
    assert (kept / "file").read_bytes() == b"KEPT"
    assert {name for name in os.listdir(run_dir) if not name.startswith("journal")} == {"log"}


def test_a_supervisor_that_dies_is_said_and_another_takes_over(address: str, run_dir: str, tmp_path: Path) -> None:
    shared, gone = tmp_path / "shared", tmp_path / "gone"
    shared.mkdir()
    gone.mkdir()
    command = [*UVMSHARE, "serve", "-l", address, "--run-dir", run_dir, f"{shared}:ro", f"{gone}:ro"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        while "ready" not in process.stdout.readline():
            pass
        gone.rmdir()
        os.kill(supervisor_of(run_dir), signal.SIGKILL)
        assert "has taken over 1 shares" in process.stderr.readline()
        assert "share 1 " in process.stderr.readline()
        assert str(gone) in process.stderr.readline()
        with NinePClient.connect(address, "0", timeout=DEADLINE) as guest:
            assert guest.listdir() == []
        process.terminate()
        assert process.wait(DEADLINE) in (0, 1)


def test_of_two_commands_with_one_run_directory_the_second_ends_in_one_line(
    address: str, run_dir: str, tmp_path: Path
) -> None:
    with serving(["--listen", address, "--run-dir", run_dir, f"{tmp_path}:ro"]) as (process, _):
        assert str(process.pid) in fails(["--listen", address, "--run-dir", run_dir, f"{tmp_path}:ro"])
        with NinePClient.connect(address, "0", timeout=DEADLINE) as guest:
            guest.listdir()
        process.terminate()
        assert process.wait(DEADLINE) == 0


def fails(args: Sequence[str]) -> str:
    done = subprocess.run([*UVMSHARE, "serve", *args], capture_output=True, text=True, check=False, timeout=DEADLINE)
    assert done.returncode in {1, 2}
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert '"ready"' not in done.stdout
    return f"{done.returncode}: {done.stderr}"


@pytest.mark.parametrize(
    ("address", "status", "named"),
    [
        ("nonsense", 2, "nonsense"),
        ("unix:", 2, "unix:"),
        ("vsock:2", 2, "vsock:2"),
        ("tcp:127.0.0.1", 2, "tcp:127.0.0.1"),
        ("tcp:0.0.0.0:0", 2, "--allow-remote"),
        ("unix:/nonexistent/9p", 1, "/nonexistent/9p"),
    ],
)
def test_an_address_that_cannot_be_is_one_line(address: str, status: int, named: str, tmp_path: Path) -> None:
    said = fails(["--listen", address, str(tmp_path)])
    assert said.startswith(f"{status}: uvmshare")
    assert named in said


def test_an_address_in_use_is_one_line(address: str, tmp_path: Path) -> None:
    path = address.removeprefix("unix:")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        other.listen()
        assert path in fails(["--listen", address, str(tmp_path)])
        assert os.path.exists(path), "somebody else's socket stays"


def test_it_ends_and_says_so_when_the_server_behind_it_is_killed(address: str, tmp_path: Path) -> None:
    log = tmp_path / "stderr"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [*UVMSHARE, "serve", "--listen", address, f"{tmp_path}:ro"], stdout=subprocess.PIPE, stderr=stderr
        )
        with process:
            assert process.stdout is not None
            while b"ready" not in process.stdout.readline():
                pass
            with open(f"/proc/{process.pid}/task/{process.pid}/children", encoding="ascii") as children:
                (supervisor,) = map(int, children.read().split())
            os.kill(supervisor, signal.SIGKILL)
            assert process.wait(DEADLINE) == 1
    (line,) = log.read_text().splitlines()
    assert line == "uvmshare: error: the file server's process has ended; no guest has its shares any more"
