"""The stand-in for computecore.dll, built and loaded, with everything that a test can ask of it.

What must not live here: tests. The stand-in itself is C, in standin/.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from uvmshare.hcs.computecore import ComputeCore

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
SOURCES = Path(__file__).parent / "standin"
CFLAGS = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-O1", "-g", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread"]

# When an injected answer comes: `enum when` of the stand-in.
AT_ONCE, AT_THE_END, AFTER_DOING_IT, ALTHOUGH_STARTED, HOLD_IT = range(5)

VM = "9a3e5f1c-vm"


class StandIn:
    """The stand-in's control functions."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.core = ComputeCore.load(path)
        self._library = ctypes.CDLL(path)

    def add_system(self, id_: str, *, plan9: bool = True) -> None:
        self._library.standin_add_system(id_.encode(), int(plan9))

    def inject(self, function: str, hresult: int, when: int = AT_THE_END, message: str = "") -> None:
        self._library.standin_inject(function.encode(), ctypes.c_uint32(hresult), when, message.encode())

    def clear_injections(self) -> None:
        self._library.standin_clear_injections()

    def hold(self, *, on: bool = True) -> None:
        self._library.standin_hold(int(on))

    def let_end(self, index: int = -1) -> None:
        self._library.standin_release(index)

    def block(self, function: str) -> None:
        self._library.standin_block(function.encode())

    def unblock(self) -> None:
        self._library.standin_block(b"")

    def cancel_works(self) -> None:
        self._library.standin_cancel_works(1)

    def event(self, id_: str, type_: int, data: str = "") -> None:
        self._library.standin_event(id_.encode(), ctypes.c_uint32(type_), data.encode())

    def exit(self, id_: str, data: str = "", *, end_operations: bool = False) -> None:
        self._library.standin_exit(id_.encode(), data.encode(), int(end_operations))

    def disconnect(self) -> None:
        self._library.standin_disconnect()

    def settle(self) -> None:
        self._library.standin_settle()

    def count(self, what: str) -> int:
        count: int = self._library.standin_count(what.encode())
        assert count >= 0, f"the stand-in counts no {what}"
        return count

    def wait(self, what: str, wanted: int = 1) -> None:
        """Block until the count is reached. From the event loop: `await asyncio.to_thread(standin.wait, ...)`."""
        self.count(what)
        self._library.standin_wait(what.encode(), wanted)

    def shares(self, id_: str = VM) -> list[dict[str, Any]]:
        shares: list[dict[str, Any]] = json.loads(self._text("standin_shares", id_.encode()))
        return shares

    def names(self, id_: str = VM) -> list[str]:
        return [share["Name"] for share in self.shares(id_)]

    def last_document(self) -> str:
        return self._text("standin_last_document")

    def misuse(self) -> str:
        return self._text("standin_misuse")

    def join_callers(self) -> None:
        """Wait for the worker threads that nobody waits for any more."""
        for thread in threading.enumerate():
            if thread.name.startswith("hcs"):
                thread.join()

    def reset(self) -> int:
        left: int = self._library.standin_reset()
        return left

    def _text(self, function: str, *arguments: bytes) -> str:
        size = 4096
        while True:
            buffer = ctypes.create_string_buffer(size)
            if getattr(self._library, function)(*arguments, buffer, size) < size:
                return buffer.value.decode()
            size *= 4


def _build() -> str:
    """Build the shared object once for each state of its sources."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to build the stand-in with: apt-get install gcc libc6-dev")
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(SOURCES.iterdir()))).hexdigest()[:16]
    built = ROOT / ".cache" / "standin" / f"libcomputecore-{digest}.so"
    if not built.exists():
        built.parent.mkdir(parents=True, exist_ok=True)
        scratch = built.with_suffix(f".{os.getpid()}")
        subprocess.run([compiler, *CFLAGS, "-o", scratch, SOURCES / "computecore.c"], check=True)
        scratch.replace(built)  # at once: another run may be building the same
    return str(built)


@pytest.fixture(scope="session")
def standin_path() -> str:
    # Windows has no compiler here: whoever starts the tests there builds the DLL and says where it is.
    return os.environ["UVMSHARE_STANDIN"] if sys.platform == "win32" else _build()


@pytest.fixture(scope="session")
def _loaded(standin_path: str) -> StandIn:
    return StandIn(standin_path)


@pytest.fixture
def standin(_loaded: StandIn) -> Iterator[StandIn]:
    """A stand-in with one VM. Afterwards nothing may be left open, and the caller must have kept the rules."""
    _loaded.add_system(VM)
    yield _loaded
    _loaded.unblock()
    _loaded.let_end()
    _loaded.join_callers()
    _loaded.settle()
    misuse = _loaded.misuse()
    assert (_loaded.reset(), misuse) == (0, "")
