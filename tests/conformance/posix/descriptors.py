"""Calls on descriptors, calls relative to a directory's descriptor, and paths that end in a slash.

What lives here: what openat(2), fchmodat(2) and their kin promise beside their namesakes of paths, what an open
descriptor goes on giving, and where an offset may be. What must not: what the path alone decides (`paths`).
"""

from __future__ import annotations

import fcntl
import os
import stat
from typing import TYPE_CHECKING

from tests.conformance.posix import calls
from tests.conformance.posix.suite import OTHER, OWNER, ROOT, TYPES, make, outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conformance.posix.suite import Suite

NAMES = {
    "three-dots": "...",
    "dots-before": "..name",
    "dot-behind": "name.",
    "hidden": ".name",
    "space": " a name ",
    "newline": "one\ntwo",
    "tab": "one\ttwo",
    "backslash": "one\\two",
    "dash": "-rf",
    "star": "*",
    "quote": "'\"",
    "colon": "c:name",
    "utf-8": "\u00fc\u4e2d\U0001f600",
    "no-utf-8": "\udcff\udcfe",
    "control": "\x01\x7f",
    "one-letter": "a",
}
"""Names that some programs give a meaning; a file system gives them none."""


def check_names(suite: Suite) -> None:
    for what, name in NAMES.items():
        for kind in TYPES:
            suite.scratch()
            at = f"name/{what}/{kind}"
            suite.check(f"{at}/make", outcome(make, kind, name), "ok")
            suite.check(f"{at}/listed", os.listdir(".") == [name], "True")
            suite.check(f"{at}/stat", outcome(calls.lstat, name), "ok")
            suite.check(f"{at}/rename", outcome(os.rename, name, f"{name}x"), "ok")
            suite.check(f"{at}/rename-back", outcome(os.rename, f"{name}x", name), "ok")
            suite.check(f"{at}/remove", outcome(os.rmdir if kind == "directory" else os.unlink, name), "ok")
            suite.check(f"{at}/left", os.listdir("."), [])


def check_trailing_slashes(suite: Suite) -> None:
    def no_directory(kind: str, directory: str = "ok") -> str:
        return {"directory": directory, "symlink": "ENOENT"}.get(kind, "ENOTDIR")

    for kind in TYPES:
        asked: dict[str, tuple[Callable[..., object], tuple[object, ...], str]] = {
            "open": (calls.read, ("f/",), no_directory(kind)),
            "stat": (calls.stat_, ("f/",), no_directory(kind)),
            "lstat": (calls.lstat, ("f/",), no_directory(kind)),
            "chmod": (calls.chmod, ("f/", 0o755), no_directory(kind)),
            "lchown": (calls.lchown, ("f/", 1, 1), no_directory(kind)),
            "touch": (calls.touch, ("f/",), no_directory(kind)),
            "truncate": (calls.truncate, ("f/",), no_directory(kind, "EISDIR")),
            "listdir": (calls.listdir, ("f/",), no_directory(kind)),
            "mkdir": (calls.mkdir, ("f/",), "EEXIST"),
            "unlink": (calls.unlink, ("f/",), "EISDIR" if kind == "directory" else "ENOTDIR"),
            "rmdir": (calls.rmdir, ("f/",), "ok" if kind == "directory" else "ENOTDIR"),
            "rename-from": (calls.rename, ("f/", "g"), "ok" if kind == "directory" else "ENOTDIR"),
            "rename-to-new": (calls.rename, ("f", "g/"), "ok" if kind == "directory" else "ENOTDIR"),
        }
        for name, (call, arguments, want) in asked.items():
            suite.scratch()
            make(kind, "f")
            suite.check(f"slash/{kind}/{name}", outcome(call, *arguments), want)
    making: dict[str, tuple[Callable[..., object], tuple[object, ...], str]] = {
        "mkdir": (calls.mkdir, ("new/",), "ok"),
        "mkfifo": (calls.mkfifo, ("new/",), "ENOENT"),
        "mknod": (calls.mknod, ("new/",), "ENOENT"),
        "symlink": (calls.symlink, ("new/",), "ENOENT"),
        "link": (calls.link, ("source", "new/"), "ENOENT"),
        "create": (calls.open_, ("new/", os.O_CREAT | os.O_WRONLY), "EISDIR"),
        "to-link": (calls.rmdir, ("to-directory/",), "ENOTDIR"),
        "through-link": (calls.listdir, ("to-directory/",), "ok"),
        "through-link-lstat": (calls.lstat, ("to-directory/.",), "ok"),
        "twice": (calls.stat_, ("d//inside",), "ok"),
    }
    for name, (call, arguments, want) in making.items():
        suite.scratch()
        make("regular", "source")
        make("directory", "d", 0o755)
        make("regular", "d/inside")
        os.symlink("d", "to-directory")
        suite.check(f"slash/new/{name}", outcome(call, *arguments), want)


