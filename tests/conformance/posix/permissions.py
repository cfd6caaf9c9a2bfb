"""Who may do what: the bits of directories and files, owners, sticky directories, and read-only mounts.

What lives here: EACCES, EPERM and EROFS. What must not: what new files look like (`creation`).
"""

from __future__ import annotations

import os
import shutil
import stat
from typing import TYPE_CHECKING

from tests.conformance.posix import calls
from tests.conformance.posix.suite import GROUP, OTHER, OWNER, ROOT, SUPPLEMENTARY, TYPES, make

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conformance.posix.suite import Suite, User

_SHIFT = {OWNER: 6, GROUP: 3, SUPPLEMENTARY: 3, OTHER: 0}
"""Where each user's bits are in the mode of a file that belongs to OWNER."""

_SEARCHING: dict[str, Callable[..., object]] = {
    "open": calls.read,
    "stat": calls.stat_,
    "chmod": calls.chmod,
    "chown": calls.chown_to_itself,
    "truncate": calls.truncate,
    "utimensat": calls.touch,
    "set-times": calls.set_times,
    "statfs": calls.statfs,
}
_CHANGING: dict[str, Callable[..., object]] = {
    "create": calls.create,
    "mkdir": calls.mkdir,
    "mkfifo": calls.mkfifo,
    "mknod": calls.mknod,
    "symlink": calls.symlink,
    "bind": calls.bind,
}
_REMOVING: dict[str, Callable[..., object]] = {"unlink": calls.unlink, "rename-from": calls.rename_from}


def _mode_for(user: User, bits: int, others: int) -> int:
    """Return a mode in which a user's class has these bits, and the other classes have others."""
    shift = _SHIFT.get(user, 0)
    mode = 0
    for place in (6, 3, 0):
        mode |= (bits if place == shift else others) << place
    return mode


def check_directories(suite: Suite) -> None:
    for user in (OWNER, GROUP, SUPPLEMENTARY, OTHER, ROOT):
        for bits in range(8):
            suite.scratch()
            make("directory", "d", 0o777)
            os.chown("d", OWNER.uid, OWNER.gid)
            for name in ("f", *_REMOVING):
                make("regular", f"d/{name}", 0o666)
                os.chown(f"d/{name}", user.uid, user.gid)
            make("directory", "d/rmdir", 0o777)
            os.symlink("target", "d/link")
            os.chmod("d", _mode_for(user, bits, 7 - bits))
            searches = user is ROOT or bool(bits & 1)
            changes = user is ROOT or bits & 3 == 3
            at = f"permission/directory-{bits}/{user.name}"
            for name, call in _SEARCHING.items():
                suite.check(f"{at}/{name}", suite.run(user, call, "d/f"), "ok" if searches else "EACCES")
            suite.check(f"{at}/readlink", suite.run(user, calls.readlink, "d/link"), "ok" if searches else "EACCES")
            suite.check(f"{at}/chdir", suite.run(user, calls.chdir, "d"), "ok" if searches else "EACCES")
            lists = user is ROOT or bool(bits & 4)
            suite.check(f"{at}/listdir", suite.run(user, calls.listdir, "d"), "ok" if lists else "EACCES")
            suite.check(
                f"{at}/link-from", suite.run(user, calls.link, "d/f", f"linked-{bits}"), "ok" if searches else "EACCES"
            )
            for name, call in _CHANGING.items():
                suite.check(f"{at}/{name}", suite.run(user, call, f"d/new-{name}"), "ok" if changes else "EACCES")
            suite.run(ROOT, calls.create, "source")
            os.chown("source", user.uid, user.gid)
            suite.check(
                f"{at}/rename-to", suite.run(user, calls.rename, "source", "d/moved"), "ok" if changes else "EACCES"
            )
            for name, call in _REMOVING.items():
                suite.check(f"{at}/{name}", suite.run(user, call, f"d/{name}"), "ok" if changes else "EACCES")
            suite.check(f"{at}/rmdir", suite.run(user, calls.rmdir, "d/rmdir"), "ok" if changes else "EACCES")


