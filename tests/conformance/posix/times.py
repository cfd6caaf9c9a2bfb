"""Which times each call changes, of a file and of its directory, and utimensat(2) itself.

What lives here: atime, mtime, ctime. What must not: attributes that stay (`creation`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.conformance.posix import calls
from tests.conformance.posix.calls import AT_SYMLINK_NOFOLLOW, UTIME_NOW, UTIME_OMIT, utimensat
from tests.conformance.posix.suite import OTHER, OWNER, ROOT, TYPES, make, outcome, protects_links

if TYPE_CHECKING:
    from tests.conformance.posix.suite import Suite


def _times(path: str) -> dict[str, int]:
    found = os.lstat(path)
    return {"mtime": found.st_mtime_ns, "ctime": found.st_ctime_ns}


def _moved(before: dict[str, int], after: dict[str, int]) -> str:
    return " ".join(name for name in before if after[name] > before[name]) or "nothing"


def _unnamed(kind: str) -> Callable[[str], object]:
    return os.rmdir if kind == "directory" else os.unlink


_Changes = dict[str, tuple[Callable[[], object], str, str]]
"""Calls by name, with the times that each moves: of the file "f" itself, and of its directory."""


def _of_any(kind: str) -> _Changes:
    follows = kind != "symlink"
    changes: _Changes = {
        "lchown": (lambda: os.chown("f", OWNER.uid, OWNER.gid, follow_symlinks=False), "ctime", "nothing"),
        # chown(2) that leaves both alone still is a change: Linux's disk file systems note it.
        "lchown-to-nobody": (lambda: os.chown("f", -1, -1, follow_symlinks=False), "ctime", "nothing"),
        "lchown-to-the-same": (lambda: os.chown("f", 0, 0, follow_symlinks=False), "ctime", "nothing"),
        "rename": (lambda: os.rename("f", "g"), "ctime", "mtime ctime"),
    }
    if follows:
        changes["chmod"] = (lambda: os.chmod("f", 0o600), "ctime", "nothing")
        changes["chmod-to-the-same"] = (lambda: os.chmod("f", 0o644), "ctime", "nothing")
        changes["chown-to-nobody"] = (lambda: os.chown("f", -1, -1), "ctime", "nothing")
        changes["utimensat-omitting-both"] = (
            lambda: utimensat("f", (0, UTIME_OMIT), (0, UTIME_OMIT)),
            "nothing",
            "nothing",
        )
        changes["utimensat-atime"] = (lambda: utimensat("f", (5, 0), (0, UTIME_OMIT)), "ctime", "nothing")
        changes["touch"] = (lambda: calls.touch("f"), "mtime ctime", "nothing")
        changes["utimensat"] = (lambda: utimensat("f", (0, UTIME_OMIT), (1 << 31, 0)), "mtime ctime", "nothing")
    if kind != "directory":
        changes["link"] = (lambda: os.link("f", "g", follow_symlinks=False), "ctime", "mtime ctime")
        changes["unlink-one-of-two"] = (lambda: os.unlink("two"), "ctime", "mtime ctime")
    if kind in ("regular", "directory"):
        changes["setxattr"] = (lambda: os.setxattr("f", "user.a", b"1"), "ctime", "nothing")
        changes["listxattr"] = (lambda: os.listxattr("f") and None, "nothing", "nothing")
    changes["lstat"] = (lambda: os.lstat("f") and None, "nothing", "nothing")
    changes["access"] = (lambda: os.access("f", os.R_OK) and None, "nothing", "nothing")
    if kind == "symlink":
        changes["readlink"] = (lambda: os.readlink("f") and None, "nothing", "nothing")
    return changes


def _of_a_file() -> _Changes:
    return {
        "read": (lambda: calls.content("f") and None, "nothing", "nothing"),
        "write-nothing": (lambda: calls.write_nothing("f"), "nothing", "nothing"),
        "fchmod": (lambda: calls.fchmod("f", 0o640), "ctime", "nothing"),
        "fchown": (lambda: calls.fchown("f", 1, 1), "ctime", "nothing"),
        "fsync": (lambda: calls.fsync("f"), "nothing", "nothing"),
        "append": (lambda: calls.write("f", os.O_WRONLY | os.O_APPEND), "mtime ctime", "nothing"),
        "truncate": (lambda: os.truncate("f", 0), "mtime ctime", "nothing"),
        "truncate-longer": (lambda: os.truncate("f", 100), "mtime ctime", "nothing"),
        "truncate-to-the-same": (lambda: os.truncate("f", 5), "mtime ctime", "nothing"),
        "open-truncating": (lambda: calls.open_("f", os.O_WRONLY | os.O_TRUNC), "mtime ctime", "nothing"),
        "write": (lambda: calls.write("f"), "mtime ctime", "nothing"),
        "open-for-writing": (lambda: calls.open_("f", os.O_WRONLY), "nothing", "nothing"),
        "open-with-create": (lambda: calls.open_("f", os.O_WRONLY | os.O_CREAT), "nothing", "nothing"),
        "open-ftruncate": (_ftruncate, "mtime ctime", "nothing"),
    }


def _of_a_directory() -> _Changes:
    return {
        "create-in-it": (lambda: make("regular", "f/x"), "mtime ctime", "nothing"),
        "remove-from-it": (lambda: os.unlink("f/there"), "mtime ctime", "nothing"),
        "rename-in-it": (lambda: os.rename("f/there", "f/here"), "mtime ctime", "nothing"),
        "link-in-it": (lambda: os.link("f/there", "f/x"), "mtime ctime", "nothing"),
        "symlink-in-it": (lambda: os.symlink("x", "f/x"), "mtime ctime", "nothing"),
        "mkfifo-in-it": (lambda: os.mkfifo("f/x"), "mtime ctime", "nothing"),
        "write-to-a-file-in-it": (lambda: calls.write("f/there"), "nothing", "nothing"),
        "chmod-of-a-file-in-it": (lambda: os.chmod("f/there", 0), "nothing", "nothing"),
        "listdir": (lambda: os.listdir("f") and None, "nothing", "nothing"),
        "mkdir-in-it": (lambda: os.mkdir("f/x"), "mtime ctime", "nothing"),
    }


def check_changes(suite: Suite) -> None:
    """Each call that changes a file: its own times, and its directory's."""
    more = {"regular": _of_a_file, "directory": _of_a_directory}
    for kind in TYPES:
        changes = _of_any(kind) | more.get(kind, dict)()
        for name, (change, own, parents) in changes.items():
            suite.scratch()
            make(kind, "f")
            if name == "unlink-one-of-two":
                os.link("f", "two", follow_symlinks=False)
            elif kind == "regular":
                os.truncate("f", 5)
            elif kind == "directory":
                make("regular", "f/there")
            suite.tick()
            before, parent = _times("f"), _times(".")
            at = f"times/{kind}/{name}"
            suite.check(at, outcome(_quietly, change), "ok")
            after = _times("g" if name == "rename" else "f")
            suite.check(f"{at}/own", _moved(before, after), own)
            suite.check(f"{at}/directory", _moved(parent, _times(".")), parents)


