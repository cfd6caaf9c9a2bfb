"""What measures events runs, in a real guest. Nothing here looks at how long anything takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.events import ROWS


@pytest.mark.guest
@pytest.mark.long
def test_every_row_is_measured_and_a_checkout_is_heard_as_a_whole() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.events", "--json", "--quick"],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        check=True,
    )
    found = json.loads(done.stdout)
    assert set(found) == {"quick", "about", *ROWS}
    assert (found["latency"]["n"], found["watched"]["22"]["watched_when_ready"] > 0) == (10, True)
    checkout = found["checkout"]
    assert (checkout["files"], checkout["names_not_heard"], checkout["queue_overflows_in_the_guest"]) == (300, 0, 0)
    assert (checkout["agent"]["failed"], checkout["agent"]["ended"]) == (0, "")
    assert checkout["agent"]["repeated"] >= 300


def test_a_row_that_there_is_not_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.events", "nothing"],
        cwd=Path(__file__).parents[2],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "there is no row 'nothing'; use some of latency, checkout, watched, idle" in done.stderr
