"""The checks over what users of a fleet were answered find what they are for, each in a history that has it."""

from __future__ import annotations

from typing import Any

import pytest
from tests.fleet.reference_history import Asked, Backup, LeasedOwner, Reference, ReferenceHistory, Rest, Restore

R = Reference("a", "/srv/1", "job")
HELD, NOT_HELD = frozenset({R}), frozenset[Reference]()


def asked(what: Any, began: float, outcome: Any = "made", name: str | None = None, reference: Reference = R) -> Asked:
    """A request that takes one second."""
    return Asked(reference, what, began, began + 1, outcome, name)


def restored(how: Any, began: float, held_last: frozenset[Reference] = HELD) -> Restore:
    """Of a backup that takes from 10 to 12: within four seconds, accepted after six."""
    return Restore(Backup(10, 12), how, began, began + 4, began + 6, HELD, held_last)


def history(*records: Any) -> ReferenceHistory:
    made = ReferenceHistory(backups=[Backup(10, 12)])
    lists: dict[type, list[Any]] = {
        Asked: made.asked,
        LeasedOwner: made.owners,
        Restore: made.restores,
        Rest: made.rests,
    }
    for record in records:
        lists[type(record)].append(record)
    return made


@pytest.mark.parametrize(
    "records",
    [
        [asked("add", 0), Rest(2, HELD), asked("release", 3), Rest(5, NOT_HELD)],
        [asked("add", 0, "unknown"), Rest(2, HELD), asked("add", 3, "unknown"), Rest(5, NOT_HELD)],
        [asked("add", 0, "refused"), Rest(2, NOT_HELD)],
        [asked("add", 0), asked("release", 2, "absent"), Rest(4, NOT_HELD)],
        # A backup that is followed: what was acknowledged after it is not there, and what was released is.
        [asked("add", 0), asked("release", 14), restored("follow", 20), Rest(30, HELD)],
        [asked("add", 14), restored("follow", 20), Rest(30, NOT_HELD)],
        # A change that was made while the backup was taken is in it or not.
        [asked("add", 11), restored("follow", 20), Rest(30, NOT_HELD), Rest(31, HELD)],
        [asked("add", 9.5), restored("follow", 20), Rest(30, NOT_HELD), Rest(31, HELD)],
        # Where hosts wrote back what they served, all is as it was.
        [asked("add", 14), restored("mine", 20), Rest(30, HELD)],
        # What was under way while etcd was stopped was done before or after.
        [asked("add", 23.5), restored("follow", 20), Rest(30, HELD), Rest(31, NOT_HELD)],
        [asked("add", 0), LeasedOwner("job", 5, [0, 3], [0, 3], died=4), Rest(20, NOT_HELD)],
        [asked("add", 0), LeasedOwner("job", 5, [0, 3], [0, 3], lost=[9]), Rest(20, NOT_HELD)],
        # Renewals that were too far apart: the lease may have ended, and another one been granted with the next add.
        [asked("add", 0), LeasedOwner("job", 5, [0, 3, 8, 10], [0, 3, 9, 10]), Rest(12, NOT_HELD)],
        [LeasedOwner("job", 5, [19], [19], lost=[21]), restored("follow", 20)],
        [asked("add", 0, name="3"), asked("add", 2, name="3", reference=R._replace(owner="other"))],
    ],
)
def test_a_history_that_can_have_been_has_no_problem(records: list[Any]) -> None:
    assert history(*records).problems() == []


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([asked("add", 0), Rest(2, NOT_HELD)], "was acknowledged, and is lost"),
        ([asked("add", 0), asked("add", 2, "refused"), Rest(4, NOT_HELD)], "was acknowledged, and is lost"),
        ([asked("add", 0), asked("release", 2), Rest(4, HELD)], "is held, and nobody holds it"),
        ([asked("add", 0, "refused"), Rest(2, HELD)], "is held, and nobody holds it"),
        ([asked("add", 0), asked("release", 2, "absent"), Rest(4, HELD)], "is held, and nobody holds it"),
        ([Rest(2, HELD)], "it was never asked for"),
        ([asked("add", 0), restored("follow", 20), Rest(30, NOT_HELD)], "was acknowledged, and is lost"),
        ([asked("add", 14), restored("follow", 20), Rest(30, HELD)], "is held, and nobody holds it"),
        ([asked("add", 14), restored("mine", 20), Rest(30, NOT_HELD)], "was acknowledged, and is lost"),
        ([asked("add", 0), asked("release", 14), restored("mine", 20), Rest(30, HELD)], "nobody holds it"),
        # What is acknowledged counts as soon as etcd runs again.
        ([asked("add", 24.5), restored("mine", 20), Rest(30, NOT_HELD)], "was acknowledged, and is lost"),
        ([asked("add", 24.5), restored("follow", 20), Rest(30, NOT_HELD)], "was acknowledged, and is lost"),
        ([asked("add", 0), LeasedOwner("job", 5, [0, 3], [0, 3], died=4), Rest(20, HELD)], "nobody holds it"),
        ([LeasedOwner("job", 5, [0, 3], [0, 3], lost=[7])], "gone 4.0 s after a renewal"),
        ([asked("add", 0), LeasedOwner("job", 5, [0, 3, 7], [0, 3, 7]), Rest(11, NOT_HELD)], "is lost"),
        ([restored("follow", 20, NOT_HELD)], "for an etcd that nobody had accepted"),
        (
            [asked("add", 0, name="3"), asked("add", 2, name="3", reference=R._replace(path="/srv/2"))],
            "share 3 was",
        ),
    ],
)
def test_what_cannot_have_been_is_found(records: list[Any], words: str) -> None:
    (problem,) = history(*records).problems()
    assert words in problem
