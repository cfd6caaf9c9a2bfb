"""A listing that is kept is the one that the host would give, for as long as the directory is what it was."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from array import array
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from uvmshare.ninep.types import decode_entries

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

from uvmshare.fileserver import syscalls
from uvmshare.fileserver.mount.files import listing as listing_module
from uvmshare.fileserver.mount.files.listing import Kept, Listing

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Callable, Iterator

    from uvmshare.ninep.types import DirectoryEntry


class Directory:
    """A directory, what is kept of it, and how often the host was asked for entries."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kept = Kept()
        self.asked = 0
        self._open: list[int] = []

    def open(self, *, root_inode: int | None = None) -> Listing:
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        self._open.append(descriptor)
        return Listing(
            descriptor,
            qid_path=lambda inode: inode,
            qid_base=0,
            regular_type=None,
            root_inode=root_inode,
            kept=self.kept,
        )

    def entries(self, listing: Listing | None = None, *, count: int = 4096, offset: int = 0) -> list[DirectoryEntry]:
        """Read from an offset to the end."""
        listing = listing or self.open()
        found: list[DirectoryEntry] = []
        while True:
            data = b"".join(listing.read(offset, count))
            if not data:
                return found
            assert len(data) <= count
            found += decode_entries(data)
            offset = found[-1].offset

    def names(self, listing: Listing | None = None) -> list[bytes]:
        return sorted(entry.name for entry in self.entries(listing) if entry.name not in (b".", b".."))

    def is_asked(self, look: Callable[[], object]) -> bool:
        before = self.asked
        look()
        return self.asked != before

    def close(self) -> None:
        for descriptor in self._open:
            os.close(descriptor)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was changed a moment ago was changed long ago: the clock of listings is a minute ahead."""
    time_ns = time.time_ns
    monkeypatch.setattr(listing_module, "time", type("Later", (), {"time_ns": lambda: time_ns() + 60_000_000_000}))


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Directory]:
    made = Directory(tmp_path / "d")
    made.path.mkdir()
    for number in range(300):
        (made.path / f"name{number}").touch()
    getdents64 = syscalls.getdents64

    def counted(descriptor: int, buffer: ctypes.Array[ctypes.c_char]) -> int:
        made.asked += 1
        return getdents64(descriptor, buffer)

    monkeypatch.setattr(syscalls, "getdents64", counted)
    yield made
    made.close()


ALL = sorted(f"name{number}".encode() for number in range(300))


@pytest.mark.usefixtures("later")
def test_a_directory_that_is_listed_again_is_not_read_again(directory: Directory) -> None:
    first = directory.entries()
    assert directory.is_asked(directory.entries) is False
    assert directory.entries() == first
    assert directory.names() == ALL


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("count", [60, 100, 1000, 1 << 20])
def test_a_kept_listing_in_pieces_of_any_size_is_whole(directory: Directory, count: int) -> None:
    first = directory.entries()
    assert directory.entries(count=count) == first


@pytest.mark.usefixtures("later")
def test_every_change_of_the_directory_is_seen(directory: Directory) -> None:
    directory.entries()
    changes: list[Callable[[], object]] = [
        (directory.path / "name0").unlink,
        (directory.path / "new").touch,
        lambda: (directory.path / "new").rename(directory.path / "newer"),
        (directory.path / "inner").mkdir,
        lambda: (directory.path / "inner").rename(directory.path.parent / "inner"),
        lambda: (directory.path.parent / "inner").rename(directory.path / "inner"),
    ]
    for change in changes:
        before = directory.path.stat().st_mtime_ns
        change()
        while directory.path.stat().st_mtime_ns == before:  # within one tick of the clock, which nothing can tell
            (directory.path / "more").touch()
            (directory.path / "more").unlink()
        assert directory.is_asked(directory.names) is True
        assert directory.names() == sorted(os.listdir(os.fsencode(directory.path)))


@pytest.mark.usefixtures("later")
def test_a_directory_that_is_moved_tells_its_new_parent(directory: Directory) -> None:
    directory.entries()
    elsewhere = directory.path.parent / "elsewhere"
    elsewhere.mkdir()
    directory.path = directory.path.rename(elsewhere / "d")
    (above,) = (entry for entry in directory.entries() if entry.name == b"..")
    assert above.qid.path == elsewhere.stat().st_ino


def test_a_directory_that_has_just_changed_is_not_kept(directory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may change once more within the same tick of the clock (git's racily clean rule)."""
    (directory.path / "new").touch()
    changed = directory.path.stat().st_mtime_ns
    monkeypatch.setattr(listing_module, "time", type("Still", (), {"time_ns": lambda: changed + 1}))
    directory.entries()
    assert directory.is_asked(directory.entries) is True


