"""No wall clock decides: it may jump to any time."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import TYPE_CHECKING

from tests.fleet_model.harness import ANN, fleet, placed

if TYPE_CHECKING:
    import pytest

_YEAR = 365 * 86400.0


async def test_leases_lost_hosts_and_fences_are_the_same_while_clocks_jump(monkeypatch: pytest.MonkeyPatch) -> None:
    jumps = itertools.cycle([0.0, 50 * _YEAR, 3.0, 20 * _YEAR])
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    async with fleet("h1", "h2") as f:
        await f.add_vm(wanted=placed(fence=10.0))
        assert (await f.add_share("/srv/x", "stays")).name == "0"
        await f.add_share("/srv/y", "laptop", 30)
        for _ in range(10):
            await asyncio.sleep(20)
            assert await f.gate.renew(ANN, "laptop") == 1
        assert len(f.hosts["h1"].held()["build"]) == 2
        await asyncio.sleep(60)
        assert f.hosts["h1"].held()["build"] == {("/srv/x", "stays")}
        f.cut("h1")
        await asyncio.sleep(60)
        assert [each.state for each in await f.gate.hosts(ANN)] == ["lost", "alive"]
        assert (await f.move_vm("h2", take=True)).host == "h2"
        assert f.hosts["h2"].held()["build"] == {("/srv/x", "stays")}
        assert f.hosts["h1"].until[next(iter(f.hosts["h1"].until))] < f.hosts["h1"].clock()
