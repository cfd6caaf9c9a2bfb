"""A share that a guest may write to may not show the run directory, by whatever path a bind mount makes for it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from textwrap import dedent
from typing import TYPE_CHECKING

import pytest
from tests.processes import DEADLINE
from tests.root import needs_root

from uvmshare.errors import AccessDenied, FileServerError
from uvmshare.fileserver.mounttable import Place, is_changed, place_of, shown_below
from uvmshare.fileserver.rundir.directory import RunDirectory
from uvmshare.hcs.schema import Plan9Share, Plan9ShareFlags
from uvmshare.linux.mountinfo import TABLE, has_below

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

PROGRAM = """
    import ctypes, json, os, sys
    from uvmshare.errors import AccessDenied
    from uvmshare.fileserver.rundir.directory import RunDirectory
    from uvmshare.hcs.schema import Plan9Share

    NEWNS, BIND, REC, PRIVATE = 0x20000, 0x1000, 0x4000, 1 << 18
    libc = ctypes.CDLL(None, use_errno=True)

    def call(name, *arguments):
        if getattr(libc, name)(*arguments):
            raise OSError(ctypes.get_errno(), name)

    call("unshare", NEWNS)
    call("mount", b"none", b"/", None, REC | PRIVATE, None)
    top, binds = sys.argv[1], json.loads(sys.argv[2])
    for source, target in binds:
        call("mount", os.fsencode(f"{top}/{source}"), os.fsencode(f"{top}/{target}"), None, BIND, None)
    own, path = (os.path.join(top, name) for name in sys.argv[3:])
    run_dir = RunDirectory(own)
    try:
        run_dir.require_outside(Plan9Share(name="0", access_name="0", path=path))
    except AccessDenied as error:
        print(error)
    run_dir.release()