def _relative(kind: str) -> dict[str, tuple[Callable[[int, str], object], str]]:
    """Return calls with a descriptor and a path, and what each wants there: nothing, or a file of a kind."""
    mode = stat.S_IFREG | 0o644
    return {
        "openat-create": (_create_at, "nothing"),
        "mkdirat": (lambda at, path: os.mkdir(path, dir_fd=at), "nothing"),
        "mknodat": (lambda at, path: os.mknod(path, mode, dir_fd=at), "nothing"),
        "mkfifoat": (lambda at, path: os.mkfifo(path, dir_fd=at), "nothing"),
        "symlinkat": (lambda at, path: os.symlink("target", path, dir_fd=at), "nothing"),
        "linkat-to": (lambda at, path: os.link("source", path, dst_dir_fd=at), "nothing"),
        "renameat-to": (lambda at, path: os.rename("source", path, dst_dir_fd=at), "nothing"),
        "linkat-from": (_link_from_at, kind),
        "renameat-from": (_rename_from_at, kind),
        "unlinkat": (lambda at, path: os.unlink(path, dir_fd=at), kind),
        "fstatat": (lambda at, path: os.stat(path, dir_fd=at, follow_symlinks=False) and None, kind),
        "fchmodat": (lambda at, path: os.chmod(path, 0o600, dir_fd=at), kind),
        "fchownat": (lambda at, path: os.chown(path, 1, 1, dir_fd=at, follow_symlinks=False), kind),
        "utimensat": (lambda at, path: os.utime(path, (1, 1), dir_fd=at), kind),
        "faccessat": (lambda at, path: None if os.access(path, os.F_OK, dir_fd=at) else _raise_last(at, path), kind),
        "openat": (_open_at, kind),
        "unlinkat-directory": (lambda at, path: os.rmdir(path, dir_fd=at), "directory"),
        "readlinkat": (lambda at, path: os.readlink(path, dir_fd=at) and None, "symlink"),
    }


def _create_at(at: int, path: str) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, dir_fd=at))


def _open_at(at: int, path: str) -> None:
    os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK, dir_fd=at))


def _link_from_at(at: int, path: str) -> None:
    os.link(path, "linked", src_dir_fd=at, follow_symlinks=False)


def _rename_from_at(at: int, path: str) -> None:
    os.rename(path, "renamed", src_dir_fd=at)


def _raise_last(at: int, path: str) -> None:
    os.stat(path, dir_fd=at)


def check_relative(suite: Suite) -> None:
    for kind in ("regular", "fifo"):
        for name, (call, wants) in _relative(kind).items():
            if kind == "fifo" and wants != kind:
                continue
            at = f"relative/{kind}/{name}"
            for where in ("directory", "path-descriptor", "absolute", "closed", "no-directory"):
                suite.scratch()
                make("regular", "source")
                make("directory", "d", 0o755)
                if wants != "nothing":
                    make(wants, "d/f")
                flags = os.O_RDONLY | (os.O_PATH if where == "path-descriptor" else 0)
                descriptor = os.open("source" if where == "no-directory" else "d", flags)
                if where in ("closed", "absolute"):
                    os.close(descriptor)
                path = f"{os.getcwd()}/d/f" if where == "absolute" else "f"
                want = {"closed": "EBADF", "no-directory": "ENOTDIR"}.get(where, "ok")
                suite.check(f"{at}/{where}", outcome(call, descriptor, path), want)
                if where not in ("closed", "absolute"):
                    os.close(descriptor)


