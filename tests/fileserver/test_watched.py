"""Directories that an agent in the guest holds: which questions it may ask of them, and what it is told.

The guest's side of it, in a real guest, is in tests/guest/test_pins.py.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from tests.fileserver.harness import add_document

from uvmshare.ninep import messages as m

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.fileserver.harness import Device, Host, Refused

    from uvmshare.fileserver.mount.files.node import Node
    from uvmshare.testing.client import NinePClient

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

from uvmshare.fileserver import syscalls
from uvmshare.fileserver.export import Export
from uvmshare.fileserver.mount import sources
from uvmshare.fileserver.mount.files.tree import Tree
from uvmshare.fileserver.mount.sources import Group
from uvmshare.fileserver.mount.watched import Queue, Watched

confined = pytest.mark.parametrize("model", ["passthrough"])
BEGIN, WATCH, CHANGES = b"trusted.uvmshare.begin", b"trusted.uvmshare.watch", b"trusted.uvmshare.changes"


def asked(guest: NinePClient, path: str, name: bytes) -> bytes:
    """Read an attribute as Linux's client does, which reads until nothing comes."""
    with guest.walked(path) as fid:
        attribute = guest.new_fid()
        try:
            guest.ask(m.Txattrwalk(fid, attribute, name), m.Rxattrwalk)
        except OSError:
            guest.free_fid(attribute)
            raise
        value = b""
        while data := guest.read(attribute, len(value), 4096):
            value += data
        guest.clunk(attribute)
        return value


def watched(guest: NinePClient, path: str) -> int:
    """Watch a directory and return its number."""
    number, _, there = asked(guest, path, WATCH).partition(b" ")
    assert there.decode() == path
    return int(number)


@contextmanager
def waiting(guest: NinePClient) -> Iterator[Callable[[], list[bytes]]]:
    """Have a read wait for changes, and give what takes its answer."""
    with guest.walked("") as fid:
        attribute = guest.new_fid()
        guest.ask(m.Txattrwalk(fid, attribute, CHANGES), m.Rxattrwalk)
        tag = guest.send(m.Tread(attribute, 0, 4096))

        def answer() -> list[bytes]:
            reply = guest.wait(tag)
            assert isinstance(reply, m.Rread)
            assert guest.read(attribute, len(reply.data), 4096) == b"", "there is no more of it"
            return bytes(reply.data).split()

        yield answer
        guest.clunk(attribute)


@confined
@pytest.mark.parametrize(
    "change",
    [
        lambda d, _: (d / "made").mkdir(),
        lambda d, _: (d / "there").rmdir(),
        lambda d, other: (d / "there").rename(other / "there"),
        lambda d, other: (other / "from").rename(d / "from"),
        lambda d, _: (d / "there").rename(d / "renamed"),
    ],
    ids=["mkdir", "rmdir", "move out", "move in", "rename"],
)
def test_a_directory_that_comes_or_goes_is_told_by_the_number_of_the_one_it_is_in(
    host: Host, change: Callable[[Path, Path], object]
) -> None:
    for path in ("dir/there", "quiet", "other/from"):
        (host.root / path).mkdir(parents=True)
    guest = host.guest()
    assert asked(guest, "", BEGIN).split()[0] == b"1"
    number = watched(guest, "dir")
    watched(guest, "quiet")
    with waiting(guest) as answer:
        (host.root / "quiet" / "a file").write_text("is not told")
        change(host.root / "dir", host.root / "other")
        assert answer() == [b"%d" % number]


@confined
def test_what_the_guest_does_itself_is_told_too_and_other_requests_go_on_meanwhile(host: Host) -> None:
    guest = host.guest()
    number = watched(guest, "")
    with waiting(guest) as answer:
        guest.write_file("written", b"meanwhile")
        assert guest.read_file("written") == b"meanwhile"
        guest.mkdir("made")
        assert answer() == [b"%d" % number]


