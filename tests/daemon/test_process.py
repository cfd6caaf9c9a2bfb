"""`uvmshare daemon` as systemd and people start it: a process, signals, sockets that are given, and what it leaves."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from typing import IO, TYPE_CHECKING

import pytest
from tests.daemon.harness import supervisor_of
from tests.processes import DEADLINE, await_answer

from uvmshare import errors
from uvmshare.testing.client import NinePClient as Guest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.daemon.harness import Home

UVMSHARE = [sys.executable, "-c", "import sys; from uvmshare.cli import main; sys.exit(main())"]


ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.argv[2], sys.argv[2:])
"""


class Process:
    """A daemon's process, and what it told its service manager."""

    def __init__(self, process: subprocess.Popen[bytes], notices: socket.socket, log: str) -> None:
        self.process = process
        self._notices = notices
        self._log = log

    def wait_for(self, notice: str) -> list[str]:
        """Return the lines of the first message that has this one."""
        while True:
            lines = self._notices.recv(4096).decode().split("\n")
            if notice in lines:
                return lines

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(DEADLINE)

    def lines(self) -> list[dict[str, object]]:
        """What it logged, which must be JSON from the first line to the last."""
        with open(self._log) as file:
            return [json.loads(line) for line in file]


@contextlib.contextmanager
def running(home: Home, *args: str, given: socket.socket | None = None, **environment: str) -> Iterator[Process]:
    """A daemon that is ready."""
    home.had_vms = True
    path = f"{home.folder}/notify"
    log = f"{home.folder}/log"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices, contextlib.ExitStack() as stack:
        stack.callback(os.unlink, path)
        notices.bind(path)
        notices.settimeout(DEADLINE)
        command = [*UVMSHARE, "daemon", "--log-format", "json", *args]
        command += ["--run-dir", home.settings.run_dir, "--state-dir", home.settings.state_dir]
        if given is not None:
            # What systemd does: the socket is descriptor 3, and the variable names the process that is meant.
            command = [sys.executable, "-c", ACTIVATE, str(given.fileno()), *command]
        with open(log, "ab") as stderr:
            process = subprocess.Popen(
                command,
                stderr=stderr,
                stdout=subprocess.PIPE,
                pass_fds=() if given is None else (given.fileno(),),
                env={**os.environ, "NOTIFY_SOCKET": path, **environment},
            )
        found = Process(process, notices, log)
        try:
            found.wait_for("READY=1")
            yield found
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(DEADLINE)
            stdout: IO[bytes] | None = process.stdout
            assert stdout is not None
            stdout.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_says_when_it_is_ready_and_when_it_ends(home: Home, number: signal.Signals) -> None:
    with running(home) as daemon:
        with home.client() as client:
            assert client.info().pid == daemon.process.pid
        assert daemon.end(number) == (130 if number == signal.SIGINT else 0)
        daemon.wait_for("STOPPING=1")
        assert not os.path.exists(home.settings.socket_path)


def test_a_sign_of_life_comes_while_the_service_manager_wants_one(home: Home) -> None:
    with running(home, WATCHDOG_USEC="4000000") as daemon:
        daemon.wait_for("WATCHDOG=1")


def test_a_socket_that_systemd_opened_is_used_and_left_alone(home: Home) -> None:
    path = f"{home.folder}/given.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as given:
        given.bind(path)
        given.listen()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as early:
            early.connect(path)  # before there is any daemon: it waits for one
            early.sendall(b"GET /v1/info HTTP/1.1\r\nHost: daemon\r\nConnection: close\r\n\r\n")
            with running(home, given=given) as daemon:
                early.settimeout(DEADLINE)
                answer = b"".join(iter(lambda: early.recv(4096), b""))
                assert json.loads(answer.partition(b"\r\n\r\n")[2])["pid"] == daemon.process.pid
                assert daemon.end() == 0
        assert os.path.exists(path), "it is systemd's"


def test_a_guest_reads_on_while_the_daemon_is_started_again(home: Home) -> None:
    path = home.directory("project")
    with open(f"{path}/file", "w") as file:
        file.write("still there")
    with running(home) as daemon, home.client() as client:
        vm = client.vms.add(**home.new_vm())
        share = client.shares.add("vm", path, read_only=True, lease=60)
        guest = Guest.connect(vm.addresses[0], share.name)
        assert daemon.end() == 0
    with guest:
        assert guest.read_file("file") == b"still there"
        with running(home), home.client() as client:
            await_answer(lambda: client.vms.get("vm").state, "running")  # it answers before it has found its VMs
            (found,) = client.vms()
            assert (found.id, found.state, found.addresses, found.restarts) == ("vm", "running", vm.addresses, 0)
            assert [(each.name, each.references[0].lease) for each in client.shares("vm")] == [(share.name, 60)]
            assert guest.read_file("file") == b"still there"
            client.vms.remove("vm", force=True)
            with pytest.raises((OSError, EOFError)):
                guest.read_file("file")


