"""What a new file looks like: type, mode under a umask, owner, group of a setgid directory, device number, link counts.

What lives here: the attributes of what open, mkdir, mkfifo, mknod, symlink, link and bind make. What must not: who
may make it (`permissions`), times (`times`).
"""

from __future__ import annotations

import os
import stat
from itertools import product
from typing import TYPE_CHECKING

from tests.conformance.posix import calls
from tests.conformance.posix.suite import (
    GROUP,
    OTHER,
    OWNER,
    ROOT,
    SUPPLEMENTARY,
    TYPES,
    make,
    outcome,
    protects_links,
)

if TYPE_CHECKING:
    from tests.conformance.posix.suite import (
        Suite,
    )

_MAKERS = {
    "open": stat.S_IFREG,
    "mkdir": stat.S_IFDIR,
    "mkfifo": stat.S_IFIFO,
    "mknod": stat.S_IFREG,
    "symlink": stat.S_IFLNK,
}


def check_modes(suite: Suite) -> None:
    modes = (0o000, 0o151, 0o345, 0o644, 0o755, 0o777, 0o1777, 0o4755, 0o2755, 0o7777)
    masks = (0o000, 0o022, 0o027, 0o070, 0o501, 0o777)
    for user, (call, kind), mode, mask in product((ROOT, OTHER), _MAKERS.items(), modes, masks):
        suite.scratch()
        at = f"create/{call}/{user.name}/{mode:o}-umask-{mask:o}"
        suite.check(at, suite.run(user, calls.umask_and, mask, call, "new", mode), "ok")
        found = os.lstat("new")
        want = mode & ~mask
        if call == "mkdir":
            want &= 0o1777  # mkdir(2): "the mode is (mode & ~umask & 01777)"
        elif call == "symlink":
            want = 0o777
        suite.check(f"{at}/mode", f"{stat.S_IMODE(found.st_mode):o}", f"{want:o}")
        suite.check(f"{at}/type", stat.S_IFMT(found.st_mode), kind)
        suite.check(f"{at}/owner", (found.st_uid, found.st_gid), (user.uid, user.gid))


def check_setgid_directories(suite: Suite) -> None:
    for user, (call, kind), mode in product(
        (ROOT, OWNER, GROUP, SUPPLEMENTARY, OTHER), _MAKERS.items(), (0o755, 0o2755, 0o2745)
    ):
        suite.scratch()
        make("directory", "d", 0o777)
        os.chown("d", OWNER.uid, OWNER.gid)
        os.chmod("d", 0o2777)
        at = f"create/in-setgid/{call}/{user.name}/{mode:o}"
        suite.check(at, suite.run(user, calls.umask_and, 0, call, "d/new", mode), "ok")
        found = os.lstat("d/new")
        suite.check(f"{at}/owner", (found.st_uid, found.st_gid), (user.uid, OWNER.gid))
        in_group = OWNER.gid in (user.gid, *user.groups) or user is ROOT
        want = mode
        if kind == stat.S_IFDIR:
            want = mode & 0o777 | stat.S_ISGID
        elif kind == stat.S_IFLNK:
            want = 0o777
        elif mode & stat.S_IXGRP and not in_group:
            want = mode & ~stat.S_ISGID
        suite.check(f"{at}/mode", f"{stat.S_IMODE(found.st_mode):o}", f"{want:o}")


def check_devices(suite: Suite) -> None:
    numbers = ((0, 0), (1, 3), (8, 17), (240, 255), (241, 256), (4095, 1), (259, 1048575), (17, 70000))
    for kind, name in ((stat.S_IFCHR, "character"), (stat.S_IFBLK, "block")):
        for major, minor in numbers:
            if (major, minor) == (0, 0) and kind == stat.S_IFCHR:
                continue  # an overlay's whiteout, which anybody may make
            suite.scratch()
            at = f"create/{name}/{major}-{minor}"
            device = os.makedev(major, minor)
            suite.check(at, outcome(os.mknod, "n", kind | 416, device), "ok")
            found = os.stat("n")
            suite.check(f"{at}/number", (os.major(found.st_rdev), os.minor(found.st_rdev)), (major, minor))
            suite.check(f"{at}/type", stat.S_IFMT(found.st_mode), kind)
            got = suite.run(OTHER, calls.mknod, "n2", kind | 0o640, device)
            suite.check(f"{at}/by-another", got, "EPERM")
    suite.scratch()
    for kind, name in ((stat.S_IFDIR, "directory"), (stat.S_IFLNK, "symlink")):
        want = "EPERM" if kind == stat.S_IFDIR else "EINVAL"
        suite.check(f"create/mknod/{name}", outcome(os.mknod, "x", kind | 420), want)


