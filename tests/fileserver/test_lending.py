"""What a server that is not root does for a guest's root, in a tree of its own user's and of another's of its group."""

from __future__ import annotations

import errno
import itertools
import multiprocessing
import os
import stat
import struct
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import pytest
from tests.processes import DEADLINE
from tests.root import require_root

from uvmshare.fileserver.limits import Limits
from uvmshare.fileserver.mount.files.lending import Lending
from uvmshare.fileserver.mount.files.node import Node
from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import OpenFlag as O
from uvmshare.ninep.constants import SetattrValid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.fileserver.harness import Device, Refused

    from uvmshare.testing.client import NinePClient

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)
require_root("becoming another user needs root")

USER: Final = 12345
COLLEAGUE: Final = 20000
_numbers: Final = itertools.count()


class Place:
    """A tree on the host of the serving user's own, and a share of it."""

    def __init__(self, device: Device, root: Path) -> None:
        self.device = device
        self.root = root
        self.open = ExitStack()

    def make(self, name: str, mode: int, *, owner: int = USER, directory: bool = False) -> Path:
        path = self.root / name
        if directory:
            path.mkdir()
        else:
            path.write_bytes(b"content")
        os.chown(path, owner, USER)
        path.chmod(mode)
        return path

    def guest(self, *, n_uname: int = 0, read_only: bool = False) -> NinePClient:
        name = self.device.share(self.root, read_only=read_only)
        self.open.callback(self.device.unshare, name)
        return self.open.enter_context(self.device.connect(name, n_uname=n_uname))


@pytest.fixture(scope="module", params=["mapped-xattr", "none"])
def server(request: pytest.FixtureRequest, start_device: Callable[..., Device]) -> Device:
    return start_device(security_model=request.param, run_as=(USER, USER, ()))


@pytest.fixture(scope="module")
def mapping(start_device: Callable[..., Device]) -> Device:
    return start_device(security_model="mapped-xattr", run_as=(USER, USER, ()))


def _root(xattr_directory: Path, name: str) -> Path:
    xattr_directory.chmod(0o755)
    root = xattr_directory / name
    root.mkdir()
    os.chown(root, USER, USER)
    return root


@pytest.fixture
def place(server: Device, xattr_directory: Path) -> Iterator[Place]:
    made = Place(server, _root(xattr_directory, f"lend-{next(_numbers)}"))
    with made.open:
        yield made


@pytest.fixture
def mapped(mapping: Device, xattr_directory: Path) -> Iterator[Place]:
    made = Place(mapping, _root(xattr_directory, f"lend-{next(_numbers)}"))
    with made.open:
        yield made


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_the_guests_root_reads_and_writes_what_the_servers_user_may_not(place: Place) -> None:
    guest = place.guest()
    for mode in (0o444, 0o400, 0o200, 0o000):
        path = place.make(f"object{mode:o}", mode)
        fid = guest.open(path.name, O.RDWR | O.APPEND)
        assert mode_of(path) == mode
        guest.write(fid, 7, b" and more")
        guest.clunk(fid)
        assert guest.read_file(path.name) == b"content and more"
        with guest.walked(path.name) as fid:
            guest.setattr(fid, size=3)
        assert path.read_bytes() == b"con"
        assert stat.S_IMODE(guest.stat(path.name).mode) == mode
        assert mode_of(path) == mode


def test_the_guests_root_changes_names_in_directories_that_nobody_may_write(place: Place) -> None:
    guest = place.guest()
    for mode in (0o555, 0o500, 0o000):
        path = place.make(f"module{mode:o}", mode, directory=True)
        other = place.make(f"other{mode:o}", mode, directory=True)
        inner = place.make(f"{path.name}/inner", mode, directory=True)
        name = path.name
        guest.write_file(f"{name}/made", b"x")
        guest.mkdir(f"{name}/directory")
        guest.symlink("made", f"{name}/symlink")
        guest.mknod(f"{name}/fifo", stat.S_IFIFO | 0o600)
        guest.link(f"{name}/made", f"{name}/link")
        guest.rename(f"{name}/link", f"{other.name}/moved")
        guest.rename(f"{name}/inner", f"{other.name}/inner")
        assert set(guest.listdir(name)) == {b"made", b"directory", b"symlink", b"fifo"}
        assert guest.read_file(f"{other.name}/moved") == b"x"
        for gone in ("made", "symlink", "fifo"):
            guest.unlink(f"{name}/{gone}")
        guest.rmdir(f"{name}/directory")
        guest.rmdir(f"{other.name}/inner")
        assert not inner.exists()
        guest.unlink(f"{other.name}/moved")
        assert guest.listdir(name) == []
        assert (mode_of(path), mode_of(other)) == (mode, mode)


def test_the_guests_root_walks_through_directories_that_may_not_be_entered(place: Place) -> None:
    guest = place.guest()
    outer = place.make("outer", 0o755, directory=True)
    place.make("outer/inner", 0o755, directory=True)
    place.make("outer/inner/file", 0o444)
    for path in (outer / "inner", outer):
        path.chmod(0o600)
    assert guest.read_file("outer/inner/file") == b"content"
    assert (mode_of(outer), mode_of(outer / "inner")) == (0o600, 0o600)
    with guest.walked("outer/inner/file") as fid:
        guest.setattr(fid, mtime_ns=10**9)
    assert guest.stat("outer/inner/file").mtime_sec == 1


