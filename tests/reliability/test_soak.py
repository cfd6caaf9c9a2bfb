"""A soak: random adds, removes, crashes of any part, and guests that come and go; nothing is lost or left.

``SOAK_SECONDS`` is how long it takes (600 in `make soak`), ``SOAK_SEED`` what comes in which order. The Manager
lives in a process of its own (`keeper`), with a journal. Killed with kill -9 are that process, the supervisor, mount
processes and guests, also while calls are under way. After each step it is asked:

- is everything held that was, by those who held it, but for what was under way, which is either;
- does every guest of a held share read and write its open file, and has every other one been cut off;
- and at the end: no process, no file but log and journal, no descriptor; memory is as it was in the first quarter.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from tests.processes import DEADLINE, kill, wait_for_end
from tests.reliability_results import write_down

from uvmshare.errors import ConnectionClosed
from uvmshare.testing.client import NinePClient

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

OWNERS: Final = ("job-1", "job-2", "agent")
DIRECTORIES: Final = 6
FEWEST: Final = 20
"""Steps of a soak, however long they take."""
REST: Final = 2.0
"""For every second of work, so many of rest: others run beside this."""


class KeeperDied(Exception):
    """The keeper was killed before it answered."""


class KeeperProcess:
    """The keeper, as the test speaks to it."""

    def __init__(self, run_dir: Path, address: str, mark: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("keeper.py")), str(run_dir), address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
            | {"UVMSHARE_SOAK": mark},
        )
        self._ids = itertools.count(1)
        self._answers: dict[int, dict[str, Any]] = {}
        assert self.answer(0) == "ready"

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, do: str, **arguments: Any) -> int:
        """Send a command; give its number."""
        assert self._process.stdin is not None
        number = next(self._ids)
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"id": number, "do": do, "with": arguments}).encode() + b"\n")
            self._process.stdin.flush()
        return number

    def answer(self, number: int) -> Any:
        """Take the answer to a command. Raises `KeeperDied`, and `RuntimeError` with what the library raised."""
        assert self._process.stdout is not None
        while number not in self._answers:
            line = self._process.stdout.readline()
            if not line.endswith(b"\n"):
                raise KeeperDied
            answer = json.loads(line)
            self._answers[answer["id"]] = answer
        answer = self._answers.pop(number)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["result"]

    def ask(self, do: str, **arguments: Any) -> Any:
        return self.answer(self.send(do, **arguments))

    def end(self, *, kill: bool) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if kill:
            self._process.kill()
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        status = self._process.wait(DEADLINE)
        self._process.stdout.close()
        return status


@dataclass
class Guest:
    """A client with a file open that only it writes."""

    share: str
    client: NinePClient
    fid: int
    path: Path
    read_only: bool
    value: int = 0

    def connected(self) -> bool:
        """Whether the server has not hung up."""
        closed = select.poll()
        closed.register(self.client.socket, select.POLLRDHUP)
        return not closed.poll(0)

    def works(self) -> bool:
        """Read what it wrote, and write something else. False when the server cut it off."""
        try:
            if self.client.read(self.fid, 0, 8) != self.value.to_bytes(8, "big"):
                raise AssertionError(f"{self.path} does not hold what this guest wrote")  # noqa: TRY003, EM102
            if not self.read_only:
                self.client.write(self.fid, 0, (self.value + 1).to_bytes(8, "big"))
                self.value += 1
                assert self.path.read_bytes() == self.value.to_bytes(8, "big")
        except (ConnectionClosed, ConnectionError):
            return False
        return True


Key = tuple[str, bool]
"""A path, and whether it is shared read-only."""


@dataclass
class Soak:
    """The model of what should be, and the steps."""

    directory: Path
    seed: int
    held: dict[Key, set[str]] = field(default_factory=dict)
    guests: list[Guest] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    memory: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.run_dir = self.directory / "run"
        self.run_dir.mkdir()
        self.address = f"unix:{self.directory}/s"
        self.mark = f"{os.getpid()}-{self.seed}"
        self.paths = [str(self.directory / f"d{number}") for number in range(DIRECTORIES)]
        for path in self.paths:
            os.mkdir(path)
        self.files = itertools.count()
        self.keeper = KeeperProcess(self.run_dir, self.address, self.mark)
        self.names: dict[Key, str] = {}
        self.supervisor = int(self.keeper.ask("shares")["pid"])

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    # Steps

    def step(self) -> None:
        """Do one random thing, and look whether all is as it should be."""
        kind = self.random.choices(
            ("calls", "guest comes", "guest goes", "mount killed", "supervisor killed", "keeper killed"),
            weights=(40, 20, 10, 5, 5, 5),
        )[0]
        match kind:
            case "calls":
                self.calls(None)
            case "guest comes":
                self.guest_comes()
            case "guest goes":
                self.guest_goes()
            case "mount killed":
                self.mount_killed()
            case _:
                self.calls(kind)
        self.check()

    def calls(self, crash: str | None) -> None:
        """Make some calls at once, and perhaps kill somebody while they are under way."""
        wanted: dict[tuple[Key, str], bool] = {}
        for _ in range(self.random.randint(1, 4)):
            key = (self.random.choice(self.paths), self.random.random() < 0.3)
            owner = self.random.choice(OWNERS)
            wanted[key, owner] = owner not in self.held.get(key, set())
        sent = {}
        for (key, owner), add in wanted.items():
            if add:
                sent[key, owner] = self.keeper.send("add", path=key[0], read_only=key[1], owner=owner)
            else:
                sent[key, owner] = self.keeper.send("remove", name=self.names[key], owner=owner)
        if crash == "supervisor killed":
            self.kill(self.supervisor, crash)
        elif crash == "keeper killed":
            self.kill(self.keeper.pid, crash)
        unknown = set()
        for (key, owner), number in sent.items():
            try:
                self.keeper.answer(number)
            except (KeeperDied, RuntimeError) as error:
                self.count("calls without an answer" if isinstance(error, KeeperDied) else "calls that failed")
                unknown.add((key, owner))
                continue
            self.count("adds" if wanted[key, owner] else "removes")
            holders = self.held.setdefault(key, set())
            (holders.add if wanted[key, owner] else holders.discard)(owner)
        if crash == "keeper killed":
            assert self.keeper.end(kill=True) == -signal.SIGKILL
            self.keeper = KeeperProcess(self.run_dir, self.address, self.mark)
        self.learn(unknown)

    def kill(self, pid: int, what: str) -> None:
        kill(pid)
        self.count(f"kills: {what.removesuffix(' killed')}")

    def mounts(self) -> list[tuple[str, int]]:
        """Every mount process with its share, when the supervisor has seen the end of those whose guests have gone."""
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            found = [(name, pid) for name, pids in self.keeper.ask("shares")["mounts"].items() for pid in pids]
            if Counter(name for name, _ in found) == Counter(guest.share for guest in self.guests if guest.connected()):
                return found
        raise AssertionError(f"mounts {found}, guests of {[guest.share for guest in self.guests]}")  # noqa: TRY003, EM102

    def mount_killed(self) -> None:
        mounts = self.mounts()
        if mounts:
            share, pid = self.random.choice(mounts)
            self.kill(pid, "mount killed")
            held = {self.names[key] for key, owners in self.held.items() if owners}
            dead = [guest for guest in self.guests if not guest.works()]
            # A share that nobody holds any more may go at any time, and take its guests with it.
            assert [guest.share for guest in dead if guest.share in held] == [share] * (share in held)
            assert share in [guest.share for guest in dead]
            for guest in dead:
                guest.client.close()
            self.guests = [guest for guest in self.guests if guest not in dead]

    def guest_comes(self) -> None:
        keys = [key for key, owners in self.held.items() if owners]
        if not keys or len(self.guests) >= 12:
            return
        key = self.random.choice(keys)
        path = Path(key[0]) / f"f{next(self.files)}"
        path.write_bytes(bytes(8))
        client = NinePClient.connect(self.address, self.names[key], timeout=DEADLINE)
        fid = client.open(path.name, os.O_RDONLY if key[1] else os.O_RDWR)
        self.guests.append(Guest(self.names[key], client, fid, path, read_only=key[1]))
        self.count("guests")

    def guest_goes(self) -> None:
        if self.guests:
            guest = self.guests.pop(self.random.randrange(len(self.guests)))
            if self.random.random() < 0.5:  # in the middle of a message
                guest.client.send_raw(b"\x17\0\0\0\x74")
            guest.client.close()

    # What must hold

    def learn(self, unknown: set[tuple[Key, str]]) -> None:
        """Ask who holds what, and take for true only what was in doubt."""
        state = self.keeper.ask("shares")
        self.supervisor = int(state["pid"])
        found = {(path, read_only): set(owners) for path, read_only, owners in state["held"].values()}
        self.names = {(path, read_only): name for name, (path, read_only, _) in state["held"].items()}
        for key, owner in unknown:
            holders = self.held.setdefault(key, set())
            (holders.add if owner in found.get(key, set()) else holders.discard)(owner)
        expected = {key: owners for key, owners in self.held.items() if owners}
        assert found == expected, f"held {found}, expected {expected}"

    def check(self) -> None:
        self.learn(set())
        held = {self.names[key] for key, owners in self.held.items() if owners}
        orphans = set(self.keeper.ask("shares")["orphans"])
        stay = []
        for guest in self.guests:
            if guest.works():
                assert guest.share in held | orphans, f"a guest goes on in share {guest.share}, which was taken out"
                stay.append(guest)
            else:
                assert guest.share not in held, f"a guest of share {guest.share} was cut off"
                guest.client.close()
                self.count("guests cut off by a removal")
        self.guests = stay
        assert os.path.getsize(self.run_dir / "shares") < 64 << 10
        self.memory.append(resident(self.supervisor))

    def kills(self) -> int:
        return sum(number for what, number in self.counts.items() if what.startswith("kills"))

    def close(self) -> None:
        for guest in self.guests:
            guest.client.close()
        assert self.keeper.end(kill=False) == 0
        for pid in marked(self.mark):  # what has answered may take a moment to end
            wait_for_end(pid)


def resident(pid: int) -> int:
    """The resident memory of a process, in KiB."""
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        return int(next(line for line in status if line.startswith("VmRSS")).split()[1])


def marked(mark: str) -> list[int]:
    """The processes that live and were started by the soak, or by what it started."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with suppress(OSError), open(f"/proc/{name}/environ", "rb") as environment:
                if f"UVMSHARE_SOAK={mark}".encode() in environment.read().split(b"\0"):
                    found.append(int(name))
    return found


