"""Another user of the host owns a directory on the way: they turn nothing that is made there against a third user.

Where the attempt is a race, the test is the attacker at the worst moment, in the place of the call that comes then.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from tests.fileserver.takeover.harness import Place
from tests.root import needs_root

from uvmshare import address, errors
from uvmshare.daemon.places import Places
from uvmshare.daemon.server import Settings, _bind
from uvmshare.fileserver.link import Link
from uvmshare.fileserver.rundir.directory import RunDirectory
from uvmshare.fileserver.rundir.lockfile import LockFile
from uvmshare.fileserver.supervisor.listener import Listener
from uvmshare.mounts.channel import Acceptor
from uvmshare.sqlite_journal.lock import WriterLock

if sys.platform != "linux":
    pytest.skip("Linux's files", allow_module_level=True)

from uvmshare import hostfiles
from uvmshare.hostfiles import bind_socket, open_log, require_safe_way
from uvmshare.linux.sockets import make_room

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = needs_root

ALICE = 12345


@pytest.fixture
def of_alice(tmp_path: Path) -> Path:
    """A directory of another user's, in a short path."""
    made = tmp_path / "alice"
    made.mkdir(mode=0o755)
    os.chown(made, ALICE, ALICE)
    return made


def by_file_server(path: str, mode: int) -> Callable[[], None]:
    return Listener(address.parse(f"unix:{path}"), socket_mode=mode).close


def by_the_agents_channel(path: str, mode: int) -> Callable[[], None]:
    runner = asyncio.Runner()
    try:
        acceptor = runner.run(Acceptor.start(address.parse(f"unix:{path}"), None, mode=mode))
    except BaseException:
        runner.close()
        raise

    def close() -> None:
        runner.run(acceptor.aclose())
        runner.close()

    return close


def by_daemon(path: str, mode: int) -> Callable[[], None]:
    listener, file = _bind(Settings(socket_path=path, socket_mode=mode, run_dir="/x", state_dir="/x"))

    def close() -> None:
        listener.close()
        file.remove()

    return close


BINDERS = pytest.mark.parametrize("bind", [by_file_server, by_the_agents_channel, by_daemon])


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


