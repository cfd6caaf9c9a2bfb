"""Fakes of a utility VM and of a guest's agent, for tests of everything above them.

    vm = FakeVM()
    manager = Manager(vm)
    vm.replies.append(FakeReply.LOSE_AFTER)        # how the next call ends
    vm.hold = True                             # later ones wait until the test answers
    ...
    vm.in_flight["0"].answer(FakeReply.SUCCEED)

What lives here: `FakeVM` and `FakeAgent`, which keep what they truly have apart from what they answer, and
`FakeJournal`, which does the same with what was written down. What must not: waiting for real time, or anything of
a real VM or disk.
"""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from uvmshare.errors import (
    ComputeSystemError,
    ComputeSystemGone,
    GuestAgentError,
    JournalError,
    MountNotFound,
    MountRefused,
    OutcomeUnknown,
    ShareExists,
    ShareNotFound,
)
from uvmshare.mounts.interfaces import Mounted
from uvmshare.share.journal import JournalState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from uvmshare.mounts.interfaces import GuestMount
    from uvmshare.share.interfaces import NamedShare
    from uvmshare.share.journal import Record
    from uvmshare.share.options import AddOptions

__all__ = ["FakeAgent", "FakeAppend", "FakeCall", "FakeJournal", "FakeReply", "FakeVM", "ListingFakeVM"]


class FakeReply(enum.Enum):
    """How a call to the fake ends."""

    SUCCEED = "succeed"
    FAIL = "fail"
    """Certainly not done: raises `ComputeSystemError`, or `GuestAgentError`."""
    LOSE_BEFORE = "lose before"
    """Not done, and no answer: raises `OutcomeUnknown`."""
    LOSE_AFTER = "lose after"
    """Done, and no answer: raises `OutcomeUnknown`."""
    NEVER = "never"
    """Not done, and no answer until the call itself is cancelled."""


@dataclass(slots=True, eq=False)
class FakeCall:
    """One call that the fake was given: `name` is a share's name, or a path in the guest."""

    kind: Literal["add", "remove", "list"]
    name: str
    options: AddOptions | GuestMount | None
    lazy: bool = False
    _held: asyncio.Future[FakeReply | Exception] | None = None

    def __str__(self) -> str:
        return f"{self.kind} of {'' if self.name.startswith('/') else 'share '}{self.name}"

    @property
    def held(self) -> bool:
        """Whether it waits for `answer`."""
        return self._held is not None and not self._held.done()

    def answer(self, reply: FakeReply | Exception) -> None:
        """End a call that is being held; an exception is raised in it before anything is done."""
        if self._held is None or not self.held:
            msg = f"{self} is not being held"
            raise RuntimeError(msg)
        self._held.set_result(reply)

    async def _wait(self) -> FakeReply | Exception:
        self._held = asyncio.get_running_loop().create_future()
        return await self._held


class _Fake:
    """What answers as a test decides.

    A call ends as the next of `replies` says; when there is none, it waits to be answered if `hold` is true, and
    succeeds at once otherwise.
    """

    _failure: type[Exception]

    def __init__(self) -> None:
        self.calls: list[FakeCall] = []
        """Every call, oldest first."""
        self.in_flight: dict[str, FakeCall] = {}
        """The calls that have not ended, by name."""
        self.replies: deque[FakeReply | Exception] = deque()
        """How the next calls end. An exception is raised before anything is done."""
        self.hold = False
        """Whether calls without a reply wait for `FakeCall.answer`."""
        self.gone = False
        """Whether the VM no longer exists: every call raises `ComputeSystemGone`."""
        self.faults: list[str] = []
        """What no Manager may do, and did: two calls for one name at a time."""

    async def _serve(self, call: FakeCall) -> None:
        self.calls.append(call)
        if call.name in self.in_flight:
            fault = f"{call} came during its {self.in_flight[call.name].kind}"
            self.faults.append(fault)
            raise AssertionError(fault)
        self.in_flight[call.name] = call
        try:
            reply = await self._reply_to(call)
            if isinstance(reply, Exception):
                raise reply
            self._carry_out(call, reply)
        finally:
            del self.in_flight[call.name]

    async def _reply_to(self, call: FakeCall) -> FakeReply | Exception:
        if self.replies:
            reply = self.replies.popleft()
        elif self.hold:
            reply = await call._wait()  # noqa: SLF001  the two classes are one thing
        else:
            reply = FakeReply.SUCCEED
        if reply is FakeReply.NEVER:
            await asyncio.get_running_loop().create_future()
        return reply

    def _carry_out(self, call: FakeCall, reply: FakeReply) -> None:
        if self.gone:
            msg = f"{call}: the virtual machine no longer exists"
            raise ComputeSystemGone(msg)
        if reply is FakeReply.FAIL:
            msg = f"{call}: the test says that it fails"
            raise self._failure(msg)
        if reply is not FakeReply.LOSE_BEFORE:
            self._change(call)
        if reply is not FakeReply.SUCCEED:
            msg = f"{call}: the test says that the answer is lost"
            raise OutcomeUnknown(msg)

    def _change(self, call: FakeCall) -> None:
        raise NotImplementedError


