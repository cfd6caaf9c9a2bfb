"""How long is waited before what failed is tried again."""

from __future__ import annotations

from uvmshare.lifecycle.retry import RETRY_LONGEST, Wait


def test_each_wait_is_twice_the_one_before_up_to_the_longest() -> None:
    wait = Wait(0.5, 3.0)
    assert [wait.next() for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_when_all_is_well_again_the_next_failure_waits_as_the_first_did() -> None:
    wait = Wait(1.0)
    assert wait.last == 0.0
    assert [wait.next() for _ in range(8)][-1] == RETRY_LONGEST == wait.last
    wait.reset()
    assert wait.last == 0.0
    assert wait.next() == 1.0
