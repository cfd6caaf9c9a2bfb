"""A file system below a share that hangs: other files answer, and the share can be taken away."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import pytest
from tests.fileserver.harness import one_of
from tests.fuse import HungFuse
from tests.processes import await_answer, await_end, kill, process_exists
from tests.root import require_root

from uvmshare.errors import InvalidState, OutcomeUnknown
from uvmshare.fileserver.mount import lanes
from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import GetattrMask, LockFlag, LockType, SetattrValid
from uvmshare.ninep.constants import OpenFlag as O

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.fileserver.harness import Device, Host

    from uvmshare.fileserver import control
    from uvmshare.testing.client import NinePClient

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)
require_root("mounting FUSE without a helper needs root")


model = one_of(
    "none", pytest.param("mapped-xattr", marks=pytest.mark.long), pytest.param("passthrough", marks=pytest.mark.long)
)
"""Each security model, never in this process: what hangs in it could not be ended."""


@pytest.fixture
def shown(host: Host) -> Path:
    """The directory that the file system in user space shows: a good file, and one that will hang."""
    directory = host.outside / "shown"
    directory.mkdir()
    for name in ("good", "bad"):
        (directory / name).write_bytes(b"content of " + name.encode())
        (directory / f"{name}-directory").mkdir()
        (directory / f"{name}-directory" / "file").write_bytes(b"")
        (directory / f"{name}-link").symlink_to("target")
    (directory / "other").mkdir()
    (directory / "other" / "good").write_bytes(b"content of good")
    return directory


@pytest.fixture
def fuse(host: Host, shown: Path) -> Iterator[HungFuse]:
    """It is mounted at ``mnt`` of the share, beside a local file."""
    (host.root / "local").write_bytes(b"local")
    with HungFuse(shown, host.root / "mnt") as mounted:
        yield mounted


@pytest.fixture
def mounted_root(shown: Path, host: Host) -> Iterator[HungFuse]:
    """It is the share."""
    with HungFuse(shown, host.outside / "point") as mounted:
        yield mounted


_WRITABLE: Final = O.RDWR


def _opened(path: str, flags: int = O.RDONLY) -> Callable[[NinePClient], int]:
    return lambda client: client.open(path, flags)


def _walked(path: str) -> Callable[[NinePClient], int]:
    return lambda client: client.walk(path)


def _setattr(fid: int) -> m.Message:
    return m.Tsetattr(fid, int(SetattrValid.MODE), 0o600, 0, 0, 0, 0, 0, 0, 0)


OPERATIONS: Final[dict[str, tuple[Callable[[NinePClient], int], Callable[[int], m.Message], str]]] = {
    "walk": (_walked("mnt"), lambda fid: m.Twalk(fid, 900, (b"bad",)), "LOOKUP"),
    "getattr": (_walked("mnt/bad"), lambda fid: m.Tgetattr(fid, int(GetattrMask.BASIC)), "GETATTR"),
    "setattr": (_walked("mnt/bad"), _setattr, "SETATTR"),
    "lopen": (_walked("mnt/bad"), lambda fid: m.Tlopen(fid, O.RDONLY), "OPEN"),
    "lcreate": (_walked("mnt/bad-directory"), lambda fid: m.Tlcreate(fid, b"bad", O.RDWR, 0o644, 0), "CREATE"),
    "read": (_opened("mnt/bad"), lambda fid: m.Tread(fid, 0, 100), "READ"),
    "write": (_opened("mnt/bad", _WRITABLE), lambda fid: m.Twrite(fid, 0, b"x"), "WRITE"),
    "fsync": (_opened("mnt/bad", _WRITABLE), lambda fid: m.Tfsync(fid, 0), "FSYNC"),
    "clunk": (_opened("mnt/bad", _WRITABLE), m.Tclunk, "FLUSH"),
    "readdir": (_opened("mnt/bad-directory"), lambda fid: m.Treaddir(fid, 0, 1000), "READDIR"),
    "readlink": (_walked("mnt/bad-link"), m.Treadlink, "READLINK"),
    "statfs": (_walked("mnt/bad"), m.Tstatfs, "STATFS"),
    "xattrwalk": (_walked("mnt/bad"), lambda fid: m.Txattrwalk(fid, 900, b"user.x"), "GETXATTR"),
    "mkdir": (_walked("mnt/good-directory"), lambda fid: m.Tmkdir(fid, b"bad", 0o755, 0), "MKDIR"),
    "symlink": (_walked("mnt/good-directory"), lambda fid: m.Tsymlink(fid, b"bad", b"to", 0), "SYMLINK"),
    "mknod": (_walked("mnt/good-directory"), lambda fid: m.Tmknod(fid, b"bad", 0o100644, 0, 0, 0), "MKNOD"),
    "unlinkat": (_walked("mnt"), lambda fid: m.Tunlinkat(fid, b"bad", 0), "UNLINK"),
    "remove": (_walked("mnt/bad"), m.Tremove, "UNLINK"),
    "renameat": (_walked("mnt"), lambda fid: m.Trenameat(fid, b"bad", fid, b"renamed"), "RENAME"),
    "lock": (
        _opened("mnt/bad", _WRITABLE),
        lambda fid: m.Tlock(fid, LockType.WRLCK, LockFlag.BLOCK, 0, 0, 1, b"me"),
        "OPEN",
    ),
    "getlock": (_opened("mnt/bad"), lambda fid: m.Tgetlock(fid, LockType.WRLCK, 0, 0, 1, b"me"), "OPEN"),
}

QUICK: Final = ("walk", "write", "clunk", "lock")
"""Each takes a second: what is given up has that long to answer."""


def _hang(fuse: HungFuse, operation: str) -> None:
    opcode = OPERATIONS[operation][2]
    names = {"readdir": "bad-directory", "readlink": "bad-link"}
    opcodes = {"symlink": ("SYMLINK", "CREATE", "MKNOD"), "mknod": ("MKNOD", "CREATE"), "lcreate": ("CREATE", "MKNOD")}
    fuse.hang(names.get(operation, "bad"), *opcodes.get(operation, (opcode, f"{opcode}2", f"{opcode}DIR")))


def _answers(client: NinePClient) -> None:
    """What does not hang answers: local files, and those beside the one that hangs."""
    assert client.read_file("local") == b"local"
    client.write_file("new", b"made")
    assert client.read_file("new") == b"made"
    client.unlink("new")
    assert b"local" in client.listdir()


def _beside(client: NinePClient, directory: int) -> None:
    """So do files of the same file system, in another directory: the host's kernel locks the one that is changed."""
    fid = client.walk("good", start=directory)
    client.rpc(m.Tlopen(fid, O.RDONLY))
    assert client.read(fid, 0, 100) == b"content of good"
    client.clunk(fid)


