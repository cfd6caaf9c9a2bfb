"""kill -9 of a supervisor before every single line that it runs, and what holds when the next one has taken over.

What is killed is a real process; what holds is asked of the next supervisor, of guests that have files open, and of the
kernel's list of processes. Nothing is lost when:

- a modify that was answered is done, and one that was not is done or not done, as a whole: a share is in the table and
  can be mounted, or it is in neither, and then no guest has it any more;
- the guests of other shares read and write their open files, before, between and after;
- every mount process that lives is in the table, so that its share can be taken away;
- after an orderly end there is no process, no descriptor of this test, and no file but the log.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import select
import shutil
import signal
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest
from tests.fileserver.harness import add_document, remove_document
from tests.processes import DEADLINE, wait_for_end
from tests.reliability_results import write_down

from uvmshare.errors import ConnectionClosed, FileServerError, OutcomeUnknown, ShareNotFound, UvmshareError
from uvmshare.fileserver import control
from uvmshare.fileserver.link import Link
from uvmshare.hcs import schema
from uvmshare.testing.client import NinePClient

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.reliability.conftest import Zygote

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)


class Scene:
    """A supervisor with two shares, a guest of each with a file open, and what is asked of them."""

    def __init__(self, zygote: Zygote) -> None:
        self.zygote = zygote
        self.directory = Path(tempfile.mkdtemp(prefix="9p-"))
        self.run_dir = self.directory / "run"
        self.run_dir.mkdir()
        self.address = f"unix:{self.directory}/s"
        self.runner = asyncio.Runner()
        self.guests: dict[str, tuple[NinePClient, int]] = {}
        for name in ("kept", "other", "new"):
            (self.directory / name).mkdir()
            (self.directory / name / "file").write_bytes(b"0")
        self.link: Link | None = None
        self.pid = 0

    def run(self, call: Awaitable[Any]) -> Any:
        async def bounded() -> Any:
            async with asyncio.timeout(DEADLINE):
                return await call

        return self.runner.run(bounded())

    def start(self) -> bool | None:
        """Start a supervisor, or have one take over; None when it died meanwhile."""
        configuration = control.Configuration(
            id=0,
            listen=(self.address,),
            security_model="none",
            run_dir=str(self.run_dir),
            log=str(self.run_dir / "log"),
        )
        try:
            self.link = self.run(Link.start(configuration))
        except FileServerError as error:
            if "before it answered" not in str(error):
                raise
            return None
        self.pid = self.link.greeting.pid
        return True

    def populate(self) -> None:
        for name in ("kept", "other"):
            self.modify(add_document(name, str(self.directory / name)))
            self.guests[name] = self.guest(name)

    def modify(self, document: Any) -> None:
        assert self.link is not None
        self.run(self.link.ask(lambda number: control.Modify(number, msgspec.Raw(schema.encode(document))), DEADLINE))

    def guest(self, name: str) -> tuple[NinePClient, int]:
        client = NinePClient.connect(self.address, name, timeout=DEADLINE)
        try:
            return client, client.open("file", os.O_RDWR)
        except BaseException:
            client.close()
            raise

    def let_go(self) -> None:
        """Hang up, as a process that ended."""
        if self.link is not None:
            self.run(self.link.leave())
            self.link = None

    def shares(self) -> dict[str, list[int]]:
        assert self.link is not None
        reply = self.run(self.link.ask(control.Status, DEADLINE))
        return {share.name: [each.pid for each in share.mounts] for share in reply.shares}

    def look(self) -> None:
        """Ask for the status, which ends what is counted of an operation."""
        self.shares()

    def require_open_file(self, name: str) -> None:
        """The guest of that share goes on with its open file."""
        client, fid = self.guests[name]
        value = client.read(fid, 0, 1)
        following = b"%d" % ((int(value) + 1) % 10)
        client.write(fid, 0, following)
        assert client.read(fid, 0, 1) == following
        assert (self.directory / name / "file").read_bytes() == following

    def has_hung_up(self, name: str) -> bool:
        """Whether the server has ended the connection of a guest."""
        closed = select.poll()
        closed.register(self.guests[name][0].socket, select.POLLRDHUP)
        return bool(closed.poll(0))

    def require_consistent(self) -> dict[str, list[int]]:
        """Every mount process is known, every share of the table can be mounted, and no other."""
        while True:
            shares = self.shares()
            known = {pid for mounts in shares.values() for pid in mounts}
            found = mount_processes(self.zygote.pid, self.pid)
            assert found <= known, f"mount processes {found}, in the table {known}"
            if found == known:
                break  # else one has just ended, which the supervisor sees in its next turn
        for name in ("kept", "other", "new"):
            if name in shares:
                NinePClient.connect(self.address, name, timeout=DEADLINE).close()
            else:
                with pytest.raises(OSError, match=r".") as refused:
                    NinePClient.connect(self.address, name, timeout=DEADLINE)
                assert refused.value.errno == errno.ENOENT
        return shares

    def close(self) -> None:
        """End it in order, whatever there is."""
        for client, _ in self.guests.values():
            client.close()
        if self.link is None:
            with suppress(FileServerError):
                self.link = self.run(Link.find_or_start(str(self.run_dir)))
        if self.link is not None:
            self.run(self.link.shut_down())
            self.run(self.link.close())
        self.runner.close()

    def remove(self) -> None:
        """Nothing but the log may be left in the run directory."""
        left = [name for name in os.listdir(self.run_dir) if name != "log"]
        shutil.rmtree(self.directory)
        assert left == []


def mount_processes(*parents: int) -> set[int]:
    """The mount processes that live, whose parent is the supervisor or, when that died, the zygote."""
    found = set()
    for parent in parents:
        with open(f"/proc/{parent}/task/{parent}/children", encoding="ascii") as children:
            for pid in map(int, children.read().split()):
                with suppress(OSError), open(f"/proc/{pid}/stat", "rb") as stat:
                    head, _, rest = stat.read().rpartition(b")")
                    if b"uvmshare-" in head and rest.split()[0] not in (b"Z", b"X"):
                        found.add(pid)
    return found


# What is under way when the supervisor dies. Each says what its caller was told: True, or None when nothing


def told(call: Callable[[], None]) -> bool | None:
    try:
        call()
    except (OutcomeUnknown, ConnectionClosed, ConnectionError, FileNotFoundError):
        return None
    return True


def adding(scene: Scene) -> bool | None:
    return told(lambda: scene.modify(add_document("new", str(scene.directory / "new"))))


def removing(scene: Scene) -> bool | None:
    return told(lambda: scene.modify(remove_document("other")))


def attaching(scene: Scene) -> bool | None:
    def attach() -> None:
        scene.guests["late"] = scene.guest("kept")

    return told(attach)


def hanging_up(scene: Scene) -> bool | None:
    (pid,) = scene.shares()["other"]
    client, _ = scene.guests.pop("other")
    client.close()
    wait_for_end(pid)
    return told(scene.look)


def ending(scene: Scene) -> bool | None:
    link = scene.link
    assert link is not None
    return told(lambda: scene.run(link.ask(control.Shutdown, DEADLINE)))


@dataclass(frozen=True)
class Operation:
    """What is done, the function from which lines are counted, and how many calls of it come before."""

    act: Callable[[Scene], bool | None]
    function: str
    skip: int = 0
    in_child: bool = False


OPERATIONS: Final = {
    "add": Operation(adding, "Supervisor._modify", 2),
    "remove": Operation(removing, "Supervisor._modify", 2),
    "attach": Operation(attaching, "Connections.welcome", 2),
    "attach, in the mount process": Operation(attaching, "", 2, in_child=True),
    "hang-up": Operation(hanging_up, "ServedShares._on_end"),
    "end": Operation(ending, "Supervisor._end"),
}


def killed_in(zygote: Zygote, name: str, line: int) -> bool:
    """Kill the supervisor before that line of an operation, and look what holds. False when it has no such line."""
    operation = OPERATIONS[name]
    scene = Scene(zygote)
    try:
        zygote.point = {
            "function": operation.function, "line": line, "skip": operation.skip, "in_child": operation.in_child
        }  # fmt: skip
        assert scene.start()
        scene.populate()
        answered = operation.act(scene)
        killed = answered is None if name == "end" else told(scene.look) is None
        if not killed and name != "end":
            os.kill(scene.pid, signal.SIGKILL)
        wait_for_end(scene.pid)
        scene.let_go()
        if name != "end":
            scene.require_open_file("kept")
        if name not in ("end", "remove", "hang-up"):
            scene.require_open_file("other")
        assert scene.start()
        require_nothing_lost(scene, name, answered)
    finally:
        scene.close()
    scene.remove()
    assert zygote.living() == 0
    return killed


def require_nothing_lost(scene: Scene, name: str, answered: bool | None) -> None:
    """A new supervisor has taken over: the operation is done or not done, and all else is as it was."""
    shares = scene.require_consistent()
    both = {"kept", "other"}
    if name == "end":
        assert set(shares) in (both, set())
        assert not (answered and shares)
        for each in both:
            assert scene.has_hung_up(each) is not bool(shares)
        return
    scene.require_open_file("kept")
    match name:
        case "add":
            assert set(shares) in ((both | {"new"},) if answered else (both, both | {"new"}))
            scene.require_open_file("other")
        case "remove":
            assert set(shares) in (({"kept"},) if answered else (both, {"kept"}))
            assert scene.has_hung_up("other") is ("other" not in shares)
            if "other" in shares:
                scene.require_open_file("other")
        case "hang-up":
            assert (set(shares), shares["other"]) == (both, [])
        case _:
            assert set(shares) == both
            scene.require_open_file("other")
            if "late" in scene.guests:
                client, fid = scene.guests["late"]
                assert client.read(fid, 0, 1) == (scene.directory / "kept" / "file").read_bytes()
            scene.modify(remove_document("kept"))
            assert all(scene.has_hung_up(each) for each in scene.guests if each != "other")
    for each in ("new", "other"):  # what a Manager does about an outcome that it does not know
        with suppress(ShareNotFound):
            scene.modify(remove_document(each))
    assert set(scene.require_consistent()) <= {"kept"}


def killed_in_start(zygote: Zygote, _: str, line: int) -> bool:
    """Kill a supervisor that starts where there was none."""
    scene = Scene(zygote)
    try:
        zygote.point = {"function": "_Server.__init__", "line": line}
        killed = scene.start() is None
        if killed:
            assert scene.start()
        scene.populate()
        assert set(scene.require_consistent()) == {"kept", "other"}
    finally:
        scene.close()
    scene.remove()
    assert zygote.living() == 0
    return killed


def killed_in_takeover(zygote: Zygote, _: str, line: int) -> bool:
    """Kill a supervisor that takes over from one that was killed in the middle of a removal."""
    scene = Scene(zygote)
    try:
        zygote.point = {"function": "ServedShares._dismiss", "line": 1}
        assert scene.start()
        scene.populate()
        assert removing(scene) is None
        wait_for_end(scene.pid)
        scene.let_go()
        scene.require_open_file("kept")
        zygote.point = {"function": "_Server.__init__", "line": line}
        killed = scene.start() is None
        scene.require_open_file("kept")
        if killed:
            assert scene.start()
        assert set(scene.require_consistent()) == {"kept"}
        assert scene.has_hung_up("other")
        scene.require_open_file("kept")
        scene.modify(remove_document("kept"))
        assert scene.has_hung_up("kept")
    finally:
        scene.close()
    scene.remove()
    assert zygote.living() == 0
    return killed


WAYS: Final[dict[str, Callable[[Zygote, str, int], bool]]] = {
    **dict.fromkeys(OPERATIONS, killed_in),
    "start": killed_in_start,
    "takeover": killed_in_takeover,
}


def kill_everywhere(zygote: Zygote, name: str, stride: int) -> None:
    """Kill before every line of an operation, or before one in so many, and count."""
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    points = kills = 0
    lost: list[str] = []
    line = 1
    while True:
        points += 1
        try:
            if not WAYS[name](zygote, name, line):
                break
        except (AssertionError, UvmshareError, OSError) as error:
            lost.append(f"line {line}: {type(error).__name__}: {error}")
            if len(lost) > 5:
                break
        kills += 1
        line += stride
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before, "descriptors are left"
    write_down(
        f"supervisor-{name.replace(' ', '-').replace(',', '')}" + ("" if stride == 1 else "-short"),
        f"kill -9 of the supervisor before every {'' if stride == 1 else f'{stride}th '}line: {name}",
        points=points,
        kills=kills,
        losses=len(lost),
    )
    assert lost == []
    assert kills


@pytest.mark.parametrize("name", WAYS)
def test_a_supervisor_killed_before_some_lines_of_it_loses_nothing(zygote: Zygote, name: str) -> None:
    kill_everywhere(zygote, name, 149)


@pytest.mark.long
@pytest.mark.parametrize("name", WAYS)
def test_a_supervisor_killed_before_more_lines_of_it_loses_nothing(zygote: Zygote, name: str) -> None:
    kill_everywhere(zygote, name, 17)


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", WAYS)
def test_a_supervisor_killed_before_any_line_of_it_loses_nothing(zygote: Zygote, name: str) -> None:
    kill_everywhere(zygote, name, 1)