"""


@pytest.fixture
def top(tmp_path: Path) -> Path:
    for name in ("host/run/mounts", "host/run/counters", "host/run/more", "shared/a b", "shared/c", "host/beside"):
        (tmp_path / name).mkdir(parents=True, mode=0o700)
    (tmp_path / "host" / "run" / "shares").write_bytes(b"")
    (tmp_path / "shared" / "file").write_bytes(b"")
    return tmp_path.resolve()


@pytest.fixture
def run_dir(top: Path) -> Iterator[RunDirectory]:
    taken = RunDirectory(str(top / "host" / "run"))
    yield taken
    taken.release()


def share(path: Path, flags: int = 0) -> Plan9Share:
    return Plan9Share(name="0", access_name="0", path=str(path), flags=flags)


REFUSED = [
    ([("host/run", "shared/c")], "shared"),
    ([("host/run", "shared/a b")], "shared"),
    ([("host", "shared/c")], "shared"),
    ([("host/run", "shared/c")], "shared/c"),
    ([("host", "shared/c")], "shared/c/run"),
    ([("host/run/mounts", "shared/c")], "shared"),
    ([("host/run/counters", "shared/c")], "shared/c"),
    ([("host/run/shares", "shared/file")], "shared"),
    ([("host", "shared/c"), ("shared/c", "shared/a b")], "shared/a b"),
]
ALLOWED = [
    ([], "shared"),
    ([("host/beside", "shared/c")], "shared"),
    ([("host/run/more", "shared/c")], "shared"),
    ([("shared", "host/beside")], "shared"),
    ([("host/beside", "shared/c")], "host/beside"),
]


@needs_root
@pytest.mark.parametrize(
    ("binds", "shared", "refused"),
    [*((*case, True) for case in REFUSED), *((*case, False) for case in ALLOWED)],
)
def test_a_bind_mount_is_no_way_into_the_run_directory(
    top: Path, binds: list[tuple[str, str]], shared: str, refused: bool
) -> None:
    command = [sys.executable, "-c", dedent(PROGRAM), str(top), json.dumps(binds), "host/run", shared]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=DEADLINE).stdout
    assert said.startswith(f"share 0: '{top}/{shared}' holds the run directory") if refused else not said


@needs_root
def test_a_run_directory_that_is_a_bind_mount_is_found_where_it_really_is(top: Path) -> None:
    binds = json.dumps([("host", "shared/c")])
    command = [sys.executable, "-c", dedent(PROGRAM), str(top), binds, "shared/c/run", "host"]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=DEADLINE).stdout
    assert said.startswith(f"share 0: '{top}/host' holds the run directory")


@pytest.mark.parametrize("path", ["host", "host/run", "host/run/mounts", "host/run/counters", "host/run/mounts/7"])
def test_paths_alone_are_enough_to_refuse(top: Path, run_dir: RunDirectory, path: str) -> None:
    (top / "host" / "run" / "mounts" / "7").mkdir()
    with pytest.raises(AccessDenied, match="holds the run directory"):
        run_dir.require_outside(share(top / path))
    run_dir.require_outside(share(top / path, Plan9ShareFlags.READ_ONLY))
    (top / "host" / "run" / "mounts" / "7").rmdir()


@pytest.mark.parametrize("path", ["shared", "host/beside", "host/run/more", "nothing"])
def test_what_is_beside_it_may_be_shared(top: Path, run_dir: RunDirectory, path: str) -> None:
    run_dir.require_outside(share(top / path))


def test_what_cannot_be_looked_at_is_not_shared(
    top: Path, run_dir: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_descriptors(*_: object, **__: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "open", no_descriptors)
    with pytest.raises(FileServerError, match=r"cannot see whether .* holds .*run.: Too many open files"):
        run_dir.require_outside(share(top / "shared"))


def test_a_mount_that_is_not_in_the_table_leaves_the_path(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uvmshare.fileserver.mounttable.mounted", list)
    assert place_of(str(top)) == Place("", str(top))
    assert shown_below(str(top)) == [Place("", str(top))]


@needs_root
def test_what_is_mounted_below_a_directory_is_seen_in_an_open_table_also_what_came_later(top: Path) -> None:
    table = os.open(TABLE, os.O_RDONLY)
    directory = str(top / "shared")
    try:
        assert not has_below(directory, table)
        for point, expected in (("shared", False), ("shared/c", True)):
            (top / point).mkdir(exist_ok=True)
            subprocess.run(["mount", "-t", "tmpfs", "ours", top / point], check=True)
            try:
                assert is_changed(table, 0)
                assert has_below(directory, table) is expected, "what is mounted there is not below it"
            finally:
                subprocess.run(["umount", top / point], check=True)
        assert not has_below(directory, table)
    finally:
        os.close(table)


_TABLE = b"""\
22 27 0:21 / /proc rw,relatime - proc proc rw
23 27 8:1 /srv/a/in /elsewhere rw - ext4 /dev/sda1 rw
24 27 8:1 / /srv/a rw - ext4 /dev/sda1 rw
25 27 0:30 / /srv/with\\040space/in rw - tmpfs tmpfs rw
26 27 0:31 / /srv/back\\134slash/in rw - tmpfs tmpfs rw
27 27 0:32 / /srv/line\\012end/tab\\011ulator rw - tmpfs tmpfs rw
28 27 0:33 / /srv/abc/in rw shared:1 - tmpfs /srv/source/in rw
"""


@pytest.mark.parametrize(
    ("directory", "expected"),
    [
        ("/srv/a", False),  # mounted itself, and of /srv/a/in only what another mount shows
        ("/srv/ab", False),
        ("/srv/abc", True),
        ("/srv/abc/", True),
        ("/srv/abc/in", False),
        ("/srv/source", False),
        ("/srv/with space", True),
        ("/srv/with", False),
        ("/srv/back\\slash", True),
        ("/srv/line\nend", True),
        ("/srv", True),
        ("/", True),
        ("/proc", False),
    ],
)
def test_only_what_is_mounted_below_a_directory_is_below_it_whatever_its_name(
    tmp_path: Path, directory: str, expected: bool
) -> None:
    (tmp_path / "table").write_bytes(_TABLE)
    table = os.open(tmp_path / "table", os.O_RDONLY)
    try:
        assert has_below(directory, table) is expected
    finally:
        os.close(table)


def test_nothing_is_below_the_root_of_a_namespace_that_has_it_alone(tmp_path: Path) -> None:
    (tmp_path / "table").write_bytes(b"24 27 8:1 / / rw - ext4 /dev/sda1 rw\n")
    table = os.open(tmp_path / "table", os.O_RDONLY)
    try:
        assert not has_below("/", table)
    finally:
        os.close(table)
