"""A Manager with a journal, one story at a time, and a VM that can tell what it has.

Every order of events together is in test_crash_orders, every point of a real crash in tests/reliability.
"""

import pytest

from uvmshare.share.manager import Manager
from uvmshare.testing.fakes import FakeJournal, ListingFakeVM


@pytest.fixture(name="vm")
def _vm() -> ListingFakeVM:
    return ListingFakeVM()


@pytest.fixture(name="journal")
def _journal() -> FakeJournal:
    return FakeJournal()


@pytest.fixture(name="manager")
def _manager(vm: ListingFakeVM, journal: FakeJournal) -> Manager:
    return Manager(vm, journal=journal)
