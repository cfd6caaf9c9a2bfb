"""Which process an object was made in.

What lives here: the check that a forked child does not use what its parent's threads and connections serve. What must
not: those.
"""

from __future__ import annotations

import os

from uvmshare.errors import WrongProcess

__all__ = ["require_process"]


def require_process(thing: object, made_in: int) -> None:
    """See that this is the process in which a thing was made. Raises `WrongProcess`."""
    if os.getpid() != made_in:
        msg = (
            f"{thing!r} was made in process {made_in}, and this is process {os.getpid()}, forked from it: make another "
            f"one here"
        )
        raise WrongProcess(msg)