class FakeVM(_Fake):
    """A `VMPlan9` in memory, whose every answer a test decides: by `replies`, and by `hold` when there are none."""

    _failure = ComputeSystemError

    def __init__(self) -> None:
        super().__init__()
        self.shares: dict[str, AddOptions] = {}
        """What the VM truly has, by name."""

    async def add_plan9(self, share: NamedShare) -> str | None:
        """Take the share, or not, as the reply says; tell no directory. Raises `ShareExists` for a name it has."""
        await self._serve(FakeCall("add", share.name, share.options))
        return None

    async def remove_plan9(self, share: NamedShare) -> None:
        """Lose the share, or not, as the reply says. Raises `ShareNotFound` for a name it does not have."""
        await self._serve(FakeCall("remove", share.name, share.options))

    def _change(self, call: FakeCall) -> None:
        if call.kind == "add":
            if call.name in self.shares:
                msg = f"the VM already has a share {call.name}"
                raise ShareExists(msg)
            self.shares[call.name] = cast("AddOptions", call.options)
        elif self.shares.pop(call.name, None) is None:
            msg = f"the VM has no share {call.name}"
            raise ShareNotFound(msg)


class FakeAgent(_Fake):
    """A `GuestAgent` in memory, whose every answer a test decides: by `replies`, and by `hold` when there are none."""

    _failure = GuestAgentError

    def __init__(self) -> None:
        super().__init__()
        self.mounts: dict[str, GuestMount] = {}
        """What the guest truly has, by path."""
        self.chosen: str | None = None
        """What it tells of cache and msize when it has mounted."""
        self.no_events: str | None = None
        """What it tells then of why there are no events."""
        self._on_connect: list[Callable[[], None]] = []
        self._lists = 0

    async def add_mapped_directory(self, mount: GuestMount) -> Mounted:
        """Mount, or not, as the reply says. Raises `MountRefused` when the path has another mount."""
        await self._serve(FakeCall("add", mount.mount_path, mount))
        return Mounted(self.chosen, self.no_events)

    async def remove_mapped_directory(self, mount: GuestMount, *, lazy: bool = False) -> None:
        """Unmount, or not, as the reply says. Raises `MountNotFound` for a path without a mount."""
        await self._serve(FakeCall("remove", mount.mount_path, mount, lazy))

    async def mapped_directories(self) -> tuple[GuestMount, ...]:
        """Return what the guest had when it was asked; the answer comes as the reply says."""
        had = tuple(self.mounts.values())
        self._lists += 1
        await self._serve(FakeCall("list", f"/list/{self._lists}", None))
        return had

    def on_connect(self, callback: Callable[[], None]) -> None:
        """Keep the callback for `reconnect`."""
        self._on_connect.append(callback)

    def reconnect(self, *, restarted: bool) -> None:
        """Tell that the agent was reached again; `restarted`: the guest was started again and has no mounts."""
        if restarted:
            self.mounts.clear()
        for callback in self._on_connect:
            callback()

    def _change(self, call: FakeCall) -> None:
        if call.kind == "add":
            mount = cast("GuestMount", call.options)
            if self.mounts.get(call.name, mount) != mount:
                msg = f"{call.name} has another mount"
                raise MountRefused(msg)
            self.mounts[call.name] = mount
        elif call.kind == "remove" and self.mounts.pop(call.name, None) is None:
            msg = f"the guest has no mount at {call.name}"
            raise MountNotFound(msg)


