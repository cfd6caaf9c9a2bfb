"""Lives of a process with a Manager and an SQLite journal, each of which may be killed (SIGKILL) at a numbered point.

Run as ``python life.py``: it reads requests, JSON lines, and forks a process for each, which takes some milliseconds
where a new interpreter would take hundreds; the answer is a line that says how it ended.

A point comes before every callback of the event loop, so at every await of everything; before every SQL statement,
after every commit; and before and after the VM does what it is asked. What lives here: what a life does. What must
not: what has to hold afterwards; that is the test's.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

from uvmshare.errors import OutcomeUnknown, ShareExists, ShareNotFound
from uvmshare.lifecycle.entry import BlockOwner
from uvmshare.share.ledger import Ledger
from uvmshare.share.manager import Manager
from uvmshare.share.options import AddOptions
from uvmshare.sqlite_journal import SqliteJournal
from uvmshare.sqlite_journal.store import JournalFile

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping, Sequence

    from uvmshare.share.interfaces import NamedShare
    from uvmshare.share.journal import Record
    from uvmshare.share.share import Share


assert sys.platform != "win32", "Windows has neither fork() nor SIGKILL"


class Points:
    """Counts the points that are passed, in whichever thread, and kills this process at one of them."""

    def __init__(self, deadly: int) -> None:
        self._deadly = deadly
        self._guard = threading.Lock()
        self.passed = 0

    def __call__(self) -> None:
        with self._guard:
            self.passed += 1
            if self.passed == self._deadly:
                os.kill(os.getpid(), signal.SIGKILL)
                signal.pause()  # not one instruction more

    def everywhere(self) -> None:
        """Have the event loop and the journal pass points."""
        run = asyncio.Handle._run
        write, opened = JournalFile.write, JournalFile._open

        def counted_run(handle: asyncio.Handle) -> None:
            self()
            run(handle)

        def counted_write(store: JournalFile, batches: Iterable[tuple[str, Sequence[Record]]]) -> None:
            write(store, batches)
            self()

        def counted_open(store: JournalFile) -> None:
            opened(store)
            store._connection.set_trace_callback(lambda _: self())

        asyncio.Handle._run = counted_run  # type: ignore[method-assign,assignment]  # that is how the points get there
        JournalFile.write = counted_write  # type: ignore[method-assign,assignment]  # the same
        JournalFile._open = counted_open  # type: ignore[method-assign,assignment]  # the same


class FileVM:
    """A VM that outlives the process: a file for each share, and a log of every add that was carried out."""

    def __init__(self, directory: str, points: Points) -> None:
        self._directory = os.path.join(directory, "vm")
        self._log = os.path.join(directory, "added")
        self._points = points
        self.lose_next = False
        os.makedirs(self._directory, exist_ok=True)

    async def add_plan9(self, share: NamedShare) -> None:
        self._points()
        await asyncio.sleep(0)
        self._put(share)
        await self._answer()

    def _put(self, share: NamedShare) -> None:
        options = share.options
        text = json.dumps([options.host_path, options.read_only, options.allowed_names])
        path = os.path.join(self._directory, share.name)
        if os.path.exists(path):
            msg = f"share {share.name} is there"
            raise ShareExists(msg)
        append(self._log, [share.name, text])
        with open(path + ".new", "w", encoding="utf-8") as file:
            file.write(text)
        os.rename(path + ".new", path)

    async def remove_plan9(self, share: NamedShare) -> None:
        self._points()
        await asyncio.sleep(0)
        try:
            os.unlink(os.path.join(self._directory, share.name))
        except FileNotFoundError as error:
            msg = f"share {share.name} is not there"
            raise ShareNotFound(msg) from error
        await self._answer()

    async def _answer(self) -> None:
        self._points()
        await asyncio.sleep(0)
        if self.lose_next:
            self.lose_next = False
            msg = "no answer"
            raise OutcomeUnknown(msg)

    def has(self) -> dict[str, list[Any]]:
        """Return what is there, by name."""
        found = {}
        for name in os.listdir(self._directory):
            if not name.endswith(".new"):
                with open(os.path.join(self._directory, name), encoding="utf-8") as file:
                    found[name] = json.load(file)
        return found


class ListingFileVM(FileVM):
    """One that can be asked."""

    async def list_plan9(self) -> Mapping[str, AddOptions]:
        await asyncio.sleep(0)
        return {
            name: AddOptions.recalled(path, read_only=only, allowed_names=tuple(names))
            for name, (path, only, names) in self.has().items()
        }


def append(path: str, what: object) -> None:
    """Add a line to a file, at once and whole."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(descriptor, json.dumps(what).encode() + b"\n")
    os.close(descriptor)


