"""What removals leave in the host's kernel: killed processes that wait for a file system that does not answer.

What lives here: `LeftBehind`, which keeps what one VM's removals left, the words for it, and who may hear them. What
must not: how such a process is found (`uvmshare.fileserver.supervisor`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from uvmshare.daemon.documents import Finding
from uvmshare.printable import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvmshare.fileserver import control

__all__ = ["LeftBehind", "finding_of"]

_MOST_LEFT: Final = 64
"""Removals that are remembered, the last ones."""


@dataclass(slots=True)
class _Removal:
    audience: int | None
    words: list[str] = field(default_factory=list)


class LeftBehind:
    """What the removals in one VM left. `audience` tells who may hear of a share (`Machine.audience`)."""

    def __init__(self, audience: Callable[[str], int | None]) -> None:
        self._audience = audience
        self._removals: dict[str, _Removal] = {}
        """By the name of the share."""

    def note(self, left: control.Left) -> tuple[str, int | None]:
        """Take note of a process, while it is known who held its share; return the words, and who may hear them."""
        removal = self._removals.get(left.share)
        if removal is None:
            if len(self._removals) >= _MOST_LEFT:
                del self._removals[next(iter(self._removals))]
            removal = self._removals[left.share] = _Removal(self._audience(left.share))
        words = printable(
            f"share {left.share} ({left.path}): process {left.pid} was killed and waits in the kernel for "
            f"{left.where}; it serves nobody, and ends when that answers or is unmounted (umount -f)"
        )
        removal.words.append(words)
        return words, removal.audience

    def words(self, share: str) -> tuple[str, ...]:
        """Return what the removal of a share left, in words."""
        removal = self._removals.get(share)
        return () if removal is None else tuple(removal.words)

    def audience(self, share: str) -> int | None:
        """Return who may hear of what the removal of a share left, as it was when it was removed."""
        removal = self._removals.get(share)
        return self._audience(share) if removal is None else removal.audience


def finding_of(left: control.Left) -> Finding:
    """Return what `uvmshare doctor` says of such a process."""
    return Finding(
        subject=printable(f"removal of share {left.share}"),
        verdict="warning",
        found=printable(f"process {left.pid} was killed and waits in the kernel for {left.where}"),
        breaks=printable(f"nothing: it serves nobody; it keeps {left.path} in use"),
        remedy="let that file system answer again, or unmount it (umount -f): then the process ends",
    )
