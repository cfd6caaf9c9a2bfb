"""Rates: whatever the counters and the clock do, each tick has what was counted in it, or is known to be unknown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uvmshare.dashboard.rates import KEPT, Counts, RateHistory, summed


def counts(operations: float, errors: float = 0.0) -> Counts:
    return Counts(operations, errors, 0.0, 0.0)


def operations(series: list[Counts | None]) -> list[float | None]:
    return [None if each is None else each.operations for each in series]


def test_one_reading_tells_no_rate() -> None:
    rates = RateHistory()
    assert rates.now(0) is None
    rates.read(7, 14.0, counts(100))
    assert rates.now(7) is None
    assert rates.series(7) == []


def test_what_was_counted_between_two_readings_is_told_for_each_tick_between_them() -> None:
    rates = RateHistory()
    rates.read(0, 0.0, counts(0))
    rates.read(1, 2.0, counts(20, errors=4))
    assert rates.now(1) == Counts(10.0, 2.0, 0.0, 0.0)
    rates.read(4, 8.0, counts(80))
    assert operations(rates.series(4)) == [10.0, 10.0, 10.0, 10.0]


def test_where_the_counters_are_not_to_be_had_the_line_has_a_gap() -> None:
    rates = RateHistory()
    rates.read(0, 0.0, counts(0))
    rates.read(1, 2.0, counts(20))
    assert operations(rates.series(2)) == [10.0], "a reading may be under way"
    assert operations(rates.series(4)) == [10.0, None, None]
    assert rates.now(4) is None
    assert rates.series(1000) == [None] * KEPT
    assert operations(rates.series(4, between=3)) == [10.0], "it is read every third tick"
    assert rates.now(4, between=3) is not None


def test_a_connection_that_ended_takes_its_numbers_along_and_no_rate_is_below_nothing() -> None:
    rates = RateHistory()
    rates.read(0, 0.0, counts(1000))
    rates.read(1, 2.0, counts(10))
    assert rates.now(1) == counts(0.0)
    rates.read(2, 4.0, counts(30))
    assert rates.now(2) == counts(10.0)


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0.001, 10), st.integers(0, 2**63)), max_size=200))
def test_no_more_is_kept_than_is_shown_and_every_rate_is_a_number(steps: list[tuple[int, float, int]]) -> None:
    rates, tick, time = RateHistory(), 0, 0.0
    for ticks, seconds, counted in steps:
        tick, time = tick + ticks, time + seconds
        rates.read(tick, time, counts(float(counted)))
        series = rates.series(tick)
        assert len(series) <= KEPT
        assert all(each is not None and each.operations >= 0 for each in series)
        assert len(rates._rates) <= KEPT


@pytest.mark.parametrize(
    ("series", "wanted"),
    [
        ([], []),
        ([[], []], []),
        ([[counts(1), counts(2)], [counts(5)]], [1.0, 7.0]),
        ([[counts(5)], [counts(1), counts(2)]], [1.0, 7.0]),
        ([[None, counts(2)], [None, None]], [None, 2.0]),
    ],
)
def test_series_are_added_tick_by_tick_from_the_newest_on(
    series: list[list[Counts | None]], wanted: list[float | None]
) -> None:
    assert operations(summed(series)) == wanted
