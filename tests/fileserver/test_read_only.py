"""A read-only share: every message that changes anything answers EROFS, and the host's tree stays as it is."""

from __future__ import annotations

import errno
import os
import stat
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pytest
from tests.fileserver.harness import IN_AND_OUT, one_of
from tests.thinned import by_type

from uvmshare.fileserver.mount import seccomp
from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import AT_REMOVEDIR, NOFID, NONUNAME, SetattrValid
from uvmshare.ninep.constants import OpenFlag as O

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.fileserver.harness import Host, Refused

    from uvmshare.testing.client import NinePClient

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)


model = one_of(*IN_AND_OUT)


# The fids that the messages below are about, unopened and open, in a tree that `read_only` makes.
ROOT: Final = 0
FILE, DIRECTORY, EMPTY, LINK = 101, 102, 103, 104
OPEN_FILE, OPEN_DIRECTORY = 111, 112
NEW: Final = 999

CREATES: Final = (
    O.WRONLY | O.CREATE,
    O.WRONLY | O.CREATE | O.EXCL,
    O.RDWR | O.CREATE | O.TRUNC,
    O.RDONLY | O.CREATE,
    O.RDONLY,
)

CHANGES: Final[list[m.Message]] = [
    *(m.Tlopen(FILE, flags) for flags in (O.WRONLY, O.RDWR, O.WRONLY | O.APPEND, O.RDWR | O.TRUNC, O.WRONLY | O.SYNC)),
    m.Tlopen(FILE, O.RDONLY | O.TRUNC),
    *(m.Tlcreate(DIRECTORY, name, flags, 0o644, 0) for name in (b"new", b"inner") for flags in CREATES),
    m.Tsymlink(DIRECTORY, b"new", b"target", 0),
    *(
        m.Tmknod(DIRECTORY, b"new", kind | 0o644, 1, 3, 0)
        for kind in (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)
    ),
    m.Trename(FILE, DIRECTORY, b"new"),
    m.Trename(FILE, ROOT, b"new"),
    m.Trename(OPEN_FILE, DIRECTORY, b"new"),
    *(
        m.Tsetattr(fid, valid, 0o600, 1000, 1000, 0, 5, 5, 5, 5)
        for fid in (FILE, DIRECTORY, LINK, OPEN_FILE, OPEN_DIRECTORY, ROOT)
        for valid in (*(int(bit) for bit in SetattrValid), 0xA0 | 0x110, 0x1FF)
    ),
    *(m.Twrite(OPEN_FILE, offset, data) for offset in (0, 1 << 33) for data in (b"x", b"")),
    m.Tlink(DIRECTORY, FILE, b"new"),
    m.Tmkdir(DIRECTORY, b"new", 0o755, 0),
    m.Tmkdir(ROOT, b"new", 0o755, 0),
    m.Tmkdir(OPEN_DIRECTORY, b"new", 0o755, 0),
    m.Trenameat(ROOT, b"file", DIRECTORY, b"new"),
    m.Trenameat(ROOT, b"file", ROOT, b"link"),
    m.Tunlinkat(ROOT, b"file", 0),
    m.Tunlinkat(DIRECTORY, b"inner", 0),
    m.Tunlinkat(ROOT, b"empty", AT_REMOVEDIR),
    m.Tremove(FILE),
    m.Tremove(EMPTY),
    m.Tremove(OPEN_FILE),
    m.Txattrcreate(FILE, b"user.x", 1, 0),
]
"""What must be refused. A message may stand here as often as it has ways to change something."""

HARMLESS: Final[list[m.Message]] = [
    m.Tversion(8192, b"9P2000.L"),
    m.Tauth(NEW, b"", b"", 0),
    m.Tattach(NEW, NOFID, b"", b"", NONUNAME),
    m.Tflush(77),
    m.Twalk(ROOT, NEW, (b"directory", b"inner")),
    m.Tlopen(FILE, O.RDONLY),
    m.Tlopen(DIRECTORY, O.DIRECTORY),
    m.Tread(OPEN_FILE, 0, 100),
    m.Treaddir(OPEN_DIRECTORY, 0, 8192),
    m.Tgetattr(FILE, 0x3FFF),
    m.Tstatfs(FILE),
    m.Treadlink(LINK),
    m.Tfsync(OPEN_FILE, 0),
    m.Tlock(OPEN_FILE, 1, 0, 0, 0, 1, b""),
    m.Tgetlock(OPEN_FILE, 1, 0, 0, 1, b""),
    m.Txattrwalk(FILE, NEW, b""),
    m.Tclunk(FILE),
]
"""What changes nothing, whatever it is answered."""


@dataclass(frozen=True, slots=True)
class ReadOnly:
    guest: NinePClient
    unchanged: Callable[[], None]


