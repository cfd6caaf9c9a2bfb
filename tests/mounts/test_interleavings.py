"""What must always hold of a MountManager, tried in every order of events.

What lives here: callers around a MountManager and a Manager, an agent and a VM whose answers are chosen, the
properties that hold after every step, and the search through all orders.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import pytest
from tests.orders import Caller, cancel_everything, may_start, searches, try_every_order

from uvmshare.errors import ComputeSystemError, GuestAgentError, MountRevoked
from uvmshare.lifecycle.claims import Claims
from uvmshare.mounts import MountManager, MountOptions, engine
from uvmshare.mounts.engine import MountEngine
from uvmshare.mounts.interfaces import GuestMount
from uvmshare.mounts.mount import RETRY_FIRST
from uvmshare.mounts.state import MountLife
from uvmshare.share.manager import Manager
from uvmshare.share.options import AddOptions
from uvmshare.testing.explore import explore
from uvmshare.testing.fakes import FakeAgent, FakeReply, FakeVM, ListingFakeVM
from uvmshare.testing.schedule import VirtualLoop

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine

    from uvmshare.lifecycle.operation import Operation
    from uvmshare.mounts.mount import Mount
    from uvmshare.testing.fakes import FakeCall

PATH = "/run/uvmshare/x"
SHARE = AddOptions(os.path.dirname(__file__), read_only=True)
NAMED = MountOptions("0", PATH)
FAULTS = (FakeReply.FAIL, FakeReply.LOSE_BEFORE, FakeReply.LOSE_AFTER)


@dataclass(frozen=True)
class Bounds:
    """What one search covers. `mapped`: the share comes and goes with the mount."""

    title: str
    callers: tuple[Caller, ...]
    mapped: bool = True
    mute: bool = False
    """Whether the guest answers nothing any more once somebody is forced out."""
    cancels: int = 0
    faults: int = 0
    restarts: int = 0
    losses: int = 0
    """How often the VM loses all its shares, and the guest its mounts with them, and both go on."""
    loop_ends: bool = False

    def make(self) -> World:
        return World(self)


class DiallingAgent(FakeAgent):
    """One that mounts what the VM has, and nothing else."""

    def __init__(self, vm: FakeVM) -> None:
        super().__init__()
        self._vm = vm

    def _change(self, call: FakeCall) -> None:
        if call.kind == "add":
            assert isinstance(call.options, GuestMount)
            if call.options.share_name not in self._vm.shares:
                msg = f"the server has no share {call.options.share_name}"
                raise GuestAgentError(msg)
        super()._change(call)


class World:
    """Callers around one path; and what they may rely on, kept apart from what the MountManager says."""

    def __init__(self, bounds: Bounds) -> None:
        self.loop = VirtualLoop()
        self.vm = ListingFakeVM() if bounds.losses else FakeVM()
        self.agent = DiallingAgent(self.vm) if bounds.losses else FakeAgent()
        self.agent.hold = True
        self.vm.hold = bounds.mapped
        self.shares = Manager(self.vm, clock=lambda: 0.0)
        self.mounts = MountManager(self.agent, shares=self.shares, clock=lambda: 0.0)
        self.callers = bounds.callers
        self.mapped = bounds.mapped
        self.mute = bounds.mute
        self.forced = False
        self.taken_from_all = False
        self.cancels = bounds.cancels
        self.faults = bounds.faults
        self.restarts = bounds.restarts
        self.losses = bounds.losses
        self.may_lose = bool(bounds.losses)
        self.loop_ends = bounds.loop_ends
        self.ended = False
        self.progress = [0] * len(bounds.callers)
        self.tasks: list[asyncio.Task[None] | None] = [None] * len(bounds.callers)
        self.relied_on: set[str] = set()
        """Owners whose map returned and who began no unmap since."""
        self.doubtful: set[str] = set()
        """Owners who began an unmap: when it fails, or is cancelled, they may hold it or not."""
        self.lost = False
        """Whether the guest was started again and lost what it had."""

    # What happens.

    def state(self) -> object:
        for number, task in enumerate(self.tasks):
            if task is not None and task.done() and self.progress[number] == len(self.callers[number].does):
                self.tasks[number] = None
        return self

    def events(self) -> list[tuple[str, Callable[[], None]]]:
        events: list[tuple[str, Callable[[], None]]] = []
        for number, caller in enumerate(self.callers):
            task = self.tasks[number]
            if task is not None and not task.done():
                if self.cancels:
                    events.append((f"cancel {number}", partial(self._cancel, task)))
            elif may_start(self.callers, self.progress, number):
                does = caller.does[self.progress[number]]
                events.append((f"{number} {does}", partial(self._go_on, number)))
        for fake in (self.vm,) if self.mute and self.forced else (self.agent, self.vm):
            for name, held in fake.in_flight.items():
                if held.held:
                    replies = (
                        (FakeReply.SUCCEED, *FAULTS) if self.faults and held.kind != "list" else (FakeReply.SUCCEED,)
                    )
                    events += [
                        (f"{held}: {reply.value}", partial(self._answer, fake, name, reply)) for reply in replies
                    ]
        if self.restarts:
            events.append(("the guest restarts", self._restart))
        if self.losses:
            events.append(("the VM loses its shares", self._lose_shares))
        if self.loop_ends:
            events.append(("the loop ends", self._end_loop))
        return events

    def _go_on(self, number: int) -> None:
        caller = self.callers[number]
        does = caller.does[self.progress[number]]
        self.progress[number] += 1
        assert caller.owner is not None
        call: Coroutine[object, object, None]
        if does == "map":
            call = self._map(caller.owner)
        elif does == "unmap":
            self.relied_on.discard(caller.owner)
            self.doubtful.add(caller.owner)
            call = self._unmap(caller.owner)
        else:
            gone = {caller.owner} if does == "force" else self.relied_on | {caller.owner}
            self.relied_on -= gone
            self.doubtful |= gone
            self.forced = True
            self.taken_from_all = self.taken_from_all or does == "revoke"
            call = self._force(caller.owner, from_all=does == "revoke")
        self.tasks[number] = self.loop.create_task(call)

    def _cancel(self, task: asyncio.Task[None]) -> None:
        self.cancels -= 1
        task.cancel()

    def _answer(self, fake: FakeAgent | FakeVM, name: str, reply: FakeReply) -> None:
        self.faults -= reply is not FakeReply.SUCCEED
        fake.in_flight[name].answer(reply)

    def _restart(self) -> None:
        self.restarts -= 1
        self.loop.call_soon(self._lose)

    def _lose(self) -> None:
        self.lost = True
        self.agent.reconnect(restarted=True)

    def _lose_shares(self) -> None:
        self.losses -= 1
        self.lost = True
        self.vm.shares.clear()
        self.agent.mounts.clear()
        self.loop.call_soon(self._tell)

    def _tell(self) -> None:
        assert isinstance(self.vm, ListingFakeVM)
        self.vm.take_over()

    def _end_loop(self) -> None:
        self.loop_ends = False
        self.ended = True
        self.restarts = self.losses = 0
        self.progress = [len(caller.does) for caller in self.callers]
        cancel_everything(self.loop)

    async def _map(self, owner: str) -> None:
        try:
            if self.mapped:
                await self.mounts.map(SHARE, PATH, owner=owner)
            else:
                await self.mounts.mount(NAMED, owner=owner)
        except (ComputeSystemError, GuestAgentError, MountRevoked):
            return
        unmaps = any(
            task is not None and not task.done() and caller.owner == owner and self.progress[number] == 2
            for number, (caller, task) in enumerate(zip(self.callers, self.tasks, strict=True))
        )
        (self.doubtful if unmaps or self.taken_from_all else self.relied_on).add(owner)

    async def _unmap(self, owner: str) -> None:
        try:
            if self.mapped:
                await self.mounts.unmap(PATH, owner=owner)
            else:
                await self.mounts.unmount(PATH, owner=owner)
        except (ComputeSystemError, GuestAgentError):
            return

    async def _force(self, owner: str, *, from_all: bool) -> None:
        was_there = self.mounts._engine.table.get(PATH) is not None
        try:
            if from_all:
                left = await self.mounts.revoke(PATH)
            else:
                left = await self.mounts.unmap(PATH, owner=owner, force=True)
        except (ComputeSystemError, GuestAgentError):
            return
        entry = self.mounts._engine.table.get(PATH)
        wanted = entry is not None and (entry.wanted or entry.adding is not None)
        # Where nothing was to be forced, an earlier call that failed may have left a share: its caller was told, and
        # the Manager goes on taking it out.
        left_over = set() if was_there else {each.name for each in self.shares.shares() if each.orphan}
        assert wanted or not self.mapped or self.vm.shares.keys() <= left_over, "it was forced, and the share is there"
        assert left is None or owner not in left.owners

    # What must hold.

    def check(self) -> None:
        """After every step."""
        assert not self.agent.faults
        assert not self.vm.faults
        self._forget_history()
        entry = self.mounts._engine.table.get(PATH)
        there = self.agent.mounts.get(PATH)
        if there is not None:
            assert entry is not None, "the guest has a mount, and the MountManager does not know it"
            assert entry.wanted or entry.operation or entry.retry.waiting, "nobody wants the mount"
            if self.mapped and not entry.is_revoked:
                assert there.share_name in self.vm.shares, "the share was pulled from under a live mount"
        if entry is not None and entry.doomed and entry.holds_share and not self.ended:
            assert entry.revocation, "nobody wants it, and the guest decides how long its share stays"
        if self.mapped and self.vm.shares:
            going = any(share.operation or share.retry.waiting for share in self.shares._engine.table.values())
            assert entry is not None or going, "a share without its mount, and nobody takes it out"
        settling = self.mounts._comparisons.pending
        if entry is not None and entry.state is MountLife.MOUNTED and not self.lost:
            assert there is not None, "it is MOUNTED, and the guest does not have it"
        if entry is not None and entry.state is MountLife.INVALID:
            assert entry.retry.waiting, "nobody sees to the INVALID mount"
        if entry is not None and entry.is_revoked:
            assert not entry.references, "somebody holds what was revoked"
            assert entry.retry.waiting or entry.operation or entry.revocation, "nobody sees to the REVOKED mount"
        for owner in sorted(self.relied_on):
            assert entry is not None, f"the mount of {owner!r} is gone"
            assert owner in entry.owners, f"the reference of {owner!r} is gone"
            assert entry.state.busy != "unmounting", f"the mount of {owner!r} is being unmounted"
            if not self.lost:
                assert there is not None, f"the mount was taken from {owner!r}"
            elif there is None:
                # A Manager that has settled what its VM lost says so, and then the mounts are settled.
                settling = settling or (self.may_lose and (self.shares._comparisons.pending or bool(self.loop.ready)))
                assert settling or entry.operation or entry.retry.waiting, f"nobody mounts it again for {owner!r}"

    def _forget_history(self) -> None:
        """Keep only what decides how it goes on, so that equal states are seen to be equal."""
        self.agent.calls.clear()
        self.vm.calls.clear()
        self.agent._lists = 0 if not self.agent.in_flight else self.agent._lists
        for task in self.tasks:
            if task is not None and task.done() and not task.cancelled():
                task.result()  # raises what no call may

    def check_end(self) -> None:
        """When nothing can happen any more."""
        if self.mute and self.forced:
            self._check_mute_end()
            return
        assert not [task for task in self.tasks if task is not None and not task.done()], "a call waits for ever"
        assert not self.agent.in_flight
        assert not self.vm.in_flight
        entry = self.mounts._engine.table.get(PATH)
        owners = set(entry.owners) if entry is not None else set()
        assert self.relied_on <= owners <= self.relied_on | self.doubtful
        assert (PATH in self.agent.mounts) == bool(owners), "a mount too many, or one that did not come back"
        if self.mapped:
            assert bool(self.vm.shares) == bool(owners), "a share too many"
        if not owners:
            assert entry is None

    def _check_mute_end(self) -> None:
        """When a guest that answers nothing is all that is waited for."""
        for caller, task, made in zip(self.callers, self.tasks, self.progress, strict=True):
            forces = made == len(caller.does) and caller.does[-1] != "unmap"
            assert not forces or task is None or task.done(), "somebody who was to end it waits for the guest"
        entry = self.mounts._engine.table.get(PATH)
        wanted = entry is not None and entry.wanted
        assert wanted or not self.vm.shares, "a guest that says nothing keeps the share"


# ---------------------------------------------------------------------- every order

A, B, C = (Caller(owner, ("map", "unmap")) for owner in "abc")
FORCE_A, FORCE_B = (Caller(owner, ("map", "force")) for owner in "ab")
REVOKE = Caller("root", ("revoke",))

SHORT = (
    Bounds("share and mount: one owner, a fault", (A,), faults=1),
    Bounds("share and mount: one owner, a cancellation", (A,), cancels=1),
    Bounds("share and mount: two owners", (A, B)),
    Bounds("share and mount: one owner, the guest restarts", (A,), restarts=1),
    Bounds("share and mount: one owner, the VM loses its shares", (A,), losses=1),
    Bounds("forced: one owner, a fault", (FORCE_A,), faults=1),
    Bounds("forced: one owner, the guest goes mute, a cancellation", (FORCE_A,), mute=True, cancels=1),
    Bounds("from all: one owner, the guest goes mute", (A, REVOKE), mute=True),
    Bounds("a named share: two owners, a cancellation", (A, B), mapped=False, cancels=1),
    Bounds("a named share: two owners, a fault", (A, B), mapped=False, faults=1),
    Bounds("a named share: one owner, the guest restarts, a fault", (A,), mapped=False, restarts=1, faults=1),
)
LONG = (
    Bounds("a named share: one owner twice, a cancellation, a fault", (A, A), mapped=False, cancels=1, faults=1),
    Bounds("a named share: two owners, a cancellation, a fault", (A, B), mapped=False, cancels=1, faults=1),
    Bounds("a named share: two owners, the guest restarts", (A, B), mapped=False, restarts=1),
)
SOAK = (
    Bounds("share and mount: one owner, two faults", (A,), faults=2),
    Bounds("share and mount: two owners, a fault", (A, B), faults=1),
    Bounds("share and mount: two owners, a cancellation", (A, B), cancels=1),
    Bounds("share and mount: one owner, a cancellation, a fault", (A,), cancels=1, faults=1),
    Bounds("share and mount: one owner, the guest restarts, a fault", (A,), restarts=1, faults=1),
    Bounds("share and mount: one owner twice, a fault", (A, A), faults=1),
    Bounds("share and mount: one owner, the VM loses its shares, a fault", (A,), losses=1, faults=1),
    Bounds("share and mount: two owners, the VM loses its shares", (A, B), losses=1),
    Bounds("forced: one owner, the VM loses its shares", (FORCE_A,), losses=1),
    Bounds("forced: one owner, two faults", (FORCE_A,), faults=2),
    Bounds("forced: one owner, a cancellation, a fault", (FORCE_A,), cancels=1, faults=1),
    Bounds("forced: one of two owners, a fault", (FORCE_A, B), faults=1),
    Bounds("forced: one owner, the guest restarts", (FORCE_A,), restarts=1),
    Bounds("forced: one owner unmaps, the other is forced, the guest goes mute", (A, FORCE_B), mute=True),
    Bounds("from all: one owner, a fault", (A, REVOKE), faults=1),
    Bounds("from all: one owner, the guest goes mute, a cancellation", (A, REVOKE), mute=True, cancels=1),
    Bounds("forced: two owners, a fault", (FORCE_A, FORCE_B), faults=1),
    Bounds("forced: two owners, the guest goes mute, a fault", (FORCE_A, FORCE_B), mute=True, faults=1),
    Bounds("forced: one owner, a fault, the loop ends", (FORCE_A,), faults=1, loop_ends=True),
    Bounds("share and mount: two owners, a fault, the loop ends", (A, B), faults=1, loop_ends=True),
)
HUGE = (
    Bounds("share and mount: two owners, a cancellation, a fault", (A, B), cancels=1, faults=1),
    Bounds("from all: two owners, the guest goes mute, a cancellation", (A, B, REVOKE), mute=True, cancels=1),
    Bounds("from all: two owners, the guest restarts, a fault", (A, B, REVOKE), restarts=1, faults=1),
    Bounds("share and mount: two owners, the guest restarts, a fault", (A, B), restarts=1, faults=1),
    Bounds("a named share: three owners, a cancellation, a fault", (A, B, C), mapped=False, cancels=1, faults=1),
    Bounds("a named share: two owners, two restarts, a cancellation", (A, B), mapped=False, restarts=2, cancels=1),
)
"""These take from minutes to an hour each: ``UVMSHARE_ALL_ORDERS=1 make soak`` tries them too."""


@pytest.fixture(autouse=True)
def one_time_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have timers that were set together fire together: that they may come one by one is in the long searches."""
    monkeypatch.setattr(engine, "REVOKE_GRACE", RETRY_FIRST)
    monkeypatch.setattr(engine, "REVOKE_AGAIN", RETRY_FIRST)


