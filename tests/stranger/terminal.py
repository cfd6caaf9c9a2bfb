"""A window with a shell in it, as a person has it: a line is typed, and what comes until the next prompt is read.

What lives here: the pseudo-terminal and the reading of prompts. What must not: what is typed.
"""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

__all__ = ["SHELL", "Shown", "Terminal"]

SHELL: Final = ("bash", "--norc", "--noediting", "-i")
_PROMPT: Final = "host[$?]$ "
_AT_PROMPT: Final = re.compile(r"(?:host\[(\d+)\]\$|guest#) $")
_ESCAPES: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
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
        self._master, slave = pty.openpty()
        self._process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *command], stdin=slave, stdout=slave, stderr=slave
        )
        os.close(slave)
        self._pending = ""

    def __enter__(self) -> Self:
        # The line that sets the prompt is echoed too; the prompt itself has a number in it.
        self._write(f"stty cols 4000; TERM=dumb PS2= PS1='{_PROMPT}'\n")
        self._read(120)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._master)  # hangs up
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def run(self, line: str, deadline: float) -> Shown:
        """Type one line, and return what came until the next prompt. Raises `AssertionError` when none comes."""
        self._write(f"{line}\n")
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
            ready, _, _ = select.select([self._master], [], [], max(0.0, give_up - time.monotonic()))
            assert ready, f"no prompt after {deadline:g} s; so far:\n{_ESCAPES.sub('', self._pending)[-3000:]}"
            try:
                new = os.read(self._master, 1 << 16).decode("utf-8", "replace")
            except OSError:
                new = ""
            assert new, f"the window was closed; so far:\n{_ESCAPES.sub('', self._pending)[-3000:]}"
            if _CURSOR_QUESTION in new:
                self._write("\x1b[1;1R")
            self._pending += new
            plain = _ESCAPES.sub("", self._pending)
            if found := _AT_PROMPT.search(plain):
                self._pending = ""
                return plain[: found.start()], None if found[1] is None else int(found[1])
