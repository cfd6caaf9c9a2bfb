"""A run directory is its user's, who may mount a file system there that never answers, or that lies (FUSE)."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
from tests.daemon.harness import supervisor_of
from tests.daemon.test_users import ALICE, User
from tests.processes import DEADLINE, kill

from uvmshare import errors
from uvmshare.daemon.documents import NewVm
from uvmshare.daemon.identity import Identity
from uvmshare.daemon.places import Places
from uvmshare.daemon.store import VmRecord
from uvmshare.fileserver import link
from uvmshare.fileserver.rundir.lockfile import LockFile
from uvmshare.fileserver.rundir.sharetable import ShareTable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.daemon.harness import Home

UID = os.getuid()


@pytest.mark.parametrize(
    ("owner", "name"), [(link, "_connected"), (ShareTable, "read_start")], ids=["its socket", "its table of shares"]
)
def test_a_run_directory_that_does_not_answer_keeps_nobody_waiting(
    owner: Any, name: str, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, answers = threading.Event(), threading.Event()
    real: Callable[..., Any] = getattr(owner, name)

    def hang(path: str, *more: Any) -> Any:
        if "/vm/" in f"{path}/":
            reached.set()
            assert answers.wait(DEADLINE)
        return real(path, *more)

    with home.running() as daemon, home.client() as client:
        daemon.add_vm("other")
        daemon.add_vm()
        monkeypatch.setattr(owner, name, hang)
        kill(supervisor_of(home, UID))
        assert reached.wait(DEADLINE)
        client.shares.add("other", home.directory("project"), read_only=True)  # the loop goes on
        answers.set()
        daemon.add_share(home.directory("project"), read_only=True)
        assert client.vms.get("vm").restarts == 1


def test_a_run_directory_that_is_there_is_not_looked_at_by_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = Places(str(tmp_path / "run"), str(tmp_path / "state"))
    places.make()
    identity = Identity(ALICE, ALICE) if UID == 0 else Identity(UID, os.getgid())
    record = VmRecord(identity, NewVm(id="vm"))
    made = places.run_dir_of(record)
    assert made == places.run_dir_at(record)
    found = os.stat(made)
    assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (identity.uid, identity.gid, 0o700)
    assert os.listdir(os.path.dirname(made)) == ["vm"]

    def refused(call: Callable[..., Any]) -> Callable[..., Any]:
        def checked(path: Any, *more: Any, **named: Any) -> Any:
            assert path != made, "it hangs there"
            return call(path, *more, **named)

        return checked

    for name in ("stat", "open", "chown", "chmod", "listdir"):
        monkeypatch.setattr(os, name, refused(getattr(os, name)))
    assert places.run_dir_of(record) == made


@pytest.mark.skipif(UID != 0, reason="only root can be other users")
def test_a_supervisor_is_started_as_its_vms_user_whoevers_the_run_directory_says_to_be(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    with home.running() as daemon:
        User(daemon, ALICE).add_vm()
    kill(supervisor_of(home, ALICE))
    monkeypatch.setattr(link, "_owner", lambda _: None)  # as FUSE says that it is root's
    with home.running(), home.client() as client:
        assert client.vms.get(f"{ALICE}:vm").state == "running"
        assert os.stat(f"/proc/{supervisor_of(home, ALICE)}").st_uid == ALICE


def test_no_more_than_the_start_of_another_users_table_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from uvmshare.fileserver import control
    from uvmshare.fileserver.rundir import sharetable

    path = str(tmp_path / "table")
    configuration = control.Configuration(0, listen=("unix:/a",), security_model="none")
    ShareTable(path, configuration, ())
    os.truncate(path, 200 << 20)
    start = ShareTable.read_start(path)
    assert start is not None
    assert (start.configuration, start.ended) == (configuration, False)
    monkeypatch.setattr(sharetable, "_LONGEST_HEADER", 20)
    with pytest.raises(errors.FileServerError, match="no first line"):
        ShareTable.read_start(path)
    assert ShareTable.read_start(f"{path}.none") is None
    assert not LockFile.is_held(f"{path}.none")
