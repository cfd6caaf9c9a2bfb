"""What every attach runs and makes is brought together in memory, before the first fork.

What lives here: how functions are found by name and their code is moved, and how holes are filled. What must not: which
functions these are (`attached`, which `tools/attached.py` writes).

A mount process has the supervisor's memory until one of the two writes to a page. CPython writes to code when it runs:
it counts references to it, and how often it has run. Code that an attach runs lies among code that it does not, so
nearly each function made a page of each mount process its own, and the kernel copied that page for each attach. New
objects did the same: they were put where a module that was loaded had left a hole, one here and one there.
"""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from functools import partial
from types import FunctionType
from typing import TYPE_CHECKING, Final

from uvmshare.fileserver.supervisor.attached import ATTACHED

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["bring_together", "function_of"]

_POOL: Final = 0x4000
_FIRST: Final = 0x30
"""Objects of one size lie in a pool of the interpreter's, the first of them so far from its beginning (obmalloc.c)."""
_NEW: Final = 4
"""Objects in a row from the first of a pool on: then the pool is a new one, and no other has a hole for that size."""
_LARGEST: Final = 512
"""Bytes of an object in a pool. Larger ones are malloc(3)'s."""
_EMPTY: Final = sys.getsizeof(b"")
_MOST_IN_POOLS: Final = 256 * 1024
"""Bytes of one size that are filled at most, where the interpreter has no such pools."""
_HOLES: Final = (32 * 1024, 16 * 1024, 8 * 1024, *range(4096, 0, -16))
"""Sizes of what is taken of the heap: each hole is filled by one of them, or by some."""

_kept: Final[list[object]] = []
"""What fills holes. So does code that was moved, where it was."""


def function_of(module: str, name: str) -> FunctionType | None:
    """Return a function by the qualified name that it has in a module; None where none is there, or none in Python."""
    found: object = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, "__dict__", {}).get(part)
    if isinstance(found, property):
        found = found.fget
    elif isinstance(found, classmethod | staticmethod):
        found = found.__func__
    return found if isinstance(found, FunctionType) else None


def bring_together() -> None:
    """Move the code of all that an attach runs to pages that have little else, and leave no holes. Raises nothing.

    What was moved runs as before. A name that this Python or this version does not have is passed over.
    """
    _fill_pools()
    with suppress(AttributeError):  # a C library that does not tell
        _fill_heap()
    for module, names in ATTACHED.items():
        for name in names:
            function = function_of(module, name)
            if function is not None:
                _kept.append(function.__code__)
                function.__code__ = function.__code__.replace()
    # It holds a reference to each name of an attribute that was looked up: to let go of one that was looked up before
    # would be a page as well.
    forget: Callable[[], None] = getattr(sys, "_clear_internal_caches", None) or sys._clear_type_cache  # noqa: SLF001  there is no other
    forget()


def _fill_pools() -> None:
    """Make objects of each size from 16 bytes on, until one begins a new pool."""
    makers: list[Callable[[], object]] = [object, partial(float, "0.5")]
    makers += [partial(bytes, size - _EMPTY) for size in range(48, _LARGEST + 1, 16)]
    for number, make in enumerate(makers):
        size = 16 * (number + 1)
        in_a_row = following = 0
        for _ in range(_MOST_IN_POOLS // size):
            made = make()
            _kept.append(made)
            at = id(made)
            in_a_row = in_a_row + 1 if at == following else int(at % _POOL == _FIRST)
            if in_a_row == _NEW:
                break
            following = at + size if in_a_row else 0


class _Told(ctypes.Structure):
    """``struct mallinfo2``, see mallinfo(3)."""

    _fields_ = (
        ("arena", ctypes.c_size_t),  # all of the heap
        ("others", ctypes.c_size_t * 8),
        ("keepcost", ctypes.c_size_t),  # free at its top
    )


def _fill_heap() -> None:
    """Take every piece of the heap that malloc(3) has free below its top, for ever, the large ones first.

    Raises `AttributeError` where the C library does not tell how much that is (glibc before 2.33, musl).
    """
    library = ctypes.CDLL(None)
    tell, take, give_back, end = library.mallinfo2, library.malloc, library.free, library.sbrk
    tell.restype = _Told
    take.argtypes, take.restype = (ctypes.c_size_t,), ctypes.c_void_p
    give_back.argtypes, give_back.restype = (ctypes.c_void_p,), None
    end.argtypes, end.restype = (ctypes.c_ssize_t,), ctypes.c_void_p
    told = tell()
    top = end(0) - told.keepcost
    left = told.arena  # more than can be free, so that this ends with any malloc(3)
    for size in _HOLES:
        while left > 0:
            taken = take(size)
            if taken is None or taken >= top:
                give_back(taken)
                break
            left -= size