def check_entry_types(suite: Suite) -> None:
    suite.scratch()
    for kind in TYPES:
        make(kind, kind)
    with os.scandir(".") as entries:
        for entry in entries:
            found = os.lstat(entry.name)
            suite.check(f"create/listed/{entry.name}/inode", entry.inode() == found.st_ino, "True")
            suite.check(
                f"create/listed/{entry.name}/is-dir", entry.is_dir(follow_symlinks=False), entry.name == "directory"
            )
            suite.check(
                f"create/listed/{entry.name}/is-file", entry.is_file(follow_symlinks=False), entry.name == "regular"
            )
            suite.check(f"create/listed/{entry.name}/is-link", entry.is_symlink(), entry.name == "symlink")


def check_links(suite: Suite) -> None:
    for kind in TYPES:
        for user in (ROOT, OWNER, OTHER):
            suite.scratch()
            make(kind, "one", 0o644)
            os.chown("one", OWNER.uid, OWNER.gid, follow_symlinks=False)
            at = f"link/{kind}/{user.name}"
            want = "EPERM" if kind == "directory" or (user is OTHER and protects_links()) else "ok"
            suite.check(at, suite.run(user, calls.link, "one", "two"), want)
            if not os.path.lexists("two"):
                continue
            one, two = os.lstat("one"), os.lstat("two")
            suite.check(f"{at}/same", (one.st_ino, one.st_nlink) == (two.st_ino, two.st_nlink), "True")
            suite.check(f"{at}/count", two.st_nlink, 2)
            os.link("two", "three", follow_symlinks=False)
            suite.check(f"{at}/count-of-three", os.lstat("one").st_nlink, 3)
            if kind != "symlink":
                os.chmod("three", 0o600)
                os.chown("three", OTHER.uid, OTHER.gid)
                found = os.lstat("one")
                suite.check(f"{at}/attributes", (f"{found.st_mode & 0o7777:o}", found.st_uid), ("600", OTHER.uid))
            os.unlink("one")
            suite.check(f"{at}/count-after-unlink", os.lstat("two").st_nlink, 2)
            suite.check(f"{at}/unlinked", suite.run(ROOT, calls.lstat, "one"), "ENOENT")
            os.unlink("two")
            suite.check(f"{at}/last-count", os.lstat("three").st_nlink, 1)


def check_directory_links(suite: Suite) -> None:
    suite.scratch()
    make("directory", "d", 0o755)
    suite.check("link-count/new", os.stat("d").st_nlink, 2)
    for number in range(5):
        make("directory", f"d/{number}", 0o755)
        suite.check(f"link-count/{number + 1}-below", os.stat("d").st_nlink, number + 3)
        make("regular", f"d/f{number}")
        suite.check(f"link-count/{number + 1}-below/and-a-file", os.stat("d").st_nlink, number + 3)
    make("directory", "e", 0o755)
    os.rename("d/0", "e/0")
    suite.check("link-count/moved-from", os.stat("d").st_nlink, 6)
    suite.check("link-count/moved-to", os.stat("e").st_nlink, 3)
    suite.check("link-count/parent-of-moved", os.path.samefile("e/0/..", "e"), "True")
    os.rmdir("d/1")
    suite.check("link-count/removed", os.stat("d").st_nlink, 5)
    for kind in TYPES:
        make(kind, f"e/{kind}")
        suite.check(f"rmdir/holding-{kind}", outcome(os.rmdir, "e"), "ENOTEMPTY")
        (os.rmdir if kind == "directory" else os.unlink)(f"e/{kind}")
    suite.check("rmdir/dot", outcome(os.rmdir, "e/."), "EINVAL")
    suite.check("rmdir/dot-dot", outcome(os.rmdir, "e/0/.."), "ENOTEMPTY")
    for kind in TYPES:
        if kind == "directory":
            continue
        make(kind, kind)
        suite.check(f"rmdir/{kind}", outcome(os.rmdir, kind), "ENOTDIR")
    suite.check("unlink/directory", outcome(os.unlink, "e"), "EISDIR")


def check_all(suite: Suite) -> None:
    check_modes(suite)
    check_setgid_directories(suite)
    check_devices(suite)
    check_entry_types(suite)
    check_links(suite)
    check_directory_links(suite)