def test_all_of_it_works_on_a_file_system_in_user_space(host: Host, fuse: HungFuse) -> None:
    client = host.guest()
    assert client.read_file("mnt/good") == b"content of good"
    client.write_file("mnt/new", b"made")
    assert client.read_file("mnt/new") == b"made"
    client.rename("mnt/new", "mnt/newer")
    client.link("mnt/newer", "mnt/newest")
    client.unlink("mnt/newer")
    client.mkdir("mnt/made")
    client.rmdir("mnt/made")
    assert client.listdir("mnt/good-directory") == [b"file"]
    assert client.readlink("mnt/good-link") == b"target"
    _beside(client, client.walk("mnt/other"))
    _answers(client)
    assert fuse.held == []


@pytest.mark.parametrize("operation", OPERATIONS)
def test_while_one_request_hangs_other_files_answer(host: Host, fuse: HungFuse, operation: str) -> None:
    client = host.guest()
    begin, make, _ = OPERATIONS[operation]
    fid, other = begin(client), client.walk("mnt/other")
    _hang(fuse, operation)
    tag = client.send(make(fid))
    fuse.wait_until_asked()
    _answers(client)
    _beside(client, other)
    fuse.release()
    with suppress(OSError):  # ENODATA, of the attribute
        client.wait(tag)
    _beside(client, other)


