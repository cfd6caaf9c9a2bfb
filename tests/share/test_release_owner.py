"""An owner that is known to be gone gives back everything at once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from uvmshare.errors import SharesLeft
from uvmshare.share.manager import Manager
from uvmshare.share.options import AddOptions
from uvmshare.testing.fakes import FakeReply, FakeVM

HERE = Path(__file__).parent
ONE = AddOptions(HERE, read_only=True)
OTHER = AddOptions(HERE.parent, read_only=True)


async def test_an_owner_that_is_gone_gives_back_everything_it_holds_and_nothing_else() -> None:
    vm = FakeVM()
    manager = Manager(vm)
    await manager.add(ONE, owner="gone")
    await manager.add(OTHER, owner="gone")
    await manager.add(OTHER, owner="here")
    await manager.add(AddOptions(HERE), owner=None)
    assert await manager.release_owner("gone") == ("0", "1")
    assert vm.shares == {"1": OTHER, "2": AddOptions(HERE)}
    assert [info.owners for info in manager.shares()] == [("here",), ()]
    assert await manager.release_owner("gone") == ()


async def test_one_share_that_cannot_be_taken_out_does_not_keep_the_others() -> None:
    vm = FakeVM()
    manager = Manager(vm)
    await manager.add(ONE, owner="gone")
    await manager.add(OTHER, owner="gone")
    vm.replies.append(FakeReply.FAIL)
    with pytest.raises(SharesLeft, match="share 0") as raised:
        await manager.release_owner("gone")
    assert raised.value.names == ("0",)
    assert vm.shares == {"0": ONE}
    assert await manager.release_owner("gone") == ("0",)
    assert not vm.shares


async def test_shares_of_an_owner_do_not_wait_for_each_other() -> None:
    vm = FakeVM()
    manager = Manager(vm)
    await manager.add(ONE, owner="gone")
    await manager.add(OTHER, owner="gone")
    vm.hold = True
    releasing = asyncio.create_task(manager.release_owner("gone"))
    await asyncio.sleep(1)
    vm.in_flight["1"].answer(FakeReply.SUCCEED)
    vm.in_flight["0"].answer(FakeReply.SUCCEED)
    assert await releasing == ("0", "1")


async def test_anonymous_references_have_no_owner_to_be_released_by() -> None:
    manager = Manager(FakeVM())
    await manager.add(ONE)
    with pytest.raises(TypeError, match="give its name to remove"):
        await manager.release_owner(None)
    assert manager.shares()[0].references == 1
