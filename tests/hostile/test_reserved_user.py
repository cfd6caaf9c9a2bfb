"""A guest that uses the uid that is reserved for its agent: whatever it sends as that user, the host stays as it is.

What an agent repeats is only pretended, to its own guest (docs/events.md). So no message of that user, with any flag,
any value and any name, of which something is pretended or not, does more than read; a write is one of any user's.
"""

from __future__ import annotations

import random
import shutil
import stat
import sys
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import pytest
from tests.fileserver.conftest import snapshot
from tests.hostile.shapes import FID_FIELDS, REQUESTS, answered, forget, kind_of, shapes

from uvmshare.fileserver.limits import Limits
from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import NOFID, OpenFlag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.hostile.conftest import Target

    from uvmshare.testing.client import NinePClient

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

__all__ = ["snapshot"]

PLACES: Final = ("", "d", "e", "d/sub")
"""Directories that are watched."""
LETTERS: Final = "abcdefg"
EACH: Final = 18
"""Names of each kind of which something is pretended at a time: what is told at once has 4,096 bytes."""


class Reserved:
    """The agent and the reserved user of a guest, and names of `d` of which something is pretended."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.d = target.root / "d"
        for made in (self.d, self.d / "sub", target.root / "e"):
            made.mkdir()
        for name in ("file", "d/file", "d/sub/file"):
            (target.root / name).write_bytes(b"content")
        (self.d / "link").symlink_to(target.outside / "canary")
        self.client = target.connect()
        self.agent = self.client.root
        self.places: dict[int, str] = {}
        self.uid = self.begin()
        self.root = self.client.new_fid()
        self.attach(self.root)
        self.client.root = self.root
        self._round = 0
        self.changes = self.client.new_fid()
        self.client.rpc(m.Txattrwalk(self.agent, self.changes, b"trusted.uvmshare.changes"))
        self.names: dict[str, list[bytes]] = {}
        self.pretend()

    def begin(self) -> int:
        """Have names told, from now on; return the reserved user."""
        ghost, self.client.root = self.client.root, self.agent
        self._asked(b"begin")
        uid = int(self._asked(b"events"))
        for path in PLACES:
            with suppress(FileNotFoundError, NotADirectoryError):
                self.places[int(self._asked(b"watch", path).split()[0])] = path
        self.client.root = ghost
        return uid

    def attach(self, fid: int) -> None:
        self.client.rpc(m.Tattach(fid, NOFID, b"", self.target.name.encode(), self.uid))

    def _asked(self, question: bytes, path: str = "") -> bytes:
        attribute = self.client.new_fid()
        with self.client.walked(path) as fid:
            self.client.rpc(m.Txattrwalk(fid, attribute, b"trusted.uvmshare." + question))
        said = self.client.read(attribute, 0, 4096)
        self.client.clunk(attribute)
        return said

    def pretend(self) -> None:
        """Change names on the host, and have the agent told of them."""
        self._round += 1
        kinds = ("gone", "gonedir", "from")
        for count in range(EACH):
            for kind in kinds:
                path = self.d / f"{kind}{self._round}.{count}"
                path.mkdir() if kind == "gonedir" else path.write_bytes(b"content")
        self._listen(3 * EACH)
        self.names = {kind: [] for kind in (*kinds, "to", "new", "newdir")}
        for count in range(EACH):
            end = f"{self._round}.{count}"
            (self.d / f"gone{end}").unlink()
            (self.d / f"gonedir{end}").rmdir()
            (self.d / f"from{end}").rename(self.target.root / "e" / f"to{end}")
            (self.d / f"new{end}").write_bytes(b"content")
            (self.d / f"newdir{end}").mkdir()
            for kind, names in self.names.items():
                names.append(f"{kind}{end}".encode())
        self._listen(5 * EACH)
        if not all(map(self.client.exists, (b"d/" + self.names[kind][0] for kind in ("gone", "from")))):
            self.pretend()  # it was told in parts, of which the first is over

    def _listen(self, most: int) -> None:
        """Read what there is to tell until so many changes were told, of which the last are pretended."""
        told = 0
        client = self.client
        ghost, client.root = client.root, self.agent
        while told < most:
            told += sum(not line.isdigit() for line in self._asked(b"changes").splitlines())
        client.root = ghost

    def fids(self) -> Iterator[tuple[str, Callable[[], int]]]:
        """Each kind of fid that this user can have, made anew whenever it is asked for."""

        def opened(path: str) -> int:
            return self.client.open(path, OpenFlag.RDWR if path.endswith("file") else OpenFlag.RDONLY)

        def attribute() -> int:
            fid = self.client.walk("d")
            self.client.rpc(m.Txattrwalk(fid, fid, b""))
            return fid

        def last(kind: str) -> int:
            return self.client.walk(b"d/" + self.names[kind][-1])

        yield "root", self.client.walk
        yield "directory", lambda: self.client.walk("d")
        yield "open directory", lambda: opened("d")
        yield "file", lambda: self.client.walk("d/file")
        yield "open file", lambda: opened("d/file")
        yield "link", lambda: self.client.walk("d/link")
        yield "attributes", attribute
        yield "probe", lambda: self.client.walk(f".uvmshare-{self.uid}")
        for kind in ("gone", "gonedir", "from"):
            yield kind, partial(last, kind)


@pytest.fixture
def reserved(attack: Callable[..., Target]) -> Reserved:
    # Of two owners in the table of messages one is in the other's way: no lock is waited for.
    return Reserved(attack("passthrough", limits=Limits(lock_wait_seconds=0.001)))


SENT: Final = [cls for cls in REQUESTS.values() if cls not in (m.Tversion, m.Tauth, m.Twrite)]
"""A write is real: a guest's kernel writes a program's data back through any fid of a file."""


def test_no_message_of_the_reserved_user_changes_anything_on_the_host(
    reserved: Reserved, snapshot: Callable[[Path], dict[str, object]]
) -> None:
    client = reserved.client
    before = snapshot(reserved.target.root)
    sent = 0
    for kind, made in reserved.fids():
        for cls in SENT:
            fid = made()
            for message in shapes(cls, fid, 0x7000):
                sent += answered(client, message)
                forget(client, 0x7000)
            forget(client, fid)
        assert snapshot(reserved.target.root) == before, kind
    assert sent > 4000
    reserved.target.require_unharmed()


_USED: Final = 3
"""Names of one kind that one turn uses, at most."""


def _about_names(cls: type[m.Message], fid: int, other: int, names: tuple[bytes, bytes]) -> Iterator[m.Message]:
    """A message about these names, with extreme values in its other fields; its second fid is `other`."""
    fields: dict[str, Any] = {}
    left, fids = list(names), [fid, other]
    for name in cls.__struct_fields__:
        kind = kind_of(cls, name)
        if name == "newfid":
            fields[name] = 0x7000
        elif name in FID_FIELDS:
            fields[name] = fids.pop(0)
        elif kind == "bytes":
            fields[name] = left.pop(0)
        else:
            fields[name] = (names[0], b"file") if kind == "tuple" else 0
    yield cls(**fields)
    for name in fields:
        if name not in FID_FIELDS and kind_of(cls, name) == "int":
            yield from (cls(**fields | {name: number}) for number in (0x200, 0o100644, 0o20644, 0xFFFFFFFF))


def test_what_is_pretended_of_a_name_changes_nothing_either(
    reserved: Reserved, snapshot: Callable[[Path], dict[str, object]]
) -> None:
    """Each message about each kind of name, in the directory that has it and where it is gone."""
    client = reserved.client
    about = [cls for cls in SENT if any(kind_of(cls, name) in ("bytes", "tuple") for name in cls.__struct_fields__)]
    before = snapshot(reserved.target.root)
    kinds = {"new": "to", "newdir": "new", "gone": "new", "gonedir": "newdir", "from": "to"}
    done = 0
    for cls in about:
        if cls is m.Tattach:
            continue
        for kind, second in kinds.items():
            for start in ("d", "gone"):
                if min(map(len, reserved.names.values())) < _USED:
                    assert snapshot(reserved.target.root) == before, cls
                    reserved.pretend()
                    before = snapshot(reserved.target.root)
                names = reserved.names[kind].pop(0), reserved.names[second].pop(0)
                place = b"d/" + reserved.names["gone"].pop(0) if start == "gone" else start.encode()
                with suppress(FileNotFoundError):
                    other = client.walk("e")
                    fid = client.walk(place)
                    for message in _about_names(cls, fid, other, names):
                        done += answered(client, message)
                        forget(client, 0x7000)
                    forget(client, fid, other)
    assert snapshot(reserved.target.root) == before
    assert done > 500
    reserved.target.require_unharmed()


def _change(top: Path, chance: random.Random) -> None:
    """Do one of all changes of names on the host; it may be one that cannot be done."""
    one, other = (top / chance.choice(PLACES) / chance.choice(LETTERS) for _ in range(2))
    with suppress(OSError):
        match chance.randrange(6):
            case 0:
                one.write_bytes(b"%d" % chance.randrange(1000))
            case 1:
                one.unlink()
            case 2:
                one.mkdir()
            case 3:
                one.rmdir()
            case 4:
                one.rename(other)
            case 5:
                one.symlink_to("nowhere")


def _names(top: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in sorted(top.rglob("*")):
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else stat.S_IFMT(path.lstat().st_mode)
        found[str(path.relative_to(top))] = content
    return found


def _repeat(client: NinePClient, line: bytes, places: dict[int, str]) -> None:
    """Do what an agent does of a line that it was told."""
    what, *words = line.split()
    one, *others = (
        f"{places[int(words[at])]}/{bytes.fromhex(words[at + 1].decode()).decode()}" for at in range(0, len(words), 2)
    )
    match what:
        case b"Cf":
            client.clunk(client.create(one, OpenFlag.RDWR))
        case b"Cd":
            client.mkdir(one)
        case b"Cl":
            client.symlink("nowhere", one)
        case b"Dd":
            client.rmdir(one)
        case b"Df" | b"Dl":
            client.unlink(one)
        case b"Rf" | b"Rd" | b"Rl":
            client.rename(one, others[0])
        case _:
            raise FileNotFoundError


def _try_something(client: NinePClient, chance: random.Random) -> None:
    one, other = (f"{chance.choice(PLACES)}/{chance.choice(LETTERS)}" for _ in range(2))
    match chance.randrange(7):
        case 0:
            client.clunk(client.create(one, OpenFlag.RDWR))
        case 1:
            client.unlink(one)
        case 2:
            client.mkdir(one)
        case 3:
            client.rmdir(one)
        case 4:
            client.rename(one, other)
        case 5:
            client.symlink("nowhere", one)
        case 6:
            with client.walked(one) as fid:
                client.setattr(fid, size=0, mode=0o600)


def test_what_is_pretended_while_the_host_changes_the_same_names_changes_nothing(reserved: Reserved) -> None:
    """The host's names come to what they come to where no guest is. The guest does all that it can meanwhile."""
    root, client = reserved.target.root, reserved.client
    alone = reserved.target.top / "alone"
    shutil.copytree(root, alone, symlinks=True)
    first, replayed, chance = random.Random(9), random.Random(9), random.Random(10)
    enough = threading.Event()
    changes = 0

    def change() -> None:
        nonlocal changes
        while not enough.is_set():
            _change(root, first)
            changes += 1

    host = threading.Thread(target=change)
    host.start()
    tried = pretended = 0
    try:
        while tried < 200 or not pretended:
            waiting = client.send(m.Tread(reserved.changes, 0, 4096))
            for _ in range(20):
                with suppress(OSError):
                    _try_something(client, chance)
            if client.flush(waiting):
                reply = m.expect(client.wait(waiting), m.Rread)
                for line in bytes(reply.data).splitlines():
                    if line == b"lost" or not chance.randrange(500):
                        reserved.begin()
                        break
                    if not line.isdigit():
                        tried += 1
                        with suppress(OSError):
                            _repeat(client, line, reserved.places)
                            pretended += 1
    finally:
        enough.set()
        host.join()
    for _ in range(changes):
        _change(alone, replayed)
    assert _names(root) == _names(alone)
    reserved.target.require_unharmed()
