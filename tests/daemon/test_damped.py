"""Telling of states that change as often as a guest likes: all of few changes, few of many. In virtual time."""

from __future__ import annotations

import asyncio
from itertools import pairwise

from uvmshare.daemon.damped import AT_ONCE, EVERY, Damped
from uvmshare.testing.schedule import run


class Told:
    """What was told of one thing, and when."""

    def __init__(self) -> None:
        self.states: list[str] = []
        self.untold = 0
        self.damped: Damped[int] = Damped(self._tell)

    def _tell(self, key: object, state: str, what: int, untold: int) -> None:
        assert key == "x"
        assert what == len(state)
        self.states.append(state)
        self.untold += untold

    def note(self, state: str) -> None:
        self.damped.note("x", state, len(state), first="down")


def test_what_changes_seldom_is_told_at_once_each_time() -> None:
    async def test() -> None:
        told = Told()
        for turn in range(20):
            told.note("up" if turn % 2 == 0 else "down")
            assert len(told.states) == turn + 1
            await asyncio.sleep(EVERY)
        assert told.untold == 0

    run(test())


def test_of_a_thing_that_flaps_a_bounded_number_is_told_and_the_last_is_what_is_so() -> None:
    async def test() -> None:
        told = Told()
        for turn in range(7201):  # an hour of two changes a second
            told.note("up" if turn % 2 == 0 else "down")
            await asyncio.sleep(0.5)
        assert len(told.states) <= AT_ONCE + 3600 / EVERY + 1
        await asyncio.sleep(2 * EVERY)
        assert told.states[-1] == "up"
        assert len(told.states) + told.untold == 7201, "those that were not told are counted"

    run(test())


def test_what_was_told_twice_in_a_row_is_never_the_same() -> None:
    async def test() -> None:
        told = Told()
        for turn in range(1000):
            told.note(("up", "down", "up", "up", "down")[turn % 5])
            await asyncio.sleep(7.0 * (turn % 3))
        await asyncio.sleep(2 * EVERY)
        pairs = list(pairwise(told.states))
        assert pairs
        assert all(one != other for one, other in pairs)
        assert told.states[-1] == "down"

    run(test())


def test_nothing_is_told_of_what_was_forgotten() -> None:
    async def test() -> None:
        told = Told()
        for turn in range(AT_ONCE + 1):
            told.note("up" if turn % 2 == 0 else "down")
        before = len(told.states)
        told.damped.close()
        await asyncio.sleep(10 * EVERY)
        assert len(told.states) == before == AT_ONCE

    run(test())


def test_one_thing_that_flaps_delays_no_other() -> None:
    async def test() -> None:
        heard: list[object] = []
        damped: Damped[None] = Damped(lambda key, *_: heard.append(key))
        for turn in range(1000):
            damped.note("flaps", "up" if turn % 2 == 0 else "down", None, first="down")
        damped.note("other", "up", None, first="down")
        assert heard[-1] == "other"

    run(test())
