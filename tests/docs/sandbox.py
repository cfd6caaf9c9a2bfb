"""A place where the pages come true: the directories that they name, a shell as they show it, and one guest.

What lives here: the places, and typing a block into them. What must not: which blocks there are, or what a page says of
its output.

It is this host's own root with processes, mounts and a network of its own; what is written to the places below is in a
directory that is thrown away.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from typing import TYPE_CHECKING, Final

from tests.docs.pages import ROOT, commands, outcomes
from tests.processes import DEADLINE
from tests.terminal import SHELL, Terminal, namespaces

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

    from tests.docs.pages import Block

    from uvmshare.testing.guest_vm import GuestVM

__all__ = ["COPIED", "Failed", "Sandbox", "empty", "sandbox"]

HOME: Final = "/home/me"
_FRESH: Final = ("/home", "/srv", "/run", "/var/lib", "/mnt", "/tmp")
"""What is thrown away. All else is the host's own."""
_DIRECTORIES: Final = (
    *(f"{HOME}/{name}" for name in ("project", "out", "src")),
    *(f"/srv/{name}" for name in ("project", "out", "cache", "x", "build")),
    *("/run/fc", "/run/ch", "/run/lock", "/var/lib/vms"),
)
"""What the pages may take for there."""
COPIED: Final = {
    "mount.py": "src/uvmshare/guest/mount.py",
    "agent.sh": "src/uvmshare/guest/agent.sh",
}
"""Files of this repository that the pages say to copy into the guest."""
_STAND_INS: Final = {"firecracker": os.path.join(ROOT, "tests", "docs", "firecracker.py")}
"""Programs that this machine does not have, and what stands in for each."""
_ON: Final = re.compile(
    r"uvmshare (serve|daemon|events|top|dashboard|hcs serve)\b(?!.*&$)(?!.*--(help|no-follow|times))"
)
"""Commands that go on until they are told to end. Whoever types one opens a window for it."""
_BEHIND: Final = """
rm -f said
{line} > said 2>&1 &
for turn in $(seq 600); do
    ! [ -s said ] || break
    sleep 0.1
done
cat said
"""
"""What is begun behind in a guest, and its first word, which a person waits for."""
_EMPTY_GUEST: Final = """
pkill -9 -f uvmshare-guest
pkill -9 -f agent.sh
for place in $(awk '$3 == "9p" && $2 != "/" {print $2}' /proc/mounts); do umount -l $place; done
rm -rf /run/me /run/uvmshare /run/uvmshare-agent
mkdir /run/me
grep -q " /mnt " /proc/mounts || mount -t tmpfs tmpfs /mnt
"""
_PYTHON: Final = """
import ast, asyncio, inspect, sys
code = compile(sys.stdin.read(), sys.argv[1], "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
sys.argv = sys.argv[1:]
names = {"__name__": "__main__"}
came = eval(code, names)
if inspect.iscoroutine(came):
    asyncio.run(came)
"""
"""Runs a snippet as ``python -m asyncio`` does: with ``await`` at the top. Snippets without it run as in any Python."""


def _missing(wanted: list[str], said: str) -> list[str]:
    """Return the lines that a page shows and that did not come; ``...`` stands for anything."""
    return [line for line in wanted if not re.search(re.escape(line).replace(r"\.\.\.", ".*?"), said, re.DOTALL)]


class Failed(AssertionError):
    """A line of a page did not do what the page says."""