@BINDERS
@pytest.mark.usefixtures("umask")
def test_a_socket_has_its_mode_from_the_first_moment_and_no_path_is_looked_up_again(
    bind: Callable[[str, int], Callable[[], None]], of_alice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def by_path(path: object, *_: object, **__: object) -> None:
        pytest.fail(f"{path} was changed after it was bound")

    monkeypatch.setattr(os, "chmod", by_path)
    monkeypatch.setattr(os, "chown", by_path)
    for mode in (0o600, 0o660, 0o666):
        close = bind(f"{of_alice}/s", mode)
        assert stat.S_IMODE((of_alice / "s").lstat().st_mode) == mode
        assert os.umask(0o077) == 0o077, "other threads' files keep their modes"
        close()
        assert not os.path.lexists(of_alice / "s")


@BINDERS
def test_a_directory_that_is_replaced_by_a_link_while_a_socket_is_bound_leads_nowhere(
    bind: Callable[[str, int], Callable[[], None]], tmp_path: Path, of_alice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    place = of_alice / "place"
    place.mkdir()
    with closing(socket.socket(socket.AF_UNIX)) as theirs:

        def swap(directory: int, name: str, uid: int) -> None:
            make_room(directory, name, uid)
            if not (of_alice / "moved").exists():
                place.rename(of_alice / "moved")
                place.symlink_to(victim)
                theirs.bind(f"{victim}/s")

        monkeypatch.setattr("uvmshare.hostfiles.make_room", swap)
        close = bind(f"{place}/s", 0o666)
        assert stat.S_IMODE((of_alice / "moved" / "s").lstat().st_mode) == 0o666
        assert stat.S_IMODE((victim / "s").lstat().st_mode) == 0o755, "the victim's socket is as it was"
        close()
        assert (victim / "s").exists()
        assert not (of_alice / "moved" / "s").exists()


@BINDERS
@pytest.mark.parametrize("what", ["file", "link", "link to a dead socket", "fifo", "dead socket", "live socket"])
def test_what_somebody_else_has_at_a_sockets_path_stays(
    bind: Callable[[str, int], Callable[[], None]], what: str, of_alice: Path, tmp_path: Path
) -> None:
    path = of_alice / "s"
    with closing(socket.socket(socket.AF_UNIX)) as theirs:
        if what == "file":
            path.write_text("theirs")
        elif what == "fifo":
            os.mkfifo(path)
        elif what == "link":
            (tmp_path / "file").write_text("root's")
            path.symlink_to(tmp_path / "file")
        elif what == "link to a dead socket":
            theirs.bind(f"{tmp_path}/dead")
            path.symlink_to(tmp_path / "dead")
        else:
            theirs.bind(str(path))
            if what == "live socket":
                theirs.listen()
        os.chown(path, ALICE, ALICE, follow_symlinks=False)
        before = path.lstat()
        with pytest.raises((errors.UvmshareError, OSError), match=r"no socket|dead socket of uid 12345|in use"):
            bind(str(path), 0o666)
        assert os.path.samestat(before, path.lstat())
        assert path.lstat().st_mode == before.st_mode


def test_a_dead_socket_of_ones_own_is_replaced(tmp_path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as dead:
        dead.bind(f"{tmp_path}/s")
    bound, file = bind_socket(f"{tmp_path}/s", 0o600)
    bound.close()
    file.remove()
    file.remove()
    assert not os.path.lexists(tmp_path / "s")


@pytest.mark.usefixtures("umask")
def test_without_a_umask_of_a_threads_own_the_mode_is_right_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing:
        def __getattr__(self, name: str) -> object:
            return (lambda _: -1) if name == "unshare" else getattr(libc, name)

    libc = hostfiles._libc
    monkeypatch.setattr(hostfiles, "_libc", Refusing())
    bound, file = bind_socket(f"{tmp_path}/s", 0o660)
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o660
    assert os.umask(0o077) == 0o077
    bound.close()
    file.remove()


def test_a_socket_is_given_to_a_group_only_where_nobody_can_replace_it(tmp_path: Path, of_alice: Path) -> None:
    bound, file = bind_socket(f"{tmp_path}/s", 0o660, group=23456)
    assert (tmp_path / "s").stat().st_gid == 23456
    bound.close()
    file.remove()
    with pytest.raises(OSError, match="can be changed by other users"):
        bind_socket(f"{of_alice}/s", 0o660, group=23456)


@pytest.mark.parametrize("take", [lambda path: LockFile.take(path, "it"), lambda path: WriterLock.take(path[:-5])])
@pytest.mark.parametrize("how", ["renamed", "linked", "pointed to"])
def test_a_lock_takes_no_file_that_somebody_put_at_its_path(
    take: Callable[[str], object], how: str, of_alice: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("root's own words\n")
    lock = of_alice / "journal.lock"
    match how:
        case "renamed":
            secret.rename(lock)
        case "linked":
            os.link(secret, lock)
        case _:
            lock.symlink_to(secret)
    with pytest.raises(OSError, match=r"no lock|symbolic links|Too many levels"):
        take(str(lock))
    assert lock.read_text() == "root's own words\n"


@pytest.mark.parametrize("how", ["linked", "pointed to", "theirs", "a directory"])
def test_a_log_is_no_file_that_somebody_put_at_its_path(how: str, of_alice: Path, tmp_path: Path) -> None:
    passwords = tmp_path / "passwords"
    passwords.write_text("root:x\n")
    log = of_alice / "log"
    match how:
        case "linked":
            os.link(passwords, log)
        case "pointed to":
            log.symlink_to(passwords)
        case "a directory":
            log.mkdir()
        case _:
            log.write_text("")
            os.chown(log, ALICE, ALICE)
    with pytest.raises(OSError, match=r"no file of uid 0|Too many levels|Is a directory"):
        open_log(str(log))
    assert passwords.read_text() == "root:x\n"


def test_a_run_directory_that_another_user_could_replace_is_refused(of_alice: Path, tmp_path: Path) -> None:
    run_dir = of_alice / "run"
    run_dir.mkdir(mode=0o700)
    with pytest.raises(errors.FileServerError, match="on the way to it belongs to user 12345"):
        RunDirectory(str(run_dir))
    with pytest.raises(OSError, match="on the way to it belongs to user 12345"):
        Places(str(run_dir / "deeper"), str(tmp_path / "state")).make()
    with pytest.raises(OSError, match="on the way to it belongs to user 12345"):
        Places(str(tmp_path / "run"), str(run_dir)).make()
    assert list(run_dir.iterdir()) == []


def test_a_link_of_another_user_on_the_way_is_seen(tmp_path: Path) -> None:
    (tmp_path / "real" / "run").mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real")
    require_safe_way(f"{link}/run")
    os.chown(link, ALICE, ALICE, follow_symlinks=False)
    with pytest.raises(PermissionError, match="the link"):
        require_safe_way(f"{link}/run")


def test_a_control_socket_that_leads_to_another_users_file_server_is_not_used() -> None:
    """The daemon would have Alice's requests carried out by root's server, or by Bob's."""
    place = Place()
    try:
        place.start()
        of_alice = place.directory / "alice"
        of_alice.mkdir(mode=0o700)
        os.chown(of_alice, ALICE, ALICE)
        (of_alice / "control.sock").symlink_to(place.run_dir / "control.sock")
        with pytest.raises(errors.FileServerError, match="a process of user 0 answers in the run directory"):
            place.run(Link.find(str(of_alice)))
    finally:
        place.close()
