"""The ledger of what a mount changes: without a kernel, and for every order in which things may happen."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

from uvmshare.fileserver.mount import ledger
from uvmshare.fileserver.mount.ledger import CONTENT, Ledger, State
from uvmshare.fileserver.syscalls import Fanotify

if TYPE_CHECKING:
    from collections.abc import Sequence

MODIFY, ATTRIB = Fanotify.MODIFY, Fanotify.ATTRIB
FILE: Final = 1, 2
MS: Final = 1_000_000
START: Final = 1_700_000_000_000_000_001
"""No whole second, which would be taken for a file system that keeps no parts of one."""


class Kernel:
    """Files with states, and a queue of events in which those that are alike become one, whoever has caused them."""

    def __init__(self) -> None:
        self.now = START
        self.ledger = Ledger(self.now)
        old = self.now - 10**12 + 1
        self.states = {number: State(old, old, 0, 0o644, 0, 0) for number in range(3)}
        self.queue: dict[int, int] = {}
        """The events that wait, by file."""
        self.untold: set[int] = set()
        """The files that others have changed, of which nothing was told since."""

    def _change(self, number: int, mask: int) -> None:
        self.now += MS  # as kernels that count so finely as to give each change a time of its own
        state = self.states[number]
        if mask == MODIFY:
            self.states[number] = state._replace(ctime=self.now, mtime=self.now, size=state.size + 1)
        else:
            self.states[number] = state._replace(ctime=self.now, mode=state.mode ^ 0o100)
        self.queue[number] = self.queue.get(number, 0) | mask

    def own(self, number: int, mask: int) -> None:
        """Have the mount change a file, inside its notes."""
        self.ledger.before((1, number), self.states[number])
        self._change(number, mask)
        self.ledger.after((1, number), self.states[number])

    def others(self, number: int, mask: int) -> None:
        """Have another change it."""
        self._change(number, mask)
        self.untold.add(number)

    def round(self, while_read: Sequence[Step] = (), while_compared: Sequence[Step] = ()) -> dict[int, int]:
        """Read the queue and compare; return what is told of which file."""
        self.now += 20 * MS
        self.ledger.begin(self.now)
        self.take(while_read)
        heard, self.queue = self.queue, {}
        self.take(while_compared)
        told = {}
        for number, mask in heard.items():
            if found := self.ledger.others((1, number), self.states[number], mask):
                told[number] = found
                self.untold.discard(number)
        self.ledger.end()
        return told

    def take(self, steps: Sequence[Step]) -> None:
        for by_others, number, mask in steps:
            (self.others if by_others else self.own)(number, mask)


Step = tuple[bool, int, int]
"""Whether another does it, to which file, and what."""


def steps(*, by_others: bool) -> st.SearchStrategy[list[Step]]:
    who = st.booleans() if by_others else st.just(value=False)
    return st.lists(st.tuples(who, st.integers(0, 2), st.sampled_from((MODIFY, ATTRIB))), max_size=5)


def rounds(*, by_others: bool) -> st.SearchStrategy[list[tuple[list[Step], list[Step], list[Step]]]]:
    part = steps(by_others=by_others)
    return st.lists(st.tuples(part, part, part), max_size=8)


@given(rounds(by_others=False))
def test_what_the_mount_does_alone_is_never_told(course: list[tuple[list[Step], list[Step], list[Step]]]) -> None:
    kernel = Kernel()
    for before, while_read, while_compared in course:
        kernel.take(before)
        assert kernel.round(while_read, while_compared) == {}
    assert kernel.round() == {}


@given(rounds(by_others=True))
def test_what_others_change_is_always_told_whatever_the_mount_does_at_the_same_time(
    course: list[tuple[list[Step], list[Step], list[Step]]],
) -> None:
    kernel = Kernel()
    for before, while_read, while_compared in course:
        kernel.take(before)
        kernel.round(while_read, while_compared)
    kernel.round()
    assert not kernel.untold
    kernel.round()
    for number in kernel.states:
        kernel.own(number, MODIFY)
    assert kernel.round() == {}, "and then the mount's own changes are its own again"


def test_one_event_of_two_changes_by_the_mount_and_by_another_is_told() -> None:
    for order in ((False, True), (True, False)):
        kernel = Kernel()
        for by_others in order:
            (kernel.others if by_others else kernel.own)(0, MODIFY)
        assert kernel.round() == {0: MODIFY}


def test_permissions_that_another_changes_while_the_mount_writes_are_told_as_attributes() -> None:
    kernel = Kernel()
    kernel.own(0, MODIFY)
    kernel.others(0, ATTRIB)
    assert kernel.round() == {0: ATTRIB}


def test_a_file_with_two_names_is_told_under_each_that_was_heard_of() -> None:
    """Another wrote to it by one name, the mount by the other: which is which, nobody says."""
    kernel = Kernel()
    kernel.others(0, MODIFY)
    kernel.own(0, MODIFY)
    kernel.others(0, MODIFY)
    kernel.ledger.begin(kernel.now)
    assert [kernel.ledger.others((1, 0), kernel.states[0], MODIFY) for _ in range(2)] == [MODIFY, MODIFY]


def test_after_more_than_the_kernel_keeps_only_what_others_changed_is_told() -> None:
    kernel = Kernel()
    kernel.own(0, MODIFY)
    kernel.others(1, MODIFY)
    nobody_says = 1
    kernel.ledger.begin(kernel.now)
    found = [kernel.ledger.others((1, number), kernel.states[number], nobody_says) for number in range(3)]
    assert found == [0, nobody_says, nobody_says]
    kernel.ledger.end()
    kernel.ledger.begin(kernel.now)
    assert kernel.ledger.others((1, 0), kernel.states[0], nobody_says) == 0


def test_a_round_in_which_not_all_was_read_forgets_nothing() -> None:
    kernel = Kernel()
    kernel.own(0, MODIFY)
    for _ in range(3):  # the mount's event is still in the queue
        kernel.now += 1000 * MS
        kernel.ledger.begin(kernel.now)
    assert kernel.ledger.others((1, 0), kernel.states[0], MODIFY) == 0


def test_what_another_did_when_the_mounts_own_events_were_read_is_told_even_where_no_time_says_so() -> None:
    """A clock that ticks slowly: the same state, but a new event."""
    kernel = Kernel()
    kernel.own(0, MODIFY)
    assert kernel.round() == {}
    kernel.queue[0] = MODIFY
    assert kernel.round() == {0: MODIFY}


@pytest.mark.parametrize("write", [True, False])
def test_however_much_is_changed_no_more_is_remembered_than_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch, *, write: bool
) -> None:
    monkeypatch.setattr(ledger, "_MOST", 10)
    kept, state = Ledger(START), State(START, START, 1, 0o644, 0, 0)
    for number in range(100):
        if write:
            kept.after((1, number), state)
        kept.others((1, number), state, MODIFY)
        kept.begin(START)
        assert len(kept) <= 30
    kept.begin(START + 10**9)
    kept.end()
    assert len(kept) == 0, "what is old is known by its time"


def test_what_was_forgotten_for_want_of_room_is_told_once_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "_MOST", 1)
    kernel = Kernel()
    kernel.own(0, MODIFY)
    kernel.own(1, MODIFY)
    assert kernel.round() == {0: MODIFY}


def test_events_of_content_are_those_of_names_too() -> None:
    assert CONTENT & Fanotify.CREATE
    assert not CONTENT & ATTRIB
