"""One look at one VM of a host: it compares what should be there with what is there, acts, and reports.

What lives here: `settle`, which brings one VM as near to what is wanted as it can, and returns the documents to
write. What must not: etcd, or when a VM is looked at (`follower`).

Everything here may be done again from its beginning at any moment: what is done is compared with what there is, never
with what was done before.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from uvmshare.daemon.documents import Mount, Share
from uvmshare.daemon.problems import problem_of
from uvmshare.errors import OutcomeUnknown, UvmshareError
from uvmshare.fleet.documents import Have, Holding, Outcome
from uvmshare.fleet.fence import length_of
from uvmshare.fleet.local import Arriving

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from uvmshare.fleet.documents import End, Want
    from uvmshare.fleet.local import Local, Seen, VmName

__all__ = ["PATIENCE", "Job", "Settled", "settle"]

PATIENCE: Final = 0.2
"""Seconds that a look waits for one holding, when others are to be told of. Most take milliseconds."""
_KEPT_OUTCOMES: Final = 64
"""Of one VM, the last ones: for gates that wait for them."""


@dataclass(frozen=True, slots=True)
class Settled:
    """What came of a look: the documents to write, and whether something is to be tried again."""

    want: Want
    have: Have
    is_unfinished: bool
    told: tuple[str, ...] = ()
    """The numbers of those whose end is in these documents: what came of them is not needed when they are written."""


class Result(NamedTuple):
    """What came of one holding."""

    holding: Holding | None
    """As it is wanted from now on; None for one that is struck out."""
    outcome: Outcome | None = None
    is_unfinished: bool = False


class Job(NamedTuple):
    """One holding that is being brought about, or ended, by a look or over several."""

    base: Holding
    is_ending: bool
    """Whether it is its end that was begun."""
    task: asyncio.Task[Result]

    def now(self, current: Holding) -> Result:
        """Return what came of it, as of what is wanted by now. It has to be done."""
        result = self.task.result()
        if result.holding is None:
            return result
        end = result.holding.end if current.end == self.base.end else current.end
        return result._replace(holding=msgspec.structs.replace(current, share=result.holding.share, end=end))


class _Look:
    """One look at one VM."""

    def __init__(
        self, local: Local, vm: VmName, revision: int, lives: Callable[[Holding], bool], before: Have | None
    ) -> None:
        self.local = local
        self.before = before
        self.names = 0 if before is None else before.names
        """The least that no share was called, as it was known before."""
        self.vm = vm
        self.revision = revision
        self.lives = lives
        self.is_unfinished = False

    def is_ending(self, holding: Holding) -> bool:
        return bool(holding.end) or not self.lives(holding)

    async def see(self) -> Seen | None:
        try:
            return await self.local.see(self.vm)
        except UvmshareError:  # it is still being found
            self.is_unfinished = True
            return None

    def problem(self, error: UvmshareError, thing: str) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.to_builtins(problem_of(error, thing))
        return found

    def outcome(self, error: UvmshareError, thing: str) -> Outcome:
        return Outcome(at=self.revision, problem=self.problem(error, thing))

    async def add_vm(self, want: Want) -> UvmshareError | None:
        try:
            if want.joined:
                await self.local.take_on(
                    self.vm, want.vm, [each for each in want.holdings.values() if self.lives(each)]
                )
            else:
                await self.local.add_vm(self.vm, want.vm, self._arriving(want))
        except UvmshareError as error:
            return error
        self.local.note_epoch(self.vm, want.epoch)
        return None

    async def begin_serving(self, tell: Callable[[VmName], Awaitable[None]]) -> UvmshareError | None:
        try:
            await tell(self.vm)
        except UvmshareError as error:
            return error
        except TimeoutError:
            return OutcomeUnknown(f"VM {self.vm.vm!r}: its file server does not answer")
        return None

    def _arriving(self, want: Want) -> Arriving | None:
        """Return what a VM brings along from another host."""
        if not want.names:
            return None
        told = [each for each in want.holdings.values() if each.share is not None]
        numbers = [int(each.share) for each in told if each.share is not None and each.share.isdecimal()]
        names = max(want.names, self.names, max(numbers, default=0) + 1)
        return Arriving(names, [each for each in told if not self.is_ending(each)])

    async def look_ahead(self, want: Want) -> Settled:
        """Say whether the host could have a VM that is on another host yet, and leave all as it is."""
        problem = None
        if want.prepare and self.before is not None and self.before.seen >= self.revision:
            problem = self.before.problem  # it was looked at, and a look takes a file server
        elif want.prepare:
            try:
                await self.local.prepare(self.vm, want.vm, [each for each in want.holdings.values() if not each.end])
            except UvmshareError as error:
                problem = self.problem(error, f"VM {self.vm.vm}")
        return Settled(want, Have(seen=self.revision, epoch=want.epoch, problem=problem), is_unfinished=False)

    async def hold(self, holding: Holding, seen: Seen | None, broken: UvmshareError | None) -> Result:
        """Bring about one holding, or its end; return what is wanted from now on, and what to tell of it."""
        if self.is_ending(holding):
            return await self._end(holding, holding.end if self.lives(holding) else "force")
        if holding.share is not None and seen is not None and seen.has(holding):
            return Result(holding)
        try:
            if broken is not None:
                raise broken
            share = await self.local.add(self.vm, holding)
        except UvmshareError as error:
            outcome = self.outcome(error, f"{holding.kind} of {holding.what.get('path')}, VM {self.vm.vm}")
            if holding.share is None:  # nobody was told that it is held
                return Result(None, outcome)
            return Result(holding, outcome, is_unfinished=True)
        return Result(msgspec.structs.replace(holding, share=share))

    async def _end(self, holding: Holding, how: End) -> Result:
        thing = f"release of {holding.what.get('path')}, VM {self.vm.vm}"
        try:
            released = await self.local.end(self.vm, holding, how)
        except UvmshareError as error:
            seen = await self.see()
            if seen is not None and not seen.has(holding):
                return Result(None, self.outcome(error, thing))
            if not self.lives(holding):
                return Result(holding, is_unfinished=True)
            return Result(msgspec.structs.replace(holding, end=""), self.outcome(error, thing))
        return Result(None, Outcome(at=self.revision, released=msgspec.to_builtins(released)))

    async def end_strays(self, holdings: Mapping[str, Holding], seen: Seen) -> bool:
        """End what the fleet's owners have and is wanted no more; say whether there was any."""
        shares = {(each.share, each.owner) for each in holdings.values() if each.kind == "share"}
        mounts = {(each.what.get("guest_path"), each.owner) for each in holdings.values() if each.kind == "mount"}
        strays = [
            Holding(kind="share", owner=reference.owner, what={"path": share.path}, share=share.name)
            for share in seen.shares
            for reference in share.references
            if (share.name, reference.owner) not in shares
        ]
        strays += [
            Holding(kind="mount", owner=each.owner, what={"path": mount.path, "guest_path": mount.guest_path})
            for mount in seen.mounts
            for each in mount.references
            if (mount.guest_path, each.owner) not in mounts
        ]
        for stray in strays:
            try:
                await self.local.end(self.vm, stray, "force")
            except UvmshareError:
                self.is_unfinished = True
        return bool(strays)


