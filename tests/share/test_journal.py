"""What the records of a journal amount to."""

from __future__ import annotations

import os

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uvmshare.share import journal
from uvmshare.share.journal import JournalledShare, JournalState, Record
from uvmshare.share.options import AddOptions
from uvmshare.share.state import ShareLife

ONE = AddOptions(os.path.dirname(__file__), read_only=True)


def state_of(*records: Record) -> JournalState:
    state = JournalState()
    for record in records:
        state.apply(record)
    return state


BEGINNINGS: list[Record] = [journal.Begun(name, ShareLife.ADDING, ONE) for name in "012"]
LATER = st.one_of(
    st.builds(journal.Changed, st.sampled_from("012"), st.sampled_from(ShareLife)),
    st.builds(journal.Forgotten, st.sampled_from("012")),
    *(
        st.builds(kind, st.sampled_from("012"), st.sampled_from("ab"))
        for kind in (journal.Referred, journal.Unreferred)
    ),
    st.builds(journal.AnonymousReferences, st.sampled_from("012"), st.integers(0, 3)),
)
RECORDS = st.one_of(
    st.builds(journal.NamesReserved, st.integers(0, 9)),
    st.builds(journal.Begun, st.sampled_from("012"), st.sampled_from(ShareLife), st.just(ONE)),
    st.sampled_from(BEGINNINGS),
    LATER,
)


@given(st.lists(LATER, max_size=12))
def test_a_batch_that_is_written_twice_has_the_effect_of_one(later: list[Record]) -> None:
    records = [*BEGINNINGS, *later]
    once, twice = (
        {share.name: (share.life, set(share.owners), share.anonymous) for share in state.shares.values()}
        for state in (state_of(*records), state_of(*records, *records))
    )
    assert once == twice


@given(st.lists(RECORDS, max_size=12))
def test_names_only_go_back_when_that_is_said_and_never_below_a_share(records: list[Record]) -> None:
    state = JournalState()
    for record in records:
        before = state.next_name
        state.apply(record)
        assert state.next_name >= before or isinstance(record, journal.NamesReserved)
        assert all(int(name) < state.next_name for name in state.shares)


@pytest.mark.parametrize(
    ("record", "life"),
    [
        *((journal.Begun("0", life, ONE), life) for life in ShareLife),
        *((journal.Changed("0", life), life) for life in ShareLife),
    ],
)
def test_each_record_says_how_far_the_share_is_and_leaves_who_holds_it(record: Record, life: ShareLife) -> None:
    held = (
        journal.Begun("0", ShareLife.ADDING, ONE),
        journal.Changed("0", ShareLife.ADDED),
        journal.Referred("0", "a"),
        journal.AnonymousReferences("0", 2),
    )
    assert state_of(*held, record).shares == {"0": JournalledShare("0", ONE, life, ("a",), 2)}


def test_owners_come_in_their_order_and_go_alone() -> None:
    added = (journal.Begun("0", ShareLife.ADDING, ONE), journal.Changed("0", ShareLife.ADDED))
    came = (journal.Referred("0", "b"), journal.Referred("0", "a"), journal.Referred("0", "b"))
    assert state_of(*added, *came).shares["0"].owners == ("b", "a")
    assert state_of(*added, *came, journal.Unreferred("0", "b")).shares["0"].owners == ("a",)


def test_what_comes_after_a_share_was_forgotten_does_not_bring_it_back() -> None:
    forgotten = (journal.Begun("0", ShareLife.ADDING, ONE), journal.Forgotten("0"))
    assert state_of(*forgotten, journal.Changed("0", ShareLife.ADDED), journal.Referred("0", "a")) == JournalState(
        1, {}
    )


def test_a_manager_that_ends_in_order_gives_back_the_names_it_told_nobody() -> None:
    state = state_of(journal.NamesReserved(64), journal.Begun("3", ShareLife.ADDING, ONE), journal.NamesReserved(4))
    assert state.next_name == 4
    state.apply(journal.NamesReserved(0))
    assert state.next_name == 4


def test_records_are_documents_that_come_back_as_they_were() -> None:
    kinds = [journal.Begun("0", ShareLife.ADDING, ONE), journal.Referred("0", "a"), journal.NamesReserved(5)]
    for record in kinds:
        assert msgspec.json.decode(msgspec.json.encode(record), type=Record) == record
