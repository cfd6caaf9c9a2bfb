"""What the compiled hot path is given of a session: the contract between the two.

What lives here: `Plain`, and when there is one. What must not: any rule. What is marked here is what the handlers go
by, computed once for the session; what can change is asked by the hot path as it goes, of the objects it is given.

The hot path serves a request only where it is plain: of the fids' own classes, of files whose attributes are known
(`Known`), without an error. It hands every other request to its handler, untouched. So a rule that is new needs nothing
there, as long as it shows in one of these marks, or in a class of its own.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any, Final, Protocol

from uvmshare.fileserver import counters, speed
from uvmshare.fileserver.mount import buffers
from uvmshare.fileserver.mount.fids import Fid
from uvmshare.fileserver.mount.files.node import Node
from uvmshare.fileserver.mount.files.openfile import CreatedFile, OpenFile
from uvmshare.fileserver.mount.files.ownership import Known
from uvmshare.fileserver.mount.splicing import SPLICE_MIN
from uvmshare.ninep.constants import OpenFlag

if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable

    from uvmshare.fileserver.mount.session import ServedConnection

__all__ = ["Fast", "Plain", "begin", "make_buffers"]

_PAGE: Final = 4096
_OUT: Final = 128 * 1024
"""Replies that wait to be sent: 64 KiB, and the largest that is sent with others."""
_LARGE: Final = _PAGE + 256 * 1024

_ODD_FLAGS: Final = int(OpenFlag.TRUNC | OpenFlag.APPEND | OpenFlag.SYNC | OpenFlag.DSYNC | OpenFlag.DIRECTORY)
"""Flags of an open that mean something here: what has one is for its handler."""


_NOWHERE: Final = b"?"
"""What no path begins with: then the boundary is asked each time."""


class Fast(Protocol):
    """The compiled loop of one session."""

    def serve(self, start: int, end: int, msize: int, measured: bool) -> int:  # noqa: FBT001  called for every request
        """Serve what is plain of the session's buffer; return where what is not begins. Replies go to the outbox."""

    def run(self, start: int, end: int, msize: int) -> tuple[int, int, bool]:
        """Serve, send and receive while all is plain; return where what is received begins and ends then.

        And whether nothing came for as long as receiving waits.
        """


class Plain:
    """What the hot path of one session needs to know."""

    fid_class, node_class, known_class = Fid, Node, Known
    file_class, created_class = OpenFile, CreatedFile
    odd_flags = _ODD_FLAGS
    path_flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    reopen_flags = os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    splice_min = SPLICE_MIN
    sampled = counters.SAMPLED
    received_at, sent_at, served_at = counters.RECEIVED, counters.SENT, counters.COMPILED

    def __init__(
        self,
        session: ServedConnection,
        connection: socket.socket,
        *,
        room: int,
        slack: int,
        in_most: int,
        buffers: tuple[mmap.mmap, mmap.mmap],
    ) -> None:
        """Mark what the session allows. `room`, `slack` and `in_most` are those of the loop's buffer."""
        tree, ownership, outbox = session.tree, session.ownership, session.outbox
        self.session, self.tree, self.boundary, self.root = session, tree, tree.boundary, tree.root
        self.buffer, (self.out, self.large) = session.buffer, buffers
        self.slots = session.counters.slots
        self.took = session.counters.count_latency
        self.fids, self.opened_files = session.fids, session.opened_files
        self.opened, self.drop_fid = session.opened, session.drop_fid
        self.known, self.known_files, self.before_write = ownership.known, ownership.known_files, ownership.before_write
        self.looks_further = ownership.looks_further_before_write
        self.outbox, self.lock, self.before = outbox, outbox.lock, outbox.before
        self.connection, self.proc = connection.fileno(), tree.descriptors[1]
        self.most_descriptors = session.most_descriptors
        self.most_fids, self.most_open = session.limits.fids, session.limits.open_files
        self.room, self.slack, self.in_most = room, slack, in_most if session.splicer is not None else 0
        self.walks = tree.only is None and tree.hidden is None
        """Whether a name that is there may be walked to, wherever the walk stays inside."""
        self.writes = not session.export.read_only and not (session.watched and session.watched.keeps_ledger)
        """Whether files are written, or opened for that, without a word to anybody."""
        self.has_landlock = tree.boundary.has_landlock
        self.inside = tree.boundary.inside or _NOWHERE


def make_buffers() -> tuple[mmap.mmap, mmap.mmap]:
    """Return the memory for replies."""
    return buffers.make(_OUT), buffers.make(_LARGE)


def begin(plain: Callable[[], Plain], session: ServedConnection, connection: socket.socket) -> Fast | None:
    """Return the compiled loop of a session; None where there is none, or nothing of this session is plain.

    A mount that is held to a rate counts each request, and one with a fence looks at it before each: the handlers alone
    serve them.
    """
    if speed.compiled is None or session.throttle.is_needed or session.fence is not None:
        return None
    if type(connection) is not socket.socket:
        return None
    fast: Any = speed.compiled.Loop(plain())
    return fast  # type: ignore[no-any-return]  # the module is no part of this package