def check_files(suite: Suite) -> None:
    wanted = {
        "read": (os.O_RDONLY, 4),
        "write": (os.O_WRONLY, 2),
        "both": (os.O_RDWR, 6),
        "truncating": (os.O_RDONLY | os.O_TRUNC, 6),
        "appending": (os.O_WRONLY | os.O_APPEND, 2),
    }
    for kind in ("regular", "fifo", "directory"):
        for user in (OWNER, GROUP, SUPPLEMENTARY, OTHER, ROOT):
            for bits in range(8):
                suite.scratch()
                make(kind, "f", 0o777)
                os.chown("f", OWNER.uid, OWNER.gid)
                os.chmod("f", _mode_for(user, bits, 7 - bits))
                at = f"permission/file/{kind}-{bits}/{user.name}"
                for name, (flags, needs) in wanted.items():
                    allowed = user is ROOT or bits & needs == needs
                    want = "ok" if allowed else "EACCES"
                    if kind == "directory" and name != "read":
                        want = "EISDIR"
                    elif kind == "fifo" and allowed and name in ("write", "appending"):
                        want = "ENXIO"
                    suite.check(f"{at}/open-{name}", suite.run(user, calls.open_, "f", flags), want)
                for name, mode in (("read", os.R_OK), ("write", os.W_OK), ("execute", os.X_OK)):
                    can = bool(bits & mode) or (user is ROOT and (mode != os.X_OK or kind == "directory" or bits < 8))
                    suite.check(f"{at}/access-{name}", suite.run(user, calls.access, "f", mode), "ok" if can else "no")
                if kind == "regular":
                    allowed = user is ROOT or bool(bits & 2)
                    suite.check(f"{at}/truncate", suite.run(user, calls.truncate, "f"), "ok" if allowed else "EACCES")
                may = user in (ROOT, OWNER) or bool(bits & 2)
                suite.check(f"{at}/touch", suite.run(user, calls.touch, "f"), "ok" if may else "EACCES")
                may = user in (ROOT, OWNER)
                suite.check(f"{at}/set-times", suite.run(user, calls.set_times, "f"), "ok" if may else "EPERM")


def check_chmod(suite: Suite) -> None:
    for kind in TYPES:
        if kind == "symlink":
            continue
        for user in (OWNER, GROUP, SUPPLEMENTARY, OTHER, ROOT):
            suite.scratch()
            make(kind, "f", 0o644)
            os.chown("f", OWNER.uid, OWNER.gid)
            os.symlink("f", "link")
            for mode in (0o000, 0o111, 0o421, 0o777, 0o1755, 0o4755, 0o2755, 0o7777):
                may = user in (ROOT, OWNER)
                before = stat.S_IMODE(os.stat("f").st_mode)
                at = f"chmod/{kind}/{user.name}/{mode:o}"
                suite.check(at, suite.run(user, calls.chmod, "f", mode), "ok" if may else "EPERM")
                suite.check(f"{at}/mode", f"{stat.S_IMODE(os.stat('f').st_mode):o}", f"{mode if may else before:o}")
                got = suite.run(user, calls.chmod, "link", mode ^ 1)
                suite.check(f"{at}/through-link", got, "ok" if may else "EPERM")
                want = mode ^ 1 if may else before
                suite.check(f"{at}/through-link/mode", f"{stat.S_IMODE(os.stat('f').st_mode):o}", f"{want:o}")
    for kind in ("regular", "directory"):  # chmod(2): the bit is cleared, without an error, for who is not in the group
        suite.scratch()
        make(kind, "f", 0o755)
        os.chown("f", OWNER.uid, OTHER.gid)
        suite.check(f"chmod/{kind}/setgid-of-another-group", suite.run(OWNER, calls.chmod, "f", 0o2755), "ok")
        suite.check(f"chmod/{kind}/setgid-of-another-group/mode", f"{stat.S_IMODE(os.stat('f').st_mode):o}", "755")
        os.chown("f", SUPPLEMENTARY.uid, SUPPLEMENTARY.groups[0])
        suite.check(
            f"chmod/{kind}/setgid-of-a-supplementary-group", suite.run(SUPPLEMENTARY, calls.chmod, "f", 0o2755), "ok"
        )
        suite.check(
            f"chmod/{kind}/setgid-of-a-supplementary-group/mode", f"{stat.S_IMODE(os.stat('f').st_mode):o}", "2755"
        )


