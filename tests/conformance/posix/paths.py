"""Paths: components that are missing, too long, no directories, or loops; and paths as long as they may be.

What lives here: what path_resolution(7) promises of every call that takes a path. What must not: who may
(`permissions`).
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from tests.conformance.posix import calls
from tests.conformance.posix.suite import TYPES, make, outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conformance.posix.suite import Suite

NAME_MAX = 255
PATH_MAX = 4096

CREATING: dict[str, Callable[[str], object]] = {
    "open-create": calls.create,
    "mkdir": calls.mkdir,
    "mkfifo": calls.mkfifo,
    "mknod": calls.mknod,
    "symlink": calls.symlink,
    "link-to": partial(calls.link, "source"),
    "rename-to": partial(calls.rename, "source"),
}
"""Calls that make the name they are given. The last two need a file called source."""

EXISTING: dict[str, Callable[[str], object]] = {
    "open": calls.read,
    "chmod": calls.chmod,
    "chown": calls.chown_to_root,
    "lchown": calls.lchown_to_root,
    "truncate": calls.truncate,
    "utimensat": calls.touch,
    "stat": calls.stat_,
    "lstat": calls.lstat,
    "statfs": calls.statfs,
    "listxattr": calls.listxattr,
    "link-from": calls.link_from,
    "rename-from": calls.rename_from,
    "unlink": calls.unlink,
}
"""Calls that want a regular file under the name they are given."""

DIRECTORIES: dict[str, Callable[[str], object]] = {
    "rmdir": calls.rmdir,
    "listdir": calls.listdir,
    "chdir": calls.chdir,
}
"""Calls that want a directory."""

LINKS: dict[str, Callable[[str], object]] = {"readlink": calls.readlink}

NOT_FOLLOWING = ("lchown", "lstat", "link-from", "rename-from", "unlink", "rmdir", "readlink")
"""Calls that act on a symbolic link itself."""

ALL = {**CREATING, **EXISTING, **DIRECTORIES, **LINKS}


def _fresh(suite: Suite) -> None:
    suite.scratch()
    make("regular", "source")


def _target_for(call: str, path: str) -> None:
    """Make what a call wants to find."""
    if call in DIRECTORIES:
        make("directory", path, 0o755)
    elif call in LINKS:
        os.symlink("target", path)
    elif call in EXISTING:
        make("regular", path)


def check_missing(suite: Suite) -> None:
    for name, call in ALL.items():
        _fresh(suite)
        suite.check(f"path/{name}/ENOENT/component", outcome(call, "missing/name"), "ENOENT")
        suite.check(f"path/{name}/ENOENT/empty", outcome(call, ""), "ENOENT")
        if name not in CREATING:
            suite.check(f"path/{name}/ENOENT/name", outcome(call, "missing"), "ENOENT")
        os.symlink("nowhere", "dangling")
        suite.check(f"path/{name}/ENOENT/dangling", outcome(call, "dangling/name"), "ENOENT")


def check_not_a_directory(suite: Suite) -> None:
    for kind in TYPES:
        if kind in ("directory", "symlink"):
            continue
        for name, call in ALL.items():
            _fresh(suite)
            make(kind, "file")
            suite.check(f"path/{name}/ENOTDIR/{kind}", outcome(call, "file/name"), "ENOTDIR")
            os.symlink("file", "link")
            got = outcome(call, "link/name")
            suite.check(f"path/{name}/ENOTDIR/link-to-{kind}", got, "ENOTDIR")


def check_exists(suite: Suite) -> None:
    for kind in TYPES:
        for name, call in CREATING.items():
            if name == "rename-to":
                continue
            _fresh(suite)
            make(kind, "file")
            before = os.lstat("file")
            suite.check(f"path/{name}/EEXIST/{kind}", outcome(call, "file"), "EEXIST")
            after = os.lstat("file")
            suite.check(f"path/{name}/EEXIST/{kind}/left-alone", after.st_ino == before.st_ino, "True")


def check_loops(suite: Suite) -> None:
    for name, call in ALL.items():
        _fresh(suite)
        os.symlink("two", "one")
        os.symlink("one", "two")
        suite.check(f"path/{name}/ELOOP/component", outcome(call, "one/name"), "ELOOP")
        if name in CREATING:
            continue
        want = ("ENOTDIR" if name == "rmdir" else "ok") if name in NOT_FOLLOWING else "ELOOP"
        suite.check(f"path/{name}/ELOOP/name", outcome(call, "one"), want)


def check_many_links(suite: Suite) -> None:
    for name, call in EXISTING.items():
        if name in NOT_FOLLOWING:
            continue
        for count, want in ((40, "ok"), (41, "ELOOP")):
            _fresh(suite)
            make("regular", "link0")
            for number in range(count):
                os.symlink(f"link{number}", f"link{number + 1}")
            got = outcome(call, f"link{count}")
            suite.check(f"path/{name}/{count}-links", got, want)


def check_long_names(suite: Suite) -> None:
    for name, call in ALL.items():
        for letter, what in (("n", "ascii"), ("\u00fc", "utf-8"), ("\udcff", "bytes")):
            _fresh(suite)
            width = len(os.fsencode(letter))
            longest = letter * (NAME_MAX // width) + "x" * (NAME_MAX % width)
            _target_for(name, longest)
            suite.check(f"path/{name}/255-{what}", outcome(call, longest), "ok")
            if name == "rename-to":
                make("regular", "source")  # the last one was renamed away
            got = outcome(call, longest + "x")
            suite.check(f"path/{name}/256-{what}", got, "ENAMETOOLONG")
            got = outcome(call, longest + "x/name")
            suite.check(f"path/{name}/256-{what}-component", got, "ENAMETOOLONG")


def _long_path(length: int) -> str:
    """Make directories and return a path of so many bytes below them, whose last name is not there yet."""
    parts: list[str] = []
    left = length
    while left > 2 * NAME_MAX:
        parts.append("d" * NAME_MAX)
        left -= NAME_MAX + 1
    middle = left // 2
    parts.append("m" * (middle - 1))
    left -= middle
    at = os.open(".", os.O_RDONLY)
    for part in parts:
        os.mkdir(part, dir_fd=at)
        below = os.open(part, os.O_RDONLY | os.O_DIRECTORY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    path = "/".join([*parts, "n" * left])
    assert len(path) == length, (len(path), length)
    return path


def check_long_paths(suite: Suite) -> None:
    for length in (NAME_MAX * 4, 2048, 3000, PATH_MAX - 255, PATH_MAX - 2, PATH_MAX - 1):
        for name, call in ALL.items():
            _fresh(suite)
            path = _long_path(length)
            _target_for(name, path)
            suite.check(f"path/{name}/{length}-bytes", outcome(call, path), "ok")
    for name, call in ALL.items():
        _fresh(suite)
        suite.check(f"path/{name}/4096-bytes", outcome(call, "d/" * (PATH_MAX // 2)), "ENAMETOOLONG")


def check_long_targets(suite: Suite) -> None:
    for length, want in (
        (1, "ok"),
        (255, "ok"),
        (2048, "ok"),
        (4000, "ok"),
        (4094, "ok"),
        (4095, "ok"),
        (4096, "ENAMETOOLONG"),
    ):
        suite.scratch()
        target = "t" * length
        suite.check(f"path/symlink/target-{length}", outcome(os.symlink, target, "link"), want)
        if want == "ok":
            suite.check(f"path/symlink/target-{length}/read", outcome(os.readlink, "link") == target, "True")
            suite.check(f"path/symlink/target-{length}/size", os.lstat("link").st_size, length)


def check_beyond_path_max(suite: Suite) -> None:
    """Directories within directories, each entered by its descriptor, until no path could name them."""
    suite.scratch()
    for number in range(24):
        os.mkdir("d" * NAME_MAX)
        below = os.open("d" * NAME_MAX, os.O_RDONLY | os.O_DIRECTORY)
        os.fchdir(below)
        os.close(below)
        at = f"path/depth-{(number + 1) * 256}"
        suite.check(f"{at}/mkdir", outcome(os.mkdir, "a"), "ok")
        suite.check(f"{at}/create", outcome(calls.create, "f"), "ok")
        suite.check(f"{at}/stat", os.stat("f").st_size, "0")
        suite.check(f"{at}/list", sorted(os.listdir(".")), "['a', 'f']")
        suite.check(f"{at}/rename", outcome(os.rename, "f", "g"), "ok")
        suite.check(f"{at}/link", outcome(os.link, "g", "h"), "ok")
        suite.check(f"{at}/unlink", outcome(os.unlink, "g"), "ok")
        suite.check(f"{at}/rmdir", outcome(os.rmdir, "a"), "ok")
    os.chdir(suite.root)


def check_all(suite: Suite) -> None:
    check_missing(suite)
    check_not_a_directory(suite)
    check_exists(suite)
    check_loops(suite)
    check_many_links(suite)
    check_long_names(suite)
    check_long_paths(suite)
    check_long_targets(suite)
    check_beyond_path_max(suite)