def _quietly(change: Callable[[], object]) -> None:
    change()


def _ftruncate() -> None:
    descriptor = os.open("f", os.O_RDWR)
    try:
        os.ftruncate(descriptor, 3)
    finally:
        os.close(descriptor)


def check_creations(suite: Suite) -> None:
    for kind in TYPES:
        suite.scratch()
        suite.tick()
        parent = _times(".")
        make(kind, "f")
        found = os.lstat("f")
        now = parent["ctime"]
        suite.check(
            f"times/{kind}/created/own", all(t > now for t in (found.st_atime_ns, *_times("f").values())), "True"
        )
        suite.check(f"times/{kind}/created/directory", _moved(parent, _times(".")), "mtime ctime")
        suite.tick()
        parent = _times(".")
        _unnamed(kind)("f")
        suite.check(f"times/{kind}/removed/directory", _moved(parent, _times(".")), "mtime ctime")
        suite.scratch()
        os.mkdir("other")
        make(kind, "f")
        suite.tick()
        parent, other = _times("."), _times("other")
        os.rename("f", "other/f")
        suite.check(f"times/{kind}/moved/from", _moved(parent, _times(".")), "mtime ctime")
        suite.check(f"times/{kind}/moved/to", _moved(other, _times("other")), "mtime ctime")
        os.rename("other/f", "f")
        make("directory" if kind == "directory" else "regular", "new")
        suite.tick()
        if kind != "directory":
            os.link("f", "second", follow_symlinks=False)
            suite.tick()
            before = _times("second")
            os.rename("new", "f")
            suite.check(f"times/{kind}/replaced/own", _moved(before, _times("second")), "ctime")


def check_failures(suite: Suite) -> None:
    """A call that is refused changes no time."""
    for kind in TYPES:
        follows = kind != "symlink"
        refused: dict[str, tuple[Callable[..., object], tuple[object, ...], str]] = {
            "lchown": (calls.lchown, ("d/f", 1, 1), "EPERM"),
            "create-beside": (calls.create, ("d/new",), "EACCES"),
            "mkdir-beside": (calls.mkdir, ("d/new",), "EACCES"),
            "symlink-beside": (calls.symlink, ("d/new",), "EACCES"),
            "mkfifo-beside": (calls.mkfifo, ("d/new",), "EACCES"),
            "rename-over": (calls.rename, ("source", "d/f"), "EACCES"),
            "remove": (calls.rmdir if kind == "directory" else calls.unlink, ("d/f",), "EACCES"),
            "rename-from": (calls.rename, ("d/f", "g"), "EACCES"),
            "link-to": (calls.link, ("source", "d/g"), "EPERM" if protects_links() else "EACCES"),
        }
        if follows:
            refused["chmod"] = (calls.chmod, ("d/f", 0o600), "EPERM")
            refused["touch"] = (calls.touch, ("d/f",), "EACCES")
            refused["set-times"] = (calls.set_times, ("d/f",), "EPERM")
        if kind == "regular":
            refused["truncate"] = (calls.truncate, ("d/f",), "EACCES")
            refused["open-truncating"] = (calls.open_, ("d/f", os.O_WRONLY | os.O_TRUNC), "EACCES")
        for name, (call, arguments, want) in refused.items():
            suite.scratch()
            os.mkdir("d", 0o755)
            make("regular", "source")
            make(kind, "d/f")
            suite.tick()
            before, parent = _times("d/f"), _times("d")
            at = f"times/{kind}/refused-{name}"
            suite.check(at, suite.run(OTHER, call, *arguments), want)
            suite.check(f"{at}/own", _moved(before, _times("d/f")), "nothing")
            suite.check(f"{at}/directory", _moved(parent, _times("d")), "nothing")


