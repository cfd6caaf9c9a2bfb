"""Run one kind of tests, in groups beside each other: ``tools/run_tests.py KIND [--coverage] [ARG...]``.

What lives here: the groups, and how many of them run at a time. What must not: which tests are long, or for the soak;
the mark at each says so, and what is in no group of its own is in the group "rest".

`quick` is ``make test``, `long` ``make test-long``, `soak` ``make soak``, `newer-python` ``make test-newer-python``:
the quick ones without a guest, which tools/newer_python.py runs on another Python, and `newer-python-part` some of
them. What a group prints is kept in
.cache/KIND-GROUP.log and shown when it ends. Other arguments are pytest's.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from typing import Final

ROOT: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BIN: Final = os.path.join(ROOT, ".venv", "bin")
NONE_COLLECTED: Final = 5
"""pytest's status when the arguments chose nothing of a group."""

_SOAK: Final = "tests/reliability/test_soak.py"
_SEARCHES: Final = (
    "tests/share/test_interleavings.py",
    "tests/share/test_crash_orders.py",
    "tests/mounts/test_interleavings.py",
)


@dataclass(frozen=True)
class Group:
    """Some of the tests: where they are, and what of these."""

    name: str
    where: tuple[str, ...]
    marks: str = ""
    environment: tuple[tuple[str, str], ...] = ()
    of_all: str = ""
    """Which tests of these, long or not; empty: those of the kind."""

    def without(self, *others: Group) -> Group:
        """Return this group without what is in the others."""
        ignored = tuple(f"--ignore={path}" for other in others for path in other.where if not path.startswith("-"))
        return replace(self, where=(*self.where, *ignored))


@dataclass(frozen=True)
class Kind:
    """Tests that are run together."""

    marks: str
    lanes: int
    groups: tuple[Group, ...]
    """The longest first, and the rest before them."""
    options: tuple[str, ...] = ("--durations=15", "--durations-min=5")


def kind(
    marks: str, lanes: int, *groups: Group, options: tuple[str, ...] = Kind.options, ignored: tuple[str, ...] = ()
) -> Kind:
    """Return a kind of these groups, and of one that has the rest: also what a group with settings of its own has.

    None of them has what is `ignored`, as arguments of pytest.
    """
    others = [group for group in groups if not group.environment]
    all_of_it = (Group("rest", ("tests",)).without(*others), *groups)
    return Kind(marks, lanes, tuple(replace(each, where=(*each.where, *ignored)) for each in all_of_it), options)


_CONFORMANCE: Final = "tests/conformance"
_BY_KERNEL: Final = (
    Group("newer-kernel", (_CONFORMANCE,), "newer_kernel"),
    Group("older-kernel", (_CONFORMANCE,), "not newer_kernel"),
)
_LONG: Final = (
    *_BY_KERNEL,
    Group("guest", ("tests/guest",)),
    Group("hostile", ("tests/hostile",)),
    Group("soak", (_SOAK,)),
    Group("kills", ("tests/reliability", f"--ignore={_SOAK}")),
)
_WITHOUT_SPEED: Final = (("UVMSHARE_SPEED", "off"),)
_CORE: Final = Group(
    "pure-python",
    tuple(f"tests/fileserver/test_{name}.py" for name in ("session", "opening", "listing", "large_reads", "idle")),
    environment=_WITHOUT_SPEED,
)
"""A core of the file server's tests once more without the compiled hot path, which all others use where it is built."""
_PURE: Final = Group(
    "pure-python",
    ("tests/fileserver", "tests/hostile", "tests/conformance/test_causes.py"),
    environment=_WITHOUT_SPEED,
    of_all="not soak",
)
_QUICK: Final = (
    Group("guest", ("tests/guest",)),
    Group("fileserver", ("tests/fileserver",)),
    Group("hostile", ("tests/hostile",)),
    Group("pages", ("tests/docs", "tests/examples", "tests/dashboard", "tests/cli")),
    Group("daemon", ("tests/daemon",)),
    Group("conformance", (_CONFORMANCE,)),
    Group("searches", _SEARCHES),
    Group("reliability", ("tests/reliability", "tests/sqlite_journal")),
)
_NOT_THERE: Final = tuple(
    f"--ignore=tests/{each}"
    for each in (
        "fileserver/test_compiled.py",  # there are no headers of that Python
        "dashboard/test_browser.py",  # no chromium
        "daemon/test_debian.py",  # packages are built on Debian 12
        "benchmarks",  # they ask for the compiled path
        "packaging",
    )
)
_ASKS_A_COMPILER: Final = "tests/fileserver/test_confinement.py::test_every_number_of_the_list_is_the_kernels_own"
_OF_THE_PYTHON: Final = (
    Group(
        "processes",  # fork, exec, descriptors, signals, and the system calls of a confined interpreter
        (
            *(f"tests/fileserver/test_{name}.py" for name in ("confinement", "device", "exit")),
            *(f"tests/fileserver/test_{name}.py" for name in ("session", "starting_again")),
            "tests/fileserver/takeover/test_takeover.py",
            *(f"tests/cli/test_{name}.py" for name in ("foreground", "main", "messages", "serve", "serve_process")),
            f"--deselect={_ASKS_A_COMPILER}",
        ),
    ),
    Group(
        "daemon",  # sqlite3, typing as Litestar and msgspec read it, sockets that are closed
        tuple(
            f"tests/daemon/test_{name}.py"
            for name in ("api", "client_socket", "holding", "leases", "process", "state_files", "tracing", "users")
        ),
    ),
    Group(
        "loops",  # asyncio under loops of the project's own, sqlite3, dataclasses, annotations
        (
            "tests/share", "tests/mounts", "tests/sqlite_journal", "tests/agent", "tests/linux", "tests/ninep",
            *(f"tests/test_{name}.py" for name in ("heard", "public_names", "python_api", "shown", "wrong_arguments")),
            *(f"--ignore={each}" for each in _SEARCHES),
            "--deselect=tests/agent/test_bundle.py::test_the_unit_is_what_systemd_reads",  # there is no systemd
        ),
    ),
)  # fmt: skip
"""What has another Python for its subject: in a fifth of the time, and with few packages."""
KINDS: Final = {
    # Three at a time on two cores: much of what they do is to wait for processes that they start.
    "quick": kind("not long and not soak", 3, *_QUICK, _CORE),
    "newer-python": kind("not long and not soak and not guest", 3, *_QUICK, ignored=_NOT_THERE),
    "newer-python-part": Kind("not long and not soak and not guest", 2, _OF_THE_PYTHON),
    "long": kind("long and not soak", 2, *_LONG, _PURE, options=("--timeout=3600", *Kind.options)),
    "soak": kind("soak", 2, *_LONG, options=("--timeout=7200", *Kind.options)),
}


