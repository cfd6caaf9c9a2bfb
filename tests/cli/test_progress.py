"""Commands that may take longer than a second say what they wait for, to a person at a terminal alone."""

from __future__ import annotations

import io
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from tests.processes import DEADLINE

from uvmshare.cli import progress
from uvmshare.cli.main import run
from uvmshare.errors import UvmshareError
from uvmshare.guest.mount import MountError

if TYPE_CHECKING:
    from pathlib import Path

assert sys.platform == "linux", "serve and doctor run there"


class Screen(io.StringIO):
    """Standard error, as a terminal or not; tells when the wanted words are on it."""

    def __init__(self, words: str, *, is_terminal: bool) -> None:
        super().__init__()
        self.shown = threading.Event()
        self._words = words
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal

    def write(self, text: str) -> int:
        written = super().write(text)
        if self._words in text:
            self.shown.set()
        return written


class _Folder:
    """A fleet's folder, all of whose calls are the slow one."""

    def __init__(self, slow: Any, *, exists: bool) -> None:
        self.exists = exists
        self._slow = slow

    def __getattr__(self, name: str) -> Any:
        return self._slow


INIT = ("fleet", "init", "--etcd", "https://127.0.0.1:1", "--gate", "gate.example")
COMMANDS: list[tuple[tuple[str, ...], str, str]] = [
    (("serve", "--listen", "unix:/x", "{}:ro"), "uvmshare.FileServer", "starting the file server"),
    (("dashboard",), "uvmshare.dashboard.source.Source", "starting the dashboard"),
    (("doctor",), "uvmshare.fileserver.host.examine", "looking at this host"),
    (("guest", "mount", "unix:/x", "0", "/mnt"), "uvmshare.guest.mount.mount", "mounting"),
    (INIT, "a new folder", "making certificates"),
    (INIT, "a folder", "writing the roles in etcd"),
    (("fleet", "add-host", "host-17"), "a folder", "writing the host's role in etcd"),
    (("fleet", "add-tenant", "acme"), "a folder", "writing the tenant in etcd"),
    (("fleet", "status"), "a folder", "asking the members of etcd"),
]


def _written(
    command: tuple[str, ...], what: str, screen: Screen, patch: pytest.MonkeyPatch, folder: Path, *, waits: bool
) -> str:
    """Run a command whose slow part ends, with an error, when the words are shown."""

    def slow(*_: Any, **__: Any) -> Any:
        assert not waits or screen.shown.wait(DEADLINE), "it says nothing"
        raise MountError("over") if "mount" in what else UvmshareError("over")

    patch.setattr(progress, "_FIRST", 0.0)
    patch.setattr(progress, "_NEXT", DEADLINE)
    patch.setattr(sys, "stderr", screen)
    if "folder" in what:
        patch.setattr("uvmshare.cli.fleet._open", lambda _: _Folder(slow, exists="new" not in what))
    else:
        patch.setattr(what, slow)
    assert run([each.format(folder) for each in command]) == 1
    return screen.getvalue()


@pytest.mark.parametrize(("command", "what", "words"), COMMANDS, ids=[each[2] for each in COMMANDS])
def test_what_a_person_waits_for_is_said_and_taken_away_before_the_answer(
    command: tuple[str, ...], what: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    screen = Screen(words, is_terminal=True)
    shown = _written(command, what, screen, monkeypatch, tmp_path, waits=True)
    line, erased, error = shown.rpartition("\r\x1b[2K")
    assert erased
    assert line == f"\r\x1b[2K{words} (0 s; Ctrl-C stops waiting)"
    assert error.endswith(": over\n")


@pytest.mark.parametrize(("command", "what", "words"), COMMANDS, ids=[each[2] for each in COMMANDS])
def test_a_program_that_reads_standard_error_gets_the_answer_alone(
    command: tuple[str, ...], what: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    screen = Screen(words, is_terminal=False)
    shown = _written(command, what, screen, monkeypatch, tmp_path, waits=False)
    assert "\x1b" not in shown
    assert shown.count("\n") == 1
