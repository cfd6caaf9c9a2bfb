"""Locks, extended attributes, ACLs, special files, holes, listings: what is beyond names and bits."""

from __future__ import annotations

import fcntl
import json
import os
import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tests.conformance.causes import cause_of
from tests.conformance.harness import TREE, Setting, keep, mount_here

from results import NO_CAUSE

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conformance.harness import Bench

pytestmark = pytest.mark.guest

SHORT = [Setting("6.12")]
LONG = [
    Setting("6.12", model="mapped-xattr"),
    Setting("6.12", cache="mmap"),
    Setting("6.12", cache="mmap", more=",directio"),
    Setting("6.12", cache="loose", model="mapped-xattr"),
    Setting("6.12", cache="readahead", msize=8192),
    Setting("6.12", access="user"),
    Setting("6.12", access="any"),
    Setting("6.1"),
    Setting("6.1", access="user"),
    Setting("6.1", cache="mmap", model="mapped-xattr"),
    Setting("6.1", cache="loose"),
]
EVERYWHERE = [*SHORT, *(pytest.param(setting, marks=pytest.mark.long) for setting in LONG)]


def run(bench: Bench, at: str, setting: Setting, name: str, *parts: str) -> None:
    """Run parts of the checks, keep the figures, and fail on an outcome that is not wanted and has no cause."""
    directory = f"{at}/{name}"
    bench.check(
        f"mkdir {directory} && cd {TREE} && "
        f"python3 -B -m tests.conformance.posix {directory} /run/results/{name}.json {' '.join(parts)}"
    )
    results = json.loads(bench.check(f"cat /run/results/{name}.json"))
    wrong = {check: cause_of(check, setting) for check, (got, want) in results.items() if got != want}
    figures = {"checks": len(results), "differ": len(wrong)}
    keep(name, setting, figures, {what: why or NO_CAUSE for what, why in wrong.items()})
    assert [(what, *results[what]) for what, why in wrong.items() if why is None] == []


@pytest.mark.long
@pytest.mark.parametrize("setting", [*SHORT, *LONG], ids=str)
def test_features(bench: Callable[[str], Bench], directory: str, setting: Setting) -> None:
    up = bench(setting.kernel)
    maps = "no-shared-maps" if setting.cache in ("none", "readahead") else "shared-maps"
    with up.mounted(setting, directory) as mount:
        run(up, mount.at, setting, "features", "features", maps)


@pytest.mark.parametrize("setting", EVERYWHERE, ids=str)
def test_what_other_servers_get_wrong(bench: Callable[[str], Bench], directory: str, setting: Setting) -> None:
    # The rows about the host and other mounts, read-only shares and devices have tests of their own here, escapes and
    # qids in tests/fileserver, SQLite's write-ahead log in test_programs.py, the POSIX suite in test_posix.py.
    up = bench(setting.kernel)
    with up.mounted(setting, directory) as mount:
        run(up, mount.at, setting, "peers", "peers")


@pytest.mark.long
@pytest.mark.parametrize(
    "setting",
    [
        Setting("6.12", more=",posixacl"),
        Setting("6.12", model="mapped-xattr", more=",posixacl"),
        Setting("6.1", more=",posixacl"),
    ],
    ids=str,
)
def test_access_control_lists(bench: Callable[[str], Bench], directory: str, setting: Setting) -> None:
    up = bench(setting.kernel)
    with up.mounted(setting, directory) as mount:
        run(up, mount.at, setting, "acls", "acls")


_FLOCK = struct.Struct("hhqqi4x")


