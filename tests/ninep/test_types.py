"""Directory entries and errnos."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uvmshare.errors import LocalProtocolError, RemoteProtocolError, UvmshareError
from uvmshare.ninep.errno import to_errno
from uvmshare.ninep.types import DirectoryEntry, Qid, decode_entries

deterministic = settings(deadline=None, derandomize=True, database=None)

entries = st.builds(
    DirectoryEntry,
    st.builds(Qid, st.integers(0, 255), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)),
    st.integers(0, 2**64 - 1),
    st.integers(0, 255),
    st.binary(max_size=300),
)


def pack(entry: DirectoryEntry) -> bytes:
    qid = entry.qid
    return (
        struct.pack("<B", qid.type)
        + struct.pack("<I", qid.version)
        + struct.pack("<Q", qid.path)
        + struct.pack("<Q", entry.offset)
        + struct.pack("<B", entry.type)
        + struct.pack("<H", len(entry.name))
        + entry.name
    )


@deterministic
@given(st.lists(entries, max_size=10))
def test_a_listing_reads_back(listing: list[DirectoryEntry]) -> None:
    data = b"".join(map(pack, listing))
    assert list(decode_entries(data)) == listing
    assert list(decode_entries(memoryview(data))) == listing


@deterministic
@given(entries, st.data())
def test_a_listing_that_ends_inside_an_entry_is_refused(entry: DirectoryEntry, data: st.DataObject) -> None:
    whole = pack(entry)
    cut = data.draw(st.integers(1, len(whole) - 1))
    read = decode_entries(whole + whole[:cut])
    assert next(read) == entry
    with pytest.raises(RemoteProtocolError, match="ends inside"):
        next(read)


@deterministic
@given(st.binary(max_size=200))
def test_any_bytes_are_a_listing_or_refused(data: bytes) -> None:
    try:
        listing = list(decode_entries(data))
    except RemoteProtocolError:
        return
    assert b"".join(map(pack, listing)) == data


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (FileNotFoundError(errno.ENOENT, "gone"), errno.ENOENT),
        (OSError(errno.EROFS, "read-only"), errno.EROFS),
        (OSError("no number at all"), errno.EIO),
        (OSError(0, "success is no error"), errno.EIO),
        (OSError(-2, "negative"), errno.EIO),
        (OSError(4095, "the last one"), 4095),
        (OSError(4096, "a pointer for a guest"), errno.EIO),
        (RemoteProtocolError("bad"), errno.EPROTO),
        (LocalProtocolError("bad", errno=errno.EMSGSIZE), errno.EMSGSIZE),
        (MemoryError(), errno.ENOMEM),
        (ValueError("embedded null byte"), errno.EINVAL),
        (OverflowError("int too large"), errno.EINVAL),
        (UnicodeEncodeError("utf-8", "\udc80", 0, 1, "surrogate"), errno.EINVAL),
        (KeyError("bug"), errno.EIO),
        (UvmshareError("any other"), errno.EIO),
        (RecursionError(), errno.EIO),
        (KeyboardInterrupt(), errno.EIO),
    ],
)
def test_any_error_becomes_an_errno(error: BaseException, number: int) -> None:
    assert to_errno(error) == number
