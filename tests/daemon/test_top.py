"""`uvmshare top` as a person has it: a window, its keys and its sizes, and a daemon that comes and goes."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import termios
import time
from typing import TYPE_CHECKING, Any, Self

import msgspec
import pytest
from rich.cells import cell_len
from tests.daemon.harness import Home
from tests.processes import DEADLINE

from uvmshare.cli import top
from uvmshare.cli.main import run
from uvmshare.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.daemon.harness import Running

assert sys.platform == "linux", "Windows has no pseudo-terminals of this kind"

UVMSHARE = [sys.executable, "-c", "import sys; from uvmshare.cli import main; sys.exit(main())"]
STYLES = re.compile(r"\x1b\[[0-9;]*m")
OTHER_SCREEN, OWN_SCREEN, SHOWN_CURSOR = "\x1b[?1049h", "\x1b[?1049l", "\x1b[?25h"
ALL_COLUMNS = ["VM", "SHARE", "PATH", "AGENT", "MNT", "OPS/S", "IN/S", "OUT/S", "LAT", "EXP", "ERR"]


class Window:
    """A window of so many columns and ten lines with one command in it."""

    def __init__(self, *arguments: str, columns: int = 100) -> None:
        self._master, self._slave = os.openpty()
        self.resize(columns)
        self._settings = termios.tcgetattr(self._slave)
        environment = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES"}}
        self.process = subprocess.Popen(
            ["env", "--default-signal", "setsid", "--ctty", *UVMSHARE, *arguments],
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            env=environment | {"TERM": "xterm"},
        )
        self.written = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._slave)
        os.close(self._master)

    def resize(self, columns: int) -> None:
        """Have the window this wide; the kernel tells the command."""
        self.columns = columns
        termios.tcsetwinsize(self._master, (10, columns))

    def press(self, key: bytes) -> None:
        os.write(self._master, key)

    def until(self, wanted: Callable[[str], object]) -> str:
        """Return the first whole picture of the window's width that is wanted."""
        give_up = time.monotonic() + DEADLINE
        while True:
            for picture in self.written.split("\x1b[H")[1:]:
                plain = STYLES.sub("", picture).replace("\r", "")
                lines = plain.split("\n")
                if len(lines) == 10 and {cell_len(each) for each in lines} == {self.columns} and wanted(plain):
                    self.written = ""
                    return plain
            self._take(give_up)

    def ended(self) -> int:
        """Wait for the command's end, see that the terminal is as it was, and return the status."""
        give_up = time.monotonic() + DEADLINE
        while self.process.poll() is None:
            self._take(give_up, 0.1)
        self._take(give_up, 0)
        assert termios.tcgetattr(self._slave) == self._settings
        assert OTHER_SCREEN not in self.written.rpartition(OWN_SCREEN)[2]
        assert OWN_SCREEN in self.written
        assert SHOWN_CURSOR in self.written
        assert "Traceback" not in self.written
        return self.process.returncode

    def _take(self, give_up: float, most: float = DEADLINE) -> None:
        ready, _, _ = select.select([self._master], [], [], most)
        if ready:
            self.written += os.read(self._master, 1 << 16).decode()
        assert time.monotonic() < give_up, f"nothing more comes; so far:\n{self.written[-3000:]!r}"


@pytest.fixture(scope="module")
def busy() -> Iterator[Running]:
    with Home.made() as home, home.running() as running:
        running.add_vm("machine")
        running.add_share(home.directory("project"), "machine")
        yield running


def _watching(home: Home, *more: str, columns: int = 100) -> Window:
    return Window("top", "--host", home.host, "--interval", "0.1", *more, columns=columns)


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (lambda window: window.press(b"q"), 0),
        (lambda window: window.press(b"\x03"), 130),
        (lambda window: window.process.terminate(), 0),
        (lambda window: window.process.send_signal(signal.SIGHUP), 0),
    ],
    ids=["q", "Ctrl-C", "SIGTERM", "SIGHUP"],
)
def test_however_it_ends_the_terminal_is_as_it_was(busy: Running, end: Callable[[Window], None], status: int) -> None:
    with _watching(busy.home) as window:
        window.until(lambda shown: "project" in shown)
        end(window)
        assert window.ended() == status


def test_another_size_is_drawn_with_what_fits_into_it(busy: Running) -> None:
    with _watching(busy.home) as window:
        assert window.until(lambda shown: "project" in shown).split("\n")[0].split() == ALL_COLUMNS
        window.resize(60)
        assert window.until(lambda shown: "total" in shown).split("\n")[0].split() == ALL_COLUMNS
        window.resize(30)
        head = window.until(lambda shown: "1 VM" in shown).split("\n")[0].split()
        assert {"VM", "SHARE", "OPS/S"} <= set(head) < set(ALL_COLUMNS), "none is cut"
        window.press(b"q")
        assert window.ended() == 0


