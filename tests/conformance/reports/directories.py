"""Directories: names, listings, links, renames and removals."""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import subprocess
import tempfile
from typing import TYPE_CHECKING

from tests.conformance.reports.guest import as_user, checked, host, libc, read, same, write

if TYPE_CHECKING:
    from collections.abc import Iterator

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
_SYS_GETDENTS64 = 217
_DIRENT64 = struct.Struct("<QqHB")
_DIRENT32 = struct.Struct("<IIH")


def listed(descriptor: int, room: int) -> list[tuple[str, int]]:
    """Make one getdents64(2) with a buffer of this size: names, and the offset behind each."""
    buffer = ctypes.create_string_buffer(room)
    size = checked(libc.syscall(_SYS_GETDENTS64, descriptor, buffer, room))
    return list(_entries(buffer.raw[:size], _DIRENT64))


def _entries(data: bytes, form: struct.Struct) -> Iterator[tuple[str, int]]:
    at = 0
    while at < len(data):
        fields = form.unpack_from(data, at)
        start = at + form.size
        yield os.fsdecode(data[start : data.index(0, start)]), fields[1]
        at += fields[2]


def whole(descriptor: int, room: int = 32768) -> list[tuple[str, int]]:
    """List from where the descriptor is to the end."""
    found = []
    while entries := listed(descriptor, room):
        found += entries
    return found


def names(count: int) -> set[str]:
    """Make so many files."""
    made = {f"a-name-of-some-length-{number:05}" for number in range(count)}
    for name in made:
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o644))
    return made


def remove_a_tree() -> None:
    os.makedirs("aaaa/bbbb")
    write("aaaa/bbbb/cccc", "")
    at = os.open("aaaa/bbbb", os.O_RDONLY | os.O_DIRECTORY)
    listed(at, 4096)
    os.unlink("cccc", dir_fd=at)
    os.close(at)
    write("aaaa/bbbb/dddd", "")
    subprocess.run(["rm", "-rf", "aaaa"], check=True)
    assert not os.path.lexists("aaaa"), "the tree is there"


def remove_while_listing() -> None:
    os.mkdir("testdir")
    os.chdir("testdir")
    names(400)
    while True:  # as Go's os.RemoveAll: some names, their removal, and again from the beginning
        at = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
        found = [name for name, _ in listed(at, 4096) if name not in (".", "..")]
        for name in found:
            os.unlink(name)
        os.close(at)
        if not found:
            break
    os.chdir("..")
    os.rmdir("testdir")


def list_many_files() -> None:
    host("files", "many", 800)
    at = os.open("many", os.O_RDONLY | os.O_DIRECTORY)
    found = [name for name, _ in whole(at, 1000) if name not in (".", "..")]
    same(len(found), 800, "the number of names")
    same(set(found), {f"{number:04}" for number in range(800)}, "the names")


def rewind_a_partly_read_listing() -> None:
    made = names(300)
    at = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    listed(at, 1000)
    os.lseek(at, 0, os.SEEK_SET)
    found = {name for name, _ in whole(at)} - {".", ".."}
    assert found == made, "lseek to the beginning is not heeded"


def rewind_a_read_listing() -> None:
    made = names(300)
    at = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(3):
        same({name for name, _ in whole(at)} - {".", ".."}, made, "the names")
        os.lseek(at, 0, os.SEEK_SET)


def seek_to_told_offsets() -> None:
    names(60)
    at = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    entries = whole(at)
    for removed in range(10, 60, 10):
        os.unlink(entries[removed][0])
    write("new", "")
    gone = set(range(10, 60, 10))
    for number, (_, offset) in enumerate(entries[:-2]):
        os.lseek(at, offset, os.SEEK_SET)
        following = number + (2 if number + 1 in gone else 1)
        found = whole(at)
        same(found[0][0], entries[following][0], f"the entry at the offset behind entry {number}")


def list_with_a_32_bit_program() -> None:
    program = host("compiled", "list32", "-m32", "-static", "-nostdlib", "-ffreestanding", "-fno-pie", "-no-pie")
    made = names(300)
    done = subprocess.run([program], stdout=subprocess.PIPE, check=False)
    assert done.returncode == 0, os.strerror(done.returncode)
    same({name for name, _ in _entries(done.stdout, _DIRENT32)} - {".", ".."}, made, "the names")


