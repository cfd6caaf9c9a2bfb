"""The stores that the tests of the contract run on: the fake in virtual time, and etcd itself.

A test of the contract takes the fixture `world`, and is run once on each.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Protocol

from tests.processes import DEADLINE

from uvmshare.etcd.administration import Administration
from uvmshare.etcd.client import EtcdStore
from uvmshare.etcd.endpoints import Endpoints
from uvmshare.testing import schedule
from uvmshare.testing.etcd import FakeEtcd

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from uvmshare.etcd.protocol import Store

__all__ = ["EtcdWorld", "FakeWorld", "World"]

_NUMBERS = itertools.count(1)


class World(Protocol):
    """A cluster, and what a test does with it."""

    prefix: str
    """The test's own: nobody else has keys there."""
    shortest: int
    """The seconds of the shortest lease that is granted as it was asked for."""

    def run(self, test: Coroutine[object, object, None]) -> None: ...

    def connect(self) -> Store: ...

    async def compact(self, revision: int) -> None: ...


class FakeWorld:
    """The fake, in virtual time."""

    shortest = 2

    def __init__(self) -> None:
        self.prefix = f"/{next(_NUMBERS)}/"
        self.etcd = FakeEtcd()

    def run(self, test: Coroutine[object, object, None]) -> None:
        async def whole() -> None:
            await asyncio.wait_for(test, 3600)  # a watch tells for ever that it is alive

        schedule.run(whole())

    def connect(self) -> Store:
        return self.etcd.connect()

    async def compact(self, revision: int) -> None:
        self.etcd.compact(revision)


class EtcdWorld:
    """One member of etcd, which the tests of a module share."""

    shortest = 2

    def __init__(self, url: str) -> None:
        self.prefix = f"/{next(_NUMBERS)}/"
        self.endpoints = Endpoints((url,), timeout=DEADLINE)
        self._stores: list[EtcdStore] = []

    def run(self, test: Coroutine[object, object, None]) -> None:
        async def whole() -> None:
            try:
                await asyncio.wait_for(test, DEADLINE)
            finally:
                for store in self._stores:
                    await store.close()

        asyncio.run(whole())

    def connect(self) -> EtcdStore:
        store = EtcdStore(self.endpoints, progress=0.2)
        self._stores.append(store)
        return store

    async def compact(self, revision: int) -> None:
        await Administration(self.connect()).compact(revision)
