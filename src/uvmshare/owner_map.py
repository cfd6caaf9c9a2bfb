"""Owners as a share shows them: the text of a map, and what it says.

What lives here: `OwnerMap`. What must not: what a file server does with it (`fileserver.mount.files.ownership`).

``HOST:GUEST``, each a uid, or ``UID/GID`` where the group has another number::

    1000:0            files of the host's 1000 are root's in the guest, and what its root makes is 1000's on the host
    1000/100:0/0      the same, with another number for the group
    all:1000          all files belong to 1000 in the guest, whoever made them
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple, Self

__all__ = ["OwnerMap"]

_ALL: Final = "all"
_HIGHEST: Final = (1 << 32) - 2
"""The highest number of 32 bits is nobody's (chown(2))."""

_SIDE: Final = re.compile(r"([0-9]{1,10})(?:/([0-9]{1,10}))?")


class OwnerMap(NamedTuple):
    """One owner of the host, or all of them (None), and the owner that the guest sees instead: uid and gid each."""

    host: tuple[int, int] | None
    guest: tuple[int, int]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a map. Raises `ValueError` with what is wrong and what to write."""
        if not isinstance(text, str):
            msg = f"owner map {text!r} is no str: write HOST:GUEST, such as 1000:0"
            raise ValueError(msg)  # noqa: TRY004  one kind of error for all that a map may not be
        host, colon, guest = text.partition(":")
        if not colon:
            msg = f"owner map {text!r} has no colon: write HOST:GUEST, such as 1000:0 or all:1000"
            raise ValueError(msg)
        return cls(None if host == _ALL else _side(text, host), _side(text, guest))

    def __str__(self) -> str:
        host, guest = (_ALL if side is None else f"{side[0]}/{side[1]}" for side in self)
        return f"{host}:{guest}"

    def shown(self, uid: int, gid: int) -> tuple[int, int]:
        """Return whom the guest sees as the owner and group of a file of the host."""
        if self.host is None:
            return self.guest
        return (
            self.guest[0] if uid == self.host[0] else uid,
            self.guest[1] if gid == self.host[1] else gid,
        )

    def meant(self, uid: int, gid: int) -> tuple[int, int]:
        """Return the host's owner and group for the guest's; -1 stays -1. Not for a map of all, which has none."""
        assert self.host is not None, "a map of all owners has no way back"
        return (
            self.host[0] if uid == self.guest[0] else uid,
            self.host[1] if gid == self.guest[1] else gid,
        )


def _side(text: str, side: str) -> tuple[int, int]:
    found = _SIDE.fullmatch(side)
    if found is None:
        msg = f"owner map {text!r}: {side!r} is no owner: write UID or UID/GID, in numbers"
        raise ValueError(msg)
    uid, gid = int(found[1]), int(found[2] or found[1])
    if max(uid, gid) > _HIGHEST:
        msg = f"owner map {text!r}: {max(uid, gid)} is no number of a user or group: the highest is {_HIGHEST}"
        raise ValueError(msg)
    return uid, gid
