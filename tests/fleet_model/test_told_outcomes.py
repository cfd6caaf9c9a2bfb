"""What a gate says of a request that etcd fails in the middle of: that nothing was changed only where that is so.

For each kind of request, etcd fails from the first call of the gate on, from the second, and so forth. A refusal that
is certain is compared with what is in etcd then.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import pytest
from tests.fleet_model.harness import ADMIN, ANN, Fleet, kept_share, own_vm, placed, served

from uvmshare.daemon.fleet_documents import NewClone
from uvmshare.errors import InvalidOptions, OutcomeUnknown, StoreError, UvmshareError
from uvmshare.testing.etcd import FakeReply
from uvmshare.testing.schedule import run

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Ask = Callable[[Fleet], Awaitable[object]]


async def _prepared(f: Fleet) -> None:
    await f.move_vm("h2", "prepare")


async def _refused(f: Fleet) -> None:
    f.hosts["h2"].refused["unix:/run/other.9p"] = InvalidOptions("the file server does not start")


async def _lost(f: Fleet) -> None:
    await f.stop("h1")
    await asyncio.sleep(60)


async def _forgotten(f: Fleet) -> None:
    """Have etcd have forgotten all, and the gate be one that was started since."""
    f.etcd.restore(f.backups[0], cluster_id=2)  # type: ignore[attr-defined]  # the test's own
    f.gate_store = f.etcd.connect()
    f.gate = type(f.gate)(f.gate_store, f.keys, now=lambda: 0.0)
    await asyncio.sleep(60)


async def _clone(f: Fleet) -> None:
    await f.gate.add_vm(ANN, *await f.gate.want_clone(ANN, "build", NewClone(id="build-2", on="h2")))


async def _leave(f: Fleet) -> None:
    await f.gate.remove_vm(await f.gate.want_left(ANN, "own"))


async def _nothing(f: Fleet) -> None:
    del f


REQUESTS: Final[dict[str, tuple[Ask, Ask]]] = {
    "add a VM": (_nothing, lambda f: f.add_vm(wanted=placed("other", "h2"))),
    "add a VM that its host refuses": (_refused, lambda f: f.add_vm(wanted=placed("other", "h2"))),
    "remove a VM": (_nothing, lambda f: f.remove_vm(force=True)),
    "add a share": (_nothing, lambda f: f.add_share("/srv/new")),
    "add a share with a lease": (_nothing, lambda f: f.add_share("/srv/new", "new", 30)),
    "release a share": (_nothing, lambda f: f.release_share("0")),
    "add a mount": (_nothing, lambda f: f.add_mount("/srv/new", "/mnt/new")),
    "release a mount": (_nothing, lambda f: f.release_mount("/mnt/x")),
    "renew with another length": (_nothing, lambda f: f.gate.renew(ANN, "leased", 90)),
    "renew one share with another length": (_nothing, lambda f: f.gate.renew_share(ANN, "build", "1", "leased", 90)),
    "release an owner": (_nothing, lambda f: f.gate.release_owner(ANN, "leased", force=False)),
    "prepare a move": (_nothing, lambda f: f.move_vm("h2", "prepare")),
    "move": (_nothing, lambda f: f.move_vm("h2")),
    "commit a move": (_prepared, lambda f: f.move_vm("h2", "commit")),
    "abort a move": (_prepared, lambda f: f.move_vm("h2", "abort")),
    "clone": (_nothing, _clone),
    "join": (_nothing, lambda f: f.join_vm(own_vm(f.hosts["h2"], kept_share("/srv/own", "0", lease=30), id_="other"))),
    "leave": (_nothing, _leave),
    "remove a host": (_lost, lambda f: f.gate.remove_host(ADMIN, "h1")),
    "write back": (_forgotten, lambda f: f.gate.write_back(ADMIN, "h1", served(f.hosts["h1"], f.followers["h1"]))),
}


def _wanted(f: Fleet) -> Any:
    """Return all that users want, as etcd has it: names, what hosts should have, hosts, and which leases live."""
    keys = f.keys
    prefixes = (keys.names(), keys.registered(), keys.count("acme"), *(keys.host(host) + "vm/" for host in f.hosts))
    return [[(each.key, each.value) for each in f.etcd.read(prefix)] for prefix in prefixes]


async def _fails(request: str, number: int, reply: FakeReply) -> bool:
    """Have etcd fail from this call of the gate on; say whether there were as many."""
    before, ask = REQUESTS[request]
    f = Fleet("h1", "h2")
    await f.begin()
    await f.add_vm()
    await f.add_vm(wanted=placed("second", "h2"))
    f.backups = [f.etcd.backup()]  # type: ignore[attr-defined]  # the test's own
    await f.join_vm(own_vm(f.hosts["h2"], kept_share("/srv/own", "0"), id_="own"))
    await f.add_share("/srv/stays")
    await f.add_share("/srv/leased", "leased", 600)
    await f.add_share("/srv/leased", "leased", 600, vm="second")
    await f.add_mount("/srv/mounted", "/mnt/x")
    await before(f)
    wanted, leases, calls = _wanted(f), f.etcd.leases, 0

    def decide(name: str) -> FakeReply:
        nonlocal calls
        del name
        calls += 1
        return FakeReply.SUCCEED if calls < number else reply if calls == number else FakeReply.FAIL

    f.gate_store.decide = decide
    refused: UvmshareError | None = None
    try:
        await ask(f)
    except OutcomeUnknown:
        pass
    except UvmshareError as error:
        refused = error
    if isinstance(refused, StoreError):
        assert _wanted(f) == wanted, (number, refused)
        assert set(leases) <= set(f.etcd.leases), (number, refused)
    elif refused is not None:
        assert request == "add a VM that its host refuses", (number, refused)
    f.gate_store.decide = lambda _: FakeReply.SUCCEED
    await f.end()
    return calls >= number


def _try(request: str, reply: FakeReply, step: int) -> None:
    number = 1
    while run(_fails(request, number, reply)):
        number += step
    assert number > 3, "a request takes more calls"


@pytest.mark.parametrize("request_", REQUESTS)
def test_that_nothing_was_changed_is_said_only_where_nothing_was(request_: str) -> None:
    _try(request_, FakeReply.FAIL, 4)


@pytest.mark.long
@pytest.mark.parametrize("reply", [FakeReply.FAIL, FakeReply.LOSE_AFTER, FakeReply.LOSE_BEFORE])
@pytest.mark.parametrize("request_", REQUESTS)
def test_that_nothing_was_changed_is_said_only_where_nothing_was_at_any_call(request_: str, reply: FakeReply) -> None:
    _try(request_, reply, 1)
