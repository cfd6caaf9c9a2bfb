"""A daemon for each test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.daemon.harness import Home
from tests.forked import forked_supervisors, zygote

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.daemon.harness import Running

    from uvmshare.daemon.client import Client

__all__ = ["forked_supervisors", "zygote"]


@pytest.fixture
def home() -> Iterator[Home]:
    with Home.made() as home:
        yield home


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    """One daemon with a VM for all tests of a module that change nothing."""
    with Home.made() as home, home.running() as running:
        running.add_vm()
        yield running
        running.remove_vms()


@pytest.fixture
def daemon(home: Home) -> Iterator[Running]:
    with home.running() as running:
        yield running
        if home.had_vms:  # so that no other daemon is started for it
            running.remove_vms()


@pytest.fixture
def client(daemon: Running) -> Iterator[Client]:
    with daemon.home.client() as client:
        yield client