class Callers:
    """Those who ask, and keep a record of what they were told that the process's end does not touch."""

    def __init__(self, directory: str, manager: Manager) -> None:
        self._told = os.path.join(directory, "told")
        self._manager = manager

    async def add(self, options: AddOptions, owner: str | None) -> str | None:
        append(self._told, ["adding", owner, options.host_path])
        try:
            name = await self._manager.add(options, owner=owner)
        except OutcomeUnknown:
            append(self._told, ["failed", owner, options.host_path])
            return None
        append(self._told, ["added", owner, options.host_path, name])
        return name

    async def remove(self, name: str | None, owner: str | None) -> None:
        if name is not None:
            append(self._told, ["removing", owner, name])
            await self._manager.remove(name, owner=owner)
            append(self._told, ["removed", owner, name])


async def first_life(callers: Callers, manager: Manager, vm: FileVM, shared: list[AddOptions]) -> None:
    """Do everything that a Manager can do, some of it at the same time."""
    one, two, three, four = shared
    a, b, _ = await asyncio.gather(callers.add(one, "a"), callers.add(one, "b"), callers.add(two, "a"))
    await callers.add(one, None)
    async with manager.share(three):
        await callers.add(two, "b")
    await callers.remove(a, "a")
    second = manager.resolve_share_name(two)
    await asyncio.gather(callers.remove(b, "b"), callers.remove(second, "a"))
    vm.lose_next = True
    await callers.add(three, "c")
    adding = asyncio.create_task(callers.add(four, "d"))
    await asyncio.sleep(0)
    adding.cancel()
    await asyncio.gather(adding, return_exceptions=True)
    await callers.add(three, "c")
    await callers.remove(second, "b")


async def live(directory: str, points: Points, request: dict[str, Any]) -> None:
    shared = [AddOptions(os.path.join(directory, name), read_only=True) for name in ("1", "2", "3", "4")]
    vm = (ListingFileVM if request["lists"] else FileVM)(directory, points)
    with SqliteJournal(os.path.join(directory, "journal.db")) as journal:
        manager = Manager(vm, journal=journal.for_vm("vm"))
        await manager.recover()
        callers = Callers(directory, manager)
        if request["life"] == "first":
            await first_life(callers, manager, vm, shared)
        elif request["life"] == "last":
            await callers.add(AddOptions(directory), "last")
            shares = [
                [info.name, info.options.host_path, info.state.value, info.owners, info.references, info.orphan]
                for info in manager.shares()
            ]
            append(os.path.join(directory, "state"), {"shares": shares, "vm": vm.has()})
        await manager.detach()


def plant_defect() -> None:
    """Have the Manager tell of references that are not on the disk: the test must find what that loses."""

    async def told_at_once(ledger: Ledger, share: Share, owner: Hashable | None) -> None:
        if not isinstance(owner, BlockOwner):
            ledger._confirming[share.name, owner] += 1
            ledger._note_reference(share, owner)

    Ledger.confirm = told_at_once  # type: ignore[method-assign,assignment]  # that is what a planted defect is


def fork(request: dict[str, Any]) -> int:
    """Live one life in a process of its own and return its wait status."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    try:
        points = Points(request["kill_at"])
        points.everywhere()
        if request["defect"]:
            plant_defect()
        asyncio.run(live(request["directory"], points, request))
        append(os.path.join(request["directory"], "points"), points.passed)
    except BaseException:  # noqa: BLE001  this process ends here, whatever it was
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)


def main() -> None:
    for line in sys.stdin:
        status = fork(json.loads(line))
        print(json.dumps(os.waitstatus_to_exitcode(status)), flush=True)  # noqa: T201  the answer


if __name__ == "__main__":
    main()