def check_removed_directory(suite: Suite) -> None:
    """A directory that is gone but held: it is empty, and nothing is made in it."""
    for name, (call, _) in _relative("regular").items():
        suite.scratch()
        make("regular", "source")
        os.mkdir("d")
        descriptor = os.open("d", os.O_RDONLY)
        os.rmdir("d")
        suite.check(f"removed-directory/{name}", outcome(call, descriptor, "f"), "ENOENT")
        os.close(descriptor)
    suite.scratch()
    os.mkdir("d")
    descriptor = os.open("d", os.O_RDONLY)
    os.rmdir("d")
    suite.check("removed-directory/links", os.fstat(descriptor).st_nlink, 0)
    suite.check("removed-directory/fchmod", outcome(os.fchmod, descriptor, 0o700), "ok")
    suite.check("removed-directory/mode", f"{os.fstat(descriptor).st_mode & 0o7777:o}", "700")
    suite.check("removed-directory/again", outcome(os.mkdir, "d"), "ok")
    suite.check("removed-directory/another", os.stat("d").st_ino != os.fstat(descriptor).st_ino, "True")
    os.close(descriptor)


def check_open_descriptors(suite: Suite) -> None:
    """What fchmod(2) and its kin do, also when the name is gone or another file has it."""
    acts: dict[str, tuple[Callable[[int], object], Callable[[os.stat_result], object], object]] = {
        "fchmod": (lambda fd: os.fchmod(fd, 0o711), lambda found: stat.S_IMODE(found.st_mode), 0o711),
        "fchown": (lambda fd: os.fchown(fd, 65534, 65533), lambda found: (found.st_uid, found.st_gid), (65534, 65533)),
        "futimens": (lambda fd: os.utime(fd, (3, 4)), lambda found: (found.st_atime, found.st_mtime), (3.0, 4.0)),
        "fchown-large": (
            lambda fd: os.fchown(fd, 0xFFFFFFFE, 0x80000000),
            lambda found: (found.st_uid, found.st_gid),
            (0xFFFFFFFE, 0x80000000),
        ),
    }
    for kind in ("regular", "directory", "fifo"):
        for state in ("named", "unlinked", "renamed", "replaced"):
            for name, (act, look, want) in acts.items():
                suite.scratch()
                make(kind, "f", 0o644 if kind != "directory" else 0o755)
                descriptor = os.open("f", os.O_RDONLY | os.O_NONBLOCK)
                if state == "unlinked":
                    (os.rmdir if kind == "directory" else os.unlink)("f")
                elif state != "named":
                    os.rename("f", "g")
                if state == "replaced":
                    make(kind, "f", 0o600)
                at = f"descriptor/{kind}/{state}/{name}"
                suite.check(at, outcome(act, descriptor), "ok")
                suite.check(f"{at}/seen", _looked(look, os.fstat, descriptor), want)
                if state == "renamed":
                    suite.check(f"{at}/by-name", _looked(look, os.stat, "g"), want)
                elif state == "replaced":
                    suite.check(f"{at}/the-other", _looked(look, os.stat, "f") == str(want), "False")
                os.close(descriptor)


def _looked(look: Callable[[os.stat_result], object], find: Callable[..., os.stat_result], file: int | str) -> str:
    return outcome(lambda: look(find(file)))


def open_then_drop(path: str, flags: int) -> str:
    """Open a file of one's own, take every permission off it, and use the descriptor."""
    descriptor = os.open(path, flags)
    try:
        os.chmod(path, 0)
        if flags & os.O_ACCMODE != os.O_RDONLY:
            os.pwrite(descriptor, b"new", 0)
            os.ftruncate(descriptor, 3)
        if flags & os.O_ACCMODE != os.O_WRONLY:
            return os.pread(descriptor, 10, 0).decode()
        return str(os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)


