"""The guests that the tests of this folder share, each booted once, and the event loop that they live in."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from uvmshare.testing.guest_vm import GuestVM

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def runner() -> Iterator[asyncio.Runner]:
    """The event loop of everything that outlives a test: guests and file servers."""
    with asyncio.Runner() as made:
        yield made


@pytest.fixture(scope="session")
def guest(runner: asyncio.Runner) -> Iterator[GuestVM]:
    """A guest whose root is this host's, so that Python, git and the project are there."""
    vm = runner.run(GuestVM.start(root="host", modules=("vsock_loopback",)))
    yield vm
    runner.run(vm.aclose())