@searches(SHORT, LONG, (*SOAK, *(HUGE if os.environ.get("UVMSHARE_ALL_ORDERS") else ())))
def test_every_order(bounds: Bounds, record_property: Callable[[str, object], None]) -> None:
    found = try_every_order(bounds, record_property)
    assert min(found.orders, found.states) > 50


def steal_claims(claims: Claims[Mount, MountOptions], mount: Mount) -> None:
    mount.claims = 0
    claims._engine.withdrawn(mount)


async def pull_the_share(engine: MountEngine, mount: Mount) -> None:
    if mount.share_name is not None:
        await engine.shares.remove(mount.share_name, owner=f"guest mount {mount.path}")  # type: ignore[union-attr]
        mount.share_name = None
    await engine.agent.remove_mapped_directory(NAMED)  # type: ignore[arg-type]  # any with the path
    mount.maybe_in_guest = False


def never_end(engine: MountEngine, mount: Mount, operation: Operation, task: object) -> None:
    mount.operation = None


@pytest.mark.parametrize(
    ("where", "method", "defect", "complaint", "mapped"),
    [
        (Claims, "withdraw", steal_claims, "is being unmounted|was taken from|is gone|nobody wants", False),
        (MountEngine, "_unmount_in_guest", pull_the_share, "pulled from under a live mount", True),
        (MountEngine, "_end", never_end, "waits for ever", True),
    ],
)
def test_a_planted_defect_is_found(
    monkeypatch: pytest.MonkeyPatch,
    where: type,
    method: str,
    defect: Callable[..., None],
    *,
    complaint: str,
    mapped: bool,
) -> None:
    monkeypatch.setattr(where, method, defect)
    with pytest.raises(AssertionError, match=complaint) as raised:
        explore(Bounds("", (A, B), mapped=mapped, cancels=1).make)
    assert raised.value.__notes__[0].startswith("after: 0 map")
