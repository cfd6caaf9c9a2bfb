"""kill -9 of a process with a Manager at every numbered point of its life, and of the next one while it recovers.

What is killed is a real process with a real journal; the VM is made of files, which outlive it. Afterwards a last one
recovers, and then:

- every add that was acknowledged and not begun to be given back is held, by that owner, and the VM has the share;
- no release that was acknowledged has come back;
- the VM has no share that nobody holds, and nobody holds one that the VM does not have;
- no name was ever given to two shares.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.acknowledged import require_kept
from tests.reliability_results import write_down

if TYPE_CHECKING:
    from collections.abc import Iterator


if sys.platform == "win32":
    pytest.skip("Windows has no fork(); the journal itself is tested there", allow_module_level=True)

FAST = 12
"""Of how many points one is tried in `make test`."""


class Lives:
    """The process that forks the lives."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("life.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")},
        )

    def live(self, directory: str, life: str, *, kill_at: int, lists: bool, defect: bool = False) -> bool:
        """Live a life, and tell whether it was killed; it must not have ended in any other way than in order."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"directory": directory, "life": life, "kill_at": kill_at, "lists": lists, "defect": defect}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        status: int = json.loads(self._process.stdout.readline())
        assert status in (0, -signal.SIGKILL)
        return status != 0

    def close(self) -> None:
        self._process.communicate(timeout=60)


@pytest.fixture(scope="module")
def lives() -> Iterator[Lives]:
    made = Lives()
    yield made
    made.close()


def lines(directory: str, name: str) -> list[Any]:
    try:
        text = Path(directory, name).read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines()]


def require_nothing_lost(directory: str) -> None:
    (state,) = lines(directory, "state")
    held = {}
    for name, path, share_state, owners, references, orphan in state["shares"]:
        assert (share_state, orphan) == ("added", False), f"share {name} is not settled"
        held[name] = (path, owners, references)
    on_vm = {name: path for name, (path, _, _) in state["vm"].items()}
    require_kept(lines(directory, "told"), held, on_vm, lines(directory, "added"))


def one_try(lives: Lives, *, lists: bool, first: int, second: int = 0, defect: bool = False) -> int:
    """Kill a life at a point, and the next at another; return how many were killed."""
    directory = tempfile.mkdtemp(prefix="journal-")
    for name in ("1", "2", "3", "4"):
        Path(directory, name).mkdir()
    killed: int = lives.live(directory, "first", kill_at=first, lists=lists, defect=defect)
    if second:
        killed += lives.live(directory, "between", kill_at=second, lists=lists)
    assert not lives.live(directory, "last", kill_at=0, lists=lists)
    require_nothing_lost(directory)
    shutil.rmtree(directory)
    return killed


def try_all(lives: Lives, *, lists: bool, step: int, twice: bool) -> tuple[int, int]:
    """Try every `step`-th point until a life is through without being killed; return the tries and the kills."""
    tries = kills = 0
    first = 1
    while True:
        # The second life dies early, where it reads what the first left, or in the middle of settling it.
        second = 1 + first * 7 % 60 if twice else 0
        killed = one_try(lives, lists=lists, first=first, second=second)
        tries += 1
        kills += killed
        if not killed or (twice and killed == 1 and first > 600):
            return tries, kills
        first += step


@pytest.mark.parametrize("lists", [True, False])
def test_some_points_of_a_life_lose_nothing(lives: Lives, *, lists: bool) -> None:
    tries, kills = try_all(lives, lists=lists, step=FAST, twice=False)
    assert kills > 20
    write_down(
        f"manager-killed-{'lists' if lists else 'cannot-tell'}-short",
        f"The Manager's process killed, a VM that {'lists its shares' if lists else 'cannot'}; every {FAST}th point",
        points=tries,
        kills=kills,
        losses=0,
    )


def test_a_planted_defect_loses_something_that_is_found(lives: Lives) -> None:
    def try_some() -> None:
        for first in range(60, 400, 3):
            one_try(lives, lists=True, first=first, defect=True)

    with pytest.raises(AssertionError, match="references, not 1 to"):
        try_some()


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("lists", [True, False])
def test_no_point_of_a_life_loses_anything(lives: Lives, *, lists: bool, twice: bool) -> None:
    tries, kills = try_all(lives, lists=lists, step=1, twice=twice)
    assert kills > 300
    write_down(
        f"manager-killed-{'lists' if lists else 'cannot-tell'}{'-twice' if twice else ''}",
        f"The Manager's process killed{', and the next while it recovers' if twice else ''}, a VM that "
        f"{'lists its shares' if lists else 'cannot'}; every point",
        points=tries,
        kills=kills,
        losses=0,
    )
