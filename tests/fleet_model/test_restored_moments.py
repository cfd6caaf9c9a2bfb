"""A backup of etcd is restored at whichever moment: no acknowledged reference is lost, and none is left over.

One run counts the calls that gates and a host make. Then the same happens again, and etcd is replaced as one of them
arrives, or before its answer comes. What users were answered, and what the host holds, is checked as that of the
chaos with etcd itself is.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final, Literal

import pytest
import structlog
from tests.fleet.reference_history import Backup, LeasedOwner, Reference, ReferenceHistory, Rest, Restore
from tests.fleet_model.asking import ask
from tests.fleet_model.harness import ADMIN, ANN, Fleet, served

from uvmshare.errors import InvalidState, NotThere, OutcomeUnknown, StoreError
from uvmshare.fleet.gate import Gate
from uvmshare.testing.schedule import run

if TYPE_CHECKING:
    from collections.abc import Coroutine

structlog.configure(logger_factory=structlog.ReturnLoggerFactory())

_LEASE: Final = 60
_APART: Final = 0.05
"""Seconds between two requests of one user."""
_LATENCY: Final = 0.001
_WORKS: Final = 0.02
"""Seconds that a host takes for what it does."""
_DOWN: Final = 15.0
"""Seconds in which there is no etcd, where it is stopped before a backup is restored."""


class _Owner:
    """A user who asks one thing after the other."""

    def __init__(self, search: _Search, owner: str, lease: float | None) -> None:
        self.search = search
        self.owner = owner
        self.lease = lease
        self.names: dict[str, str | None] = {}
        self.noted: LeasedOwner | None = None
        if lease is not None:
            self.noted = LeasedOwner(owner, lease)
            search.history.owners.append(self.noted)

    async def do(self, *steps: str) -> None:
        """Add (``+/srv/1``) and release (``-/srv/1``), renew (``~``), and end (``.``)."""
        for step in steps:
            what, path = step[0], step[1:]
            if what == "~":
                await self._renew()
            elif what == ".":
                await self._end()
            else:
                await self._ask("add" if what == "+" else "release", path)
            await asyncio.sleep(_APART)

    async def _ask(self, what: Literal["add", "release"], path: str) -> None:
        name = self.names.get(path)
        if what == "release" and name is None:
            return
        reference = Reference("build", path, self.owner)
        asked, self.names[path] = await ask(self.search.fleet.gate, reference, what, name, self.lease)
        self.search.history.asked.append(asked)

    async def _renew(self) -> None:
        assert self.noted is not None
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            await self.search.fleet.gate.renew(ANN, self.owner)
        except NotThere:
            self.noted.lost.append(clock())
        except StoreError:
            return
        else:
            self.noted.renewed.append(began)
            self.noted.answered.append(clock())

    async def _end(self) -> None:
        """Release everything. Whatever that comes to, the owner is not heard of again."""
        assert self.noted is not None
        with contextlib.suppress(OutcomeUnknown, StoreError, InvalidState):
            await self.search.fleet.gate.release_owner(ANN, self.owner, force=False)
        self.noted.died = asyncio.get_running_loop().time()


class _Search:
    """One run: `moment` is the number of the call at which etcd is replaced, and 0 is none."""

    def __init__(self, how: Literal["follow", "mine"], moment: int, *, down: float, works: float) -> None:
        self.how = how
        self.moment = moment
        self.down = down
        self.works = works
        self.calls = 0
        self.history = ReferenceHistory()
        self.fleet = Fleet("h1")
        self.backup: Any = None
        self._stopped = asyncio.Event()
        self._stopped_at = 0.0

    def _called(self, name: str) -> None:
        del name
        if self.backup is None or self._stopped.is_set():
            return
        self.calls += 1
        if self.calls == self.moment:
            self._stopped.set()
            self._stopped_at = asyncio.get_running_loop().time()
            if self.down:
                self.fleet.etcd.stop()
            else:
                self.fleet.etcd.restore(self.backup, cluster_id=2)

    async def _restore(self) -> None:
        """Do what an administrator does when etcd is gone."""
        await self._stopped.wait()
        f = self.fleet
        if self.down:
            await asyncio.sleep(self.down)
            f.etcd.restore(self.backup, cluster_id=2)
            f.etcd.start()
        started = asyncio.get_running_loop().time()
        await asyncio.sleep(1)  # the gates of before ask on
        old, f.gate_store = f.gate_store, f.etcd.connect()
        f.gate = Gate(f.gate_store, f.keys, now=lambda: 0.0)
        await old.close()
        while f.followers["h1"].held_back is None:  # noqa: ASYNC110  nobody tells of it, and time is virtual
            await asyncio.sleep(1)
        held_first = self.held()
        await asyncio.sleep(5)
        held_last = self.held()
        if self.how == "mine":
            await f.gate.write_back(ADMIN, "h1", served(f.hosts["h1"], f.followers["h1"]))
        assert f.followers["h1"].accept()
        now = asyncio.get_running_loop().time()
        self.history.restores.append(
            Restore(self.history.backups[0], self.how, self._stopped_at, started, now, held_first, held_last)
        )

    def held(self) -> frozenset[Reference]:
        return frozenset(
            Reference(vm, path, owner) for vm, held in self.fleet.hosts["h1"].held().items() for path, owner in held
        )

    async def run(self) -> int:
        """Return how many moments there were."""
        f = self.fleet
        f.etcd.on_call, f.etcd.latency = self._called, _LATENCY

        async def work(_: str) -> None:
            await asyncio.sleep(self.works)

        f.hosts["h1"].pause = work
        await f.begin()
        await f.add_vm()
        stays, also = _Owner(self, "stays", None), _Owner(self, "also", None)
        leased, dies = _Owner(self, "leased", _LEASE), _Owner(self, "dies", _LEASE)
        await stays.do("+/srv/1", "+/srv/2")
        await also.do("+/srv/1", "+/srv/4")
        await leased.do("+/srv/1", "+/srv/3", "~")
        await dies.do("+/srv/3", "+/srv/5")
        now = asyncio.get_running_loop().time()
        self.history.backups.append(Backup(now, now))
        self.backup = f.etcd.backup()
        await asyncio.sleep(_APART)
        restoring = asyncio.ensure_future(self._restore())
        await _together(
            stays.do("+/srv/3", "-/srv/1", "+/srv/1", "-/srv/3"),
            also.do("-/srv/1", "+/srv/5", "-/srv/4"),
            leased.do("+/srv/2", "-/srv/1", "~", "+/srv/1", "-/srv/3"),
            dies.do("+/srv/6", "."),
        )
        if self.moment:
            await restoring
            await self._rest(_LEASE + 20)  # leases of the dead end too
            await _together(
                stays.do("+/srv/6", "-/srv/2", "+/srv/7"),
                also.do("+/srv/4", "-/srv/5"),
                leased.do("+/srv/3", "~", "-/srv/2", "+/srv/4"),
            )
            await self._rest(20)
            await asyncio.sleep(1)
            leased.noted.died = asyncio.get_running_loop().time()  # type: ignore[union-attr]  # it has a lease
            await self._rest(_LEASE + 20)
        restoring.cancel()
        await f.end()
        problems = self.history.problems()
        assert not problems, problems
        return self.calls

    async def _rest(self, seconds: float) -> None:
        """Let all that is under way come to its end; the living renew meanwhile."""
        until = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < until:
            await asyncio.sleep(20)
            for each in self.history.owners:
                if each.died is None:
                    await self._renew(each)
        self.history.rests.append(Rest(asyncio.get_running_loop().time(), self.held()))

    async def _renew(self, noted: LeasedOwner) -> None:
        owner = _Owner.__new__(_Owner)
        owner.search, owner.owner, owner.noted = self, noted.owner, noted
        await owner.do("~")


async def _together(*work: Coroutine[Any, Any, None]) -> None:
    async with asyncio.TaskGroup() as group:
        for each in work:
            group.create_task(each)


def _try_all(how: Literal["follow", "mine"], step: int, down: float, works: float) -> None:
    moments = run(_Search(how, 0, down=down, works=works).run())
    assert moments > 100, moments
    for moment in range(1, moments + 1, step):
        try:
            run(_Search(how, moment, down=down, works=works).run())
        except Exception as error:
            error.add_note(f"etcd was replaced at moment {moment} of {moments}")
            raise


@pytest.mark.parametrize("down", [0.0, _DOWN])
@pytest.mark.parametrize("how", ["follow", "mine"])
def test_no_reference_is_lost_or_left_when_a_backup_is_restored(how: Literal["follow", "mine"], down: float) -> None:
    _try_all(how, 83, down, _WORKS)


@pytest.mark.long
@pytest.mark.parametrize("works", [_WORKS, 1.0])
@pytest.mark.parametrize("down", [0.0, _DOWN])
@pytest.mark.parametrize("how", ["follow", "mine"])
def test_no_reference_is_lost_or_left_at_whichever_moment_a_backup_is_restored(
    how: Literal["follow", "mine"], down: float, works: float
) -> None:
    _try_all(how, 1, down, works)
