"""What a guest's kernel may keep of a mount, by the names that Linux gives it.

What lives here: the names. What must not: anything that loads more, since the daemon's clients need them.
"""

from __future__ import annotations

from typing import Literal

__all__ = ["Cache"]

Cache = Literal["auto", "none", "loose", "mmap", "readahead"]
"""What the guest's kernel may keep of a mount (``cache=`` in Linux's 9p.rst). "auto": the guest chooses, by its kernel,
what hides no change of the host's (`uvmshare.guest.mount.choose`)."""