@pytest.mark.usefixtures("later")
def test_a_directory_that_changes_while_it_is_read_is_not_kept(directory: Directory) -> None:
    listing = directory.open()
    data = b"".join(listing.read(0, 200))
    (directory.path / "new").touch()
    directory.entries(listing, offset=list(decode_entries(data))[-1].offset)
    assert directory.is_asked(directory.entries) is True
    assert b"new" in directory.names()


@pytest.mark.usefixtures("later")
def test_an_open_listing_goes_on_as_it_was_while_entries_go(directory: Directory) -> None:
    """What rm -r does: each entry comes once, although those before it are gone."""
    directory.entries()
    listing, seen, offset = directory.open(), list[bytes](), 0
    while data := b"".join(listing.read(offset, 200)):
        for entry in decode_entries(data):
            seen.append(entry.name)
            offset = entry.offset
            if entry.name not in (b".", b".."):
                (directory.path / os.fsdecode(entry.name)).unlink()
    assert sorted(seen) == sorted([b".", b"..", *ALL])
    assert directory.names(listing) == []


@pytest.mark.usefixtures("later")
def test_an_offset_in_the_middle_leads_to_the_same_place_in_a_kept_listing_and_in_the_hosts(
    directory: Directory,
) -> None:
    every = directory.entries()
    listing = directory.open()
    directory.entries(listing)
    for number in (250, 10, 150):
        assert directory.entries(listing, offset=every[number].offset) == every[number + 1 :]
    assert directory.entries(listing) == every


@pytest.mark.usefixtures("later")
def test_a_listing_that_was_begun_in_the_middle_is_not_kept_as_whole(directory: Directory) -> None:
    middle = directory.entries()[150].offset
    directory.kept = Kept()
    directory.entries(offset=middle)
    listing = directory.open()
    listing.read(0, 200)
    directory.entries(listing, offset=middle)
    assert directory.is_asked(directory.entries) is True
    assert directory.names() == ALL


@pytest.mark.usefixtures("later")
def test_what_is_hidden_of_the_root_stays_hidden(directory: Directory) -> None:
    """The same directory may be reached in another way, below a mount point: then it tells of the one above."""
    inode, above = directory.path.stat().st_ino, directory.path.parent.stat().st_ino
    for _ in range(2):
        for listing, expected in ((directory.open(root_inode=inode), inode), (directory.open(), above)):
            paths = {entry.name: entry.qid.path for entry in directory.entries(listing)}
            assert paths[b".."] == expected


@pytest.mark.usefixtures("later")
def test_a_count_too_small_for_the_next_entry_is_refused_of_a_kept_listing_too(directory: Directory) -> None:
    directory.entries()
    listing = directory.open()
    with pytest.raises(OSError, match="smaller than the next entry") as caught:
        listing.read(0, 10)
    assert caught.value.errno == errno.EINVAL
    assert directory.names(listing) == ALL


@pytest.mark.usefixtures("later")
def test_only_so_much_is_kept_and_the_oldest_goes(directory: Directory, tmp_path: Path) -> None:
    size = len(b"".join(directory.open().read(0, 1 << 20)))
    directory.kept = Kept(most=2 * size + 200)
    others = [tmp_path / name for name in ("x", "y")]
    for other in others:
        other.mkdir()
        for number in range(300):
            (other / f"name{number}").touch()
    first = directory.path
    for path in (first, *others):
        directory.path = path
        directory.entries()
    assert directory.is_asked(directory.entries) is False
    directory.path = first
    assert directory.is_asked(directory.entries) is True
    directory.kept = Kept(most=100)
    directory.entries()
    assert directory.is_asked(directory.entries) is True


@pytest.mark.usefixtures("later")
def test_a_kept_listing_needs_nothing_of_the_host(directory: Directory) -> None:
    listing = directory.open()
    assert not listing.is_ready(0)
    every = directory.entries(listing)
    assert listing.is_ready(0)
    listing.read(0, 200)
    assert listing.is_ready(every[200].offset)
    with listing._lock:
        assert not listing.is_ready(0)  # somebody is reading it