class ListingFakeVM(FakeVM):
    """One that can be asked what it has, and that may lose shares and go on, as the Linux file server can."""

    def __init__(self) -> None:
        super().__init__()
        self._on_takeover: list[Callable[[object], None]] = []

    def on_takeover(self, callback: Callable[[object], None]) -> None:
        """Keep the callback for `take_over`."""
        self._on_takeover.append(callback)

    def take_over(self, *lost: str) -> None:
        """Tell of a takeover, in which the shares of these names were lost."""
        for name in lost:
            del self.shares[name]
        for callback in self._on_takeover:
            callback(lost)

    async def list_plan9(self) -> Mapping[str, AddOptions]:
        """Tell what it truly has. Raises `ComputeSystemGone` when it no longer exists."""
        if self.gone:
            msg = "the virtual machine no longer exists"
            raise ComputeSystemGone(msg)
        return dict(self.shares)


@dataclass(slots=True, eq=False)
class FakeAppend:
    """One append that the fake journal was given."""

    records: tuple[Record, ...]
    _held: asyncio.Future[FakeReply]

    @property
    def held(self) -> bool:
        """Whether it waits for `answer`."""
        return not self._held.done()

    def answer(self, reply: FakeReply) -> None:
        """End it: see `FakeJournal`."""
        self._held.set_result(reply)


class FakeJournal:
    """A `Journal` in memory, which outlives the Manager, and whose every answer a test decides.

    An append ends as the next of `replies` says; when there is none, it waits to be answered if `hold` is true, and
    succeeds at once otherwise. FAIL and LOSE_BEFORE write nothing and raise `JournalError`; LOSE_AFTER writes and
    raises it; NEVER writes nothing and waits.
    """

    def __init__(self) -> None:
        self.state = JournalState()
        """What is on the disk."""
        self.replies: deque[FakeReply] = deque()
        """How the next appends end."""
        self.broken = False
        """Whether every append fails, as on a full disk."""
        self.hold = False
        """Whether appends without a reply wait for `FakeAppend.answer`."""
        self.in_flight: list[FakeAppend] = []
        """The appends that have not ended, oldest first."""
        self.appended: list[tuple[Record, ...]] = []
        """Every append that was written, oldest first."""

    async def load(self) -> JournalState:
        """Return what is on the disk. Raises `JournalError` when it is broken."""
        if self.broken:
            msg = "the test says that the journal cannot be read"
            raise JournalError(msg)
        return JournalState(self.state.next_name, dict(self.state.shares))

    async def append(self, records: Sequence[Record]) -> None:
        """Write the records, or not, as the reply says."""
        append = FakeAppend(tuple(records), asyncio.get_running_loop().create_future())
        self.in_flight.append(append)
        try:
            if self.broken:
                reply = FakeReply.FAIL
            elif self.replies:
                reply = self.replies.popleft()
            else:
                reply = await append._held if self.hold else FakeReply.SUCCEED  # noqa: SLF001  the two are one
            if reply is FakeReply.NEVER:
                await asyncio.get_running_loop().create_future()
            if reply in (FakeReply.SUCCEED, FakeReply.LOSE_AFTER):
                self.write(append.records)
            if reply is not FakeReply.SUCCEED:
                msg = f"the test says that the append fails ({reply.value})"
                raise JournalError(msg)
        finally:
            self.in_flight.remove(append)

    def write(self, records: tuple[Record, ...]) -> None:
        """Have the records on the disk."""
        for record in records:
            self.state.apply(record)
        self.appended.append(records)
