"""A utility VM that is not one, for tests of everything above it.

    vm = FakeVM()
    manager = Manager(vm)
    vm.replies.append(Reply.LOSE_AFTER)        # how the next call ends
    vm.hold = True                             # later ones wait until the test answers
    ...
    vm.in_flight["0"].answer(Reply.SUCCEED)

What lives here: `FakeVM`, which keeps what it truly has apart from what it answers. What must not:
waiting for real time, or anything of a real VM.
"""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from uvmshare.errors import ComputeSystemError, ComputeSystemGone, OutcomeUnknown, ShareExists, ShareNotFound

if TYPE_CHECKING:
    from uvmshare.share.interfaces import Plan9Share
    from uvmshare.share.options import AddOptions

__all__ = ["FakeCall", "FakeVM", "Reply"]


class Reply(enum.Enum):
    """How a call to the fake ends."""

    SUCCEED = "succeed"
    FAIL = "fail"
    """Certainly not done: raises `ComputeSystemError`."""
    LOSE_BEFORE = "lose before"
    """Not done, and no answer: raises `OutcomeUnknown`."""
    LOSE_AFTER = "lose after"
    """Done, and no answer: raises `OutcomeUnknown`."""
    NEVER = "never"
    """Not done, and no answer until the call itself is cancelled."""


@dataclass(slots=True, eq=False)
class FakeCall:
    """One call that the fake was given."""

    kind: Literal["add", "remove"]
    name: str
    options: AddOptions
    _held: asyncio.Future[Reply | Exception] | None = None

    @property
    def held(self) -> bool:
        """Whether it waits for `answer`."""
        return self._held is not None and not self._held.done()

    def answer(self, reply: Reply | Exception) -> None:
        """End a call that is being held; an exception is raised in it before anything is done."""
        if self._held is None or not self.held:
            msg = f"{self.kind} of share {self.name} is not being held"
            raise RuntimeError(msg)
        self._held.set_result(reply)

    async def _wait(self) -> Reply | Exception:
        self._held = asyncio.get_running_loop().create_future()
        return await self._held


class FakeVM:
    """A `VMPlan9` in memory, whose every answer a test decides.

    A call ends as the next of `replies` says; when there is none, it waits to be answered if `hold` is true, and
    succeeds at once otherwise.
    """

    def __init__(self) -> None:
        self.shares: dict[str, AddOptions] = {}
        """What the VM truly has, by name."""
        self.calls: list[FakeCall] = []
        """Every call, oldest first."""
        self.in_flight: dict[str, FakeCall] = {}
        """The calls that have not ended, by the name of the share."""
        self.replies: deque[Reply | Exception] = deque()
        """How the next calls end. An exception is raised before anything is done."""
        self.hold = False
        """Whether calls without a reply wait for `FakeCall.answer`."""
        self.gone = False
        """Whether the VM no longer exists: every call raises `ComputeSystemGone`."""
        self.faults: list[str] = []
        """What no Manager may do to a VM, and did: two calls for one name at a time."""

    async def add_plan9(self, share: Plan9Share) -> None:
        """Take the share, or not, as the reply says. Raises `ShareExists` for a name it has."""
        await self._serve(FakeCall("add", share.name, share.options))

    async def remove_plan9(self, share: Plan9Share) -> None:
        """Lose the share, or not, as the reply says. Raises `ShareNotFound` for a name it does not have."""
        await self._serve(FakeCall("remove", share.name, share.options))

    async def _serve(self, call: FakeCall) -> None:
        self.calls.append(call)
        if call.name in self.in_flight:
            fault = f"{call.kind} of share {call.name} came during its {self.in_flight[call.name].kind}"
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

    async def _reply_to(self, call: FakeCall) -> Reply | Exception:
        if self.replies:
            reply = self.replies.popleft()
        elif self.hold:
            reply = await call._wait()  # noqa: SLF001  the two classes are one thing
        else:
            reply = Reply.SUCCEED
        if reply is Reply.NEVER:
            await asyncio.get_running_loop().create_future()
        return reply

    def _carry_out(self, call: FakeCall, reply: Reply) -> None:
        where = f"{call.kind} of share {call.name}"
        if self.gone:
            msg = f"{where}: the virtual machine no longer exists"
            raise ComputeSystemGone(msg)
        if reply is Reply.FAIL:
            msg = f"{where}: the test says that it fails"
            raise ComputeSystemError(msg)
        if reply is not Reply.LOSE_BEFORE:
            self._change(call)
        if reply is not Reply.SUCCEED:
            msg = f"{where}: the test says that the answer is lost"
            raise OutcomeUnknown(msg)

    def _change(self, call: FakeCall) -> None:
        if call.kind == "add":
            if call.name in self.shares:
                msg = f"the VM already has a share {call.name}"
                raise ShareExists(msg)
            self.shares[call.name] = call.options
        elif self.shares.pop(call.name, None) is None:
            msg = f"the VM has no share {call.name}"
            raise ShareNotFound(msg)
