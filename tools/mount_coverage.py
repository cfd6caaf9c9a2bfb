"""A coverage plugin that measures mount processes, which may write no file when they end.

What lives here: how a forked child that has confined itself to a share hands over what it ran. What must
not: anything that changes what is measured; nothing of this is in the package.

A confined process can neither write a data file nor keep a descriptor for it. So each fork gets a piece of
shared memory first. The child measures itself afresh, in memory, and leaves the result there before
`os._exit`; the parent adds it to its own before the next fork and when it ends. A child that is
killed leaves nothing.

A child of a process with threads is not measured, and ends at once: another thread may have held a lock of
sqlite's at the fork, which nobody in the child will ever give back, and coverage's data are kept in sqlite.
"""

from __future__ import annotations

import atexit
import mmap
import os
import posix
import sqlite3.dump  # noqa: F401  coverage imports it late, when a confined process cannot
import struct
import threading
from importlib.util import find_spec
from typing import TYPE_CHECKING

from coverage import Coverage, CoverageData

if TYPE_CHECKING:
    from typing import NoReturn

    from coverage.plugin_support import Plugins
    from coverage.types import TConfigValueOut

_LENGTH = struct.Struct("<Q")
_SIZE = 4 << 20
"""Bytes of address space; only what is written takes memory, some 20 KiB a child."""


class _Children:
    """The children of this process that have not been collected, by their shared memory."""

    def __init__(self, include: list[str]) -> None:
        self._include = include
        self._measured: Coverage | None = None
        self._regions: list[mmap.mmap] = []
        self._threads = False

    def before_fork(self) -> None:
        self._measured = self._measured or Coverage.current()
        self.collect()
        self._regions.append(mmap.mmap(-1, _SIZE))
        self._threads = threading.active_count() > 1

    def after_fork_in_child(self) -> None:
        region = self._regions.pop()
        if self._measured is not None:
            self._measured.stop()
        if self._threads:
            os._exit = posix._exit  # noqa: SLF001  the same call, but as the system has it: coverage changed the other
            return
        mine = Coverage(data_file=None, config_file=False, branch=True, include=self._include)
        exit_ = os._exit

        def hand_over_and_exit(status: int) -> NoReturn:
            try:
                mine.stop()
                found = mine.get_data().dumps()
                region[_LENGTH.size : _LENGTH.size + len(found)] = found
                region[: _LENGTH.size] = _LENGTH.pack(len(found))  # last: it says that the rest is there
            finally:
                exit_(status)

        os._exit = hand_over_and_exit
        mine.start()

    def collect(self) -> None:
        """Add what ended children left to this process's own data."""
        waiting = []
        for region in self._regions:
            (length,) = _LENGTH.unpack(region[: _LENGTH.size])
            if length and self._measured is not None:
                found = CoverageData(no_disk=True)
                found.loads(region[_LENGTH.size : _LENGTH.size + length])
                self._measured.get_data().update(found)
                region.close()
            else:
                waiting.append(region)
        self._regions = waiting


_registered = False


def coverage_init(reg: Plugins, options: dict[str, TConfigValueOut]) -> None:
    """Begin, once in a process; called by coverage, which found the name of this module in pyproject.toml."""
    global _registered  # noqa: PLW0603  coverage may begin several times in a process; the hooks cannot be undone
    del reg, options
    package = find_spec("uvmshare")
    if _registered or package is None or not hasattr(os, "register_at_fork"):
        return
    _registered = True
    children = _Children([os.path.join(folder, "*") for folder in package.submodule_search_locations or ()])
    atexit.register(children.collect)
    os.register_at_fork(before=children.before_fork, after_in_child=children.after_fork_in_child)
