"""What users of a fleet asked for and were answered, and what its hosts held at rest; and the checks over it.

What lives here: records, and what follows from them. What must not: a fleet, or a clock of its own; all times are of
one clock. The requests about one reference follow each other, so what it can be is a set: held, not held, or either.

What a restored backup means: with `follow` hosts go back to what was held at the moment of the backup; with `mine`
everything is as it was. Whatever is acknowledged afterwards counts, also before a host has accepted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

__all__ = ["Asked", "Backup", "LeasedOwner", "Reference", "ReferenceHistory", "Rest", "Restore"]


class Reference(NamedTuple):
    """What one owner holds: one share of one VM."""

    vm: str
    path: str
    owner: str


@dataclass(frozen=True)
class Asked:
    """One request about a reference, and its answer."""

    reference: Reference
    what: Literal["add", "release"]
    began: float
    ended: float
    outcome: Literal["made", "absent", "refused", "unknown"]
    """`absent`: the answer was that it is not held."""
    name: str | None = None
    """Of the share, where the answer told it."""


@dataclass
class LeasedOwner:
    """An owner who promised to renew."""

    owner: str
    seconds: float
    renewed: list[float] = field(default_factory=list)
    """When each renewal that succeeded was asked for."""
    answered: list[float] = field(default_factory=list)
    """When each of these was answered."""
    lost: list[float] = field(default_factory=list)
    """When it was answered that there is no lease."""
    died: float | None = None

    def lapses(self) -> list[float]:
        """Return when its lease may have ended because renewals were too far apart: nobody may have been told."""
        found = []
        for began, next_answered in zip(self.renewed, [*self.answered, None][1:], strict=True):
            if next_answered is None:
                found.append(began + self.seconds)
            elif next_answered >= began + self.seconds:
                found += [began + self.seconds, next_answered]
        return found


@dataclass(frozen=True)
class Backup:
    """When a backup was taken."""

    began: float
    ended: float


@dataclass(frozen=True)
class Restore:
    """A backup that was restored: when etcd was stopped, when it ran again, and when all hosts had accepted it."""

    backup: Backup
    how: Literal["follow", "mine"]
    stopped: float
    started: float
    accepted: float
    held_first: frozenset[Reference]
    """What hosts held when the last of them had noticed."""
    held_last: frozenset[Reference]
    """What they held when the first of them was to accept."""


@dataclass(frozen=True)
class Rest:
    """What all hosts held, with nothing under way."""

    at: float
    held: frozenset[Reference]


@dataclass
class ReferenceHistory:
    """All that was noted down."""

    asked: list[Asked] = field(default_factory=list)
    owners: list[LeasedOwner] = field(default_factory=list)
    backups: list[Backup] = field(default_factory=list)
    restores: list[Restore] = field(default_factory=list)
    rests: list[Rest] = field(default_factory=list)

    def problems(self) -> list[str]:
        """Return what cannot have been."""
        return [
            *self.wrongly_held(self.rests),
            *self._names_given_twice(),
            *self._changed_unaccepted(),
            *self._ended_early(),
        ]

    def wrongly_held(self, rests: list[Rest]) -> list[str]:
        """Return which references were lost, or left over, at these moments."""
        by_reference: dict[Reference, list[Asked]] = {}
        for each in self.asked:
            by_reference.setdefault(each.reference, []).append(each)
        owners = {each.owner: each for each in self.owners}
        found = []
        for reference in sorted({*by_reference, *(each for rest in rests for each in rest.held)}):
            replay = _Replay(by_reference.get(reference, []), owners.get(reference.owner), self, rests)
            for rest, can_be in replay.at_rests():
                is_held = reference in rest.held
                if is_held not in can_be:
                    words = "is held, and nobody holds it" if is_held else "was acknowledged, and is lost"
                    found.append(f"at {rest.at:.2f} {reference} {words}; {_last(by_reference.get(reference), rest.at)}")
        return found

    def _names_given_twice(self) -> list[str]:
        first: dict[tuple[str, str], Asked] = {}
        found = []
        for each in self.asked:
            if each.name is not None:
                before = first.setdefault((each.reference.vm, each.name), each)
                if before.reference.path != each.reference.path:
                    found.append(f"share {each.name} was {before}, and is {each}")
        return found

    def _changed_unaccepted(self) -> list[str]:
        return [
            f"hosts changed {sorted(each.held_first ^ each.held_last)} for an etcd that nobody had accepted"
            for each in self.restores
            if each.held_first != each.held_last
        ]

    def _ended_early(self) -> list[str]:
        found = []
        for owner in self.owners:
            for lost in owner.lost:
                last = max((each for each in owner.renewed if each <= lost), default=lost - owner.seconds)
                is_restored = any(last <= each.accepted and each.stopped <= lost for each in self.restores)
                if lost < last + owner.seconds and not is_restored:
                    found.append(f"the lease of {owner.owner} was gone {lost - last:.1f} s after a renewal")
        return found


def _last(asked: list[Asked] | None, at: float) -> str:
    before = [each for each in asked or () if each.ended <= at]
    return f"last: {before[-1]}" if before else "it was never asked for"


class _Replay:
    """One reference through the history: what it can be."""

    def __init__(
        self, asked: list[Asked], owner: LeasedOwner | None, history: ReferenceHistory, rests: list[Rest]
    ) -> None:
        self.can_be: set[bool] = {False}
        self.flying: Asked | None = None
        self.doubtful: Asked | None = None
        """A request that was under way when etcd was stopped, and may have been made before or after."""
        self.is_dead = False
        self.open: dict[Backup, set[bool]] = {}
        events: list[tuple[float, int, Any, Any]] = []
        for each in asked:
            events += [(each.began, 0, self._begin, each), (each.ended, 1, self._end, each)]
        for backup in history.backups:
            events += [(backup.began, 0, self._back_up, backup)]
        for restore in history.restores:
            events += [(restore.started, 2, self._restore, restore)]
        if owner is not None:
            events += [(lost, 2, self._lose, None) for lost in (*owner.lost, *owner.lapses())]
            events += [] if owner.died is None else [(owner.died, 2, self._die, None)]
        events += [(rest.at, 3, None, rest) for rest in rests]
        self.events = sorted(events, key=lambda each: each[:2])

    def at_rests(self) -> list[tuple[Rest, set[bool]]]:
        found = []
        for at, _, do, what in self.events:
            if do is None:
                found.append((what, {False} if self.is_dead else self._now()))
                continue
            do(what)
            for backup in self.open:
                if at <= backup.ended:
                    self.open[backup] |= self._now()
        return found

    def _now(self) -> set[bool]:
        return self.can_be if self.flying is None else self.can_be | {self.flying.what == "add"}

    def _begin(self, asked: Asked) -> None:
        self.flying = asked

    def _end(self, asked: Asked) -> None:
        target, is_doubtful = asked.what == "add", self.doubtful is asked
        self.flying = None
        match asked.outcome:
            case "made" if not is_doubtful:
                self.can_be = {target}
            case "absent" if not is_doubtful:
                self.can_be = {False}
            case "refused":
                pass
            case _:
                self.can_be = self.can_be | {target}

    def _back_up(self, backup: Backup) -> None:
        self.open[backup] = set(self._now())

    def _restore(self, restore: Restore) -> None:
        if restore.how == "follow":
            self.can_be = set(self.open[restore.backup])
            self.doubtful = self.flying

    def _lose(self, _: None) -> None:
        self.can_be = self.can_be | {False}

    def _die(self, _: None) -> None:
        self.is_dead = True
