"""What the tests of a Manager with a journal look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uvmshare.share.journal import Record
    from uvmshare.share.recovery import RecoveredShare, RecoveryReport
    from uvmshare.testing.fakes import FakeJournal


def records_in_flight(journal: FakeJournal) -> list[Record]:
    """What the one append that waits for its answer is to write."""
    (append,) = journal.in_flight
    return list(append.records)


def only(report: RecoveryReport) -> RecoveredShare:
    """The one share of the report."""
    (share,) = report
    return share
