"""What every attach runs is brought together in memory, before the first fork.

What lives here: how functions are found by name and their code is moved. What must not: which functions these are
(`attached`, which `tools/attached.py` writes).

A mount process has the supervisor's memory until one of the two writes to a page. CPython writes to code when it runs:
it counts references to it, and how often it has run. Code that an attach runs lies among code that it does not, so
nearly each function made a page of each mount process its own, and the kernel copied that page for each attach.
"""

from __future__ import annotations

import sys
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Final

from uvmshare.fileserver.supervisor.attached import ATTACHED

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["bring_together", "function_of"]

_moved: Final[list[CodeType]] = []
"""What was moved is kept where it was. Its memory would be given to new objects, to one here and to one there."""


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
    """Move the code of all that an attach runs to pages that have little else. Raises nothing.

    What was moved runs as before. A name that this Python or this version does not have is passed over.
    """
    for module, names in ATTACHED.items():
        for name in names:
            function = function_of(module, name)
            if function is not None:
                _moved.append(function.__code__)
                function.__code__ = function.__code__.replace()
    # It holds a reference to each name of an attribute that was looked up: to let go of one that was looked up before
    # would be a page as well.
    forget: Callable[[], None] = getattr(sys, "_clear_internal_caches", None) or sys._clear_type_cache  # noqa: SLF001  there is no other
    forget()
