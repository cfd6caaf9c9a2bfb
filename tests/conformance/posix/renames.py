"""Renames: every type over every type, directories below themselves, hard links of one file, open files.

What lives here: rename(2) as root, and what is there afterwards. What must not: permissions and sticky directories
(`permissions`), times (`times`).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tests.conformance.posix.suite import ROOT, TYPES, make, outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conformance.posix.suite import Suite


def _wanted(old: str, new: str) -> str:
    if old == "directory" and new not in ("directory", "none"):
        return "ENOTDIR"
    if old != "directory" and new in ("directory", "full"):
        return "EISDIR"
    return "ok"


def check_types(suite: Suite) -> None:
    for where in ("d", "e"):
        for old in TYPES:
            for new in (*TYPES, "none", "full"):
                suite.scratch()
                make("directory", "d", 0o755)
                make("directory", "e", 0o755)
                make(old, "d/old")
                if new == "full":
                    make("directory", f"{where}/new", 0o755)
                    make("regular", f"{where}/new/f")
                elif new != "none":
                    make(new, f"{where}/new")
                before = os.lstat("d/old")
                want = "ENOTEMPTY" if (old, new) == ("directory", "full") else _wanted(old, new)
                at = f"rename/{old}/over-{new}/{'here' if where == 'd' else 'elsewhere'}"
                suite.check(at, outcome(os.rename, "d/old", f"{where}/new"), want)
                if want == "ok":
                    after = os.lstat(f"{where}/new")
                    suite.check(f"{at}/same", (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode), "True")
                    suite.check(f"{at}/old-name", os.path.lexists("d/old"), "False")
                else:
                    suite.check(f"{at}/left", os.lstat("d/old").st_ino == before.st_ino, "True")
                suite.check(f"{at}/names", sorted(os.listdir("d")), _names(want, where, new))


def _names(want: str, where: str, new: str) -> list[str]:
    if want != "ok":
        return ["old"] if where == "e" or new == "none" else ["new", "old"]
    return ["new"] if where == "d" else []


def check_into_itself(suite: Suite) -> None:
    suite.scratch()
    os.makedirs("d/below/deeper")
    for path in ("d/new", "d/below/new", "d/below/deeper/new", "d/below"):
        suite.check(f"rename/into-itself/{path}", outcome(os.rename, "d", path), "EINVAL")
    suite.check("rename/over-what-is-above", outcome(os.rename, "d/below/deeper", "d"), "ENOTEMPTY")
    for name, paths in {
        "dot": ("d/.", "new"),
        "dot-dot": ("d/below/..", "new"),
        "to-dot": ("d/below/deeper", "d/."),
        "to-dot-dot": ("d/below/deeper", "d/below/.."),
    }.items():
        got = outcome(os.rename, *paths)
        suite.check(
            f"rename/{name}", "refused" if got in ("EINVAL", "EBUSY", "ENOTEMPTY", "EEXIST") else got, "refused"
        )
    suite.check("rename/to-itself", outcome(os.rename, "d", "d"), "ok")
    suite.check("rename/to-itself/there", sorted(os.listdir("d/below")), ["deeper"])


def check_hard_links(suite: Suite) -> None:
    for kind in TYPES:
        if kind == "directory":
            continue
        suite.scratch()
        make(kind, "one")
        os.link("one", "two", follow_symlinks=False)
        suite.check(f"rename/{kind}/two-names-of-one-file", outcome(os.rename, "one", "two"), "ok")
        suite.check(f"rename/{kind}/two-names-of-one-file/both-stay", sorted(os.listdir(".")), ["one", "two"])
        make(kind, "other")
        os.rename("other", "two")
        suite.check(f"rename/{kind}/count-of-the-replaced", os.lstat("one").st_nlink, 1)


def check_open_files(suite: Suite) -> None:
    suite.scratch()
    with open("a", "w+b", buffering=0) as old, open("b", "w+b", buffering=0) as new:
        old.write(b"old")
        new.write(b"new")
        os.rename("a", "b")
        with open("b", "rb") as found:
            suite.check("rename/open/content", found.read().decode(), "old")
        new.seek(0)
        suite.check("rename/open/replaced-content", new.read().decode(), "new")
        suite.check("rename/open/replaced-count", os.fstat(new.fileno()).st_nlink, 0)
        suite.check("rename/open/count", os.fstat(old.fileno()).st_nlink, 1)
        calls: dict[str, Callable[[], object]] = {
            "fchmod": lambda: os.fchmod(new.fileno(), 0o600),
            "fchown": lambda: os.fchown(new.fileno(), 1, 1),
            "ftruncate": lambda: os.ftruncate(new.fileno(), 1),
            "futimens": lambda: os.utime(new.fileno(), (1, 1)),
            "fsync": lambda: os.fsync(new.fileno()),
            "write": lambda: os.pwrite(new.fileno(), b"x", 5) and None,
            "size": lambda: os.fstat(new.fileno()).st_size,
        }
        for name, call in calls.items():
            suite.check(f"rename/open/replaced/{name}", outcome(call), "6" if name == "size" else "ok")
        for name, call in calls.items():
            if name in ("fsync", "size", "write"):
                continue
            os.unlink("b") if os.path.exists("b") else None
            suite.check(f"unlink/open/{name}", outcome(call), "ok")
    os.makedirs("d/e")
    at = os.open("d/e", os.O_RDONLY)
    os.rename("d", "f")
    suite.check("rename/open-below/create", suite.run(ROOT, _create_at, at), "ok")
    os.close(os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=at))
    suite.check("rename/open-below/there", sorted(os.listdir("f/e")), ["new"])
    os.close(at)


def _create_at(_: int) -> None:
    os.stat("f/e")


def check_all(suite: Suite) -> None:
    check_types(suite)
    check_into_itself(suite)
    check_hard_links(suite)
    check_open_files(suite)