def soak(seconds: float, name: str) -> None:
    seed = int(os.environ.get("SOAK_SEED", "") or random.SystemRandom().randrange(1 << 32))
    print(f"SOAK_SEED={seed}")  # noqa: T201  to do the same again
    descriptors = len(os.listdir("/proc/self/fd"))
    directory = Path(tempfile.mkdtemp(prefix="9p-"))
    made = Soak(directory, seed)
    steps = 0
    started = time.monotonic()
    try:
        # A slow machine goes on until it has done what is looked at.
        while (now := time.monotonic()) < started + seconds or steps < FEWEST or not made.kills():
            made.step()
            steps += 1
            rest = min((time.monotonic() - now) * REST, started + seconds - time.monotonic())
            time.sleep(max(0.0, rest))  # a pace, not a wait: others run beside this
        made.close()
    except BaseException:
        for pid in marked(made.mark):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for guest in made.guests:
            guest.client.close()
        raise
    assert marked(made.mark) == [], "processes are left"
    left = [each for each in os.listdir(made.run_dir) if each != "log" and not each.startswith("journal.db")]
    assert left == []
    assert os.path.getsize(made.run_dir / "journal.db") < 1 << 20
    assert len(os.listdir("/proc/self/fd")) == descriptors, "descriptors are left"
    log = (made.run_dir / "log").read_text()
    assert "Traceback" not in log, log
    quarter = len(made.memory) // 4
    assert max(made.memory[quarter:]) < max(made.memory[:quarter]) * 1.1 + 2048, "the supervisor's memory grows"
    shutil.rmtree(directory)
    what = f"soak of {seconds:g} s, seed {seed}"
    write_down(name, what, points=steps, kills=made.kills(), losses=0, **dict(sorted(made.counts.items())))


def test_a_short_soak_loses_nothing() -> None:
    soak(10, "soak-short")


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_a_soak_loses_nothing() -> None:
    soak(float(os.environ.get("SOAK_SECONDS", "600")), "soak")