def check_access_kept(suite: Suite) -> None:
    """Permission is asked for when a file is opened, not when it is used (open(2))."""
    for user in (ROOT, OWNER):
        for name, flags, want in (
            ("read", os.O_RDONLY, "some"),
            ("write", os.O_WRONLY, "3"),
            ("both", os.O_RDWR, "new"),
            ("append", os.O_WRONLY | os.O_APPEND, "3"),
        ):
            suite.scratch()
            with open("f", "wb") as file:
                file.write(b"some")
            os.chown("f", user.uid, user.gid)
            os.chmod("f", 0o600)
            suite.check(f"descriptor/kept/{user.name}/{name}", suite.run(user, open_then_drop, "f", flags), want)
    suite.scratch()
    make("regular", "f")
    for name, flags, call, want in (
        ("write-to-reading", os.O_RDONLY, lambda fd: os.write(fd, b"x"), "EBADF"),
        ("read-from-writing", os.O_WRONLY, lambda fd: os.read(fd, 1), "EBADF"),
        ("truncate-reading", os.O_RDONLY, lambda fd: os.ftruncate(fd, 0), "EINVAL"),
        ("read-of-path", os.O_PATH, lambda fd: os.read(fd, 1), "EBADF"),
        ("fchmod-of-path", os.O_PATH, lambda fd: os.fchmod(fd, 0), "EBADF"),
        ("stat-of-path", os.O_PATH, lambda fd: os.fstat(fd) and None, "ok"),
        ("reopened", os.O_PATH, lambda fd: os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDWR)), "ok"),
    ):
        descriptor = os.open("f", flags)
        suite.check(f"descriptor/access/{name}", outcome(call, descriptor), want)
        os.close(descriptor)
    suite.scratch()
    os.mkdir("d")
    descriptor = os.open("d", os.O_RDONLY)
    suite.check("descriptor/directory/read", outcome(os.read, descriptor, 1), "EISDIR")
    suite.check("descriptor/directory/write", outcome(os.write, descriptor, b"x"), "EBADF")
    suite.check("descriptor/directory/fsync", outcome(os.fsync, descriptor), "ok")
    suite.check("descriptor/directory/fchdir", outcome(os.fchdir, descriptor), "ok")
    suite.check("descriptor/directory/there", os.path.basename(os.getcwd()), "d")
    os.close(descriptor)


def check_offsets(suite: Suite) -> None:
    """lseek(2), pread(2) and pwrite(2) at every kind of offset."""
    suite.scratch()
    with open("f", "w+b", buffering=0) as file:
        fd = file.fileno()
        file.write(b"0123456789")
        for name, offset, whence, want in (
            ("start", 3, os.SEEK_SET, "3"),
            ("end", -4, os.SEEK_END, "6"),
            ("current", 1, os.SEEK_CUR, "7"),
            ("past-the-end", 100, os.SEEK_SET, "100"),
            ("negative", -1, os.SEEK_SET, "EINVAL"),
            ("before-the-start", -11, os.SEEK_END, "EINVAL"),
            ("data", 2, os.SEEK_DATA, "2"),
            ("hole-is-the-end", 2, os.SEEK_HOLE, "10"),
            ("data-past-the-end", 10, os.SEEK_DATA, "ENXIO"),
            ("unknown", 0, 99, "EINVAL"),
        ):
            suite.check(f"offset/lseek/{name}", outcome(os.lseek, fd, offset, whence), want)
        for offset, want_read in ((0, "0123"), (8, "89"), (10, ""), (11, ""), (1 << 40, "")):
            suite.check(f"offset/pread/{offset}", outcome(lambda at=offset: os.pread(fd, 4, at).decode()), want_read)
        suite.check("offset/pread/negative", outcome(os.pread, fd, 1, -1), "EINVAL")
        suite.check("offset/pwrite/negative", outcome(os.pwrite, fd, b"x", -1), "EINVAL")
        suite.check("offset/pwrite/nothing", outcome(os.pwrite, fd, b"", 5), "0")
        suite.check("offset/pwrite/nothing-far", outcome(os.pwrite, fd, b"", 500), "0")
        suite.check("offset/pwrite/size-left", os.fstat(fd).st_size, 10)
        suite.check("offset/pwrite/past-all", outcome(os.pwrite, fd, b"x", 1 << 62), "EFBIG")
        for offset in (11, 4095, 8192, 65537, 1 << 31, 1 << 32, (1 << 40) + 1):
            suite.check(f"offset/pwrite/{offset}", outcome(os.pwrite, fd, b"x", offset), "1")
            suite.check(f"offset/pwrite/{offset}/size", os.fstat(fd).st_size, offset + 1)
            got = os.pread(fd, 10, offset - 3)
            suite.check(f"offset/pwrite/{offset}/read", got.hex(), "00000078" if offset != 11 else "38390078")
        os.ftruncate(fd, 0)
        os.lseek(fd, 0, os.SEEK_SET)
        suite.check("offset/writev", os.writev(fd, [b"ab", b"", b"cd"]), 4)
        os.lseek(fd, 0, os.SEEK_SET)
        suite.check("offset/pwritev", os.pwritev(fd, [b"X", b"Y"], 1), 2)
        pieces = [bytearray(1), bytearray(9)]
        suite.check("offset/readv", (os.readv(fd, pieces), bytes(pieces[0] + pieces[1])[:4].decode()), (4, "aXYd"))
        suite.check("offset/preadv", (os.preadv(fd, pieces, 1), bytes(pieces[1])[:2].decode()), (3, "Yd"))
        duplicate = os.dup(fd)
        os.lseek(fd, 2, os.SEEK_SET)
        suite.check("offset/shared-by-dup", os.lseek(duplicate, 0, os.SEEK_CUR), 2)
        os.close(duplicate)
        with open("copy", "w+b", buffering=0) as copy:
            suite.check("offset/sendfile", outcome(os.sendfile, copy.fileno(), fd, 0, 4), "4")
            suite.check("offset/sendfile/content", os.pread(copy.fileno(), 9, 0) == os.pread(fd, 9, 0), "True")
            os.ftruncate(copy.fileno(), 0)
            suite.check("offset/copy_file_range", outcome(os.copy_file_range, fd, copy.fileno(), 4, 0, 0), "4")
            suite.check("offset/copy_file_range/content", os.pread(copy.fileno(), 9, 0) == os.pread(fd, 9, 0), "True")