def check_utimensat(suite: Suite) -> None:
    seconds = (0, 1, 1_000_000_000, (1 << 31) - 1, 1 << 31, (1 << 32) + 5, -1, -1_000_000)
    for kind in TYPES:
        flags = AT_SYMLINK_NOFOLLOW if kind == "symlink" else 0
        for value in seconds:
            suite.scratch()
            make(kind, "f")
            at = f"utimensat/{kind}/{value}"
            suite.check(at, outcome(utimensat, "f", (value, 0), (value + 1, 0), flags), "ok")
            found = os.lstat("f")
            suite.check(f"{at}/atime", found.st_atime_ns, value * 10**9)
            suite.check(f"{at}/mtime", found.st_mtime_ns, (value + 1) * 10**9)
        for name, atime, mtime in (
            ("omit-both", (0, UTIME_OMIT), (0, UTIME_OMIT)),
            ("omit-atime", (0, UTIME_OMIT), (5, 0)),
            ("omit-mtime", (5, 0), (0, UTIME_OMIT)),
            ("now-both", (0, UTIME_NOW), (0, UTIME_NOW)),
            ("now-atime", (0, UTIME_NOW), (5, 0)),
            ("now-mtime", (5, 0), (0, UTIME_NOW)),
            ("now-and-omit", (0, UTIME_NOW), (0, UTIME_OMIT)),
        ):
            suite.scratch()
            make(kind, "f")
            utimensat("f", (77, 0), (88, 0), flags)
            suite.tick()
            clock = os.lstat("f").st_ctime_ns
            at = f"utimensat/{kind}/{name}"
            suite.check(at, outcome(utimensat, "f", atime, mtime, flags), "ok")
            found = os.lstat("f")
            for which, given, got, old in (
                ("atime", atime, found.st_atime_ns, 77),
                ("mtime", mtime, found.st_mtime_ns, 88),
            ):
                if given[1] == UTIME_NOW:
                    suite.check(f"{at}/{which}", got >= clock, "True")
                else:
                    suite.check(f"{at}/{which}", got, (old if given[1] == UTIME_OMIT else given[0]) * 10**9)
        suite.scratch()
        make(kind, "f")
        for nanoseconds in (10**9, -1, UTIME_OMIT + 2):
            refused = outcome(utimensat, "f", (0, nanoseconds), (0, 0), flags)
            suite.check(f"utimensat/{kind}/nanoseconds-{nanoseconds}", refused, "EINVAL")
        for nanoseconds in (1, 999_999_999, 123_456_789):
            utimensat("f", (1_000, nanoseconds), (2_000, nanoseconds), flags)
            found = os.lstat("f")
            at = f"utimensat/{kind}/sub-second-{nanoseconds}"
            suite.check(f"{at}/atime", found.st_atime_ns, 1_000 * 10**9 + nanoseconds)
            suite.check(f"{at}/mtime", found.st_mtime_ns, 2_000 * 10**9 + nanoseconds)


def check_links_times(suite: Suite) -> None:
    suite.scratch()
    make("regular", "f")
    os.symlink("f", "link")
    utimensat("link", (5, 0), (6, 0), AT_SYMLINK_NOFOLLOW)
    utimensat("link", (7, 0), (8, 0))
    suite.check("utimensat/not-following", (os.lstat("link").st_mtime_ns), 6 * 10**9)
    suite.check("utimensat/following", (os.stat("link").st_mtime_ns), 8 * 10**9)
    for user in (ROOT, OWNER, OTHER):
        os.chown("f", OWNER.uid, OWNER.gid)
        want = "ok" if user in (ROOT, OWNER) else "EPERM"
        for name, atime, mtime in (
            ("set", (1, 0), (1, 0)),
            ("omit-one", (0, UTIME_OMIT), (1, 0)),
            ("now-one", (0, UTIME_NOW), (1, 0)),
            ("now-and-omit", (0, UTIME_NOW), (0, UTIME_OMIT)),
        ):
            suite.check(f"utimensat/{user.name}/{name}", suite.run(user, utimensat, "f", atime, mtime), want)
        suite.check(
            f"utimensat/{user.name}/omit-both", suite.run(user, utimensat, "f", (0, UTIME_OMIT), (0, UTIME_OMIT)), "ok"
        )


def check_all(suite: Suite) -> None:
    check_changes(suite)
    check_creations(suite)
    check_failures(suite)
    check_utimensat(suite)
    check_links_times(suite)