def check_chown(suite: Suite) -> None:
    targets = (
        (-1, -1),
        (OWNER.uid, -1),
        (OTHER.uid, -1),
        (-1, OWNER.gid),
        (-1, OTHER.gid),
        (-1, 2009),
        (OWNER.uid, OWNER.gid),
        (OTHER.uid, OTHER.gid),
    )
    for kind in TYPES:
        for user in (ROOT, OWNER, SUPPLEMENTARY, OTHER):
            for uid, gid in targets:
                suite.scratch()
                make(kind, "f", 0o644)
                os.chown("f", OWNER.uid, OWNER.gid, follow_symlinks=False)
                if user is SUPPLEMENTARY:
                    os.chown("f", user.uid, user.gid, follow_symlinks=False)
                before = os.lstat("f")
                owns = before.st_uid == user.uid
                may = (
                    user is ROOT
                    or (uid == gid == -1)
                    or (owns and uid in (-1, user.uid) and gid in (-1, user.gid, *user.groups))
                )
                at = f"chown/{kind}/{user.name}/{uid}-{gid}"
                suite.check(at, suite.run(user, calls.lchown, "f", uid, gid), "ok" if may else "EPERM")
                after = os.lstat("f")
                want = (before.st_uid if uid == -1 else uid, before.st_gid if gid == -1 else gid)
                suite.check(
                    f"{at}/owner", (after.st_uid, after.st_gid), want if may else (before.st_uid, before.st_gid)
                )
    for user in (ROOT, OWNER):
        for mode in (0o4755, 0o2755, 0o6755, 0o2745, 0o6644, 0o1755):
            for kind in TYPES:
                if kind == "symlink":
                    continue
                for uid, gid in ((-1, OWNER.gid), (OWNER.uid, OWNER.gid), (OWNER.uid, -1), (-1, -1)):
                    suite.scratch()
                    make(kind, "f", mode)
                    os.chown("f", OWNER.uid, OWNER.gid)
                    os.chmod("f", mode)
                    at = f"chown/{kind}/{user.name}/bits-{mode:o}/{uid}-{gid}"
                    suite.check(at, suite.run(user, calls.chown, "f", uid, gid), "ok")
                    left = mode
                    if kind != "directory":
                        # Linux clears them for root too, and even when nothing is changed (chown(2), notify_change).
                        left &= ~stat.S_ISUID
                        if mode & stat.S_IXGRP:
                            left &= ~stat.S_ISGID
                    suite.check(f"{at}/mode", f"{stat.S_IMODE(os.stat('f').st_mode):o}", f"{left:o}")


def check_directory_moves(suite: Suite) -> None:
    """rename(2): a directory that comes under another one must be writable itself, because its ".." changes."""
    for user in (OWNER, GROUP, SUPPLEMENTARY, OTHER, ROOT):
        for bits in range(8):
            for where in ("here", "elsewhere"):
                suite.scratch()
                make("directory", "from", 0o777)
                make("directory", "to", 0o777)
                make("directory", "from/d", 0o777)
                os.chown("from/d", OWNER.uid, OWNER.gid)
                os.chmod("from/d", _mode_for(user, bits, 7 - bits))
                may = user is ROOT or where == "here" or bool(bits & 2)
                new = "from/new" if where == "here" else "to/new"
                at = f"permission/move-directory-{bits}/{user.name}/{where}"
                suite.check(at, suite.run(user, calls.rename, "from/d", new), "ok" if may else "EACCES")
                suite.check(f"{at}/there", os.path.isdir(new), may)


