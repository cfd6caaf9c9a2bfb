"""The checks over histories find what they are for, each on a history that has it."""

from __future__ import annotations

import pytest
from tests.fleet.store_history import Kept, StoreHistory, Write

from uvmshare.etcd.protocol import Event, KeyValue

LOG = [Event("put", KeyValue("k", value, 2, revision, 1)) for revision, value in ((2, b"a"), (3, b"b"), (5, b"c"))]
TOLD = [(2, "k", b"a"), (3, "k", b"b"), (5, "k", b"c")]


def test_a_history_that_can_have_been_has_no_problem() -> None:
    history = StoreHistory(
        [
            Write("k", b"a", 0, 1, "made", 2),
            Write("k", b"b", 0.5, 3, "unknown"),
            Write("k", b"c", 2, 4, "made", 5),
            Write("k", b"d", 5, 6, "refused"),
            Write("k", b"e", 5, 6, "unknown"),
        ],
        [TOLD, TOLD[1:]],
        [1, 3],
        [Kept(1, 5, [0.0, 4.0]), Kept(2, 5, [0.0], lost=5.5)],
    )
    assert history.problems(LOG) == []


@pytest.mark.parametrize(
    ("history", "words"),
    [
        (StoreHistory([Write("k", b"x", 0, 1, "made", 4)]), "was acknowledged, and is None"),
        (StoreHistory([Write("k", b"a", 0, 1, "made", 3)]), "was acknowledged, and is (2, 'k')"),
        (StoreHistory([Write("k", b"a", 0, 1, "refused")]), "was certainly not made, and is (2, 'k')"),
        (
            StoreHistory([Write("k", b"b", 0, 1, "made", 3), Write("k", b"a", 2, 3, "made", 2)]),
            "and is before it",
        ),
        (StoreHistory(seen=[[TOLD[0], TOLD[2]]], first=[1]), "where (3, 'k', b'b') was"),
        (StoreHistory(seen=[[TOLD[0], TOLD[0]]], first=[1]), "where (3, 'k', b'b') was"),
        (StoreHistory(seen=[[TOLD[1], TOLD[0]]], first=[1]), "where (2, 'k', b'a') was"),
        (StoreHistory(seen=[TOLD[:2]], first=[1]), "was not told (5, 'k', b'c')"),
        (StoreHistory(kept=[Kept(1, 5, [0.0, 4.0], lost=8.5)]), "gone 4.5 s after a renewal"),
    ],
)
def test_what_cannot_have_been_is_found(history: StoreHistory, words: str) -> None:
    (problem,) = history.problems(LOG)
    assert words in problem
