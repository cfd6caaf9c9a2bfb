"""What the daemon looks at for a user, as root, it looks at with that user's reach: no process opens its own to it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from tests.root import needs_root

from uvmshare import errors
from uvmshare.address import parse
from uvmshare.daemon.dialler import UserDialler
from uvmshare.daemon.identity import Identity, Threads, checked_options
from uvmshare.hostfiles import bind_socket
from uvmshare.share.options import AddOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = needs_root

ALICE, BOB = Identity(12345, 12345), Identity(65534, 65534)
ROOT = Identity(0, 0)


@contextmanager
def victim(directory: Path, who: Identity) -> Iterator[int]:
    """A process of somebody's that has a directory which only they may enter."""
    directory.mkdir(mode=0o700)
    os.chown(directory, who.uid, who.gid)
    become = f"os.setgroups([]); os.setresgid(*[{who.gid}] * 3); os.setresuid(*[{who.uid}] * 3)" if who.uid else "0"
    program = f"import os\nos.chdir({str(directory)!r})\n{become}\nprint(flush=True)\nos.read(0, 1)"
    with subprocess.Popen([sys.executable, "-ISc", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"\n"
            yield process.pid
        finally:
            process.kill()


@pytest.mark.parametrize("who", [ALICE, ROOT], ids=["a user", "root"])
@pytest.mark.parametrize("whose", [BOB, ROOT], ids=["of a user", "of root"])
@pytest.mark.parametrize(
    "reach",
    [
        lambda pid: os.readlink(f"/proc/{pid}/cwd"),
        lambda pid: os.listdir(f"/proc/{pid}/cwd/"),
        lambda pid: os.stat(f"/proc/{pid}/root/etc"),
        lambda pid: os.readlink(f"/proc/{pid}/fd/0"),
        lambda pid: os.stat(f"/proc/{pid}/ns/mnt"),
        lambda pid: open(f"/proc/{pid}/environ", "rb").close(),
    ],
    ids=["cwd", "in cwd", "root", "fd", "ns", "environ"],
)
def test_what_another_process_has_is_not_reached_with_the_daemons_capabilities(
    who: Identity, whose: Identity, reach: Callable[[int], object], tmp_path: Path
) -> None:
    with victim(tmp_path / "private", whose) as pid, pytest.raises(PermissionError):
        asyncio.run(Threads().acting_as(who, "it", lambda: reach(pid)))


@pytest.mark.parametrize("who", [ALICE, ROOT], ids=["a user", "root"])
@pytest.mark.parametrize("which", ["root/etc", "cwd"])
def test_a_share_is_no_directory_of_a_process(who: Identity, which: str, tmp_path: Path) -> None:
    with victim(tmp_path / "private", BOB) as pid:
        for process in (str(pid), "self", "thread-self", str(os.getpid())):
            path = f"/proc/{process}/{which}"
            with pytest.raises((errors.OperationDenied, errors.InvalidOptions)):
                asyncio.run(checked_options(Threads(), who, path, read_only=True, only=()))


def test_a_directory_that_the_daemon_has_open_is_not_reached_through_its_descriptor(tmp_path: Path) -> None:
    """Whoever is in the same process may follow its links in /proc, whatever rights they have."""
    private = tmp_path / "private"
    (private / "public").mkdir(parents=True)
    private.chmod(0o700)
    descriptor = os.open(private / "public", os.O_PATH)
    bound, file = bind_socket(f"{private}/public/agent", 0o666)
    try:
        bound.listen()
        path = f"/proc/self/fd/{descriptor}"
        with pytest.raises(errors.OperationDenied, match="link of /proc"):
            asyncio.run(checked_options(Threads(), ALICE, path, read_only=True, only=()))
        dialler = UserDialler(parse(f"unix:{path}/agent"), None, ALICE, Threads())
        with pytest.raises(OSError, match="link of /proc"):
            asyncio.run(dialler.next())
    finally:
        os.close(descriptor)
        bound.close()
        file.remove()


def test_a_link_of_proc_that_names_one_directory_and_leads_to_another_is_no_share(tmp_path: Path) -> None:
    """As of a process in a mount namespace of its own: sharing its /etc would share the host's."""
    (tmp_path / "moved").mkdir()
    descriptor = os.open(tmp_path / "moved", os.O_PATH)
    try:
        (tmp_path / "moved").rmdir()
        (tmp_path / "moved (deleted)").mkdir()
        with pytest.raises(errors.InvalidOptions, match="leads to another"):
            AddOptions(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def test_the_daemons_other_threads_keep_what_they_have() -> None:
    def effective() -> str:
        with open("/proc/thread-self/status", encoding="ascii") as status:
            return next(line for line in status if line.startswith("CapEff"))

    before = effective()
    assert asyncio.run(Threads().acting_as(ALICE, "it", effective)).split()[1] == "0" * 16
    assert int(asyncio.run(Threads().acting_as(ROOT, "it", effective)).split()[1], 16) & 1 << 19 == 0
    assert effective() == before


def test_root_still_looks_at_other_users_files(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    os.chown(private, ALICE.uid, ALICE.gid)
    options = asyncio.run(checked_options(Threads(), ROOT, str(private), read_only=True, only=()))
    assert options.host_path == str(private)