class Run:
    """One run of a kind of tests."""

    def __init__(self, name: str, more: list[str]) -> None:
        self._name = name
        self._kind = KINDS[name]
        self._pytest = [os.path.join(BIN, "pytest")]
        self._measured = "--coverage" in more
        if self._measured:
            self._pytest = [os.path.join(BIN, "coverage"), "run", "-m", "pytest"]
        self._more = [argument for argument in more if argument != "--coverage"]
        self._begun = time.monotonic()
        os.makedirs(os.path.join(ROOT, ".cache"), exist_ok=True)

    def _say(self, text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self._begun), 60)
        sys.stdout.write(f"[{minutes}:{seconds:02}] {text}\n")
        sys.stdout.flush()

    def _log(self, group: Group) -> str:
        return os.path.join(ROOT, ".cache", f"{self._name}-{group.name}.log")

    def _run(self, group: Group) -> int:
        self._say(f"{group.name} begins")
        marks = group.of_all or (f"{self._kind.marks} and {group.marks}" if group.marks else self._kind.marks)
        command = [*self._pytest, "-m", marks, *self._kind.options, *group.where, *self._more]
        environment = {**os.environ, **dict(group.environment)}
        # Else each of the many processes that tests start would compile the package again: half a second each.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        if self._measured:  # it sees Python alone; the tests of the compiled hot path start their own servers with it
            environment.update(_WITHOUT_SPEED)
        with open(self._log(group), "w") as log:
            return subprocess.run(
                command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env=environment, check=False
            ).returncode

    def run(self) -> int:
        """Run all groups; 1 when something failed or nothing was there to run."""
        statuses = {}
        with ThreadPoolExecutor(self._kind.lanes) as lanes:
            running = {lanes.submit(self._run, group): group for group in self._kind.groups}
            for done in as_completed(running):
                group = running[done]
                statuses[group.name] = done.result()
                with open(self._log(group)) as log:
                    sys.stdout.write(log.read())
                ended = f"{len(statuses)} of {len(running)} groups"
                self._say(f"{group.name} ends, {ended}: status {statuses[group.name]}")
        failed = [name for name, status in statuses.items() if status not in (0, NONE_COLLECTED)]
        if failed:
            sys.stderr.write(f"failed: {', '.join(failed)}; the whole of each is in .cache/{self._name}-GROUP.log\n")
        return int(bool(failed) or 0 not in statuses.values())


if __name__ == "__main__":
    if sys.argv[1:2] == [] or sys.argv[1] not in KINDS:
        sys.exit(f"usage: {sys.argv[0]} {'|'.join(KINDS)} [--coverage] [pytest's arguments]")
    sys.exit(Run(sys.argv[1], sys.argv[2:]).run())
