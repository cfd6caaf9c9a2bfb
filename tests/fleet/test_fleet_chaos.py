"""No acknowledged reference is lost and none is left over, whatever happens to etcd; the history is checked."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.fleet.cluster import cluster_in
from tests.fleet.fleet_chaos import DISK, FAULTS, SETTINGS, FleetChaos

if TYPE_CHECKING:
    from collections.abc import Iterator

RECORD = Path(__file__).parents[2] / ".cache"


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have gates answer sooner that a host which is cut off does not."""
    monkeypatch.setattr("uvmshare.fleet.reading.ANSWER_SECONDS", 5.0)


def storm(folder: Path, rounds: int, seconds: float = 0.0, name: str = "fleet-chaos-quick", *faults: str) -> None:
    """Have at least so many rounds happen, for so long, and leave a record of them for whoever measures."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")  # noqa: T201  a failed test shows it
    begun = time.monotonic()

    def each() -> Iterator[str]:
        """Give each fault once, in an order by chance, and again."""
        order, number = random.Random(seed), 0
        while True:
            deck = list(faults or FAULTS)
            order.shuffle(deck)
            for fault in deck:
                if number >= rounds and time.monotonic() - begun >= seconds:
                    return
                number += 1
                yield fault

    async def whole() -> FleetChaos:
        with cluster_in(folder, *SETTINGS, disk=DISK) as cluster:
            chaos = FleetChaos(cluster, folder, seed)
            try:
                await chaos.run(each())
            finally:
                print(f"done: {', '.join(chaos.done)}")  # noqa: T201  as above
            return chaos

    chaos = asyncio.run(whole())
    problems = chaos.history.problems()
    outcomes = Counter(asked.outcome for asked in chaos.history.asked)
    record: dict[str, Any] = {
        "seed": seed,
        "rounds": len(chaos.done),
        "faults": dict(sorted(Counter(chaos.done).items())),
        "asked": dict(sorted(outcomes.items())),
        "owners": len(chaos.history.owners),
        "problems": len(problems),
    }
    RECORD.mkdir(exist_ok=True)
    (RECORD / f"{name}.json").write_text(json.dumps(record))
    assert not problems, problems[:10]
    assert outcomes["made"] > len(chaos.done)


@pytest.mark.long
def test_no_reference_is_lost_or_left_over_when_disks_are_full_or_a_backup_is_restored(tmp_path: Path) -> None:
    storm(tmp_path, 3, 0.0, "fleet-chaos-quick", "fill disk of leader", "fill database", "restore and keep")


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_no_reference_is_lost_or_left_over_in_five_minutes_of_every_fault(tmp_path: Path) -> None:
    storm(tmp_path, len(FAULTS), 300.0, "fleet-chaos-long")


@pytest.mark.soak
@pytest.mark.timeout(10800)
def test_no_reference_is_lost_or_left_over_in_a_hundred_rounds_and_an_hour(tmp_path: Path) -> None:
    storm(tmp_path, 100, 3600.0, "fleet-chaos")
