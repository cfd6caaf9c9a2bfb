"""Messages as bytes, written down from the protocol's description field by field."""

from __future__ import annotations

import pytest

from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import (
    AT_REMOVEDIR,
    NOFID,
    NONUNAME,
    NOTAG,
    GetattrMask,
    OpenFlag,
    QidType,
    SetattrValid,
)
from uvmshare.ninep.types import DirectoryEntry, Qid, decode_entries

DIRECTORY = Qid(QidType.DIR, 0x01020304, 0x1112131415161718)
DIRECTORY_HEX = "80  04030201  1817161514131211"

# tag, message, bytes. Blanks part the fields: size, type, tag, then the body.
LITERAL: list[tuple[int, m.Message, str]] = [
    # Session
    (NOTAG, m.Tversion(1 << 20, b"9P2000.L"), "15000000 64 ffff  00001000  0800 39503230 30302e4c"),
    (NOTAG, m.Rversion(8192, b"unknown"), "14000000 65 ffff  00200000  0700 756e6b6e6f776e"),
    (
        0,
        m.Tattach(0, NOFID, b"root", b"0", NONUNAME),
        "1c000000 68 0000  00000000  ffffffff  0400 726f6f74  0100 30  ffffffff",
    ),
    (0, m.Tattach(5, NOFID, b"", b"", 1000), "17000000 68 0000  05000000  ffffffff  0000  0000  e8030000"),
    (0, m.Rattach(DIRECTORY), "14000000 69 0000 " + DIRECTORY_HEX),
    (2, m.Tauth(9, b"u", b"a", 0), "15000000 66 0200  09000000  0100 75  0100 61  00000000"),
    (2, m.Rauth(Qid(QidType.AUTH, 0, 9)), "14000000 67 0200  08 00000000 0900000000000000"),
    (7, m.Tflush(0x1234), "09000000 6c 0700  3412"),
    (7, m.Rflush(), "07000000 6d 0700"),
    (258, m.Rlerror(95), "0b000000 07 0201  5f000000"),
    # Walks
    (3, m.Twalk(1, 2), "11000000 6e 0300  01000000  02000000  0000"),
    (
        3,
        m.Twalk(1, 2, (b"usr", b"..", b"\xff\xfe")),
        "1e000000 6e 0300  01000000  02000000  0300  0300 757372  0200 2e2e  0200 fffe",
    ),
    (3, m.Rwalk(()), "09000000 6f 0300  0000"),
    (
        3,
        m.Rwalk((DIRECTORY, Qid(QidType.SYMLINK, 1, 2))),
        f"23000000 6f 0300  0200  {DIRECTORY_HEX}  02 01000000 0200000000000000",
    ),
    (4, m.Tclunk(NOFID - 1), "0b000000 78 0400  feffffff"),
    (4, m.Rclunk(), "07000000 79 0400"),
    (4, m.Tremove(2), "0b000000 7a 0400  02000000"),
    # Files
    (5, m.Tlopen(2, OpenFlag.RDWR | OpenFlag.TRUNC), "0f000000 0c 0500  02000000  02020000"),
    (5, m.Tlopen(2, OpenFlag.DIRECTORY | OpenFlag.NOFOLLOW | OpenFlag.CLOEXEC), "0f000000 0c 0500  02000000  00000b00"),
    (5, m.Rlopen(Qid(0, 7, 9), 4096), "18000000 0d 0500  00 07000000 0900000000000000  00100000"),
    (
        6,
        m.Tlcreate(4, b"f", OpenFlag.LARGEFILE | OpenFlag.EXCL | OpenFlag.CREATE | OpenFlag.RDWR, 0o644, 100),
        "1a000000 0e 0600  04000000  0100 66  c2800000  a4010000  64000000",
    ),
    (6, m.Tread(2, 1 << 32, 65536), "17000000 74 0600  02000000  0000000001000000  00000100"),
    (6, m.Rread(b"abc"), "0e000000 75 0600  03000000  616263"),
    (6, m.Rread(b""), "0b000000 75 0600  00000000"),
    (6, m.Twrite(2, 0xFFFFFFFFFF, b"\0\xff"), "19000000 76 0600  02000000  ffffffffff000000  02000000  00ff"),
    (6, m.Rwrite(2), "0b000000 77 0600  02000000"),
    (6, m.Tfsync(2, 1), "0f000000 32 0600  02000000  01000000"),
    # Attributes
    (8, m.Tgetattr(3, GetattrMask.ALL), "13000000 18 0800  03000000  ff3f000000000000"),
    (8, m.Tgetattr(3, GetattrMask.BASIC | GetattrMask.GEN), "13000000 18 0800  03000000  ff17000000000000"),
    (
        8,
        m.Rgetattr(
            valid=0x7FF,
            qid=DIRECTORY,
            mode=0o40755,
            uid=1,
            gid=2,
            nlink=3,
            rdev=0x0801,
            size=4096,
            blksize=4096,
            blocks=8,
            atime_sec=10,
            atime_nsec=11,
            mtime_sec=12,
            mtime_nsec=13,
            ctime_sec=14,
            ctime_nsec=15,
            btime_sec=16,
            btime_nsec=17,
            gen=18,
            data_version=19,
        ),
        "a0000000 19 0800  ff07000000000000 " + DIRECTORY_HEX + " ed410000 01000000 02000000 0300000000000000"
        "0108000000000000 0010000000000000 0010000000000000 0800000000000000"
        "0a00000000000000 0b00000000000000 0c00000000000000 0d00000000000000"
        "0e00000000000000 0f00000000000000 1000000000000000 1100000000000000"
        "1200000000000000 1300000000000000",
    ),
    (
        8,
        m.Tsetattr(
            3, SetattrValid.SIZE | SetattrValid.MTIME | SetattrValid.MTIME_SET, size=1, mtime_sec=2, mtime_nsec=3
        ),
        (
            "43000000 1a 0800  03000000  28010000  00000000 00000000 00000000  0100000000000000"
            "0000000000000000 0000000000000000 0200000000000000 0300000000000000"
        ),
    ),
    (
        8,
        m.Rstatfs(0x01021997, 4096, 1, 2, 3, 4, 5, 6, 255),
        (
            "43000000 09 0800  97190201  00100000  0100000000000000 0200000000000000 0300000000000000"
            "0400000000000000 0500000000000000 0600000000000000  ff000000"
        ),
    ),
    # Directories
    (9, m.Treaddir(4, (1 << 63) - 1, 1048552), "17000000 28 0900  04000000  ffffffffffffff7f  e8ff0f00"),
    (9, m.Rreaddir(b""), "0b000000 29 0900  00000000"),
    (9, m.Tmkdir(4, b"dir", 0o755, 0), "18000000 48 0900  04000000  0300 646972  ed010000  00000000"),
    (9, m.Tunlinkat(4, b"dir", AT_REMOVEDIR), "14000000 4c 0900  04000000  0300 646972  00020000"),
    (9, m.Trenameat(4, b"a", 5, b"bc"), "16000000 4a 0900  04000000  0100 61  05000000  0200 6263"),
    (9, m.Trename(6, 4, b"a"), "12000000 14 0900  06000000  04000000  0100 61"),
    (9, m.Tsymlink(4, b"l", b"../x", 7), "18000000 10 0900  04000000  0100 6c  0400 2e2e2f78  07000000"),
    (9, m.Tlink(4, 6, b"h"), "12000000 46 0900  04000000  06000000  0100 68"),
    (
        9,
        m.Tmknod(4, b"n", 0o20600, 1, 3, 0),
        "1e000000 12 0900  04000000  0100 6e  80210000 01000000 03000000 00000000",
    ),
    (9, m.Rreadlink(b"/etc"), "0d000000 17 0900  0400 2f657463"),
    # Locks and extended attributes
    (
        10,
        m.Tlock(2, 1, 1, 0, 0, 4242, b"vm"),
        "28000000 34 0a00  02000000  01  01000000  0000000000000000 0000000000000000  92100000  0200 766d",
    ),
    (10, m.Rlock(1), "08000000 35 0a00  01"),
    (
        10,
        m.Tgetlock(2, 2, 5, 6, 4242, b"vm"),
        "24000000 36 0a00  02000000  02  0500000000000000 0600000000000000  92100000  0200 766d",
    ),
    (10, m.Rgetlock(2, 5, 6, 1, b""), "1e000000 37 0a00  02  0500000000000000 0600000000000000  01000000  0000"),
    (11, m.Txattrwalk(2, 3, b"user.a"), "17000000 1e 0b00  02000000  03000000  0600 757365722e61"),
    (11, m.Rxattrwalk(5), "0f000000 1f 0b00  0500000000000000"),
    (
        11,
        m.Txattrcreate(3, b"user.a", 5, 1),
        "1f000000 20 0b00  03000000  0600 757365722e61  0500000000000000  01000000",
    ),
]