@confined
def test_a_directory_is_told_where_the_host_has_it_now(host: Host, refused: Refused) -> None:
    (host.root / "a" / "b").mkdir(parents=True)
    guest = host.guest()
    with guest.walked("a/b") as fid:
        attribute = guest.new_fid()

        def there() -> bytes:
            guest.ask(m.Txattrwalk(fid, attribute, WATCH), m.Rxattrwalk)
            told = guest.read(attribute, 0, 4096)
            guest.clunk(attribute)
            return told.partition(b" ")[2]

        assert there() == b"a/b"
        (host.root / "a").rename(host.root / "z")
        assert there() == b"z/b"
        (host.root / "z" / "b").rmdir()
        with refused(errno.ENOENT):
            there()


@confined
def test_a_directory_that_left_the_share_is_told_of_no_more(host: Host) -> None:
    (host.root / "a" / "b").mkdir(parents=True)
    guest = host.guest()
    top = watched(guest, "")
    for path in ("a", "a/b"):
        watched(guest, path)
    (host.root / "a").rename(host.outside / "a")
    with waiting(guest) as answer:
        assert answer() == [b"%d" % top]
    with waiting(guest) as answer:
        (host.outside / "a" / "b" / "made").mkdir()
        (host.outside / "a" / "made").mkdir()
        (host.root / "a").mkdir()
        assert answer() == [b"%d" % top]
    shutil.rmtree(host.outside / "a")


@confined
def test_a_read_that_waits_is_flushed_and_one_at_a_time_waits(host: Host, refused: Refused) -> None:
    guest = host.guest()
    watched(guest, "")
    with guest.walked("") as fid:
        first, second = guest.new_fid(), guest.new_fid()
        for each in (first, second):
            guest.ask(m.Txattrwalk(fid, each, CHANGES), m.Rxattrwalk)
        tag = guest.send(m.Tread(first, 0, 4096))
        with refused(errno.EBUSY):
            guest.read(second, 0, 4096)
        assert not guest.flush(tag)
        tag = guest.send(m.Tread(second, 0, 4096))
        (host.root / "made").mkdir()
        assert isinstance(guest.wait(tag), m.Rread)


@confined
def test_whoever_begins_anew_ends_the_one_before(host: Host) -> None:
    (host.root / "dir").mkdir()
    guest = host.guest()
    watched(guest, "dir")
    with waiting(guest) as answer:
        asked(guest, "", BEGIN)
        assert answer() == [b"lost"]
    number = watched(guest, "")
    with waiting(guest) as answer:
        (host.root / "dir" / "made").mkdir()  # which nobody watches any more
        (host.root / "made").mkdir()
        assert answer() == [b"%d" % number]


@confined
def test_a_file_is_not_watched_and_the_questions_are_of_their_own_places(host: Host, refused: Refused) -> None:
    (host.root / "dir").mkdir()
    (host.root / "file").touch()
    guest = host.guest()
    with refused(errno.ENOTDIR):
        asked(guest, "file", WATCH)
    for name in (BEGIN, CHANGES):
        with refused(errno.ENODATA):
            asked(guest, "dir", name)
    with refused(errno.ENODATA):
        asked(guest, "", b"trusted.uvmshare.other")


@confined
def test_names_that_a_share_does_not_show_are_not_told_of(host: Host) -> None:
    (host.root / "shown").mkdir()
    for share in (host.share(hide=("secret*",)), host.share(allowed=("shown",))):
        guest = host.connect(share)
        number = watched(guest, "")
        with waiting(guest) as answer:
            (host.root / f"secret{share}").mkdir()
            tag = guest.send(m.Tgetattr(guest.root, 0x7FF))
            guest.wait(tag)  # the thread that tells has had its turn or comes to both at once; either is one number
            (host.root / "shown").rmdir()
            (host.root / "shown").mkdir()
            assert answer() == [b"%d" % number]


@pytest.mark.parametrize("model", ["in-process"])
def test_a_process_that_sees_more_than_its_share_watches_nothing(host: Host, refused: Refused) -> None:
    with refused(errno.EOPNOTSUPP, errno.ENODATA):
        asked(host.guest(), "", BEGIN)