def rename_a_directory_in_use() -> None:
    os.mkdir("log_pool.tmp")
    at = os.open("log_pool.tmp", os.O_RDONLY | os.O_DIRECTORY)
    meta = os.open("meta", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_SYNC, 0o644, dir_fd=at)
    os.pwrite(meta, b"1e", 0)
    os.rename("log_pool.tmp", "log_pool")
    os.pwrite(meta, b"2d", 2)
    os.close(os.open("more", os.O_RDWR | os.O_CREAT, 0o644, dir_fd=at))
    same(read("log_pool/meta"), "1e2d", "the content")
    same(sorted(os.listdir("log_pool")), ["meta", "more"], "the names")


def rename_a_staging_directory() -> None:
    os.makedirs("node_modules/.staging/lodash-9a2aabe2/lib")
    for number in range(20):
        write(f"node_modules/.staging/lodash-9a2aabe2/lib/{number}.js", "0")
    os.rename("node_modules/.staging/lodash-9a2aabe2", "node_modules/lodash")
    same(len(os.listdir("node_modules/lodash/lib")), 20, "the number of files")


def hard_links() -> None:
    write("foo", "content")
    os.link("foo", "bar")
    same(os.stat("bar").st_ino, os.stat("foo").st_ino, "the inode number")
    same(os.stat("foo").st_nlink, 2, "the number of links")
    os.chmod("bar", 0o600)
    os.chown("bar", 12, 34)
    os.truncate("bar", 3)
    found = os.stat("foo")
    same((found.st_mode & 0o777, found.st_uid, found.st_gid, found.st_size), (0o600, 12, 34, 3), "what foo has")
    same(read("foo"), "con", "the content by the other name")
    os.unlink("foo")
    same((read("bar"), os.stat("bar").st_nlink), ("con", 1), "what is left")


def links_of_the_host() -> None:
    host("link", "../../../shells/bash/update-patch-set.sh", "relative")
    host("link", "/", "root")
    same(os.readlink("relative"), "../../../shells/bash/update-patch-set.sh", "where it leads")
    same(os.readlink("root"), "/", "where it leads")
    assert os.path.isdir("root/"), "the link to / leads nowhere"