@pytest.mark.parametrize(("tag", "message", "text"), LITERAL, ids=[type(row[1]).__name__ for row in LITERAL])
def test_literal(tag: int, message: m.Message, text: str) -> None:
    data = bytes.fromhex(text)
    assert len(data) == int.from_bytes(data[:4], "little"), "the table is wrong"
    assert message.encode(tag) == data
    assert m.decode(data) == (tag, message)


def test_entries_of_a_listing() -> None:
    # qid[13] offset[8] type[1] name[s]
    data = bytes.fromhex(
        f"{DIRECTORY_HEX}  ffffffffffffff7f  04  0100 2e"
        "00 00000000 0900000000000000  0200000000000000  08  0300 c3a4ff"
        "00 00000000 0900000000000000  0300000000000000  00  0000",
    )
    assert list(decode_entries(data)) == [
        DirectoryEntry(DIRECTORY, (1 << 63) - 1, 4, b"."),
        DirectoryEntry(Qid(0, 0, 9), 2, 8, b"\xc3\xa4\xff"),
        DirectoryEntry(Qid(0, 0, 9), 3, 0, b""),
    ]


def test_the_bytes_are_the_same_whatever_the_open_flag_is_called_by_this_host() -> None:
    # Linux's generic numbers (include/uapi/asm-generic/fcntl.h), which 9P2000.L uses on all machines.
    assert [int(flag) for flag in (OpenFlag.DIRECT, OpenFlag.LARGEFILE, OpenFlag.DIRECTORY, OpenFlag.NOFOLLOW)] == [
        0x4000,
        0x8000,
        0x10000,
        0x20000,
    ]
