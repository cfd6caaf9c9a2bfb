"""What is measured of the file servers: one `Case` a row of the table.

What lives here: the rows, their order, and the figures that each is to reach. What must not: how one is
measured (`run`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Case", "cases"]

Medium = Literal["tmpfs", "disk"]


@dataclass(frozen=True, slots=True)
class Case:
    """One row: a workload of load.c, how hard it is driven, on how many CPUs, and where the files are.

    On one CPU the client and the server share it; on two nobody is held to one. `to_diod` and `to_minimal` are the
    ratios to reach with the compiled hot path, `pure_to_diod` the one without it; None where none is set.
    `by_latency` says that the 99th percentile is compared instead, and `to_diod` is then the most it may be.
    """

    workload: str
    depth: int
    connections: int
    cpus: Literal[1, 2]
    medium: Medium
    transport: Literal["unix", "tcp"] = "unix"
    uid: int = 0
    to_diod: float | None = None
    to_minimal: float | None = None
    pure_to_diod: float | None = None
    by_latency: bool = False

    @property
    def moves_bytes(self) -> bool:
        """Whether bytes a second say more than operations a second."""
        return self.workload.startswith(("read-", "write-"))

    def describe(self) -> str:
        """Return the row's name."""
        words = [f"{self.workload}, depth {self.depth}"]
        if self.connections > 1:
            words.append(f"{self.connections} connections")
        words.append("one CPU" if self.cpus == 1 else "two CPUs")
        words += [
            self.medium,
            *(["TCP"] if self.transport == "tcp" else []),
            *([f"uid {self.uid}"] if self.uid else []),
        ]
        return ", ".join(words)


SMALL: Final = ("getattr", "walk", "open-read", "create-unlink")
"""The workloads that small files are made of."""

BULK: Final = tuple(f"{verb}-{size}" for verb in ("read", "write") for size in ("64k", "128k", "512k", "1m"))
"""A guest with Linux's default msize asks for 128k, which is 128 KiB less a header; one of hcsshim's for 64k."""


_AT_ONCE: Final = 8
"""From this depth on a row is one of many requests at once."""


def _with_figures(row: Case) -> Case:
    """Return a row with its figures. A large transfer waits for memory, so diod's threads cost it less."""
    to_diod = 1.0
    if not row.moves_bytes and row.depth == 1:
        to_diod = 1.4
    elif not row.moves_bytes and row.depth >= _AT_ONCE:
        to_diod = 3.5
    to_minimal = 0.75 if row.workload in ("create-unlink", "readdir-changed", "git-status") else 0.85
    pure_to_diod = None if row.workload == "readdir-changed" else 1.0
    return replace(row, to_diod=to_diod, to_minimal=to_minimal, pure_to_diod=pure_to_diod)


def cases() -> Iterator[Case]:
    """Give every row. What the file system hardly touches is measured on tmpfs alone."""
    yield from map(_with_figures, _rows())
    yield Case("cold-reads", 8, 1, 2, "disk", to_diod=0.5, by_latency=True)


def _rows() -> Iterator[Case]:
    media: tuple[Medium, ...] = ("tmpfs", "disk")
    for medium in media:
        for workload in SMALL:
            for depth in (1, 8, 32):
                if medium == "tmpfs" or depth != 32:
                    yield Case(workload, depth, 1, 1, medium)
            for depth in (1, 8):
                if medium == "tmpfs" or depth == 8:
                    yield Case(workload, depth, 4, 2, medium)
        for workload in BULK:
            yield Case(workload, 4, 1, 1, medium)
            if medium == "tmpfs":
                yield Case(workload, 4, 1, 2, medium)
        yield Case("random-read-4k", 8, 1, 1, medium)
        yield Case("readdir", 1, 1, 1, medium)
        yield Case("readdir-changed", 1, 1, 1, medium)
        for depth, connections, cpus in STATUS:
            yield Case("git-status", depth, connections, cpus, medium)
        yield Case("create-unlink", 8, 1, 1, medium, uid=1000)
    for workload, depth in (("getattr", 1), ("getattr", 8), ("open-read", 8), ("read-512k", 4)):
        yield Case(workload, depth, 1, 1, "tmpfs", transport="tcp")
    for workload in ("read-64k", "read-128k", "write-64k", "write-128k"):
        yield Case(workload, 4, 1, 1, "tmpfs", transport="tcp")
    yield from (Case(workload, programs, 1, 1, "tmpfs") for workload, programs in PROGRAMS)


PROGRAMS: Final = (("open-read", 4), ("open-read", 16), ("open-read", 64), ("read-128k", 16), ("read-128k", 64))
"""Programs of a guest at once on one mount, each of which waits for its own request; 4 of them also read above."""

STATUS: Final[tuple[tuple[int, int, Literal[1, 2]], ...]] = ((1, 1, 1), (8, 1, 1), (8, 4, 2))
