"""What callers were told, and whether a Manager still holds to it, for the tests of crashes and faults.

What lives here: the account of what was acknowledged. What must not: how a process dies, or who asks.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["require_kept"]

Told = tuple[str, str | None, str, str | None]
"""("adding", owner, path, None), ("added", owner, path, name), ("failed", owner, path, None) for an add that certainly
left no reference; ("removing", owner, name, None), ("removed", owner, name, None)."""


def require_kept(
    told: Iterable[Sequence[str | None]],
    held: Mapping[str, tuple[str, Sequence[object], int]],
    on_vm: Mapping[str, str],
    added: Iterable[tuple[str, str]],
) -> None:
    """Raise AssertionError when anything is lost.

    `held` gives by name the path, the owners and the references; `on_vm` the path by name; `added` every name that the
    VM was ever given, with what for.
    """
    sure, maybe = _tally(told)
    found: Counter[tuple[str, object]] = Counter()
    for name, (path, owners, references) in held.items():
        assert references > 0, f"nobody holds share {name}"
        assert on_vm.get(name) == path, f"share {name} is held, and the VM does not have it"
        found.update((path, owner) for owner in owners)
        found[path, None] += references - len(owners)
    assert on_vm.keys() == held.keys(), "the VM has what nobody holds"
    for key in sure.keys() | maybe.keys() | found.keys():
        most = sure[key] + maybe[key]
        assert sure[key] <= found[key] <= most, f"{key}: {found[key]} references, not {sure[key]} to {most}"
    names: dict[str, str] = {}
    for name, what in added:
        assert names.setdefault(name, what) == what, f"name {name} was given to two shares"


def _tally(told: Iterable[Sequence[str | None]]) -> tuple[Counter[tuple[str, object]], Counter[tuple[str, object]]]:
    """Return by (path, owner) how many references are surely there, and how many more there may be."""
    sure: Counter[tuple[str, object]] = Counter()
    maybe: Counter[tuple[str, object]] = Counter()
    paths: dict[str, str] = {}
    for what, owner, subject, *more in told:
        assert subject is not None
        if what == "adding":
            maybe[subject, owner] += 1
        elif what == "added":
            name = more[0]
            assert name is not None
            paths[name] = subject
            maybe[subject, owner] -= 1
            sure[subject, owner] = sure[subject, owner] + 1 if owner is None else 1
        elif what == "failed":
            maybe[subject, owner] -= 1
        elif what == "removing":
            sure[paths[subject], owner] -= 1
            maybe[paths[subject], owner] += 1
        elif what == "removed":
            maybe[paths[subject], owner] -= 1
    return sure, maybe
