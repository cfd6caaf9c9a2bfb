"""Rows of a parametrisation, some of which only ``make test-long`` runs.

What lives here: which rows stay in ``make test``. What must not: rows that are cases of their own; those all stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def every(step: int, rows: Iterable[Any]) -> list[Any]:
    """Return all rows, of which each `step`-th, from the first on, is in ``make test``: for seeds and places to cut."""
    return [row if not number % step else pytest.param(row, marks=pytest.mark.long) for number, row in enumerate(rows)]


def crossed(first: Mapping[str, Any], second: Mapping[str, tuple[Any, ...]]) -> list[Any]:
    """Return each of `first` with each of `second`; so many are in ``make test`` that each is there at least once.

    The values of `second` are tuples, whose parts are arguments of their own. The names are the parameters' ids.
    """
    count = max(len(first), len(second))
    kept = {(number % len(first), number % len(second)) for number in range(count)}
    return [
        pytest.param(one, *others, id=f"{name}-{other}", marks=() if (row, column) in kept else pytest.mark.long)
        for row, (name, one) in enumerate(first.items())
        for column, (other, others) in enumerate(second.items())
    ]


def by_type(rows: Iterable[Any]) -> dict[str, list[Any]]:
    """Return messages by the names of their types: one test for all of a type needs one share and one connection."""
    found: dict[str, list[Any]] = {}
    for row in rows:
        found.setdefault(type(row).__name__, []).append(row)
    return found