@pytest.fixture
def read_only(host: Host, snapshot: Callable[[Path], object]) -> Iterator[ReadOnly]:
    (host.root / "file").write_bytes(b"content")
    (host.root / "directory").mkdir()
    (host.root / "directory" / "inner").write_bytes(b"inner content")
    (host.root / "empty").mkdir()
    os.symlink("file", host.root / "link")
    for path in host.root.iterdir():
        os.utime(path, ns=(1, 1_000_000_000_000_000_001), follow_symlinks=False)
    before = snapshot(host.root)

    def unchanged() -> None:
        assert snapshot(host.root) == before

    guest = host.guest(read_only=True, n_uname=0)
    assert guest.root == ROOT
    names: dict[int, tuple[bytes, ...]] = {
        FILE: (b"file",),
        DIRECTORY: (b"directory",),
        EMPTY: (b"empty",),
        LINK: (b"link",),
        OPEN_FILE: (b"file",),
        OPEN_DIRECTORY: (b"directory",),
    }
    for fid, way in names.items():
        guest.ask(m.Twalk(ROOT, fid, way), m.Rwalk)
    guest.ask(m.Tlopen(OPEN_FILE, O.RDONLY), m.Rlopen)
    guest.ask(m.Tlopen(OPEN_DIRECTORY, O.RDONLY), m.Rlopen)
    yield ReadOnly(guest, unchanged)
    unchanged()


def test_the_two_tables_have_every_message_of_a_client() -> None:
    requests = {cls for cls in m.BY_TYPE.values() if cls.__name__.startswith("T")}
    assert {type(message) for message in (*CHANGES, *HARMLESS)} == requests


def described(message: m.Message) -> str:
    fields = [str(value) for value in (getattr(message, name) for name in message.__struct_fields__[:3])]
    return f"{type(message).__name__}-{'-'.join(fields)}"


@pytest.mark.parametrize("changes", by_type(CHANGES).values(), ids=by_type(CHANGES))
def test_a_change_is_refused(read_only: ReadOnly, refused: Refused, changes: list[m.Message]) -> None:
    for message in changes:
        with refused(errno.EROFS):
            read_only.guest.rpc(message)
        read_only.unchanged()


@pytest.mark.parametrize("message", HARMLESS, ids=described)
def test_the_rest_changes_nothing(read_only: ReadOnly, message: m.Message) -> None:
    read_only.guest.send(message)
    read_only.guest.recv()
    read_only.unchanged()


def test_all_in_a_row_on_one_connection(read_only: ReadOnly) -> None:
    removed = (m.Tremove, m.Tversion, m.Tclunk)  # they take fids away
    messages = [message for message in (*CHANGES, *HARMLESS) if not isinstance(message, removed)]
    for message in messages:
        read_only.guest.send(message)
        read_only.guest.recv()
    read_only.unchanged()
    assert read_only.guest.read_file("file") == b"content"


def test_a_remove_that_is_refused_clunks_its_fid(read_only: ReadOnly, refused: Refused) -> None:
    with refused(errno.EROFS):
        read_only.guest.rpc(m.Tremove(FILE))
    with refused(errno.EBADF):
        read_only.guest.rpc(m.Tgetattr(FILE, 0x7FF))


def test_a_create_that_is_refused_leaves_its_fid(read_only: ReadOnly, refused: Refused) -> None:
    with refused(errno.EROFS):
        read_only.guest.rpc(m.Tlcreate(DIRECTORY, b"new", O.WRONLY | O.CREATE, 0o644, 0))
    assert stat.S_ISDIR(read_only.guest.getattr(DIRECTORY).mode)


def test_reading_works(read_only: ReadOnly) -> None:
    guest = read_only.guest
    assert sorted(guest.listdir()) == [b"directory", b"empty", b"file", b"link"]
    assert guest.read_file("directory/inner") == b"inner content"
    assert guest.readlink("link") == b"file"
    assert dict(guest.walk_tree()).keys() == {b"directory", b"directory/inner", b"empty", b"file", b"link"}


def test_what_the_host_changes_is_seen(host: Host) -> None:
    guest = host.guest(read_only=True)
    (host.root / "f").write_bytes(b"one")
    fid = guest.open("f")
    (host.root / "f").write_bytes(b"two!")
    assert guest.read(fid, 0, 10) == b"two!"
    assert guest.getattr(fid).size == 4


def test_a_writable_share_of_the_same_directory_changes_nothing_about_it(host: Host, refused: Refused) -> None:
    writable, guest = host.guest(), host.guest(read_only=True)
    writable.write_file("f", b"x")
    with refused(errno.EROFS):
        guest.write_file("f", b"y")
    assert guest.read_file("f") == b"x"


@pytest.mark.parametrize("datasync", [0, 1])
def test_a_guest_of_a_read_only_share_makes_no_program_wait_for_the_disk(read_only: ReadOnly, datasync: int) -> None:
    calls = seccomp.allowed_calls(read_only=True, as_guest_users=False)
    assert not calls & {"fsync", "fdatasync"}, "else an answer would not say that nothing was brought to the disk"
    fid = read_only.guest.walk("file")
    read_only.guest.ask(m.Tlopen(fid, O.RDONLY), m.Rlopen)
    assert read_only.guest.ask(m.Tfsync(fid, datasync), m.Rfsync) == m.Rfsync()
