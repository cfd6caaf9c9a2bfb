"""The agent's mounts: adding, removing, watching them, and mounting them again.

What lives here: the table, the file that it is kept in, and what happens to a mount whose connection is lost. What
must not: how the host reaches the agent (`uvmshare.guest.agent`), or what the child processes do
(`uvmshare.guest.work`). Standard library only (Python 3.9): it runs in guests.

A dead 9P connection never comes back; the kernel answers EIO on it for ever. The agent keeps a descriptor of each
mount's socket, which tells at once when it is hung up; after a restart of its own it has none and finds out by
reading. A lost mount stays where it is until a new one is ready, so that nobody writes into the directory below it.
"""

from __future__ import annotations

import json
import os
import select
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

from uvmshare.guest import keepalive, mount_paths, wire, work
from uvmshare.guest.attempt import LEAVE, Attempt, hang_up
from uvmshare.guest.check import Check
from uvmshare.guest.pins import MOST_MOUNTS, Pins
from uvmshare.guest.wire import RequestError
from uvmshare.linux import mountinfo
from uvmshare.linux.boot import boot_id

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from uvmshare.guest.loop import Child, Loop, Timer
    from uvmshare.guest.mount import ServerAddress

    Answer = Callable[[Any, RequestError | None], None]
    """Called once, with the result or with why there is none."""

__all__ = ["AgentMount", "MountTable"]

_AGAIN_FIRST = 0.05
_AGAIN_LONGEST = 5.0
"""Seconds between two attempts to mount again; the wait doubles from the first to the longest. A file server that is
started again is there within a second."""
_EVENT_PINS = 2048
"""Directories of a mount with events that are held, unless the agent was told a number."""
_UNMOUNT_AGAIN = 0.05
"""Seconds until what only a child of the agent's keeps busy is unmounted again."""
_HANG_UP = select.EPOLLRDHUP if hasattr(select, "EPOLLRDHUP") else 0
_HOW = ("port", "read_only", "cache", "msize", "suid", "dev", "posixacl", "events")
"""How a share is mounted, as the host asked for it."""
_FIELDS = ("path", "share", *_HOW, "state", "made", "chosen")


class AgentMount:
    """One mount. `state` is "mounting", "mounted" or "broken"."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.path: str = fields["path"]
        self.port: int = fields["port"]
        self.share: str = fields["share"]
        self.read_only: bool = fields["read_only"]
        self.cache: str = fields["cache"]
        self.msize: int | None = fields["msize"]
        self.suid: bool = fields.get("suid", False)
        self.dev: bool = fields.get("dev", False)
        self.posixacl: bool = fields.get("posixacl", False)
        self.events: bool = fields.get("events", False)
        """Whether what the host does in it is to be an event."""
        self.chosen: str = fields.get("chosen", "")
        """What cache and msize came to, once it was mounted."""
        self.state: str = fields.get("state", "mounting")
        self.made: list[str] = list(fields.get("made", ()))
        """The directories that were made for it, and go with it."""
        self.transport: socket.socket | None = None
        """The mount's own socket; only its end is of interest. None after a restart of the agent."""
        self.going = False
        """Whether it is being removed."""
        self.again = 0
        self.last_gap: float | None = None
        self.broken_at = 0.0
        self.error = ""
        self.delay = 0.0
        self.timer: Timer | None = None
        self.reader: Child | None = None
        """The child that reads it, or has been given up and hangs in it."""
        self.read_until = 0.0
        """When the last read of it ended."""
        self.hung_since: float | None = None
        self.pins: Pins | None = None
        """Its directories that are held. None where they need not be, and while it is not mounted."""

    @property
    def is_stuck(self) -> bool:
        """Whether a child hangs reading it."""
        return self.reader is not None and self.reader.running and self.reader.given_up

    def was_read_since(self, when: float) -> bool:
        """Tell whether a child of the agent's kept it busy after that."""
        return (self.reader is not None and self.reader.running) or self.read_until >= when

    @property
    def has_writable_inside(self) -> bool:
        """Whether its file system is writable, though nobody can write at its path.

        The agent's operations, which only seem to change something, need that. What the share forbids the file server
        refuses.
        """
        return self.read_only and self.events

    @property
    def no_events(self) -> str:
        """Why what the host does is no event here although that was asked for; "" while it is."""
        if not self.events or self.state == "mounting":
            return ""
        if self.state == "broken":
            return "its connection was lost"
        if self.pins is None:
            return f"the directories of {MOST_MOUNTS} other mounts are held, which is the limit: unmap one of them"
        return self.pins.no_events

    def form(self) -> tuple[object, ...]:
        """Return what makes two mounts the same."""
        return (self.path, self.share, *(getattr(self, name) for name in _HOW))

    def added(self) -> dict[str, Any]:
        """Return what the host is told when it has been mounted."""
        return {"chosen": self.chosen, "again": self.again, "no_events": self.no_events}

    def listed(self) -> dict[str, Any]:
        """Return what the host is told of it."""
        told: dict[str, Any] = {"mount_path": self.path, "share_name": self.share}
        told.update({name: getattr(self, name) for name in _HOW})
        told.update(chosen=self.chosen, state=self.state, again=self.again, no_events=self.no_events)
        told.update(last_gap=self.last_gap, error=self.error)
        told.update(pins=None if self.pins is None else self.pins.told())
        return told