class Sandbox:
    """One reader's machine, from the top of a page to its end."""

    def __init__(self, enter: list[str], guest: tuple[asyncio.Runner, GuestVM] | None, home: str) -> None:
        bin_directory = os.path.dirname(sys.executable)
        self._home = home
        self._guest = guest
        self._copied: set[str] = set()
        self._enter = [
            *(*enter, "env", "--ignore-environment", f"--chdir={HOME}", f"HOME={HOME}", "USER=root", "LANG=C.UTF-8"),
            f"PATH=/srv/bin:{bin_directory}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        ]
        self._stack = contextlib.ExitStack()
        self._main = self._stack.enter_context(self._window())

    def close(self) -> None:
        """Close all windows."""
        self._stack.close()

    def _window(self) -> Terminal:
        return Terminal([*self._enter, *SHELL])

    def type(self, block: Block, *, fails: bool = False, stays: bool = False) -> str:
        """Type the lines of a console block, each where its prompt says. Return what they printed.

        Raises `Failed` for the first line that ends otherwise than expected (with success, but for the last line where
        `fails`), or that does not print what the page shows.
        """
        said = ""
        windows: list[Terminal] = []
        with contextlib.ExitStack() as stack:
            typed = commands(block)
            for number, ((prompt, line), wanted) in enumerate(zip(typed, outcomes(block), strict=True)):
                missing = partial(_missing, wanted)
                if prompt.startswith("guest"):
                    text, status = self._in_guest(line)
                elif _ON.match(line):
                    window = (self._stack if stays else stack).enter_context(self._window())
                    text, status = window.begin(line, missing), 0
                    windows.append(window)
                else:
                    behind = line.endswith("&") and ">" not in line
                    shown = self._main.run_behind(line, missing) if behind else self._main.run(line, 5 * DEADLINE)
                    text, status = shown.text, shown.status or 0
                if bool(status) != (fails and number == len(typed) - 1):
                    msg = f"{block}: {prompt} {line}\nended with status {status}:\n{text}"
                    raise Failed(msg)
                if not_shown := missing(text):
                    msg = f"{block}: {prompt} {line}\nshows {not_shown}, and this came:\n{text}"
                    raise Failed(msg)
                said += text
            for window in [] if stays else windows:
                status = window.interrupt().status or 0
                assert status in (0, 130), f"{block}: ended with status {status} when it was interrupted"
            if not stays:
                self._main.run("kill $(jobs -p) 2>/dev/null; wait", DEADLINE)
        return said

    def run(self, block: Block) -> None:
        """Run a Python block by itself. Raises `Failed` when it ends with an error."""
        command = [*self._enter, sys.executable, "-c", _PYTHON, str(block)]
        done = subprocess.run(
            command, input=block.text, capture_output=True, text=True, check=False, timeout=5 * DEADLINE
        )
        if done.returncode != 0:
            msg = f"{block} ended with status {done.returncode}:\n{done.stdout}{done.stderr}"
            raise Failed(msg)

    def _in_guest(self, line: str) -> tuple[str, int]:
        assert self._guest is not None, "this page has lines of a guest's"
        runner, vm = self._guest
        for name in [*COPIED, "uvmshare-guest"]:
            path = os.path.join(self._home, name)
            if name not in self._copied and name in line and os.path.exists(path):
                self._copied.add(name)
                with open(path, "rb") as file:
                    runner.run(vm.write_file(f"/run/me/{name}", file.read()))
        if line.endswith("&") and ">" not in line:
            line = _BEHIND.format(line=line.removesuffix("&"))
        result = runner.run(vm.run(f"cd /run/me\n{line}"))
        return result.text, result.status


def empty(guest: tuple[asyncio.Runner, GuestVM]) -> None:
    """Take away what a page left in the guest, so that it is not there for the next one."""
    runner, vm = guest
    runner.run(vm.run(_EMPTY_GUEST))


@contextlib.contextmanager
def sandbox(guest: tuple[asyncio.Runner, GuestVM] | None = None) -> Iterator[Sandbox]:
    """Give a machine for one page. The guest's vsock device is at /run/fc/v.sock there, as Firecracker's would be."""
    cache = os.path.join(ROOT, ".cache")
    os.makedirs(cache, exist_ok=True)
    # A process that was killed may still be writing its last words.
    with tempfile.TemporaryDirectory(dir=cache, prefix="page-", ignore_cleanup_errors=True) as folder:
        script = ["mount -t proc proc /proc", "ip link set lo up"]
        for directory in _DIRECTORIES:
            os.makedirs(folder + directory, exist_ok=True)
        for name in ("project", "src"):
            _write(f"{folder}{HOME}/{name}/greeting.txt", "hello\n")
        for name, path in COPIED.items():
            shutil.copy(os.path.join(ROOT, path), f"{folder}{HOME}/{name}")
        os.makedirs(f"{folder}/srv/bin")
        for name, path in _STAND_INS.items():
            os.symlink(path, f"{folder}/srv/bin/{name}")
        if guest is not None:
            assert guest[1].vsock is not None
            script.append(f"mount --bind {os.path.dirname(guest[1].vsock.uds_path)} {folder}/run/fc")
        for place in _FRESH:
            os.makedirs(folder + place, exist_ok=True)
        if any(ROOT.startswith(f"{place}/") for place in _FRESH):  # this repository stays where it is
            script.append(f"mkdir -p {folder}{ROOT} && mount --bind {ROOT} {folder}{ROOT}")
        # What this repository is in comes last, since the folder of the new places is in it too.
        places = sorted(_FRESH, key=lambda place: ROOT.startswith(f"{place}/"))
        script += [f"mount --rbind {folder}{place} {place}" for place in places]
        with namespaces("\n".join(script), "--net") as enter:
            machine = Sandbox(enter, guest, folder + HOME)
            try:
                yield machine
            finally:
                machine.close()


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