async def settle(  # noqa: PLR0917  each is another thing
    local: Local,
    vm: VmName,
    want: Want,
    revision: int,
    before: Have | None,
    lives: Callable[[Holding], bool],
    jobs: dict[str, Job],
    tell: Callable[[VmName], Awaitable[None]],
) -> Settled:
    """Bring one VM as near to what is wanted as it can be; return what is to be written.

    `revision` is that of `want`; `before` is what was written last; `lives` says whether the lease of a holding
    lives, at that same revision or later. `jobs` are those of earlier looks: one that takes longer than `PATIENCE`
    holds nothing else up, and is left in it. `tell` has the file server of a fenced VM serve, once it is there.
    """
    look = _Look(local, vm, revision, lives, before)
    if want.prepare or want.after:
        return await look.look_ahead(want)
    broken = await look.add_vm(want)
    if broken is None and length_of(want) is not None:
        broken = await look.begin_serving(tell)
    seen = await look.see()
    outcomes = dict(before.outcomes) if before is not None else {}
    holdings = dict(want.holdings)
    for id_ in [id_ for id_, job in jobs.items() if id_ not in holdings and job.task.done()]:
        del jobs[id_]
    told: list[str] = []

    def take_results() -> None:
        for id_ in [id_ for id_, job in jobs.items() if job.task.done() and id_ in holdings and id_ not in told]:
            job, result = jobs[id_], jobs[id_].now(holdings[id_])
            look.is_unfinished = look.is_unfinished or result.is_unfinished
            if result.outcome is not None:
                outcomes[id_] = result.outcome
            if result.holding is None:
                del holdings[id_]
                told.append(id_)
                continue
            holdings[id_] = result.holding
            is_begun = look.is_ending(result.holding) is job.is_ending
            if is_begun and (result.outcome is not None or result.holding.share != job.base.share):
                told.append(id_)  # kept until it is written
            else:  # nothing came of it; or its end is wanted by now
                del jobs[id_]

    take_results()
    # What ends goes first: the same may be wanted again already, by another number.
    for ending in (True, False):
        new = [id_ for id_, each in holdings.items() if look.is_ending(each) is ending and id_ not in jobs]
        for id_ in new:
            task = asyncio.get_running_loop().create_task(look.hold(holdings[id_], seen, broken))
            jobs[id_] = Job(holdings[id_], ending, task)
        if new:
            await asyncio.wait([jobs[id_].task for id_ in new], timeout=PATIENCE)
            take_results()
            seen = await look.see()
    pending = tuple(sorted(id_ for id_ in jobs if id_ in holdings and id_ not in told))
    if seen is not None and not pending and await look.end_strays(holdings, seen):
        seen = await look.see()
    if broken is not None and seen is not None:
        look.is_unfinished = True
    kept = sorted(outcomes, key=lambda id_: outcomes[id_].at)[-_KEPT_OUTCOMES:]
    have = Have(
        seen=revision,
        epoch=want.epoch,
        vm=msgspec.to_builtins(seen.vm) if seen is not None else _last_vm(before, broken),
        problem=None if broken is None else look.problem(broken, f"VM {vm.vm}"),
        shares=[]
        if seen is None
        else [_with_leases(each, "share", holdings) for each in seen.shares if each.references or each.mounts],
        mounts=[] if seen is None else [_with_leases(each, "mount", holdings) for each in seen.mounts],
        names=look.names if seen is None else max(look.names, seen.names),
        held={id_: each.share for id_, each in holdings.items() if each.share is not None},
        outcomes={id_: outcomes[id_] for id_ in kept},
        pending=pending,
    )
    return Settled(msgspec.structs.replace(want, holdings=holdings), have, look.is_unfinished, tuple(told))


def _with_leases(document: Share | Mount, kind: str, holdings: Mapping[str, Holding]) -> dict[str, Any]:
    """Return a document with the lengths of leases, which only etcd knows: a host that gets its VM back needs them."""
    place = document.name if isinstance(document, Share) else document.guest_path
    seconds = {
        each.owner: each.seconds
        for each in holdings.values()
        if (each.kind, each.share if kind == "share" else each.what.get("guest_path")) == (kind, place)
    }
    references = tuple(
        msgspec.structs.replace(each, lease=seconds.get(each.owner), expires_in=None) for each in document.references
    )
    found: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(document, references=references))
    return found


def _last_vm(before: Have | None, broken: UvmshareError | None) -> dict[str, Any] | None:
    """Return the VM as it was, of one that the daemon is still finding."""
    if before is None or before.vm is None or broken is not None:
        return None
    return {**before.vm, "state": "finding"}