def test_another_size_is_drawn_at_once_and_not_at_the_next_reading(busy: Running) -> None:
    with Window("top", "--host", busy.home.host, "--interval", "3600") as window:
        window.until(lambda shown: "the first numbers come after 3600 s" in shown)
        window.resize(30)
        window.until(lambda shown: "the first numbers come" in shown)
        window.press(b"xQ")
        assert window.ended() == 0


def test_a_daemon_that_goes_away_is_waited_for() -> None:
    with Home.made() as home, contextlib.ExitStack() as stack:
        with home.running() as running:
            running.add_vm("machine")
            running.add_share(home.directory("project"), "machine")
            window = stack.enter_context(_watching(home))
            window.until(lambda shown: "project" in shown)
        shown = window.until(lambda shown: "no numbers for" in shown)
        assert "daemon" in shown
        assert "project" in shown, "the last numbers stay"
        with home.running():
            window.until(lambda shown: "project" in shown and "no numbers" not in shown)
        window.until(lambda shown: "no numbers for" in shown)
        window.press(b"q")
        assert window.ended() == 0


@pytest.mark.parametrize("more", [[], ["--json"]], ids=["table", "JSON"])
def test_a_program_reads_lines_without_control_characters(
    busy: Running, more: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["top", "--host", busy.home.host, "--interval", "0.1", "--times", "2", *more]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert all(line.isprintable() for line in out.splitlines())
    if more:
        readings = [msgspec.json.decode(line) for line in out.splitlines()]
        assert [[each["vm"] for each in reading] for reading in readings] == [["machine"]] * 2
    else:
        assert [line.split() == ALL_COLUMNS for line in out.splitlines()] == [True, False, False] * 2


def test_json_in_a_window_is_one_line_a_reading_whatever_its_size(busy: Running) -> None:
    with Window("top", "--host", busy.home.host, "--interval", "0.1", "--times", "2", "--json", columns=30) as window:
        window.resize(60)
        assert window.process.wait(DEADLINE) == 0
        window._take(time.monotonic() + DEADLINE)
        assert [len(msgspec.json.decode(line)) for line in window.written.splitlines()] == [1, 1]


class _Daemon:
    """A daemon that says one thing after the other, at each reading."""

    def __init__(self, *readings: list[Any] | Exception) -> None:
        self._left = list(readings)
        self.vms = self
        self.stats = None

    def __call__(self) -> list[Any]:
        now = self._left.pop(0)
        if isinstance(now, Exception):
            raise now
        return []


@contextlib.contextmanager
def _said_by(daemon: _Daemon) -> Iterator[None]:
    @contextlib.contextmanager
    def connected(*_: object) -> Iterator[_Daemon]:
        yield daemon

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(top, "connected", connected)
        patch.setattr("uvmshare.cli.top.time.sleep", lambda _: None)
        yield


def test_a_program_hears_once_that_nothing_is_read_and_once_that_it_is_again(
    capfd: pytest.CaptureFixture[str],
) -> None:
    gone = DaemonError("the daemon went away")
    with _said_by(_Daemon([], gone, gone, [], [])):
        assert run(["top", "--times", "4", "--json"]) == 0
    out, err = capfd.readouterr()
    assert out == "[]\n[]\n"
    assert err == "the daemon went away\nall of it is read again\n"


def test_it_fails_when_the_first_or_the_last_reading_does(capfd: pytest.CaptureFixture[str]) -> None:
    gone = DaemonError("the daemon went away")
    for readings in ([gone], [[], gone]):
        with _said_by(_Daemon(*readings)):
            assert run(["top", "--times", "1"]) == 1
        out, err = capfd.readouterr()
        assert out == ""
        assert err.endswith("uvmshare: error: the daemon went away\n")


def test_without_any_vm_it_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    with _said_by(_Daemon([], [])):
        assert run(["top", "--times", "1"]) == 0
    head, total, words = capfd.readouterr().out.splitlines()
    assert head.split() == ALL_COLUMNS
    assert total.startswith("0 VMs")
    assert words.startswith("no VM has a share: uvmshare share add")


@pytest.mark.parametrize("height", range(2, 9))
@pytest.mark.parametrize("width", [30, 60])
def test_a_trouble_fits_below_the_totals_of_any_window(width: int, height: int) -> None:
    shown = [top.Rates(f"vm{each}", "0", "/p", None, 1, 1.0, 1.0, 1.0, None, 0, 0, 0) for each in range(3)]
    lines = top.picture(shown, width, height, ["no daemon answers at " + "/x" * 90]).plain.split("\n")
    assert len(lines) <= height
    assert all(cell_len(line) <= width for line in lines)
    assert sum(line.startswith("3 ") for line in lines) == 1
    assert height < 3 or any("no daemon answers" in line for line in lines)