def test_extended_attributes_and_modes_of_own_files_change_whatever_their_modes_are(place: Place) -> None:
    guest = place.guest()
    for mode in (0o444, 0o000):
        path = place.make(f"file{mode:o}", mode)
        with guest.walked(path.name) as fid:
            guest.setattr(fid, uid=1000, gid=1000)
            guest.setattr(fid, atime_ns=5, mtime_ns=5)
        fid = guest.walk(path.name)
        guest.ask(m.Txattrcreate(fid, b"user.x", 5, 0), m.Rxattrcreate)
        guest.write(fid, 0, b"value")
        guest.clunk(fid)
        with guest.walked(path.name) as fid:
            reading = guest.new_fid()
            assert guest.ask(m.Txattrwalk(fid, reading, b"user.x"), m.Rxattrwalk).size == 5
            assert guest.read(reading, 0, 5) == b"value"
        assert mode_of(path) == mode


def test_setuid_bits_that_the_host_takes_off_do_not_come_back(place: Place) -> None:
    path = place.make("program", 0o4555)
    guest = place.guest()
    guest.clunk(guest.open("program", O.WRONLY | O.TRUNC))
    assert mode_of(path) & ~0o4000 == 0o555
    assert path.read_bytes() == b""


def test_nothing_is_lent_on_a_share_that_is_read_only(place: Place, refused: Refused) -> None:
    path = place.make("secret", 0o000)
    before = path.stat()
    guest = place.guest(read_only=True)
    with refused(errno.EACCES):
        guest.read_file("secret")
    guest.stat("secret")
    assert path.stat() == before


def test_a_chown_of_a_file_that_may_not_be_written_is_kept(mapped: Place) -> None:
    path = mapped.make("object", 0o444)
    made = mapped.make("module", 0o555, directory=True)
    guest = mapped.guest()
    for each in (path, made):
        with guest.walked(each.name) as fid:
            guest.setattr(fid, uid=1000, gid=2000)
        seen = guest.stat(each.name)
        assert (seen.uid, seen.gid) == (1000, 2000)
    assert (mode_of(path), mode_of(made)) == (0o444, 0o555)


def test_what_is_kept_of_a_file_is_told_though_the_host_let_nobody_read_it_and_costs_one_loan(mapped: Place) -> None:
    path = mapped.make("file", 0o600)
    os.setxattr(path, "user.virtfs.uid", struct.pack("<I", 1000))
    path.chmod(0)
    guest = mapped.guest()
    assert guest.stat("file").uid == 1000
    ctime = path.stat().st_ctime_ns
    assert guest.stat("file").uid == 1000
    assert path.stat().st_ctime_ns == ctime
    assert mode_of(path) == 0


def test_a_colleagues_file_keeps_what_it_can_where_it_may_be_written(mapped: Place) -> None:
    path = mapped.make("script", 0o664, owner=COLLEAGUE)
    guest = mapped.guest()
    with guest.walked("script") as fid:
        guest.setattr(fid, mode=0o775)
        guest.setattr(fid, uid=1000, gid=1000)
        for times in (SetattrValid.MTIME, SetattrValid.ATIME | SetattrValid.MTIME):
            guest.ask(m.Tsetattr(fid, int(times), 0, 0, 0, 0, 0, 0, 0, 0), m.Rsetattr)
        guest.setattr(fid, size=1)
    seen = guest.stat("script")
    assert (stat.S_IMODE(seen.mode), seen.uid, seen.gid, seen.size) == (0o775, 1000, 1000, 1)
    assert (mode_of(path), path.stat().st_uid) == (0o664, COLLEAGUE)


def test_a_colleagues_file_that_may_not_be_written_is_refused_every_change_but_one_that_is_none(
    mapped: Place, refused: Refused
) -> None:
    path = mapped.make("script", 0o644, owner=COLLEAGUE)
    before = path.stat()
    guest = mapped.guest()
    with guest.walked("script") as fid:
        seen = guest.getattr(fid)
        guest.setattr(fid, mode=0o644)
        guest.setattr(fid, uid=seen.uid, gid=seen.gid)
        for change in ({"mode": 0o755}, {"uid": 1000}, {"mtime_ns": 1}):
            with refused(errno.EPERM):
                guest.setattr(fid, **change)
        with refused(errno.EACCES):
            guest.setattr(fid, size=0)
    with refused(errno.EACCES):
        guest.open("script", O.WRONLY)
    after = path.stat()
    assert (after.st_mode, after.st_uid, after.st_size, after.st_mtime) == (
        before.st_mode,
        before.st_uid,
        before.st_size,
        before.st_mtime,
    )


def test_a_fifo_of_the_host_gets_the_mode_that_is_asked_for(mapped: Place) -> None:
    path = mapped.root / "fifo"
    os.mkfifo(path)
    os.chown(path, USER, USER)
    guest = mapped.guest()
    with guest.walked("fifo") as fid:
        guest.setattr(fid, mode=0o640)
    assert stat.S_IMODE(guest.stat("fifo").mode) == 0o640