def host_sees_locked(path: str, start: int) -> bool:
    """Ask with another process of the host's, because a lock of one's own is never in one's way."""
    script = (
        "import fcntl, os, struct, sys\n"
        "lock = struct.Struct('hhqqi4x')\n"
        "fd = os.open(sys.argv[1], os.O_RDWR)\n"
        "asked = lock.pack(fcntl.F_WRLCK, 0, int(sys.argv[2]), 1, 0)\n"
        "print(lock.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, asked))[0] != fcntl.F_UNLCK)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, path, str(start)], capture_output=True, text=True, check=True)
    return done.stdout.strip() == "True"


@pytest.mark.parametrize("setting", EVERYWHERE, ids=str)
def test_locks_between_two_mounts_and_the_host(bench: Callable[[str], Bench], directory: str, setting: Setting) -> None:
    up = bench(setting.kernel)
    path = os.path.join(directory, "f")
    with open(path, "wb"):
        pass
    os.chmod(path, 0o666)
    other = "/run/second"
    try_lock = (
        "python3 -I -c \"import fcntl, sys; f = open(sys.argv[1], 'r+'); "
        'fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, int(sys.argv[2]))" {at}/f {start}'
    )
    hold = (
        "python3 -I -c \"import fcntl, os; f = open('f', 'r+'); os.chdir('/'); fcntl.lockf(f, fcntl.LOCK_EX, 10, 0); "
        "open('/run/held', 'w').close(); open('/run/release').read()\" "
    )
    with up.mounted(setting, directory) as mount:
        mount_here(mount, other)
        mount.check(f"mkfifo /run/held /run/release && ({hold} > /run/holder 2>&1 &) && cat /run/held")
        verdicts = {
            "the host sees the guest's lock": host_sees_locked(path, 5),
            "the host finds the rest free": not host_sees_locked(path, 10),
            "another mount is refused": fails(up, try_lock.format(at=other, start=5)),
            "another mount gets the rest": not fails(up, try_lock.format(at=other, start=10)),
        }
        mount.check("echo > /run/release")
        with open(path, "r+b") as file:
            fcntl.fcntl(file, fcntl.F_OFD_SETLKW, _FLOCK.pack(fcntl.F_WRLCK, 0, 0, 10, 0))
            verdicts["the guest's lock went with its process"] = True
            verdicts["the guest is refused by the host's lock"] = fails(up, try_lock.format(at=mount.at, start=5))
            verdicts["the guest gets the rest"] = not fails(up, try_lock.format(at=mount.at, start=10))
        verdicts["the guest gets what the host let go"] = not fails(up, try_lock.format(at=mount.at, start=5))
        up.check(f"umount {other} && rm /run/held /run/release")
    wrong = {verdict: NO_CAUSE for verdict, right in verdicts.items() if not right}
    keep("locks", setting, {"checks": len(verdicts), "differ": len(wrong)}, wrong)
    assert wrong == {}


def fails(bench: Bench, command: str) -> bool:
    """Say whether a command of the guest's ends with the status of a Python error, EAGAIN here."""
    result = bench.runner.run(bench.guest.run(command))
    assert result.status in (0, 1), result.text
    assert result.status == 0 or "BlockingIOError" in result.text, result.text
    return result.status != 0


@pytest.mark.long
@pytest.mark.parametrize("setting", [Setting("6.12"), Setting("6.12", model="mapped-xattr")], ids=str)
def test_files_on_two_devices_are_not_taken_for_one(
    bench: Callable[[str], Bench], directory: str, setting: Setting
) -> None:
    up = bench(setting.kernel)
    for name in ("one", "two"):
        os.mkdir(os.path.join(directory, name))
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", os.path.join(directory, name)], check=True)
    try:
        for name in ("one", "two"):
            with open(os.path.join(directory, name, "f"), "w", encoding="ascii") as file:
                file.write(name)
        inodes = [os.stat(os.path.join(directory, name, "f")).st_ino for name in ("one", "two")]
        assert inodes[0] == inodes[1], "the test needs two files with one inode number"
        with up.mounted(setting, directory) as mount:
            seen = mount.check("stat -c %i one/f two/f").split()
            assert mount.check("cat one/f two/f") == "onetwo"
    finally:
        for name in ("one", "two"):
            subprocess.run(["umount", os.path.join(directory, name)], check=True)
    assert seen[0] != seen[1]
    keep("devices", setting, {"inode numbers": "differ"})
