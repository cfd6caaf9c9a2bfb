"""A window with a shell in it, as a person has it: a line is typed, and what comes until the next prompt is read.

What lives here: the pseudo-terminal, the reading of prompts, and namespaces to sit in. What must not: what is typed.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from tests.processes import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

assert sys.platform == "linux", "Windows has no pseudo-terminals of this kind"

__all__ = ["SHELL", "Shown", "Terminal", "namespaces"]

SHELL: Final = ("bash", "--norc", "--noediting", "-i")
_PROMPT: Final = "host[$?]$ "
_AT_PROMPT: Final = re.compile(r"(?:\(\w+\) )?(?:host\[(\d+)\]\$|guest#) $")
_ESCAPES: Final = re.compile(r"^[^\n]*\r\x1b\[2K|\x1b\[[0-9;?]*[A-Za-z]|\r", re.MULTILINE)
"""What is not shown: lines that were erased again, such as those that say what is waited for, and control codes."""
_JOB: Final = re.compile(r"^\[\d+\] \d+$", re.MULTILINE)
"""What a shell says of a line that ends in ``&``."""
_CURSOR_QUESTION: Final = "\x1b[6n"
"""busybox asks where the cursor is, and a terminal answers."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What a line brought: its text without the line itself, and the status that the prompt shows, None in a guest."""

    text: str
    status: int | None


class Terminal:
    """One window. Ends its shell, and what hangs on it, at the end of the block."""

    def __init__(self, command: Sequence[str]) -> None:
        self._master, slave = os.openpty()
        self._process = subprocess.Popen(
            ["env", "--default-signal", "setsid", "--ctty", "--wait", *command],
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)
        self._pending = ""

    def __enter__(self) -> Self:
        # The line that sets the prompt is echoed too; the prompt itself has a number in it.
        self._write(f"stty cols 4000; TERM=dumb PS2= PS1='{_PROMPT}'\n")
        self._read(DEADLINE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._master)  # hangs up
        try:
            self._process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def run(self, line: str, deadline: float) -> Shown:
        """Type one line, and return what came until the next prompt. Raises `AssertionError` when none comes."""
        self._write(f"{line}\n")
        return self._ended(line, deadline)

    def run_behind(self, line: str, missing: Callable[[str], object]) -> Shown:
        """Type a line that ends in ``&``, and return what it said when nothing of that is `missing`.

        It is to say something. A person waits for what they expect before they go on. Raises `AssertionError` when it
        does not come.
        """
        shown = self.run(line, DEADLINE)
        give_up = time.monotonic() + DEADLINE
        said = shown.text
        while not _JOB.sub("", said).strip() or missing(said):
            self._take(give_up)
            said, self._pending = said + _ESCAPES.sub("", self._pending), ""
        return Shown(said, shown.status)

    def begin(self, line: str, missing: Callable[[str], object]) -> str:
        """Type a line that goes on by itself, and return what it said when nothing of that is `missing`.

        Raises `AssertionError` when it ends, or does not say it.
        """
        self._write(f"{line}\n")
        give_up = time.monotonic() + DEADLINE
        while True:
            self._take(give_up)
            plain = _ESCAPES.sub("", self._pending)
            assert not _AT_PROMPT.search(plain), f"it ended:\n{plain}"
            said = plain.removeprefix(line).strip()
            if said and not missing(said):
                return said

    def interrupt(self) -> Shown:
        """Press Ctrl-C, and return what came until the next prompt."""
        self._write("\x03")
        return self._ended("", DEADLINE)

    def _ended(self, line: str, deadline: float) -> Shown:
        text, status = self._read(deadline)
        shown = text.removeprefix(line).lstrip("\n") if text.startswith(line) else text.partition("\n")[2]
        return Shown(shown, status)

    def _write(self, text: str) -> None:
        data = text.encode()
        while data:
            data = data[os.write(self._master, data) :]

    def _read(self, deadline: float) -> tuple[str, int | None]:
        """Read until a prompt is the last that is there."""
        give_up = time.monotonic() + deadline
        while True:
            plain = _ESCAPES.sub("", self._pending)
            if found := _AT_PROMPT.search(plain):
                self._pending = ""
                return plain[: found.start()], None if found[1] is None else int(found[1])
            self._take(give_up)

    def _take(self, give_up: float) -> None:
        """Wait for more, and take it."""
        so_far = _ESCAPES.sub("", self._pending)[-3000:]
        ready, _, _ = select.select([self._master], [], [], max(0.0, give_up - time.monotonic()))
        assert ready, f"nothing more comes; so far:\n{so_far}"
        try:
            new = os.read(self._master, 1 << 16).decode("utf-8", "replace")
        except OSError:
            new = ""
        assert new, f"the window was closed; so far:\n{so_far}"
        if _CURSOR_QUESTION in new:
            self._write("\x1b[1;1R")
        self._pending += new


@contextlib.contextmanager
def namespaces(script: str, *kinds: str) -> Iterator[list[str]]:
    """Make namespaces of mounts, processes and other `kinds`, run a shell script in them, and keep them for the block.

    Gives the command that enters them, to put before another one. Whatever runs in them ends with the block.
    """
    unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child=SIGKILL", "--propagation=private", *kinds]
    whole = f"set -e; {script}\nexec sleep infinity"
    process = subprocess.Popen([*unshare, "sh", "-c", whole], stdin=subprocess.DEVNULL)
    try:
        yield ["nsenter", f"--target={_leader(process)}", "--mount", "--pid", *kinds]
    finally:
        process.kill()
        process.wait()


def _leader(process: subprocess.Popen[bytes]) -> int:
    """Wait for the first process of the namespaces, once its script is done."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while True:
        for child in children.read_text().split():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{child}/comm").read_text().strip() == "sleep":
                    return int(child)
        assert process.poll() is None, "the script that settles in the namespaces failed"
        os.sched_yield()
