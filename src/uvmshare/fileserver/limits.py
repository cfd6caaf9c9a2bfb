"""What one VM, and one mount of it, may use of the host.

What lives here: the numbers and their reasons. What must not: enforcing them, which each place does.
"""

from __future__ import annotations

import msgspec

__all__ = ["Limits"]


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of one file server. Counts, bytes and seconds."""

    half_open: int = 64
    """Connections that have not attached yet. One more, and the oldest of them is closed: a guest
    that opens silent connections cannot keep a good one out."""

    handshake_seconds: float = 10.0
    """How long a connection may take from accept to attach."""

    mounts: int = 1024
    """Mount processes, one a connection that has attached."""

    fids: int = 65536
    """Fids of one mount. Each may hold two descriptors."""

    msize: int = 1 << 20
    """The largest message, in bytes. 1 MiB is the most that Linux's fd transport takes."""
