"""What gates answer while etcd is away, or is a backup that no host has accepted yet."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from tests.fleet_model.harness import ANN, fleet, placed

from uvmshare.errors import InvalidState, NotThere, OutcomeUnknown, StoreUnavailable
from uvmshare.etcd.protocol import Get
from uvmshare.fleet.gate import Gate
from uvmshare.fleet.sending import Sent
from uvmshare.testing.etcd import FakeReply

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from tests.fleet_model.harness import Fleet


async def _restored(f: Fleet) -> None:
    """Have etcd be a backup from before a share was released and another one added."""
    await f.add_vm()
    await f.add_share("/srv/x")
    backup = f.etcd.backup()
    await f.release_share("0")
    await f.add_share("/srv/y")
    f.etcd.restore(backup, cluster_id=2)
    f.gate = Gate(f.etcd.connect(), f.keys)
    await asyncio.sleep(60)
    assert f.followers["h1"].held_back is not None


@contextmanager
def _no_answer(f: Fleet, reply: FakeReply) -> Iterator[None]:
    """Have the first change get no answer, and all that follows fail."""
    sent, lost = f.gate_store.txn, False

    async def txn(compare: Any, then: Any, otherwise: Any = ()) -> Any:
        nonlocal lost
        if not lost and not all(isinstance(each, Get) for each in then):
            lost = True
            f.gate_store.replies.append(reply)
            f.gate_store.decide = lambda name: (
                f.gate_store.replies.popleft() if f.gate_store.replies else FakeReply.FAIL
            )
        return await sent(compare, then, otherwise)

    decide, f.gate_store.txn = f.gate_store.decide, txn  # type: ignore[method-assign]  # what a test puts between
    try:
        yield
    finally:
        f.gate_store.txn, f.gate_store.decide = sent, decide  # type: ignore[method-assign]  # as above
    assert lost


async def test_what_a_backup_says_that_a_host_has_is_no_answer_until_the_host_accepts_it() -> None:
    async with fleet() as f:
        await _restored(f)
        with pytest.raises(InvalidState, match="h1 does not follow it yet: accept it there"):
            await f.add_share("/srv/x")
        with pytest.raises(InvalidState, match="does not follow it yet"):
            await f.release_share("1")
        with pytest.raises(InvalidState, match="does not follow it yet"):
            await f.release_mount("/mnt")
        with pytest.raises(OutcomeUnknown):
            await f.add_vm()
        assert f.hosts["h1"].held() == {"build": {("/srv/y", "job")}}
        assert f.followers["h1"].accept()
        await asyncio.sleep(10)
        assert f.hosts["h1"].held() == {"build": {("/srv/x", "job")}}
        share = await f.add_share("/srv/x")
        assert share.name == "2", "no name is given twice"
        with pytest.raises(NotThere):
            await f.release_share("1")
        await f.release_share("2")
        assert (await f.add_vm()).id == "build"


async def test_a_lost_host_is_removed_from_a_backup_that_it_never_accepted() -> None:
    async with fleet() as f:
        await _restored(f)
        await f.stop("h1")
        await asyncio.sleep(60)
        with pytest.raises(OutcomeUnknown):
            await f.remove_vm(force=True)
        with pytest.raises(NotThere):
            await f.gate.vm(ANN, "build")


async def test_what_was_written_is_of_unknown_outcome_when_etcd_is_away_afterwards() -> None:
    async with fleet() as f:
        await f.add_vm()
        f.cut("h1")
        asked = asyncio.ensure_future(f.add_share("/srv/x"))
        await asyncio.sleep(1)
        f.etcd.stop()
        with pytest.raises(OutcomeUnknown, match="etcd does not say what came of it"):
            await asked
        f.etcd.start()
        f.mend("h1")
        await asyncio.sleep(60)
        assert f.hosts["h1"].held() == {"build": {("/srv/x", "job")}}


@pytest.mark.parametrize("reply", [FakeReply.LOSE_AFTER, FakeReply.LOSE_BEFORE])
async def test_a_change_without_an_answer_is_of_unknown_outcome_when_etcd_can_be_read_no_more(reply: FakeReply) -> None:
    async with fleet("h1", "h2") as f:
        await f.add_vm()
        await f.add_share("/srv/x")
        every: list[Callable[[], Awaitable[object]]] = [
            lambda: f.add_share("/srv/y"),
            lambda: f.release_share("0"),
            lambda: f.move_vm("h2", "prepare"),
            lambda: f.remove_vm(force=True),
            lambda: f.add_vm(wanted=placed("other")),
        ]
        for ask in every:
            with _no_answer(f, reply), pytest.raises(OutcomeUnknown):
                await ask()


async def test_a_change_that_was_certainly_not_made_is_told_as_such() -> None:
    async with fleet() as f:
        await f.add_vm()
        f.etcd.stop()
        with pytest.raises(StoreUnavailable):
            await f.add_share("/srv/x")
    with pytest.raises(StoreUnavailable), Sent():
        raise StoreUnavailable
