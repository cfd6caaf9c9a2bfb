"""Run the long tests beside each other: ``python tools/long_tests.py [PYTEST ARGUMENT...]``, or ``make test-long``.

What lives here: the groups, and how many of them run at a time. What must not: which tests are long; the mark at
each says so, and what is in no group of its own is in `rest`.

Two groups at a time, one a core, the longest first. The soak has a lane of its own: it waits most of the time. What a
group prints is kept in .cache/long-NAME.log and shown when it ends.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PYTEST = (os.path.join(ROOT, ".venv", "bin", "pytest"), "--timeout=3600", "--durations=15", "--durations-min=10")
NONE_COLLECTED = 5
"""pytest's status when the arguments chose nothing of a group."""


@dataclass(frozen=True)
class Group:
    """Some of the long tests: where they are, and of these which marks."""

    name: str
    where: tuple[str, ...]
    marks: str = "long"

    @property
    def log(self) -> str:
        """Where it says what it did."""
        return os.path.join(ROOT, ".cache", f"long-{self.name}.log")


SOAK = Group("soak", ("tests/reliability/test_soak.py",))
GROUPS = (
    Group("newer-kernel", ("tests/conformance",), "long and newer_kernel"),
    Group("older-kernel", ("tests/conformance",), "long and not newer_kernel"),
    Group("rest", ("tests", *(f"--ignore=tests/{name}" for name in ("conformance", "hostile", "reliability")))),
    Group("hostile", ("tests/hostile",)),
    Group("kills", ("tests/reliability", f"--ignore={SOAK.where[0]}")),
)


def run(group: Group, more: list[str], begun: float) -> int:
    """Run one group and return pytest's status."""
    say(begun, f"{group.name} begins")
    with open(group.log, "w") as log:
        command = [*PYTEST, "-m", group.marks, *group.where, *more]
        return subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, check=False).returncode


def say(begun: float, text: str) -> None:
    """Tell how far it is, in minutes and seconds."""
    minutes, seconds = divmod(int(time.monotonic() - begun), 60)
    sys.stdout.write(f"[{minutes}:{seconds:02}] {text}\n")
    sys.stdout.flush()


def main(more: list[str]) -> int:
    """Run all groups; 1 when something failed or nothing was there to run."""
    begun = time.monotonic()
    os.makedirs(os.path.join(ROOT, ".cache"), exist_ok=True)
    statuses = {}
    with ThreadPoolExecutor(1) as lane, ThreadPoolExecutor(2) as lanes:
        running = {lane.submit(run, SOAK, more, begun): SOAK}
        running |= {lanes.submit(run, group, more, begun): group for group in GROUPS}
        for done in as_completed(running):
            group = running[done]
            statuses[group.name] = done.result()
            with open(group.log) as log:
                sys.stdout.write(log.read())
            say(begun, f"{group.name} ends, {len(statuses)} of {len(running)} groups: status {statuses[group.name]}")
    failed = [name for name, status in statuses.items() if status not in (0, NONE_COLLECTED)]
    if failed:
        sys.stderr.write(f"make test-long: failed: {', '.join(failed)}; the whole of each is in .cache/long-NAME.log\n")
    return int(bool(failed) or 0 not in statuses.values())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