@pytest.mark.parametrize(
    "operation", [each if each in QUICK else pytest.param(each, marks=pytest.mark.long) for each in OPERATIONS]
)
def test_a_request_that_hangs_is_given_up_when_it_is_flushed(host: Host, fuse: HungFuse, operation: str) -> None:
    client = host.guest()
    begin, make, _ = OPERATIONS[operation]
    fid, other = begin(client), client.walk("mnt/other")
    _hang(fuse, operation)
    tag = client.send(make(fid))
    fuse.wait_until_asked()
    assert not client.flush(tag), "it was answered"
    _answers(client)
    _beside(client, other)
    fuse.release()
    _beside(client, other)


def test_what_hung_is_answered_when_the_file_system_answers(host: Host, fuse: HungFuse) -> None:
    client = host.guest()
    fid = client.walk("mnt/bad")
    fuse.hang("bad")
    tag = client.send(m.Tgetattr(fid, int(GetattrMask.BASIC)))
    fuse.wait_until_asked()
    _answers(client)
    fuse.release()
    assert isinstance(client.wait(tag), m.Rgetattr)


def test_a_walk_that_was_given_up_makes_no_fid_however_late_it_ends(host: Host, fuse: HungFuse) -> None:
    client = host.guest()
    directory = client.walk("mnt")
    fuse.hang("bad")
    number = client.new_fid()
    tag = client.send(m.Twalk(directory, number, (b"bad",)))
    fuse.wait_until_asked()
    assert not client.flush(tag)
    client.ask(m.Twalk(directory, number, (b"good",)), m.Rwalk)  # the number is free again
    before = client.getattr(number).qid
    fuse.release()
    assert client.stat("mnt/bad").qid != before
    assert client.getattr(number).qid == before


def test_a_whole_file_system_that_hangs_takes_a_bounded_number_of_threads(host: Host, fuse: HungFuse) -> None:
    client = host.guest()
    fid = client.walk("mnt/bad")
    fuse.hang_all()
    tags = [client.send(m.Tgetattr(fid, int(GetattrMask.BASIC))) for _ in range(3 * lanes.EACH)]
    fuse.wait_until_asked(lanes.EACH)
    _answers(client)
    assert len(fuse.held) == lanes.EACH
    fuse.release()
    for tag in tags:
        assert isinstance(client.wait(tag), m.Rgetattr)


def test_a_lookup_of_a_mount_that_hangs_holds_up_no_other(host: Host, fuse: HungFuse) -> None:
    client = host.guest()
    fuse.hang_all()
    tags = [client.send(m.Twalk(0, 900 + number, (b"mnt",))) for number in range(3 * lanes.EACH)]
    fuse.wait_until_asked(lanes.EACH)
    _answers(client)
    fuse.release()
    for tag in tags:
        assert isinstance(client.wait(tag), m.Rwalk)
    assert client.read_file("mnt/good") == b"content of good"


def test_requests_of_one_fid_that_change_it_keep_their_order(host: Host, fuse: HungFuse) -> None:
    client = host.guest()
    fid = client.open("mnt/bad", O.RDWR)
    fuse.hang("bad", "WRITE")
    tags = [client.send(m.Twrite(fid, 0, b"%d" % number)) for number in range(10)]
    fuse.wait_until_asked()
    assert len(fuse.held) == 1
    fuse.release()
    for tag in tags:
        client.wait(tag)
    assert client.read(fid, 0, 1) == b"9"


def test_a_share_that_is_such_a_file_system_answers_beside_what_hangs(host: Host, mounted_root: HungFuse) -> None:
    client = host.connect(host.share(mounted_root.point))
    client.write_file("new", b"made")
    fid = client.walk("bad")
    mounted_root.hang("bad", "GETATTR")  # a listing asks for attributes of each file, where the model keeps any
    tag = client.send(m.Tgetattr(fid, int(GetattrMask.BASIC)))
    mounted_root.wait_until_asked()
    assert client.read_file("new") == b"made"
    assert b"good" in client.listdir()
    mounted_root.release()
    assert isinstance(client.wait(tag), m.Rgetattr)
    with pytest.raises(OSError, match="in answer to") as caught:
        client.walk("nothing")
    assert caught.value.errno == errno.ENOENT