def test_a_file_server_that_is_killed_is_started_again_with_its_shares(home: Home) -> None:
    path = home.directory("project")
    with running(home), home.client() as client:
        vm = client.vms.add(**home.new_vm())
        names = [client.shares.add("vm", home.directory(name)).name for name in ("a", "b")]
        del path
        events = client.events("0")
        os.kill(supervisor_of(home, os.getuid()), signal.SIGKILL)
        with home.client() as other:
            kinds = []
            while "vm.restarted" not in kinds:
                event = next(events)
                kinds.append(event.kind if event is not None else "missed")
            assert other.vms.get("vm").restarts == 1
            assert [share.name for share in other.shares("vm")] == names
        for name in names:
            with Guest.connect(vm.addresses[0], name) as guest:
                guest.listdir("")


def test_every_line_of_the_log_names_vm_share_and_owner(home: Home) -> None:
    path = home.directory("project")
    with running(home) as daemon, home.client() as client:
        client.vms.add(**home.new_vm())
        share = client.shares.add("vm", path, owner="job", lease=60)
        client.owners.release("job")
        daemon.end()
        lines = {str(line["event"]): line for line in daemon.lines()}
    for event in ("share.held", "share.released"):
        line = lines[event]
        assert (line["vm"], line["share"], line["owner"]) == (f"{os.getuid()}:vm", share.name, "job")
        assert line["level"] == "info"
        assert line["timestamp"]
    assert {"daemon.started", "vm.added", "daemon.stopped"} <= lines.keys()


def fails(home: Home, *args: str) -> str:
    command = [*UVMSHARE, "daemon", "--run-dir", home.settings.run_dir, "--state-dir", home.settings.state_dir, *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DEADLINE)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("uvmshare: error: ")
    return line


def test_a_second_daemon_at_the_same_place_is_one_line(home: Home) -> None:
    with running(home), home.client() as client:
        assert "another daemon uses it" in fails(home)
        elsewhere = f"{home.folder}/elsewhere"
        assert "Address already in use, by process" in fails(home, "--state-dir", elsewhere)
        assert client.info().pid


def test_a_socket_left_behind_is_no_hindrance(home: Home) -> None:
    with running(home) as daemon:
        daemon.end(signal.SIGKILL)
        assert os.path.exists(home.settings.socket_path)
    with running(home), home.client() as client:
        assert client.info().pid


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (("--socket", "/nonexistent/socket"), "/nonexistent/socket"),
        (("--socket-group", "no-such-group"), "no-such-group"),
        (("--state-dir", "/proc/nothing"), "/proc/nothing"),
        (("--socket", "/etc/passwd"), "/etc/passwd"),
    ],
)
def test_a_daemon_that_cannot_start_is_one_line(home: Home, args: tuple[str, ...], named: str) -> None:
    assert named in fails(home, *args)
    assert os.path.exists("/etc/passwd")


def test_a_damaged_file_is_said_with_its_name(home: Home) -> None:
    with running(home):
        pass
    with open(f"{home.settings.state_dir}/daemon.sqlite", "wb") as file:
        file.write(b"not a database" * 1000)
    for left in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{home.settings.state_dir}/daemon.sqlite{left}")
    assert "daemon.sqlite" in fails(home)
    home.had_vms = False


def test_nobody_to_tell_is_no_error() -> None:
    from uvmshare.daemon import systemd
    from uvmshare.linux.notify import notify

    assert not notify("READY=1", environment={})
    assert not notify("READY=1", environment={"NOTIFY_SOCKET": "/nonexistent"})
    assert not notify("READY=1", environment={"NOTIFY_SOCKET": "@nobody-is-here"})
    assert systemd.watchdog_seconds({}) is None
    assert systemd.watchdog_seconds({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}) is None
    assert systemd.watchdog_seconds({"WATCHDOG_USEC": "30000000"}) == 15
    assert systemd.inherited_sockets({"LISTEN_PID": "1", "LISTEN_FDS": "1"}) == []


def test_descriptors_that_are_no_listening_socket_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from uvmshare.daemon import systemd

    left, right = socket.socketpair()
    with right:
        monkeypatch.setattr(systemd, "_FIRST", left.detach())
        with pytest.raises(errors.DaemonError, match="no listening unix socket"):
            systemd.inherited_sockets({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"})