def a_program_by_a_relative_link() -> None:
    os.makedirs("node_modules/acorn/bin")
    write("node_modules/acorn/bin/acorn", "#!/bin/sh\necho acorn\n", 0o755)
    os.mkdir("node_modules/.bin")
    os.symlink("../acorn/bin/acorn", "node_modules/.bin/acorn")
    for said in (
        subprocess.run(["node_modules/.bin/acorn"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip(),
        host("run", "node_modules/.bin/acorn"),
    ):
        same(said, "acorn", "what it says")


def exchange_two_names() -> None:
    write("a", "a")
    write("b", "b")
    checked(libc.renameat2(_AT_FDCWD, b"a", _AT_FDCWD, b"b", _RENAME_EXCHANGE))
    same((read("a"), read("b")), ("b", "a"), "the contents")


def rename_without_replacing() -> None:
    write("a", "a")
    checked(libc.renameat2(_AT_FDCWD, b"a", _AT_FDCWD, b"b", _RENAME_NOREPLACE))


def odd_names() -> None:
    for name in ("1554799009.M827486P27253.thehost,S=26555,W=26983:2,.gao4TF", 'a"b<c>d|e?f*g\\h', " x ", "x.", "con"):
        descriptor, path = tempfile.mkstemp(dir=".", prefix=name)
        os.close(descriptor)
        os.rename(path, name)
        assert name in os.listdir("."), f"{name} is not listed"


def names_that_are_not_utf8() -> None:
    for name in (b"caf\xe9", b"\xff\xfe", b"new\nline", b"\x01\x7f", "\u00e9".encode(), "e\u0301".encode()):
        write(os.fsdecode(name), "x")
        os.rename(name, name + b".moved")
        os.symlink(name + b".moved", name)
        assert {name, name + b".moved"} <= set(os.listdir(b".")), f"{name!r} is not listed"
        same(os.readlink(name), name + b".moved", "where the link leads")
    same(host("count"), 12, "the names on the host")


def upper_and_lower_case() -> None:
    write("Makefile", "one")
    write("makefile", "two")
    same((read("Makefile"), read("makefile")), ("one", "two"), "the contents")
    os.rename("makefile", "MAKEFILE")
    same(sorted(os.listdir(".")), ["MAKEFILE", "Makefile"], "the names")


def the_host_removes_a_directory() -> None:
    host("mkdir", "server")
    os.listdir("server")
    host("remove", "server")
    assert "server" not in os.listdir("."), "it is listed"
    os.mkdir("server")
    write("server/new", "new")
    same(read("server/new"), "new", "the content")


def the_host_replaces_a_directory() -> None:
    host("mkdir", "build")
    host("write", "build/old", "old")
    same(os.listdir("build"), ["old"], "the names before")
    host("remove", "build")
    host("mkdir", "build")
    host("write", "build/new", "new")
    same(os.listdir("build"), ["new"], "the names after")
    same(read("build/new"), "new", "the content")


def the_host_replaces_files() -> None:
    for number in range(10):
        host("save", "value.json", f"{number}")
        same(read("value.json"), f"{number}", "the content")
        same(os.stat("value.json").st_size, len(str(number)), "the size")


def the_host_replaces_an_open_file() -> None:
    host("write", "vmlinuz", "old")
    with open("vmlinuz", encoding="utf-8") as held:
        host("save", "vmlinuz", "newer")
        meanwhile = read("vmlinuz")
        same(held.read(), "old", "the content of the file that was open")
        same(os.fstat(held.fileno()).st_size, 3, "its size")
    same(read("vmlinuz"), "newer", "the content when nobody has the old file open")
    assert meanwhile == "newer", "the old content while the old file is open"


def chained_links() -> None:
    host("mkdir", "real_1")
    host("write", "real_1/target", "initial")
    host("link", "real_1", "intermediate")
    host("link", "intermediate/target", "target")
    same(read("target"), "initial", "the content before")
    host("mkdir", "real_2")
    host("write", "real_2/target", "final")
    host("link", "real_2", "intermediate_tmp")
    host("rename", "intermediate_tmp", "intermediate")
    same(read("target"), "final", "the content after")
    same(os.stat("target").st_size, 5, "the size after")


def a_directory_in_use_is_known() -> None:
    os.makedirs("first/second")
    said = subprocess.run(
        ["bash", "-c", "cd first/second; bash -c 'pwd -P; cd ..; /bin/pwd; bash -c \"cd second; /bin/pwd\"'"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.split()
    here = os.getcwd()
    same(said, [f"{here}/first/second", f"{here}/first", f"{here}/first/second"], "the working directories")


def read_only_directories() -> None:
    os.makedirs("mod/example.org/x@v1/inner")
    write("mod/example.org/x@v1/inner/x.go", "package x\n", 0o444)
    for path in ("mod/example.org/x@v1/inner", "mod/example.org/x@v1"):
        os.chmod(path, 0o555)
    host("tree of modes", "host")
    for tree in ("mod/example.org/x@v1", "host"):
        os.rename(tree, f"{tree}.moved")
        write(f"{tree}.moved/new.go", "package x\n")
        os.unlink(f"{tree}.moved/new.go")
        shutil.rmtree(f"{tree}.moved")


def overlay(upper: str) -> None:
    """Mount an overlay of the share's `lower` with this directory above it, and do what containers do in it."""
    os.mkdir("lower")
    for name in ("kept", "changed", "removed"):
        write(f"lower/{name}", name)
    os.makedirs("lower/directory/inner")
    work, at = f"{upper}-work", "/run/overlay"
    for made in (upper, work, at):
        os.makedirs(made)
    options = f"lowerdir={os.getcwd()}/lower,upperdir={upper},workdir={work}"
    try:
        mounted = libc.mount(b"overlay", at.encode(), b"overlay", 0, options.encode())
        checked(mounted)
        try:
            _use_an_overlay(at)
        finally:
            checked(libc.umount2(at.encode(), 0))
    finally:
        os.rmdir(at)
        subprocess.run(["rm", "-rf", upper, work], check=True)


def _use_an_overlay(at: str) -> None:
    same(sorted(os.listdir(at)), ["changed", "directory", "kept", "removed"], "the names before")
    write(f"{at}/changed", "anew")
    os.unlink(f"{at}/removed")
    os.rename(f"{at}/kept", f"{at}/renamed")
    shutil.rmtree(f"{at}/directory")
    os.mkdir(f"{at}/directory")
    same(sorted(os.listdir(at)), ["changed", "directory", "renamed"], "the names after")
    same(os.listdir(f"{at}/directory"), [], "the names in the directory that was made anew")
    same((read(f"{at}/changed"), read("lower/changed")), ("anew", "changed"), "the contents")


def an_overlay_above_the_share() -> None:
    overlay("/run/upper")


def an_overlay_in_the_share() -> None:
    overlay(f"{os.getcwd()}/upper")


def an_entry_for_each_file() -> None:
    """What find asks, is what it has to."""
    for number in range(100):
        write(f"f{number}", "")
    os.symlink("f0", "link")
    os.mkdir("inner")
    with os.scandir(".") as entries:
        types = {entry.name: (entry.is_dir(follow_symlinks=False), entry.is_symlink()) for entry in entries}
    same(types["inner"], (True, False), "the type of a directory")
    same(types["link"], (False, True), "the type of a link")
    as_user(4242, lambda: os.listdir("inner"))