def check_flags_kept(suite: Suite) -> None:
    """fcntl(2): what a descriptor was opened with is what it says, and O_APPEND may come later."""
    suite.scratch()
    for name, flags in {
        "reading": os.O_RDONLY,
        "writing": os.O_WRONLY,
        "both": os.O_RDWR,
        "appending": os.O_RDWR | os.O_APPEND,
        "nonblocking": os.O_RDWR | os.O_NONBLOCK,
    }.items():
        descriptor = os.open("f", flags | os.O_CREAT, 0o644)
        shown = fcntl.fcntl(descriptor, fcntl.F_GETFL) & (os.O_ACCMODE | os.O_APPEND | os.O_NONBLOCK)
        suite.check(f"descriptor/flags/{name}", shown, flags)
        os.close(descriptor)
    with open("f", "r+b", buffering=0) as file:
        file.write(b"start")
        fcntl.fcntl(file, fcntl.F_SETFL, os.O_APPEND)
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        file.write(b"end")
        suite.check("descriptor/flags/append-set-later", os.pread(file.fileno(), 20, 0).decode(), "startend")


def check_unlinked(suite: Suite) -> None:
    """Every type stays what it is for who holds it, and its links count (unlink(2))."""
    for kind in TYPES:
        suite.scratch()
        make(kind, "f")
        held = os.open("f", os.O_PATH | os.O_NOFOLLOW)
        before = os.fstat(held)
        (os.rmdir if kind == "directory" else os.unlink)("f")
        links = _looked(lambda found: found.st_nlink, os.fstat, held)
        suite.check(f"unlinked/{kind}/held-by-path/links", links, 0)
        same = _looked(lambda found: (found.st_ino, found.st_mode), os.fstat, held)
        suite.check(f"unlinked/{kind}/held-by-path/same", same == str((before.st_ino, before.st_mode)), "True")
        suite.check(f"unlinked/{kind}/name", outcome(calls.lstat, "f"), "ENOENT")
        suite.check(f"unlinked/{kind}/name-is-free", outcome(make, kind, "f"), "ok")
        suite.check(f"unlinked/{kind}/held-by-path/another", os.lstat("f").st_ino != before.st_ino, "True")
        os.close(held)


def check_exclusive(suite: Suite) -> None:
    """Of several users who create one name with O_EXCL, one does."""
    for turn in range(20):
        suite.scratch()
        users = (ROOT, OWNER, OTHER)
        first = users[turn % 3]
        suite.check(f"exclusive/{turn}/first", suite.run(first, calls.create, "f"), "ok")
        for user in users:
            suite.check(f"exclusive/{turn}/{user.name}", suite.run(user, calls.create, "f"), "EEXIST")
        suite.check(f"exclusive/{turn}/made-by", os.stat("f").st_uid, first.uid)


def check_all(suite: Suite) -> None:
    check_names(suite)
    check_trailing_slashes(suite)
    check_relative(suite)
    check_removed_directory(suite)
    check_open_descriptors(suite)
    check_access_kept(suite)
    check_offsets(suite)
    check_flags_kept(suite)
    check_unlinked(suite)
    check_exclusive(suite)