class MountTable:
    """The mounts of this guest that the agent made, by path.

    `server` is where they dial; a request says the port. `prefixes` are the directories below which mounts may be.
    `check_every` and `hung_after` are in seconds; a mount that nobody could read for `hung_after` is cut off
    and mounted again (0: never). `pins` is how many directories of a mount are held (`uvmshare.guest.pinning`); with 0
    only mounts with events have some.
    """

    def __init__(
        self,
        loop: Loop,
        server: ServerAddress,
        prefixes: list[str],
        directory: str,
        *,
        check_every: float,
        hung_after: float,
        pins: int,
        log: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._server = server
        self._prefixes = prefixes
        self._directory = directory
        self._check_every = check_every
        self._hung_after = hung_after
        self._most_pins = pins
        self._log = log
        self.records: dict[str, AgentMount] = {}
        self.changes = 0
        """How often a mount was lost, mounted again, or lost its events, without being asked for: the host asks when it
        is another."""
        self._turns: dict[str, deque[Callable[[Callable[[], None]], None]]] = {}
        """By path: what is under way, and what waits for it."""
        self._mountinfo = open("/proc/self/mountinfo", encoding="utf-8")  # noqa: SIM115  watched for ever

    def start(self) -> None:
        """Find the mounts of an earlier run again, and begin to watch."""
        self._load()
        self._loop.watch(self._mountinfo.fileno(), select.EPOLLPRI, lambda _: self._compare())
        self._loop.later(self._check_every, self._check_all)
        self._probe()

    def _probe(self) -> None:
        """Have those come back who wait in a mount whose connection the host lost; reading it could only join them."""
        for record in self.records.values():
            if record.transport is not None:
                keepalive.probe(record.transport)
        self._loop.later(keepalive.PROBE_EVERY, self._probe)

    # ------------------------------------------------------------------ what the host asks for

    def add(self, fields: dict[str, Any], timeout: float, wanted: Callable[[], bool], answer: Answer) -> None:
        """Mount. What is mounted in this form is left as it is; another form at the path is refused."""
        record = AgentMount({**fields, "path": mount_paths.allowed(fields["path"], self._prefixes)})
        self._in_turn(record.path, wanted, partial(self._add, record, timeout, answer))

    def remove(
        self, fields: dict[str, Any], timeout: float, wanted: Callable[[], bool], answer: Answer, *, lazy: bool
    ) -> None:
        """Unmount."""
        record = AgentMount({**fields, "path": mount_paths.allowed(fields["path"], self._prefixes)})
        self._in_turn(record.path, wanted, partial(self._remove, record, timeout, lazy, answer))

    def health(self, within: float, answer: Callable[[list[dict[str, Any]]], None]) -> None:
        """Read every mount, each within so many seconds, and tell which could be read."""
        found: dict[str, dict[str, Any]] = {}
        for path, record in self.records.items():
            if record.state == "mounting":
                found[path] = {"mount_path": path, "status": "missing", "error": "it is being mounted"}
            elif record.state == "broken":
                found[path] = {"mount_path": path, "status": "dead", "error": record.error}

        def tell(path: str, result: dict[str, Any]) -> None:
            found[path] = {"mount_path": path, **result}

        def told() -> None:
            for path, result in found.items():
                record = self.records.get(path)
                if record is not None and record.events:
                    pins = None if record.pins is None else record.pins.told()
                    result.update(events=True, no_events=record.no_events, pins=pins)
            answer([*found.values()])

        self._check([path for path in self.records if path not in found], within, tell, told)

    # ------------------------------------------------------------------ adding and removing

    def _add(self, record: AgentMount, timeout: float, answer: Answer, done: Callable[[], None]) -> None:
        known = self.records.get(record.path)
        if known is not None and known.form() != record.form():
            how = f"share {known.share} of port {known.port} (cache={known.cache}, msize={known.msize or 'auto'})"
            answer(None, RequestError(wire.REFUSED, f"{record.path} is taken by {how}: unmount that first"))
            done()
            return
        if known is not None and known.state == "mounted":
            answer(known.added(), None)
            done()
            return
        if known is not None:
            self._cancel(known)
            record.made = known.made
        self.records[record.path] = record
        try:
            self._save()
        except OSError as error:
            self._drop(record)
            answer(None, RequestError(wire.FAILED, f"{self._directory} cannot be written: {error.strerror}"))
            done()
            return
        task = work.mounting(record, self._server, self._prefixes, self._directory, timeout)
        Attempt(self._loop, record, task, timeout, partial(self._added, record, answer, done))

    def _added(self, record: AgentMount, answer: Answer, done: Callable[[], None], attempt: Attempt) -> None:
        if attempt.done and not attempt.given_up:
            self._is_mounted(record, attempt)
            self._log(f"mounted share {record.share} on {record.path} ({record.chosen})")

            def ready() -> None:
                answer(record.added(), None)
                done()

            if record.pins is None:
                ready()
            else:
                record.pins.when_ready(ready)
            return
        error = attempt.error or RequestError(wire.UNKNOWN, f"mounting {record.path} was broken off")

        def undone(undoing: Attempt | None) -> None:
            self._drop(record)
            if undoing is not None and not undoing.done:
                words = f"{error}; and what is left of it could not be unmounted: {undoing.error}"
                answer(None, RequestError(wire.UNKNOWN, words))
            else:
                answer(None, error)
            done()

        # It was mounted in the moment in which it was given up, or a dead one is there that was to be mounted again.
        if attempt.done or work.is_there(record, self._server):
            Attempt(self._loop, record, work.unmounting(record, self._prefixes, lazy=True), LEAVE, undone)
        else:
            undone(None)

    def _remove(self, asked: AgentMount, timeout: float, lazy: bool, answer: Answer, done: Callable[[], None]) -> None:  # noqa: FBT001  always bound by name above
        record = self.records.get(asked.path)
        if record is None and work.is_there(asked, self._server):
            record = asked  # an agent before this one mounted it and was killed before it knew
        if record is None or (record.share, record.port) != (asked.share, asked.port):
            answer(None, RequestError(wire.NOT_FOUND, f"share {asked.share} is not mounted on {asked.path}"))
            done()
            return
        record.going = True
        if record.timer is not None:
            record.timer.cancel()
        self._unmount(record, lazy, time.monotonic() + timeout, answer, done)

    def _unmount(self, record: AgentMount, lazy: bool, until: float, answer: Answer, done: Callable[[], None]) -> None:  # noqa: FBT001  always bound by name above
        began = time.monotonic()

        def ended(attempt: Attempt) -> None:
            is_busy = attempt.error is not None and attempt.error.code == wire.BUSY
            if is_busy and record.was_read_since(began) and time.monotonic() < until:
                # It may be the agent's own child that is in it. One that hangs comes out when the connection ends.
                if record.is_stuck and record.transport is not None and not mount_paths.holders(record.path):
                    self._log(f"{record.path}: no answer, cutting its connection to unmount it")
                    hang_up(record.transport)
                self._loop.later(_UNMOUNT_AGAIN, partial(self._unmount, record, lazy, until, answer, done))
            else:
                self._removed(record, answer, done, attempt)

        # Of a mount whose connection is lost nobody has any more use.
        task = work.unmounting(record, self._prefixes, lazy=lazy or record.state == "broken")
        left = max(until - began, _UNMOUNT_AGAIN)
        Attempt(self._loop, record, task, left, ended, transport=record.transport, otherwise=wire.UNKNOWN)

    def _removed(self, record: AgentMount, answer: Answer, done: Callable[[], None], attempt: Attempt) -> None:
        if attempt.done and record.pins is not None:  # nobody sees it any more, and its connection ends with its pins
            pins, record.pins = record.pins, None

            def cut() -> None:
                if record.transport is not None:
                    hang_up(record.transport)

            removed = partial(self._removed, record, answer, done, attempt)
            pins.end(removed, within=min(LEAVE, attempt.timeout / 2), late=cut)
            return
        record.going = False
        error = attempt.error
        if error is None and not attempt.done:  # the child was broken off
            error = RequestError(wire.UNKNOWN, f"unmounting {record.path} was broken off")
        if error is None or error.code == wire.NOT_FOUND:
            self._drop(record)
            self._log(f"unmounted {record.path}")
        elif record.state == "broken":
            self._try_again_later(record)
        answer(None if error else {}, error)
        done()

    def _is_mounted(self, record: AgentMount, attempt: Attempt) -> None:
        record.state = "mounted"
        record.error = ""
        record.delay = 0.0
        record.hung_since = None
        record.made = record.made or attempt.made
        record.chosen = attempt.chosen
        record.transport = attempt.take_transport()
        if record.transport is not None:
            self._loop.watch(record.transport.fileno(), _HANG_UP, lambda _: self._lost(record, "hung up"))
        self._save_or_say()
        self._pin(record)

    def _pin(self, record: AgentMount) -> None:
        """Hold its directories, unless the guest's kernel remembers them by itself."""
        with_pins = sum(1 for each in self.records.values() if each.pins is not None)
        most = self._most_pins or (_EVENT_PINS if record.events else 0)
        if most and record.cache != "loose" and with_pins < MOST_MOUNTS:
            record.pins = Pins(
                self._loop, record.path, self._prefixes, most, events=record.events, changed=self._note_change
            )

    def _note_change(self) -> None:
        self.changes += 1

    def _drop(self, record: AgentMount) -> None:
        self._cancel(record)
        if self.records.get(record.path) is record:
            del self.records[record.path]
        self._save_or_say()

    def _cancel(self, record: AgentMount | None) -> None:
        if record is not None:
            if record.timer is not None:
                record.timer.cancel()
            self._close_transport(record)

    def _close_transport(self, record: AgentMount) -> None:
        if record.pins is not None:
            record.pins.end()
            record.pins = None
        if record.transport is not None:
            self._loop.unwatch(record.transport.fileno())
            record.transport.close()
            record.transport = None

    def _in_turn(self, path: str, wanted: Callable[[], bool], begin: Callable[[Callable[[], None]], None]) -> None:
        """Begin when nothing else is under way for the path, and unless nobody wants it any more."""

        def when_due(done: Callable[[], None]) -> None:
            if not wanted():
                done()
                return
            try:
                begin(done)
            except BaseException:  # a defect, which must not keep the path taken
                done()
                raise

        turns = self._turns.setdefault(path, deque())
        turns.append(when_due)
        if len(turns) == 1:
            when_due(partial(self._next_turn, path))

    def _next_turn(self, path: str) -> None:
        turns = self._turns[path]
        turns.popleft()
        if turns:
            turns[0](partial(self._next_turn, path))
        else:
            del self._turns[path]

    # ------------------------------------------------------------------ mounting again

    def _lost(self, record: AgentMount, why: str) -> None:
        self._close_transport(record)
        if record.state != "mounted" or record.going or self.records.get(record.path) is not record:
            return
        record.state = "broken"
        self.changes += 1
        record.error = f"its connection was lost ({why})"
        record.broken_at = time.monotonic()
        self._log(f"{record.path}: the connection was lost ({why}), mounting again")
        self._save_or_say()
        self._try_again(record)

    def _try_again(self, record: AgentMount) -> None:
        self._in_turn(record.path, lambda: self._is_broken(record), partial(self._mount_again, record))

    def _is_broken(self, record: AgentMount) -> bool:
        return self.records.get(record.path) is record and record.state == "broken"

    def _mount_again(self, record: AgentMount, done: Callable[[], None]) -> None:
        task = work.mounting(record, self._server, self._prefixes, self._directory, _AGAIN_LONGEST)
        Attempt(self._loop, record, task, _AGAIN_LONGEST, partial(self._mounted_again, record, done))

    def _mounted_again(self, record: AgentMount, done: Callable[[], None], attempt: Attempt) -> None:
        if attempt.done and not attempt.given_up:
            self._is_mounted(record, attempt)
            record.again += 1
            self.changes += 1
            record.last_gap = time.monotonic() - record.broken_at
            self._log(f"{record.path}: mounted again after {record.last_gap:.3f} s")
        else:
            record.error = str(attempt.error or "it was broken off")
            self._try_again_later(record)
        done()

    def _try_again_later(self, record: AgentMount) -> None:
        record.delay = min(2 * record.delay, _AGAIN_LONGEST) or _AGAIN_FIRST
        record.timer = self._loop.later(record.delay, lambda: self._try_again(record))

    # ------------------------------------------------------------------ watching

    def _compare(self) -> None:
        """Forget what somebody else unmounted."""
        there = {found.path for found in mountinfo.mounted()}
        for path, record in tuple(self.records.items()):
            if record.state == "mounted" and path not in there and path not in self._turns:
                self._log(f"{path}: somebody unmounted it")
                self.changes += 1
                mount_paths.remove_made(record.made)
                self._drop(record)

    def _check_all(self) -> None:
        def tell(path: str, result: dict[str, Any]) -> None:
            record = self.records.get(path)
            if record is not None and path not in self._turns:
                self._heard(record, result["status"])

        paths = [path for path, record in self.records.items() if record.state == "mounted"]
        self._check(paths, 1.0, tell, lambda: self._loop.later(self._check_every, self._check_all))

    def _heard(self, record: AgentMount, status: str) -> None:
        if status == "dead" and record.transport is None:
            self._lost(record, "it cannot be read")
        if status != "slow":
            record.hung_since = None
            return
        now = time.monotonic()
        if record.hung_since is None:
            record.hung_since = now
        elif self._hung_after and now - record.hung_since >= self._hung_after and record.transport is not None:
            self._log(f"{record.path}: no answer for {self._hung_after:g} s, cutting its connection")
            hang_up(record.transport)

    def _check(
        self,
        paths: list[str],
        within: float,
        tell: Callable[[str, dict[str, Any]], None],
        ended: Callable[[], object],
    ) -> None:
        """Have a child read each of the paths; when it hangs in one, it is left there, and another reads the rest."""
        there = {found.path for found in mountinfo.mounted()}
        readable = []
        for path in paths:
            record = self.records.get(path)
            if path not in there:
                tell(path, {"status": "missing"})
            elif record is not None and record.going:
                tell(path, {"status": "missing", "error": "it is being unmounted"})
            elif record is not None and record.is_stuck:
                tell(path, {"status": "slow", "error": "a read of it has not ended yet"})
            else:
                readable.append(path)
        Check(self._loop, self.records, deque(readable), within, tell=tell, ended=ended)

    # ------------------------------------------------------------------ the file

    def _save(self) -> None:
        path = os.path.join(self._directory, "mounts.json")
        records = [{name: getattr(record, name) for name in _FIELDS} for record in self.records.values()]
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            json.dump({"boot": boot_id(), "mounts": records}, file)
        os.replace(f"{path}.new", path)

    def _save_or_say(self) -> None:
        try:
            self._save()
        except OSError as error:
            self._log(
                f"{self._directory} cannot be written ({error.strerror}): a restarted agent will not know of this"
            )

    def _load(self) -> None:
        try:
            with open(os.path.join(self._directory, "mounts.json"), encoding="utf-8") as file:
                kept = json.load(file)
            records = [AgentMount(fields) for fields in kept["mounts"]] if kept["boot"] == boot_id() else []
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._log(f"{self._directory}/mounts.json cannot be read ({error}): mounts of an earlier run are not known")
            return
        for record in records:
            there = work.is_there(record, self._server)
            if not there and record.state == "mounting":
                mount_paths.remove_made(record.made)
                continue
            self.records[record.path] = record
            record.state = "mounted"
            self._log(f"found share {record.share} on {record.path}")
            if there:
                self._pin(record)
            else:
                self._lost(record, "it is not mounted any more")
        self._save_or_say()