def check_sticky(suite: Suite) -> None:
    operations: dict[str, Callable[..., object]] = {
        "remove": calls.unlink,
        "rename-from": calls.rename_from,
        "rename-to": calls.rename,
    }
    for sticky in (0o1777, 0o777):
        for parent in (ROOT, OWNER, OTHER):
            for file in (ROOT, OWNER, OTHER):
                for user in (OWNER, ROOT):
                    for kind in TYPES:
                        for name, call in operations.items():
                            suite.scratch()
                            make("directory", "d", 0o777)
                            make(kind, "d/f", 0o644)
                            os.chown("d/f", file.uid, file.gid, follow_symlinks=False)
                            os.chown("d", parent.uid, parent.gid)
                            os.chmod("d", sticky)
                            may = sticky == 0o777 or user is ROOT or user in (parent, file)
                            want = "ok" if may else "EPERM"
                            if name == "rename-to":
                                make("directory" if kind == "directory" else "regular", "source")
                                os.chown("source", user.uid, user.gid)
                                got = suite.run(user, call, "source", "d/f")
                            elif name == "rename-from":
                                got = suite.run(user, calls.rename, "d/f", "d/g")
                            else:
                                got = suite.run(user, calls.rmdir if kind == "directory" else call, "d/f")
                            at = f"sticky/{sticky:o}/{parent.name}/{file.name}/{user.name}/{kind}/{name}"
                            suite.check(at, got, want)


def populate(directory: str) -> None:
    """Make what `check_read_only` finds, while the file system can be written to."""
    os.chdir(directory)
    shutil.rmtree("ro", ignore_errors=True)
    os.mkdir("ro")
    os.chmod("ro", 0o777)
    for kind in TYPES:
        make(kind, f"ro/{kind}", 0o777)
    make("directory", "ro/empty", 0o777)


def check_read_only(suite: Suite) -> None:
    os.chdir(os.path.join(suite.root, "ro"))
    everything: dict[str, Callable[..., object]] = {**_CHANGING}
    for user in (ROOT, OTHER):
        for name, call in everything.items():
            suite.check(f"read-only/{user.name}/{name}", suite.run(user, call, "new"), "EROFS")
        for kind in TYPES:
            is_directory = kind == "directory"
            source = "empty" if is_directory else "regular"
            changing: dict[str, tuple[Callable[..., object], tuple[object, ...]]] = {
                "chmod": (calls.chmod, (kind,)),
                "lchown": (calls.lchown, (kind, 1, 1)),
                "touch": (calls.touch, (kind,)),
                "remove": (calls.rmdir if is_directory else calls.unlink, (kind,)),
                "rename-from": (calls.rename_from, (kind,)),
                "rename-to": (calls.rename, (source, kind)),
            }
            if not is_directory:
                changing["link-from"] = (calls.link_from, (kind,))
            if kind == "symlink":
                for name in ("chmod", "touch"):
                    del changing[name]  # they follow it, and it leads nowhere
            for name, (call, arguments) in changing.items():
                suite.check(f"read-only/{user.name}/{kind}/{name}", suite.run(user, call, *arguments), "EROFS")
        for flags, name in ((os.O_WRONLY, "write"), (os.O_RDWR, "both"), (os.O_RDONLY | os.O_TRUNC, "truncating")):
            suite.check(f"read-only/{user.name}/open-{name}", suite.run(user, calls.open_, "regular", flags), "EROFS")
        suite.check(f"read-only/{user.name}/truncate", suite.run(user, calls.truncate, "regular"), "EROFS")
        suite.check(f"read-only/{user.name}/open-read", suite.run(user, calls.read, "regular"), "ok")
        suite.check(f"read-only/{user.name}/fifo-read-write", suite.run(user, calls.open_, "fifo", os.O_RDWR), "ok")
        suite.check(f"read-only/{user.name}/access", suite.run(user, calls.access, "regular", os.W_OK), "no")


def check_owners(suite: Suite) -> None:
    """What a security model has a say in: the guest's kernel decides about all else by itself."""
    check_chmod(suite)
    check_chown(suite)


def check_all(suite: Suite) -> None:
    check_directories(suite)
    check_files(suite)
    check_chmod(suite)
    check_chown(suite)
    check_directory_moves(suite)
    check_sticky(suite)
