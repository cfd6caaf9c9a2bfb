"""Operations of a fleet: a gate's answer to callers who do not wait. The id says everything, so any gate can read it.

What lives here: `Ticket`, and how it is written and read. What must not: what became of the operation (`gate`).
"""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = ["Ticket"]

_ACTIONS: Final = {
    "v": "add VM",
    "x": "remove VM",
    "j": "join",
    "l": "leave",
    "s": "add share",
    "m": "map",
    "e": "release",
}
_LONGEST: Final = 20
"""Digits of a number in it."""


class Ticket(NamedTuple):
    """One operation."""

    kind: str
    """One letter, of `_ACTIONS`."""
    revision: int
    """From which on it is wanted."""
    about: tuple[str, ...]
    """The numbers of holdings; of a VM that is removed, its host."""
    started: float
    vm: str
    """As who asked calls it."""

    @property
    def action(self) -> str:
        """What was asked for."""
        return _ACTIONS[self.kind]

    @property
    def text(self) -> str:
        """The operation's id."""
        return f"{self.kind}~{self.revision}~{','.join(self.about)}~{int(self.started * 1000)}~{self.vm}"

    @classmethod
    def read(cls, text: str) -> Ticket | None:
        """Return the operation of an id; None for what is none."""
        kind, *rest = text.split("~", 4)
        if kind not in _ACTIONS or len(rest) != 4:
            return None
        revision, about, started, vm = rest
        if not all(each.isascii() and each.isdigit() and len(each) <= _LONGEST for each in (revision, started)):
            return None
        return cls(kind, int(revision), tuple(about.split(",")) if about else (), int(started) / 1000, vm)
