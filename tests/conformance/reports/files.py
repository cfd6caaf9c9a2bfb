"""Open files, their contents, sizes and times: what programs do with one file."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import time

from tests.conformance.reports.guest import checked, host, libc, read, refused, same, write

_DISK = 1 << 20
"""Bytes of a disk that is to be full."""


def truncate_an_unlinked_file() -> None:
    descriptor = os.open("iperf3.HzTTUh", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.unlink("iperf3.HzTTUh")
    os.ftruncate(descriptor, 131072)
    same(os.fstat(descriptor).st_size, 131072, "the size")
    os.pwrite(descriptor, b"end", 131069)
    same(os.pread(descriptor, 8, 131069), b"end", "what was written")


def map_an_unlinked_file() -> None:
    descriptor = os.open("mmap1", os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(descriptor, 1024)
    os.unlink("mmap1")
    with mmap.mmap(descriptor, 1024, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
        mapped[:5] = b"bytes"
        mapped.flush()
    same(os.pread(descriptor, 5, 0), b"bytes", "what was written through the mapping")


def look_at_a_renamed_open_file() -> None:
    descriptor = os.open("testfile", os.O_RDWR | os.O_CREAT, 0o644)
    os.rename("testfile", "movedtestfile")
    os.fstat(descriptor)
    os.write(descriptor, b"after")
    same(read("movedtestfile"), "after", "what was written")


def change_an_unlinked_file() -> None:
    descriptor = os.open("repo.sqlite", os.O_RDWR | os.O_CREAT, 0o644)
    os.unlink("repo.sqlite")
    os.fchmod(descriptor, 0o600)
    os.fchown(descriptor, 12, 34)
    os.utime(descriptor, (1_000_000_000, 1_000_000_000))
    found = os.fstat(descriptor)
    same((found.st_mode & 0o777, found.st_uid, found.st_gid), (0o600, 12, 34), "mode and owner")
    same(int(found.st_mtime), 1_000_000_000, "the time")


def write_an_unlinked_file() -> None:
    descriptor = os.open("file", os.O_RDWR | os.O_CREAT, 0o644)
    inode = os.fstat(descriptor).st_ino
    os.unlink("file")
    os.write(descriptor, b"content")
    same(os.pread(descriptor, 7, 0), b"content", "what was written")
    same(os.fstat(descriptor).st_ino, inode, "the inode number")


def map_for_reading() -> None:
    descriptor = os.open("bolt.db", os.O_RDWR | os.O_CREAT, 0o600)
    os.pwrite(descriptor, b"page" * 8192, 0)
    with mmap.mmap(descriptor, 32768, mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
        same(mapped[:4], b"page", "the page")


def map_for_writing() -> None:
    descriptor = os.open(".rte_config", os.O_RDWR | os.O_CREAT, 0o660)
    os.ftruncate(descriptor, 8192)
    with mmap.mmap(descriptor, 8192, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
        mapped[4096:4100] = b"DPDK"
        mapped.flush()
    same(host("read", ".rte_config")[4096:4100], "DPDK", "what the host reads")


def overwrite_what_was_read() -> None:
    write("shells", "# /etc/shells: valid login shells\n/bin/sh\n")
    read("shells")
    write("issue", "Ubuntu 18.04.1 LTS\n")
    subprocess.run(["cp", "issue", "shells"], check=True)
    same(read("shells"), "Ubuntu 18.04.1 LTS\n", "the content")


def the_host_writes_more() -> None:
    host("write", "f", "abc\n")
    same(read("f"), "abc\n", "the first content")
    host("write", "f", "123abc\n")
    same(read("f"), "123abc\n", "the second content")
    same(os.stat("f").st_size, 7, "the size")
    host("append", "f", "and more\n")
    same(read("f"), "123abc\nand more\n", "the third content")


def the_host_appends_to_an_open_file() -> None:
    host("write", "log", "first\n")
    with open("log", "rb", buffering=0) as file:
        same(file.read(), b"first\n", "the first lines")
        host("append", "log", "second\n")
        same(file.read(), b"second\n", "the lines behind them")


def read_behind_two_gigabytes() -> None:
    host("sparse", "hg19.fa", 3_157_608_551, 2_684_354_560, "ccggcctcag")
    with open("hg19.fa", "rb") as file:
        file.seek(2_684_354_560)
        same(file.read(10), b"ccggcctcag", "what is there")
        same(file.seek(0, os.SEEK_END), 3_157_608_551, "the end")


def holes_take_no_room() -> None:
    descriptor = os.open("database", os.O_RDWR | os.O_CREAT, 0o644)
    for number in range(8):
        os.pwrite(descriptor, b"page" * 1024, number << 24)
    os.fsync(descriptor)
    found = host("stat", "database")
    same(found["size"], (7 << 24) + 4096, "the size")
    assert found["blocks"] * 512 <= 1 << 20, f"{found['blocks'] * 512} bytes on the host's disk"


def preallocate() -> None:
    descriptor = os.open("preallocated", os.O_RDWR | os.O_CREAT, 0o644)
    fallocate = libc.fallocate
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)
    checked(fallocate(descriptor, 0, 0, 1 << 20))


def preallocate_as_posix_has_it() -> None:
    descriptor = os.open("preallocated", os.O_RDWR | os.O_CREAT, 0o644)
    os.posix_fallocate(descriptor, 0, 1 << 16)
    same(os.fstat(descriptor).st_size, 1 << 16, "the size")


def a_file_without_a_name() -> None:
    os.close(os.open(".", os.O_TMPFILE | os.O_RDWR, 0o600))


def a_capability_of_a_file() -> None:
    write("ping", "#!/bin/true\n", 0o755)
    value = bytes.fromhex("0100000200200000000000000000000000000000")  # VFS_CAP_REVISION_2, cap_net_raw permitted
    os.setxattr("ping", "security.capability", value)
    same(os.getxattr("ping", "security.capability"), value, "the capability")


def a_large_here_document() -> None:
    text = "line\n" * 20_000
    command = f"cat << EOF\n{text}EOF\n"
    done = subprocess.run(
        ["bash"], input=command, env={**os.environ, "TMPDIR": "."}, capture_output=True, text=True, check=True
    )
    same(len(done.stdout), len(text), "its length")


def times_stay() -> None:
    write("server.py", "pass\n")
    seen = {os.stat("server.py").st_mtime_ns for _ in range(50)}
    same(len(seen), 1, "different times of a file that nobody changes")


def a_clock_that_is_behind() -> None:
    before = time.clock_gettime(time.CLOCK_REALTIME)
    since = time.monotonic()
    write("Makefile", "target: source\n\tcp source target\n")
    time.clock_settime(time.CLOCK_REALTIME, before - 3600)
    try:
        write("source", "text")
        said = subprocess.run(["make"], capture_output=True, text=True, check=True)
        same(read("target"), "text", "what was made")
    finally:
        time.clock_settime(time.CLOCK_REALTIME, before + time.monotonic() - since)
    assert "kew detected" not in said.stdout + said.stderr, "the file is of the future: make(1) tells of clock skew"


def copy_times() -> None:
    write("file1", "")
    write("file2", "")
    os.utime("file1", ns=(1_700_000_000_123_456_789, 1_700_000_000_123_456_789))
    host("times", "file1", 1_700_000_000_123_456_789)
    subprocess.run(["touch", "file2", "-r", "file1"], check=True)
    same(os.stat("file2").st_mtime_ns, os.stat("file1").st_mtime_ns, "the time")


def sync_a_read_only_descriptor() -> None:
    write("tmp_idx", "index", 0o444)
    descriptor = os.open("tmp_idx", os.O_RDONLY)
    os.fsync(descriptor)
    os.fdatasync(descriptor)
    at = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(at)


def many_open_files() -> None:
    held = []
    for number in range(300):
        held.append(os.open(f"table{number}", os.O_RDWR | os.O_CREAT, 0o644))
        os.write(held[-1], str(number).encode())
    for number, descriptor in enumerate(held):
        same(os.pread(descriptor, 9, 0), str(number).encode(), "the content")
        os.close(descriptor)


def more_open_files_than_are_allowed() -> None:
    held: list[int] = []

    def open_all() -> None:
        held.extend(os.open(f"f{number}", os.O_RDWR | os.O_CREAT, 0o644) for number in range(120))

    same(refused(open_all), "EMFILE", "the error at the limit")
    while held:
        os.close(held.pop())
    write("after", "works")
    same(read("after"), "works", "the content afterwards")


def a_full_disk() -> None:
    host("full", "full", _DISK)
    # What is mounted on the host after a guest has attached is not there for it, unless mounts propagate.
    other = host("another mount")
    directory = os.path.join(other, os.path.relpath("full", host("mounted at")))
    try:
        seen = os.statvfs(directory)
        same(seen.f_blocks * seen.f_frsize, _DISK, "the size of the disk that the guest sees")
        descriptor = os.open(f"{directory}/f", os.O_WRONLY | os.O_CREAT, 0o644)
        told = {
            "write": refused(lambda: [os.write(descriptor, bytes(100_000)) for _ in range(16)]),
            "fsync": refused(os.fsync, descriptor),
            "close": refused(os.close, descriptor),
        }
    finally:
        host("no other mount")
        host("unmount", "full")
    assert told["write"], next((f"told at {call} alone: {error}" for call, error in told.items() if error), "not told")
    same(told["write"], "ENOSPC", "the error of write")
