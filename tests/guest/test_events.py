"""Events in a real guest of what the host does: real ones, on an unpatched kernel, and nothing else is different.

What lives here: which events the guest's programs get, and that both sides see the same afterwards. What the file
server tells and pretends is in tests/fileserver/test_events.py.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest
from tests.guest.test_agent import Bench
from tests.guest.test_pins import Pinned, of_guest

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.guest.transports import Transport

    Change = Callable[[Path], object]

# What carries the connection makes no difference to events.
pytestmark = [pytest.mark.guest, pytest.mark.transports("firecracker", over=("firecracker",))]


@pytest.fixture(scope="module")
def bench(runner: asyncio.Runner, transport: Transport, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = Bench(runner, transport, tmp_path_factory.mktemp("events"))
    made.run(made.start())
    yield made
    made.run(made.close())


@pytest.fixture
def pinned(bench: Bench) -> Iterator[Pinned]:
    made = Pinned(bench, f"/run/mnt/events{bench.made}", events=True)
    yield made
    bench.run(bench.mounts.unmap(made.path, owner="a"))


def _save_atomically(path: Path) -> None:
    """Save as vim and sed -i do."""
    beside = path.with_name("tmp")
    beside.write_text("saved")
    beside.replace(path)


def _remove_and_make_again(top: Path) -> None:
    (top / "src" / "f").unlink()
    (top / "src" / "f").write_text("again")


def _append(top: Path) -> None:
    with (top / "src" / "f").open("a") as file:
        file.write("more")


def _make_many(top: Path) -> None:
    for number in range(200):
        (top / "src" / f"many{number}").touch()


QUICK: dict[str, tuple[Change, list[str]]] = {
    "atomic save": (lambda d: _save_atomically(d / "src" / "f"), ["src/f MODIFY", "src/f CLOSE_WRITE"]),
    "remove": (lambda d: (d / "src" / "f").unlink(), ["src/f DELETE"]),
}
LONG: dict[str, tuple[Change, list[str]]] = {
    "create": (
        lambda d: (d / "src" / "new").write_text("1"),
        ["src/new CREATE", "src/new MODIFY", "src/new CLOSE_WRITE"],
    ),
    "rename": (lambda d: (d / "src" / "f").rename(d / "src" / "g"), ["src/f MOVED_FROM", "src/g MOVED_TO"]),
    "overwrite": (lambda d: (d / "src" / "f").write_text("other"), ["src/f MODIFY", "src/f CLOSE_WRITE"]),
    "chmod": (lambda d: (d / "src" / "f").chmod(0o600), ["src/f ATTRIB"]),
    "mkdir": (lambda d: (d / "src" / "new").mkdir(), ["src/new CREATE"]),
    "create an empty file": (lambda d: (d / "src" / "new").touch(), ["src/new CREATE"]),
    "create an executable": (lambda d: (d / "src" / "new").touch(0o755), ["src/new CREATE", "src/new MODIFY"]),
    "create a read-only file": (lambda d: (d / "src" / "new").touch(0o444), ["src/new CREATE"]),
    "create a fifo": (lambda d: os.mkfifo(d / "src" / "new"), ["src/new CREATE"]),
    "symlink": (lambda d: (d / "src" / "new").symlink_to("f"), ["src/new CREATE"]),
    "dangling symlink": (lambda d: (d / "src" / "new").symlink_to("nowhere"), ["src/new CREATE"]),
    "hard link": (lambda d: (d / "src" / "new").hardlink_to(d / "src" / "f"), ["src/new CREATE"]),
    "append": (_append, ["src/f MODIFY", "src/f CLOSE_WRITE"]),
    "truncate": (lambda d: os.truncate(d / "src" / "f", 0), ["src/f MODIFY"]),
    "grow": (lambda d: os.truncate(d / "src" / "f", 100_000), ["src/f MODIFY"]),
    "touch": (lambda d: os.utime(d / "src" / "f"), ["src/f ATTRIB"]),
    "chmod of a directory": (lambda d: (d / "src" / "sub").chmod(0o700), ["src/sub ATTRIB"]),
    "remove a symlink": (lambda d: (d / "src" / "l").unlink(), ["src/l DELETE"]),
    "rmdir": (lambda d: (d / "src" / "sub").rmdir(), ["src/sub DELETE"]),
    "rm -r": (lambda d: shutil.rmtree(d / "a" / "b"), ["a/b DELETE", "b/ DELETE_SELF"]),
    "move out": (lambda d: (d / "src" / "f").rename(d / "node_modules" / "x" / "f"), ["src/f DELETE"]),
    "move in": (lambda d: (d / "node_modules" / "x" / "in").rename(d / "src" / "in"), ["src/in CREATE"]),
    "rename over": (lambda d: (d / "src" / "f").rename(d / "src" / "h"), ["src/f MOVED_FROM", "src/h MOVED_TO"]),
    "rename a symlink": (lambda d: (d / "src" / "l").rename(d / "src" / "m"), ["src/l MOVED_FROM", "src/m MOVED_TO"]),
    "rename to another directory": (
        lambda d: (d / "src" / "f").rename(d / "a" / "f"),
        ["src/f MOVED_FROM", "a/f MOVED_TO"],
    ),
    "rename a directory": (
        lambda d: (d / "a" / "b").rename(d / "a" / "z"),
        ["a/b MOVED_FROM", "a/z MOVED_TO", "b/ MOVE_SELF"],
    ),
    "move a directory": (
        lambda d: (d / "a" / "b").rename(d / "src" / "b"),
        ["a/b MOVED_FROM", "src/b MOVED_TO", "b/ MOVE_SELF"],
    ),
    "remove and make again": (
        _remove_and_make_again,
        ["src/f MODIFY"],
    ),
    "mkdir -p": (lambda d: (d / "src" / "new" / "below").mkdir(parents=True), ["src/new CREATE"]),
    "an odd name": (lambda d: (d / "src" / " \"'%\\").touch(), ["src/ \"'%\\ CREATE"]),
    "many at once": (
        _make_many,
        [f"src/many{number} CREATE" for number in (0, 99, 199)],
    ),
}
"""What is watched are src, a and a/b; below node_modules nothing is."""


def until_heard(pinned: Pinned, line: str) -> None:
    """Wait for a line of what is heard. One change may be two events: on a slow host its parts are told apart."""
    line = line.replace("'", "'\\''")
    pinned.until_seen(f"grep -qxF '{line}' /run/heard && echo heard", "heard\n")


def _view(top: Path) -> str:
    """Return what the host has, as `_SEEN` writes it in the guest."""
    found = [path for path in top.rglob("*") if not path.is_relative_to(top / "node_modules")]
    stated = [(path.relative_to(top), path.lstat()) for path in found]
    return "".join(sorted(f"{path} {of_guest(state.st_ino)} {state.st_mode:x}\n" for path, state in stated))


_SEEN = "find . -mindepth 1 -path ./node_modules -prune -o -exec stat -c '%n %i %f' {} + | cut -c3- | LC_ALL=C sort"


def content(top: Path) -> dict[str, object]:
    return {
        str(path): (path.lstat().st_mtime_ns, path.lstat().st_ctime_ns, path.is_file() and path.read_bytes())
        for path in top.rglob("*")
        if not path.is_fifo()
    }


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        *(pytest.param(*row, id=name) for name, row in QUICK.items()),
        *(pytest.param(*row, id=name, marks=pytest.mark.long) for name, row in LONG.items()),
    ],
)
def test_what_the_host_does_is_an_event_in_the_guest_and_both_see_the_same(
    pinned: Pinned, change: Change, lines: list[str]
) -> None:
    require_heard(pinned, change, lines)


def require_heard(pinned: Pinned, change: Change, lines: list[str]) -> None:
    """Have the host change something, and see that the guest hears it and has the same."""
    host = pinned.host
    for name in ("src/f", "src/h", "node_modules/x/in", "a/b/c/deep"):
        (host / name).write_text(name)
    (host / "src" / "l").symlink_to("f")
    (host / "src" / "sub").mkdir()
    pinned.until_pinned(7)
    with pinned.listening("src", "a", "a/b"):
        change(host)
        before = content(host)
        for line in lines:
            until_heard(pinned, line)
        pinned.until_seen(_SEEN, _view(host))
        assert content(host) == before


def test_what_nobody_watches_is_not_repeated(pinned: Pinned) -> None:
    (pinned.host / "src" / "f").write_text("1")
    with pinned.listening("a"):
        (pinned.host / "a" / "made").mkdir()
        until_heard(pinned, "a/made CREATE")
    pins = pinned.bench.listed(pinned.path).pins
    assert pins is not None
    assert pins.events is not None
    assert (pins.events.repeated, pins.events.failed, pins.events.ended) == (1, 0, "")


@pytest.mark.parametrize(
    "how",
    [
        pytest.param({"share_read_only": True}, id="share"),
        pytest.param({"read_only": True}, id="mount", marks=pytest.mark.long),
    ],
)
def test_a_read_only_mount_has_events_too_and_nobody_writes_through_it(bench: Bench, how: dict[str, bool]) -> None:
    pinned = Pinned(bench, f"/run/mnt/ro{bench.made}", events=True, **how)
    host = pinned.host
    (host / "src" / "f").write_text("f")
    with pinned.listening("src"):
        (host / "src" / "new").write_text("content")
        until_heard(pinned, "src/new CREATE")
        until_heard(pinned, "src/new CLOSE_WRITE")
        (host / "src" / "f").rename(host / "src" / "g")
        until_heard(pinned, "src/g MOVED_TO")
        (host / "src" / "g").unlink()
        until_heard(pinned, "src/g DELETE")
    before = content(host)
    changes = ("touch src/made", "echo x >src/new", "rm src/new", "mkdir made", "chmod 600 src/new", "mv src/new src/z")
    for change in changes:
        said = bench.sh(f"cd {pinned.path} && ({change}) 2>&1; true")
        assert "Read-only file system" in said, (change, said)
    assert f"{pinned.path} 9p ro," in bench.sh("cat /proc/mounts")
    assert content(host) == before
    listed = bench.listed(pinned.path)
    assert (listed.no_events, listed.read_only) == ("", True)
    bench.run(bench.mounts.unmap(pinned.path, owner="a"))


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
def test_after_random_changes_on_both_sides_that_are_repeated_both_see_the_same(pinned: Pinned, seed: int) -> None:
    with pinned.listening("", "src", "a", "a/b", "a/b/c"):
        pinned.shuffle(10 + seed)
