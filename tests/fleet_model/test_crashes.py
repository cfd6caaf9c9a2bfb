"""A host and a gate that die before each call that they make: to etcd, and to the daemon. What holds then, always."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from tests.fleet_model.harness import ANN, Fleet, placed

from uvmshare.errors import AlreadyThere, NotThere, OutcomeUnknown, UvmshareError
from uvmshare.fleet.documents import Have, Want, decode
from uvmshare.fleet.gate import Gate
from uvmshare.testing.schedule import run

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

structlog.configure(logger_factory=structlog.ReturnLoggerFactory())

_LONGEST = 200
"""Calls of one run; the run without a crash says how many there are."""


class Deaths:
    """Counts the calls of a host and of gates, and has one of them die before the call of a number."""

    def __init__(self, fleet: Fleet, who: str, number: int, host: str = "h1") -> None:
        self._fleet = fleet
        self._host = host
        self._who = who
        self._number = number
        self.calls = 0
        self.asking: asyncio.Task[Any] | None = None
        self.died = asyncio.Event()
        fleet.hosts[host].pause = self._before_local
        self.watch_gate()

    def watch_gate(self) -> None:
        """Have a new gate, behind the one that died, be counted too."""
        store = self._fleet.gate_store = self._fleet.etcd.connect()
        self._fleet.gate = Gate(store, self._fleet.keys, now=lambda: 0.0)
        decide = store.decide

        def counted(name: str) -> Any:
            if self._who == "gate" and self._is_due() and self.asking is not None:
                self.asking.cancel()
            return decide(name)

        store.decide = counted

    def watch_host(self) -> None:
        """Count what the host asks etcd."""
        store = self._fleet.stores[self._host]
        decide = store.decide

        def counted(name: str) -> Any:
            if self._who == "host" and self._is_due():
                self.died.set()
            return decide(name)

        store.decide = counted

    def _is_due(self) -> bool:
        self.calls += 1
        return self.calls == self._number

    async def _before_local(self, what: str) -> None:
        if self._who == "host" and self._is_due():
            self.died.set()
            await asyncio.sleep(0)
        # Whatever was under way is broken off here, as by kill -9: what was done is done.
        await asyncio.sleep(0)


async def _ask(fleet: Fleet, deaths: Deaths, work: Callable[[], Awaitable[Any]]) -> Any:
    """Ask as a client does: again, through another gate, when there was no answer."""
    for _ in range(5):
        deaths.asking = asyncio.ensure_future(work())
        await asyncio.wait({deaths.asking})
        if deaths.asking.cancelled():
            deaths.watch_gate()
            continue
        with contextlib.suppress(OutcomeUnknown):
            return deaths.asking.result()
    raise AssertionError("no gate answers", fleet)  # noqa: EM101, TRY003  it ends the test


async def _scenario(who: str, number: int) -> int:
    """Use a fleet while one dies before its call of this number; return how many calls there were."""
    fleet = Fleet("h1")
    await fleet.begin()
    await asyncio.sleep(1)
    deaths = Deaths(fleet, who, number)
    deaths.watch_host()
    host = fleet.hosts["h1"]

    async def resurrect() -> None:
        await deaths.died.wait()
        await fleet.stop("h1")
        fleet.start("h1")

    resurrecting = asyncio.ensure_future(resurrect())

    async def ask(work: Callable[[], Awaitable[Any]]) -> Any:
        return await _ask(fleet, deaths, work)

    await ask(fleet.add_vm)
    names = [(await ask(lambda: fleet.add_share("/srv/stays"))).name]
    names.append((await ask(lambda: fleet.add_share("/srv/goes"))).name)
    await ask(lambda: fleet.add_mount("/srv/mounted", "/mnt/x", "living", 10))
    await ask(lambda: fleet.add_share("/srv/dies", "dying", 5))
    with contextlib.suppress(NotThere):  # it was released by the request that had no answer
        await ask(lambda: fleet.release_share(names[1]))
    for _ in range(10):
        await asyncio.sleep(3)
        await ask(lambda: fleet.gate.renew(ANN, "living"))
    names.append((await ask(lambda: fleet.add_share("/srv/last"))).name)
    assert host.held() == {"build": {("/srv/stays", "job"), ("/srv/mounted", "living"), ("/srv/last", "job")}}
    assert len(set(names)) == len(names), "a name was given twice"
    _check_history(fleet)
    try:
        await ask(lambda: fleet.remove_vm(force=True))
    except NotThere:
        await asyncio.sleep(30)  # it was removed by the request that had no answer
    assert host.machines == {}
    await asyncio.sleep(60)
    assert not fleet.etcd.read(fleet.keys.host("h1") + "vm/")
    assert not fleet.etcd.read(fleet.keys.host("h1") + "have/")
    resurrecting.cancel()
    await fleet.end()
    return deaths.calls


async def _moving(who: str, number: int) -> int:
    """Move a VM to another host and back while one dies before its call of this number; return how many there were."""
    fleet = Fleet("h1", "h2")
    await fleet.begin()
    await asyncio.sleep(1)
    dies = who if who in fleet.hosts else "h1"
    deaths = Deaths(fleet, "gate" if who == "gate" else "host", number, dies)
    deaths.watch_host()
    most = 0

    def watched(host: str, before: Any) -> Any:
        async def pause(what: str) -> None:
            nonlocal most
            most = max(most, sum(bool(each.machines) for each in fleet.hosts.values()))
            if before is not None:
                await before(what)

        fleet.hosts[host].pause = pause

    for host in fleet.hosts:
        watched(host, fleet.hosts[host].pause)

    async def resurrect() -> None:
        await deaths.died.wait()
        await fleet.stop(dies)
        fleet.start(dies)

    resurrecting = asyncio.ensure_future(resurrect())

    async def ask(work: Callable[[], Awaitable[Any]]) -> Any:
        return await _ask(fleet, deaths, work)

    await ask(fleet.add_vm)
    names = [(await ask(lambda: fleet.add_share("/srv/stays"))).name]
    await ask(lambda: fleet.add_mount("/srv/mounted", "/mnt/x", "living", 30))
    await ask(lambda: fleet.add_share("/srv/dies", "dying", 5))
    for to in ("h2", "h1", "h2"):
        await ask(lambda to=to: fleet.move_vm(to))  # type: ignore[misc]  # mypy cannot infer a default's type
        await ask(lambda: fleet.gate.renew(ANN, "living"))
        names.append((await ask(lambda to=to: fleet.add_share(f"/srv/{to}{len(names)}"))).name)  # type: ignore[misc]  # as above
    await asyncio.sleep(20)
    await ask(lambda: fleet.gate.renew(ANN, "living"))
    held = fleet.hosts["h2"].held()["build"]
    assert {("/srv/stays", "job"), ("/srv/mounted", "living")} <= held
    assert not any(owner == "dying" for _, owner in held)
    assert fleet.hosts["h1"].machines == {}
    assert len(set(names)) == len(names), "a name was given twice"
    assert most <= 1, "two hosts served one VM"
    assert not fleet.etcd.read(fleet.keys.host("h1") + "have/")
    assert (await ask(lambda: fleet.gate.vm(ANN, "build"))).epoch == 4
    resurrecting.cancel()
    await fleet.end()
    return deaths.calls


def _check_history(fleet: Fleet) -> None:
    """See that what a host said never answered more than was wanted, in every revision that there was."""
    keys = fleet.keys
    want_at, last = 0, 0
    for event in fleet.etcd.events(keys.host("h1"), 1):
        at = keys.read_host("h1", event.at.key)
        assert at is not None
        if at.kind == "vm" and event.change == "put":
            want = decode(Want, event.at.value, event.at.key)
            assert want.last >= last, "a number of a holding was used again"
            want_at, last = event.at.mod_revision, want.last
        if at.kind == "have" and event.change == "put":
            assert decode(Have, event.at.value, event.at.key).seen <= want_at


def _try_all(who: str, step: int, scenario: Callable[[str, int], Any] = _scenario) -> None:
    calls = run(scenario(who, 0))
    assert 20 < calls < _LONGEST, calls
    for number in range(1, calls + 1, step):
        try:
            run(scenario(who, number))
        except Exception as error:
            error.add_note(f"{who} died before call {number} of {calls}")
            raise


@pytest.mark.parametrize("who", ["host", "gate"])
def test_no_reference_is_lost_or_left_whoever_dies_before_a_call(who: str) -> None:
    _try_all(who, 7)


@pytest.mark.long
@pytest.mark.parametrize("who", ["host", "gate"])
def test_no_reference_is_lost_or_left_whoever_dies_before_whichever_call(who: str) -> None:
    _try_all(who, 1)


@pytest.mark.parametrize("who", ["h1", "h2", "gate"])
def test_a_vm_moves_and_is_served_by_one_host_whoever_dies_before_a_call(who: str) -> None:
    _try_all(who, 11, _moving)


@pytest.mark.long
@pytest.mark.parametrize("who", ["h1", "h2", "gate"])
def test_a_vm_moves_and_is_served_by_one_host_whoever_dies_before_whichever_call(who: str) -> None:
    _try_all(who, 1, _moving)


async def _removed(number: int) -> None:
    fleet = Fleet("h1", "h2")
    await fleet.begin()
    outcomes = await asyncio.gather(
        *(fleet.add_vm(wanted=placed("build", f"h{each % 2 + 1}")) for each in range(number)), return_exceptions=True
    )
    hosts = [each for each in fleet.hosts.values() if each.machines]
    assert len(hosts) == 1, "one name is on one host"
    assert all(isinstance(each, AlreadyThere) or not isinstance(each, UvmshareError) for each in outcomes)
    await fleet.end()


def test_of_many_who_add_one_name_on_two_hosts_one_host_has_it() -> None:
    run(_removed(6))
