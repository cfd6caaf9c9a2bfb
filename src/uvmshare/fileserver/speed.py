"""The compiled hot path, where it is installed: the distribution uvmshare-speed (`native/` in the repository).

What lives here: finding it, once, when this module is imported, since a confined mount process can load nothing. What
must not: what it is given (`mount.plain`, `mount.files.listing`).

Everything works without it, only slower. ``UVMSHARE_SPEED`` in the environment says whether it is used: "off" does
without, "required" fails where it is not to be had, anything else takes it where it is.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

from uvmshare.errors import FileServerError

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["CONTRACT", "VARIABLE", "compiled", "describe", "is_used"]

VARIABLE: Final = "UVMSHARE_SPEED"
CONTRACT: Final = 5
"""What this version hands over, and how. A module that was built for another is not used."""


def _find(wish: str) -> tuple[ModuleType | None, str]:
    """Return the module, and in words which one is used or why none is. Raises `FileServerError` if it has to be."""
    found: ModuleType | None = None
    if wish == "off":
        return None, f"switched off by {VARIABLE}=off"
    if sys.platform != "linux":
        return None, "for Linux alone"
    try:
        import uvmshare_speed  # noqa: PLC0415  it may not be there
    except ImportError as error:
        is_missing = isinstance(error, ModuleNotFoundError) and error.name == "uvmshare_speed"
        words = "not installed" if is_missing else f"cannot be loaded: {error}"
    else:
        found, words = uvmshare_speed, "in use"
        if found.CONTRACT != CONTRACT:
            found, words = None, f"built for another version of uvmshare (contract {uvmshare_speed.CONTRACT})"
    if found is None and wish == "required":
        msg = f"the compiled hot path is {words}, and {VARIABLE}=required: pip install ./native in a clone of uvmshare"
        raise FileServerError(msg)
    return found, words


compiled, _words = _find(os.environ.get(VARIABLE, ""))
"""The module, None where it is not used."""


def is_used() -> bool:
    """Say whether mount processes of this program use it."""
    return compiled is not None


def describe() -> str:
    """Return in words whether it is used, and if not, why."""
    return _words