@pytest.mark.usefixtures("later")
def test_directories_that_are_begun_and_not_read_to_the_end_hold_only_so_much(directory: Directory) -> None:
    size = len(b"".join(directory.open().read(0, 1 << 20)))
    directory.kept = Kept(most=2 * size)
    begun = [directory.open() for _ in range(5)]
    for listing in begun:
        listing.read(0, 200)
        assert sum(sum(map(len, each._read_so_far)) for each in begun) <= 2 * size
    del begun, listing
    directory.entries()
    assert directory.is_asked(directory.entries) is False, "what was held is not given back"


@pytest.mark.usefixtures("later")
def test_a_directory_too_large_to_be_kept_is_not_held_while_it_is_read(directory: Directory) -> None:
    directory.kept = Kept(most=5000)
    listing = directory.open()
    listing.read(0, 200)
    assert not listing._read_so_far
    assert directory.names(listing) == ALL
    assert directory.is_asked(directory.names) is True


def test_empty_directories_that_are_kept_count_for_what_they_take(directory: Directory) -> None:
    kept = Kept(most=4096)
    for number in range(100):
        kept.put((1, number, False, None), (0, 0), b"", array("I"))
    assert sum(kept.get((1, number, False, None), (0, 0)) is not None for number in range(100)) == 8


def test_offsets_fit_a_32_bit_program_whatever_the_hosts_are(directory: Directory) -> None:
    """ext4's are hashes of 63 bits: readdir(3) of a 32-bit program fails with EOVERFLOW on them."""
    offsets = [entry.offset for entry in directory.entries(count=500)]
    assert offsets == list(range(1, 303))


@pytest.mark.usefixtures("later")
def test_every_offset_that_was_told_leads_behind_its_entry_again(directory: Directory) -> None:
    """seekdir(3) to any place, in any order; also after others have gone, and new ones have come."""
    every = directory.entries()
    directory.kept = Kept(most=0)  # so that the host is asked
    listing = directory.open()
    data = b"".join(listing.read(0, 2000))
    told = list(decode_entries(data))
    for number in (40, 3, 25, 0):
        (found, *_) = decode_entries(b"".join(listing.read(told[number].offset, 200)))
        assert found == told[number + 1]
    gone = {told[number].name for number in range(5, 20)} - {b".", b".."}
    for name in gone:
        (directory.path / os.fsdecode(name)).unlink()
    for number in range(20):
        (directory.path / f"new{number}").touch()
    after = {entry.name for entry in directory.entries(listing, offset=told[2].offset)}
    assert {entry.name for entry in every[3:]} - gone <= after
    assert not after & gone
    for number in (30, 20):
        (found, *_) = decode_entries(b"".join(listing.read(told[number].offset, 200)))
        assert found.name == told[number + 1].name


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("is_kept", [False, True])
def test_an_offset_that_was_never_told_counts_entries(directory: Directory, is_kept: bool) -> None:
    every = directory.entries()
    if not is_kept:
        directory.kept = Kept()
    assert directory.entries(offset=150) == every[150:]
    assert directory.entries(offset=302) == []
    assert directory.entries(offset=listing_module.MAX_OFFSET) == []
    with pytest.raises(OSError, match="no offset") as caught:
        directory.open().read(listing_module.MAX_OFFSET + 1, 4096)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.usefixtures("later")
def test_a_directory_that_changes_while_it_is_read_over_and_over_holds_no_more_for_it(directory: Directory) -> None:
    directory.kept = Kept(most=0)
    listing = directory.open()
    for number in range(20):
        directory.entries(listing)
        (directory.path / f"name{number}").rename(directory.path / f"other{number}")
    directory.entries(listing)
    assert len(listing._places) == 302


PROGRAM = """
import sys, threading
print(threading.get_native_id(), flush=True)
sys.stdin.readline()
thread = threading.Thread(target=sys.stdin.read)
thread.start()
print(thread.native_id, flush=True)
"""


@pytest.mark.usefixtures("later")
def test_a_directory_whose_times_tell_nothing_is_read_each_time(directory: Directory) -> None:
    """The times of one of procfs stay what they are while entries come and go."""
    command = [sys.executable, "-c", PROGRAM]  # its threads are known: this process may have some of earlier tests
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        threads = [process.stdout.readline().strip()]
        directory.path = Path(f"/proc/{process.pid}/task")
        assert directory.names() == threads
        process.stdin.write(b"start a thread\n")
        process.stdin.flush()
        threads.append(process.stdout.readline().strip())
        assert directory.names() == sorted(threads)
