"""What the engines of both managers do alike: the table of what they keep, trying again, and the end.

What lives here: `Engine`, with the table, what is tried again, and the end: by closing, or because the VM has exited.
What must not: a call to a VM or a guest, or what the end of one means.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from uvmshare.errors import ComputeSystemGone, ManagerClosed
from uvmshare.lifecycle.entry import Entry

if TYPE_CHECKING:
    import logging
    from collections.abc import Awaitable, Callable, Hashable

    from uvmshare.errors import MountsLeft, SharesLeft
    from uvmshare.lifecycle.operation import Operation

__all__ = ["Engine"]

E = TypeVar("E", bound=Entry[Any, Any])
O = TypeVar("O")  # noqa: E741  what is asked for: options


class Engine(ABC, Generic[E, O]):
    """The entries of one VM or guest, and what becomes of those that are not as they should be."""

    is_closed: ClassVar[str]
    """What whoever asks for something is told after the end."""
    is_gone: ClassVar[str]
    """What they are told when the VM has exited, before the reason of that."""
    log: ClassVar[logging.Logger]
    """Where it is told what is tried again (`uvmshare.heard`)."""
    error_of_left: ClassVar[type[SharesLeft | MountsLeft]]
    """The error that says what could not be taken away, and why."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.closed = False
        self.vm_gone: ComputeSystemGone | None = None
        self.table: dict[str, E] = {}
        """Every entry that is there, may be there, or should be, by its name or path."""

    # ------------------------------------------------------------------ what may be asked for

    def require_open(self) -> None:
        """Refuse what comes after the end. Raises `ManagerClosed`."""
        if self.closed:
            raise ManagerClosed(self.is_closed)

    def admit(self, options: O) -> None:
        """Refuse what cannot or may not be had. Raises `ManagerClosed`, `ComputeSystemGone`, and as `require_able`."""
        self.require_open()
        if self.vm_gone is not None:
            msg = f"{self.is_gone}: {self.vm_gone}"
            raise ComputeSystemGone(msg) from self.vm_gone
        self.require_able(options)

    @abstractmethod
    def require_able(self, options: O) -> None:
        """Refuse options of the wrong type, and those that can never be had here."""

    # ------------------------------------------------------------------ what a claim needs

    @abstractmethod
    def join(self, options: O) -> E:
        """Return the entry that these options join, a new one if there is none."""

    @abstractmethod
    def goes_first(self, entry: E, options: O) -> Awaitable[None] | None:
        """Return what has to end before these options can join; then one looks again."""

    @abstractmethod
    def bring(self, entry: E) -> Operation:
        """Begin to make it live, for the first time or again."""

    @abstractmethod
    def take_away(self, entry: E) -> Operation | None:
        """Begin to take it away; None when there was nothing to do, and it is gone."""

    def claimed(self, entry: E) -> None:
        """Take note that somebody is about to hold it."""

    def require_joined(self, entry: E) -> None:
        """Refuse one that was made live, and is no longer to be had when those who waited wake up."""

    def withdrawn(self, entry: E) -> None:
        """See to one that a caller does not want any more; nothing may be started at once."""
        self.see_to_later(entry)

    def let_go(self, entry: E, owner: Hashable | None) -> None:
        """Take note that the reference of an owner is gone."""

    @abstractmethod
    async def end_block(self, entry: E, owner: Hashable) -> None:
        """Release the reference of a block, which goes whatever the answer is, and raise why the rest failed."""

    @abstractmethod
    def not_yet(self, entry: E) -> str:
        """Return in words that it could not be taken away yet."""

    @abstractmethod
    def called(self, entry: E) -> str:
        """Return what it is called in the log."""

    # ------------------------------------------------------------------ what nobody waits for

    def see_to(self, entry: E) -> None:
        """Do now what is to be done, if there is anything."""
        if entry.to_be_taken_away:
            self.take_away(entry)
        elif entry.to_be_restored and not self.closed:
            self.bring(entry)
        else:  # somebody wants it again
            entry.retry.reset()

    def see_to_later(self, entry: E) -> None:
        """If it is to be taken away, or back, see to it after a while, and after a longer one each time."""
        if not self.closed and (entry.to_be_taken_away or entry.to_be_restored):
            if not entry.retry.waiting:
                why = entry.last_error or "nobody wants it"
                self.log.info("%s is seen to again later: %s", self.called(entry), why)
            entry.retry.later(partial(self.see_to, entry))

    # ------------------------------------------------------------------ the end

    async def take_everything_away(self) -> None:
        """Take away whatever is there, whoever holds it. Waits for what is under way.

        What cannot be taken away is still in the table then.
        """
        tried: set[E] = set()
        while True:
            for entry in tuple(self.table.values()):
                if not entry.under_way() and entry not in tried:
                    tried.add(entry)
                    self.end(entry)
            operations = [operation for entry in self.table.values() for operation in entry.under_way()]
            if not operations:
                break
            for operation in operations:
                await operation.wait()

    def left(self) -> dict[str, BaseException]:
        """Return what is in the table after that, and why."""
        return {key: self.why_left(entry) for key, entry in self.table.items()}

    def why_left(self, entry: E) -> BaseException:
        """Return why it could not be taken away."""
        assert entry.last_error is not None, "what is left was tried, and failed"
        return entry.last_error

    @abstractmethod
    def end(self, entry: E) -> None:
        """Begin to take it away, whoever holds it."""

    def exit(self, error: ComputeSystemGone) -> None:
        """Note that the VM has exited. What has a call in flight is released when that ends."""
        self.vm_gone = error
        for entry in tuple(self.table.values()):
            entry.retry.withdraw()
            self.release_exited(entry)

    @abstractmethod
    def release_exited(self, entry: E) -> None:
        """Forget it, unless a call is in flight for it."""