def test_what_is_made_in_the_root_of_such_a_share_hangs_beside_the_others(host: Host, mounted_root: HungFuse) -> None:
    client = host.connect(host.share(mounted_root.point))
    fid = client.create("made")
    mounted_root.hang("made", "GETATTR")
    tag = client.send(m.Tgetattr(fid, int(GetattrMask.BASIC)))
    mounted_root.wait_until_asked()
    assert b"good" in client.listdir()
    mounted_root.release()
    assert isinstance(client.wait(tag), m.Rgetattr)


@pytest.mark.parametrize("model", ["none"])
def test_a_removal_returns_while_a_file_system_hangs_and_says_what_it_leaves_behind(
    start_device: Callable[..., Device], host: Host, fuse: HungFuse
) -> None:
    device = start_device(security_model="none")
    left: list[control.Left] = []
    device.server.on_left(left.extend)
    name = device.share(host.root)
    with device.connect(name) as client:
        (pid,) = device.mounts(name)
        fid = client.walk("mnt/bad")
        fuse.hang("bad")
        client.send(m.Tgetattr(fid, int(GetattrMask.BASIC)))
        fuse.wait_until_asked()
        pidfd = os.pidfd_open(pid)
        device.unshare(name)
        client.drain()  # the connection has ended
        assert [(each.pid, each.share, each.path) for each in left] == [(pid, name, str(host.root))]
        assert left[0].where.startswith("fuse at ")
        status = device.run(device.server.status())
        assert status.shares == ()
        assert status.left == tuple(left)
    again = device.share(host.root)  # others are served
    with device.connect(again) as client:
        assert client.read_file("local") == b"local"
    fuse.release()
    await_end(pidfd)
    os.close(pidfd)
    await_answer(lambda: device.run(device.server.status()).left, ())
    device.unshare(again)


def _left(device: Device) -> list[int] | None:
    """The processes that are left behind; None while a supervisor takes over."""
    try:
        return [each.pid for each in device.run(device.server.status()).left]
    except (OutcomeUnknown, InvalidState):
        return None


@pytest.mark.parametrize("model", ["none"])
def test_closing_the_server_returns_while_a_file_system_hangs(
    start_device: Callable[..., Device], host: Host, fuse: HungFuse
) -> None:
    device = start_device(security_model="none")
    name = device.share(host.root)
    with device.connect(name) as client:
        fid = client.walk("mnt/bad")
        fuse.hang("bad")
        client.send(m.Tgetattr(fid, int(GetattrMask.BASIC)))
        fuse.wait_until_asked()
        supervisor = device.pid()
        device.run(device.server.aclose())
        assert not process_exists(supervisor)
        client.drain()
    fuse.release()


@pytest.mark.parametrize("model", ["none"])
def test_a_supervisor_takes_over_what_hangs_and_what_was_left_behind(
    start_device: Callable[..., Device], host: Host, fuse: HungFuse, tmp_path: Path
) -> None:
    device = start_device(security_model="none", run_dir=tmp_path / "run")
    name, other = device.share(host.root), device.share(host.root)
    with device.connect(name) as client, device.connect(other) as beside:
        fids = client.walk("mnt/bad"), beside.walk("mnt/bad")
        (pid,) = device.mounts(name)
        fuse.hang("bad")
        client.send(m.Tgetattr(fids[0], int(GetattrMask.BASIC)))
        beside.send(m.Tgetattr(fids[1], int(GetattrMask.BASIC)))
        fuse.wait_until_asked(2)
        device.unshare(name)
        kill(device.pid())
        await_answer(lambda: _left(device), [pid])
        assert beside.read_file("local") == b"local"
        device.unshare(other)
        beside.drain()
    fuse.release()
    await_answer(lambda: device.run(device.server.status()).left, ())