# The loans themselves


def _lender() -> Lending:
    return Lending(is_on=True, require_inside=lambda _: None, is_shared=lambda _: True)


def _start(work: Callable[[], None]) -> multiprocessing.process.BaseProcess:
    """Do something in a process of the serving user's."""

    def run() -> None:
        os.setgroups([])
        os.setgid(USER)
        os.setuid(USER)
        work()

    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    return child


def _require_done(*children: multiprocessing.process.BaseProcess) -> None:
    for child in children:
        child.join(DEADLINE)
    assert [child.exitcode for child in children] == [0] * len(children)


@pytest.fixture
def directory(xattr_directory: Path) -> Path:
    path = _root(xattr_directory, f"lend-{next(_numbers)}")
    path.chmod(0o555)
    return path


def _node(path: Path) -> Node:
    return Node(os.open(path, os.O_PATH), None, b"")


def test_what_another_gives_back_too_early_is_lent_again(directory: Path) -> None:
    def work() -> None:
        node, gone = _node(directory), [1, 1]

        def make() -> None:
            if gone and stat.S_IMODE(os.fstat(node.fd).st_mode) == 0o755:
                gone.pop()
                directory.chmod(0o555)  # what another lender does when it is done
            os.mkdir("made", dir_fd=node.fd)

        _lender().during(make, node)
        assert not gone

    _require_done(_start(work))
    assert mode_of(directory) == 0o555
    assert (directory / "made").is_dir()


def test_what_others_give_back_and_lend_before_the_look_is_tried_again(directory: Path) -> None:
    def work() -> None:
        node, gone = _node(directory), [1, 1]

        def make() -> None:
            if not gone or stat.S_IMODE(os.fstat(node.fd).st_mode) != 0o755:
                os.mkdir("made", dir_fd=node.fd)
                return
            gone.pop()
            directory.chmod(0o555)  # another lender is done
            try:
                os.mkdir("made", dir_fd=node.fd)
            finally:
                directory.chmod(0o755)  # and one more begins before anybody looks

        _lender().during(make, node)
        assert not gone

    _require_done(_start(work))
    assert mode_of(directory) == 0o555
    assert (directory / "made").is_dir()


def test_who_changes_the_mode_during_a_loan_has_their_way(directory: Path) -> None:
    def work() -> None:
        node = _node(directory)

        def make() -> None:
            os.mkdir("made", dir_fd=node.fd)
            directory.chmod(0o711)

        _lender().during(make, node)

    _require_done(_start(work))
    assert mode_of(directory) == 0o711


def test_a_process_that_is_asked_to_end_gives_back_first(directory: Path) -> None:
    def work() -> None:
        node, lender = _node(directory), _lender()

        def make() -> None:
            os.mkdir("made", dir_fd=node.fd)
            lender.give_all_back()
            os._exit(0)

        lender.during(make, node)

    _require_done(_start(work))
    assert mode_of(directory) == 0o555
    assert (directory / "made").is_dir()


def test_many_lenders_of_one_directory_are_all_served_and_leave_its_mode(directory: Path) -> None:
    def work() -> None:
        node, lender = _node(directory), _lender()
        for count in range(100):
            name = f"{os.getpid()}.{count}"
            lender.during(lambda name=name: os.mkdir(name, dir_fd=node.fd), node)  # type: ignore[misc]  # its default

    _require_done(*[_start(work) for _ in range(3)])
    assert len(list(directory.iterdir())) == 300
    assert mode_of(directory) == 0o555


def test_a_setgid_bit_that_would_be_lost_is_worth_more_than_the_operation(directory: Path) -> None:
    os.chown(directory, USER, COLLEAGUE)
    directory.chmod(0o2555)

    def work() -> None:
        node = _node(directory)
        with pytest.raises(PermissionError):
            _lender().during(lambda: os.mkdir("made", dir_fd=node.fd), node)

    _require_done(_start(work))
    assert mode_of(directory) == 0o2555


@pytest.mark.parametrize("model", ["mapped-xattr", "none"])
def test_an_open_file_that_was_let_go_comes_back_whatever_its_mode_is(
    start_device: Callable[..., Device], xattr_directory: Path, model: str
) -> None:
    device = start_device(security_model=model, run_as=(USER, USER, ()), limits=Limits(descriptors=128))
    place = Place(device, _root(xattr_directory, f"let-go-{model}"))
    with place.open:
        guest = place.guest()
        fids = [guest.create(f"{number}", O.RDWR, mode) for number, mode in enumerate((0o444, 0o000, 0o644) * 50)]
        for number, fid in enumerate(fids):
            guest.write(fid, 0, b"%d" % number)
        assert [guest.read(fid, 0, 10) for fid in fids] == [b"%d" % number for number in range(len(fids))]
    modes = [stat.S_IMODE((place.root / name).stat().st_mode) for name in ("0", "1")]
    assert modes == ([0o444, 0o000] if model == "none" else [0o644, 0o600])  # nothing stays lent
