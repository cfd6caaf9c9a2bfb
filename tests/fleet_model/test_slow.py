"""A holding that takes long, such as a mount in a guest that does not answer, holds up nothing else."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from tests.fleet_model.harness import ANN, fleet

from uvmshare.errors import HostPathNotFound, NotThere
from uvmshare.fleet.settling import PATIENCE

if TYPE_CHECKING:
    from tests.fleet_model.harness import FakeHost


class Slow:
    """Has a host's next call of one kind wait until `go_on`."""

    def __init__(self, host: FakeHost, what: str) -> None:
        self.begun = asyncio.Event()
        self._over = asyncio.Event()
        self._what = what
        host.pause = self._pause

    async def _pause(self, what: str) -> None:
        if what == self._what and not self.begun.is_set():
            self.begun.set()
            await self._over.wait()

    def go_on(self) -> None:
        self._over.set()


async def test_a_share_is_answered_while_another_is_still_being_added() -> None:
    async with fleet() as f:
        await f.add_vm()
        slow = Slow(f.hosts["h1"], "add")
        waiting = asyncio.ensure_future(f.add_share("/srv/slow"))
        await slow.begun.wait()
        loop = asyncio.get_running_loop()
        before = loop.time()
        for number in range(3):
            await f.add_share(f"/srv/{number}")
        assert (await f.release_share("0")).ended
        assert loop.time() - before <= 6 * PATIENCE, "nobody waited for the slow one"
        assert not waiting.done()
        slow.go_on()
        share = await waiting
        assert share.path == "/srv/slow"
        await asyncio.sleep(30)
        assert f.hosts["h1"].held() == {"build": {("/srv/slow", "job"), ("/srv/1", "job"), ("/srv/2", "job")}}


async def test_what_fails_slowly_is_the_hosts_error_and_is_wanted_no_more() -> None:
    async with fleet() as f:
        await f.add_vm()
        f.hosts["h1"].refused["/srv/none"] = HostPathNotFound("there is no such directory")
        slow = Slow(f.hosts["h1"], "add")
        waiting = asyncio.ensure_future(f.add_share("/srv/none"))
        await slow.begun.wait()
        await f.add_share("/srv/x")
        slow.go_on()
        with pytest.raises(HostPathNotFound):
            await waiting
        assert {each.path for each in await f.gate.shares(ANN, "build")} == {"/srv/x"}


async def test_what_is_released_while_it_is_being_added_is_gone_afterwards() -> None:
    async with fleet() as f:
        await f.add_vm()
        slow = Slow(f.hosts["h1"], "add")
        waiting = asyncio.ensure_future(f.add_share("/srv/slow", "gone", 60))
        await slow.begun.wait()
        releasing = asyncio.ensure_future(f.gate.release_owner(ANN, "gone", force=False))
        await asyncio.sleep(5)
        slow.go_on()
        await releasing
        with pytest.raises(NotThere, match="released meanwhile"):
            await waiting
        await asyncio.sleep(30)
        assert f.hosts["h1"].held() == {"build": set()}


async def test_a_lease_that_ends_while_something_is_being_added_takes_that_too() -> None:
    async with fleet() as f:
        await f.add_vm()
        slow = Slow(f.hosts["h1"], "add")
        waiting = asyncio.ensure_future(f.add_share("/srv/slow", "dying", 5))
        await slow.begun.wait()
        await asyncio.sleep(20)
        slow.go_on()
        with pytest.raises(NotThere, match="its lease has ended"):
            await waiting
        await asyncio.sleep(30)
        assert f.hosts["h1"].held() == {"build": set()}


async def test_a_vm_is_removed_while_something_of_it_is_being_added() -> None:
    async with fleet() as f:
        await f.add_vm()
        slow = Slow(f.hosts["h1"], "add")
        waiting = asyncio.ensure_future(f.add_share("/srv/slow"))
        await slow.begun.wait()
        await f.remove_vm(force=True)
        assert f.hosts["h1"].machines == {}
        waiting.cancel()


async def test_a_slow_release_holds_up_nobody_and_says_what_it_came_to() -> None:
    async with fleet() as f:
        await f.add_vm()
        await f.add_share("/srv/x")
        slow = Slow(f.hosts["h1"], "end")
        releasing = asyncio.ensure_future(f.release_share("0"))
        await slow.begun.wait()
        assert (await f.add_share("/srv/y")).path == "/srv/y"
        slow.go_on()
        assert (await releasing).released
        assert f.hosts["h1"].held() == {"build": {("/srv/y", "job")}}
