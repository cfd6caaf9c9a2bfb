"""Mounts for synchronous programs: `uvmshare.serve`, and the parts that it is made of."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from typing import TYPE_CHECKING

import pytest

import uvmshare
from uvmshare import blocking
from uvmshare.errors import AgentUnreachable, InvalidState, ManagerClosed, MountConflict, WrongType

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)
from tests.daemon.guests import Guest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from uvmshare.serving import ServedVM


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    folder = tempfile.mkdtemp(prefix="uvmb-")  # a unix socket's path is short, and pytest's are not
    for name in ("a", "b"):
        os.mkdir(f"{folder}/{name}")
    guest = Guest(folder)
    guest.start()
    yield guest
    guest.close()
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def vm(guest: Guest) -> Iterator[ServedVM]:
    listen = [f"unix:{guest.folder}/9p"]
    with uvmshare.serve(listen, agent=f"unix:{guest.socket}", security_model="none") as vm:
        yield vm
    assert guest.mounted() == []


def test_one_object_shares_and_mounts_with_keywords(vm: ServedVM, guest: Guest) -> None:
    at = f"{guest.allow}/a"
    with vm.share(f"{guest.folder}/a", read_only=True, hide=(".git",)) as share:
        assert share.name == "0"
    with vm.map(f"{guest.folder}/a", at, read_only=True, cache="none", msize=8192) as mount:
        assert guest.mounted() == [at]
        (info,) = vm.mounts()
        assert (info.mount_path, info.share_name, info.options.msize) == (at, mount.name, 8192)
    assert guest.mounted() == []


def test_the_mount_manager_has_owners_and_blocks_and_asks_the_agent(vm: ServedVM, guest: Guest) -> None:
    mounts, path, at = vm.mount_manager, f"{guest.folder}/b", f"{guest.allow}/b"
    assert mounts.map(path, at, read_only=True, owner="job-7").owners == ("job-7",)
    assert mounts.map(path, at, read_only=True, owner="job-8").owners == ("job-7", "job-8")
    with pytest.raises(MountConflict, match="is taken by"):
        mounts.map(path, at, owner="job-9")
    assert mounts.agent.reached().allow == (guest.allow,)
    assert [each.status for each in mounts.agent.health()] == ["ok"]
    assert [each.mount_path for each in mounts.agent.listed()] == [at]
    assert mounts.agent.report().machine == os.uname().machine
    left = mounts.unmap(at, owner="job-7")
    assert left is not None
    assert left.owners == ("job-8",)
    assert mounts.release_owner("job-8") == (at,)
    with mounts.mapped(path, at) as info:
        assert info.references == 1
        assert mounts.settle() == ()
    assert mounts.mounts() == ()
    mounts.map(path, at)
    assert mounts.revoke(at) is None
    assert repr(mounts).startswith("<blocking.MountManager of <AgentClient at unix:")


def test_a_client_of_its_own_asks_the_agent_and_says_when_it_is_closed(guest: Guest) -> None:
    with blocking.AgentClient(f"unix:{guest.socket}") as agent:
        assert agent.reached().allow == (guest.allow,)
        assert agent.reach.state == "reached"
        assert agent.listed() == ()
    with pytest.raises(AgentUnreachable, match="was closed: make a new one"):
        agent.report()


def test_what_does_not_go_together_is_refused_in_one_line(vm: ServedVM, guest: Guest) -> None:
    with blocking.AgentClient(f"unix:{guest.socket}") as agent:
        with pytest.raises(WrongType, match=r"agent .*AgentClient.*uvmshare\.AgentClient"):
            blocking.MountManager(agent, shares=vm.manager)  # type: ignore[arg-type]
        with pytest.raises(WrongType, match=r"shares .*blocking\.Manager"):
            blocking.MountManager(uvmshare.AgentClient("unix:/x"), shares=vm.manager.asynchronous)  # type: ignore[arg-type]


def test_after_its_end_it_says_so(guest: Guest) -> None:
    with uvmshare.serve([f"unix:{guest.folder}/other"], agent=f"unix:{guest.socket}", security_model="none") as vm:
        mounts = vm.mount_manager
    with pytest.raises(ManagerClosed, match="was closed"):
        mounts.map(f"{guest.folder}/a", f"{guest.allow}/a")
    mounts.close()
    with pytest.raises(InvalidState, match="has no agent"):
        _ = vm.mount_manager