def test_a_share_of_another_users_directory_watches_nothing(
    start_device: Callable[..., Device], tmp_path: Path, refused: Refused
) -> None:
    """Outside a namespace of its own, a process could be told of what lies outside."""
    if os.geteuid():
        pytest.skip("becoming another user needs root")
    tmp_path.chmod(0o755)
    for above in tmp_path.parents[:-2]:
        above.chmod(above.stat().st_mode | 0o755)
    device = start_device(security_model="none", run_as=(65534, 65534, ()))
    with device.connect(device.share(tmp_path)) as guest, refused(errno.EOPNOTSUPP, errno.ENODATA):
        asked(guest, "", BEGIN)


@pytest.fixture
def tree(root: Path) -> Iterator[Tree]:
    settings = add_document("0", str(root)).settings
    assert settings is not None
    export = Export.open(settings, "none")
    made = Tree(export)
    yield made
    made.close()
    export.close()


def opened(tree: Tree, name: str) -> Node:
    return tree.walk(tree.root, [name.encode()])[0]


def test_no_more_directories_are_watched_than_the_limit_and_those_are_asked_for_again(tree: Tree, root: Path) -> None:
    tree.found_mounts(any_there=False)
    watched = Watched(Queue(syscalls.inotify_init(), 2), tree, lambda _: None)
    for name in "abc":
        (root / name).mkdir()
    first, second, third = (opened(tree, name) for name in "abc")
    numbers = [watched.add(each)[0] for each in (first, second)]
    with pytest.raises(OSError, match="which is the limit"):
        watched.add(third)
    assert [watched.add(each)[0] for each in (first, second)] == numbers
    watched.begin()
    assert watched.add(third)[1] == b"c"


def test_where_something_may_be_mounted_nothing_is_watched(tree: Tree, root: Path) -> None:
    (root / "a").mkdir()
    watched = Watched(Queue(syscalls.inotify_init(), 2), tree, lambda _: None)
    tree.found_mounts(any_there=True)
    with pytest.raises(OSError, match="nobody tells"):
        watched.begin()
    with pytest.raises(OSError, match="nobody tells"):
        watched.add(opened(tree, "a"))


def test_an_overflow_of_the_queue_is_told_as_lost(tree: Tree) -> None:
    watched = Watched(Queue(syscalls.inotify_init(), 2), tree, lambda _: None)
    watched._take_note(b"\xff\xff\xff\xff" + (0x4000).to_bytes(4, "little") + bytes(8))
    reply = watched.wait(1, 4096)
    assert reply is not None
    assert reply.endswith(b"lost\n")


def test_a_host_without_a_queue_to_spare_keeps_what_is_left_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def init() -> int:
        if len(made) == 20:
            raise OSError(errno.EMFILE, "too many")
        made.append(os.open(os.devnull, os.O_RDONLY))
        return made[-1]

    monkeypatch.setattr(syscalls, "inotify_init", init)
    assert Queue.open(os.open("/", os.O_PATH)) is None
    for each in made:
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(each)


def test_where_the_kernel_cannot_tell_of_names_the_directories_are_watched_all_the_same(
    tree: Tree, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "a").mkdir()
    tree.found_mounts(any_there=False)
    without = Watched(Queue(syscalls.inotify_init(), 2), tree, lambda _: None)
    with pytest.raises(OSError, match="no queue to spare"):
        without.listen()
    watched = Watched(Queue(syscalls.inotify_init(), 2, Group.open()), tree, lambda _: None)
    monkeypatch.setattr(sources, "file_handle", lambda _: b"")
    with pytest.raises(OSError, match="no handles"):
        watched.listen()
    assert watched.listening is None
    assert watched.add(opened(tree, "a"))[1] == b"a"


def test_a_directory_that_the_kernel_tells_nothing_of_is_watched_all_the_same(
    tree: Tree, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "a").mkdir()
    tree.found_mounts(any_there=False)
    watched = Watched(Queue(syscalls.inotify_init(), 2, Group.open()), tree, lambda _: None)
    watched.listen()

    def no_more(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no more marks")

    monkeypatch.setattr(syscalls, "fanotify_mark", no_more)
    assert watched.add(opened(tree, "a"))[1] == b"a"
