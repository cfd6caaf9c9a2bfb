"""Leases on a clock of the test's own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uvmshare.daemon.deadlines import Deadlines
from uvmshare.daemon.leases import Leases
from uvmshare.daemon.store import DaemonStore, MountLease
from uvmshare.errors import NotThere

if TYPE_CHECKING:
    from pathlib import Path

    from uvmshare.daemon.store import LeaseKey


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_lease_ends_when_it_is_not_renewed(clock: Clock) -> None:
    deadlines: Deadlines[str] = Deadlines(clock)
    deadlines.grant("a", 10)
    clock.now = 9.9
    assert deadlines.due() == []
    assert deadlines.left("a") == pytest.approx(0.1)
    clock.now = 10
    assert deadlines.due() == ["a"]
    assert deadlines.left("a") == 0


def test_one_that_is_renewed_runs_afresh_and_as_long(clock: Clock) -> None:
    deadlines: Deadlines[str] = Deadlines(clock)
    deadlines.grant("a", 10)
    clock.now = 9
    assert deadlines.renew("a")
    clock.now = 18.9
    assert deadlines.due() == []
    clock.now = 19
    assert deadlines.due() == ["a"]


def test_there_is_nothing_to_renew_without_a_lease(clock: Clock) -> None:
    deadlines: Deadlines[str] = Deadlines(clock)
    assert not deadlines.renew("a")
    assert deadlines.left("a") is None
    assert deadlines.next_deadline() is None
    assert not deadlines.drop("a")


def test_one_that_is_over_stays_so_until_somebody_sees_to_it(clock: Clock) -> None:
    deadlines: Deadlines[str] = Deadlines(clock)
    deadlines.grant("a", 1)
    clock.now = 2
    assert deadlines.due() == ["a"]
    assert deadlines.due() == ["a"]
    assert deadlines.drop("a")
    assert deadlines.due() == []


def test_one_that_is_over_is_not_renewed_while_it_is_being_given_back(clock: Clock, tmp_path: Path) -> None:
    key = MountLease((0, "vm"), "0/job", "/mnt")

    async def test() -> None:
        begun, may_end = asyncio.Event(), asyncio.Event()

        async def ended(_: LeaseKey) -> None:
            begun.set()
            await may_end.wait()

        with DaemonStore(tmp_path / "store") as store:
            leases = Leases(store, clock, ended)
            leases.grant(key, 10)
            clock.now = 11
            expiring = asyncio.create_task(leases.expire())
            await begun.wait()
            with pytest.raises(NotThere, match="may have ended"):
                leases.renew_all("0/job", None)
            may_end.set()
            await expiring

    asyncio.run(test())


@pytest.mark.parametrize(
    "failure", [KeyError("a defect"), UnicodeEncodeError("utf-8", "\ud800", 0, 1, "x"), ExceptionGroup("", [OSError()])]
)
def test_a_lease_whose_end_fails_in_any_way_is_tried_again_and_the_others_end(
    clock: Clock, tmp_path: Path, failure: Exception
) -> None:
    fails, ends = MountLease((0, "vm"), "0/job", "/a"), MountLease((0, "vm"), "0/job", "/b")
    tried: list[LeaseKey] = []

    async def ended(key: LeaseKey) -> None:
        tried.append(key)
        if key == fails and tried.count(key) < 3:
            raise failure
        leases.forget(key)

    async def test() -> None:
        for key in (fails, ends):
            leases.grant(key, 10)
        for _ in range(4):
            clock.now += 10
            await leases.expire()
            assert not leases._ending

    with DaemonStore(tmp_path / "store") as store:
        leases = Leases(store, clock, ended)
        asyncio.run(test())
        assert (tried.count(fails), tried.count(ends)) == (3, 1)
        assert store.leases((0, "vm")) == {}


def test_one_that_is_put_off_keeps_its_length(clock: Clock) -> None:
    deadlines: Deadlines[str] = Deadlines(clock)
    deadlines.grant("a", 100)
    clock.now = 100
    deadlines.postpone("a", 5)
    deadlines.postpone("b", 5)
    assert deadlines.due() == []
    assert deadlines.next_deadline() == 105
    assert deadlines.renew("a")
    assert deadlines.next_deadline() == 200
    assert "b" not in deadlines


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["grant", "renew", "drop", "wait", "postpone"]),
            st.integers(0, 3),
            st.integers(1, 20),
        )
    )
)
def test_it_says_what_a_plain_dictionary_would(steps: list[tuple[str, int, int]]) -> None:
    clock = Clock()
    deadlines: Deadlines[int] = Deadlines(clock)
    plain: dict[int, tuple[float, float]] = {}
    for step, key, number in steps:
        if step == "grant":
            deadlines.grant(key, number)
            plain[key] = (number, clock.now + number)
        elif step == "renew" and key in plain:
            deadlines.renew(key)
            plain[key] = (plain[key][0], clock.now + plain[key][0])
        elif step == "postpone" and key in plain:
            deadlines.postpone(key, number)
            plain[key] = (plain[key][0], clock.now + number)
        elif step == "drop":
            assert deadlines.drop(key) == (plain.pop(key, None) is not None)
        elif step == "wait":
            clock.now += number
        assert sorted(deadlines.due()) == sorted(k for k, (_, deadline) in plain.items() if deadline <= clock.now)
        assert deadlines.next_deadline() == min((deadline for _, deadline in plain.values()), default=None)
        assert sorted(deadlines.held()) == sorted(plain)
        assert len(deadlines) == len(plain)


def test_a_lease_that_is_renewed_for_ever_takes_no_room(clock: Clock) -> None:
    deadlines: Deadlines[str] = Deadlines(clock)
    for _ in range(10_000):
        deadlines.grant("a", 10)
    assert len(deadlines._order) < 100
