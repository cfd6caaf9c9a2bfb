"""Directories that the agent holds, in a real guest: watches on them work, and what the host does to them is seen."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from tests.guest import listener, shuffle
from tests.guest.test_agent import Bench, cut, mount_processes

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.guest.transports import Transport

pytestmark = pytest.mark.guest


@pytest.fixture(scope="module")
def bench(runner: asyncio.Runner, transport: Transport, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = Bench(runner, transport, tmp_path_factory.mktemp("pins"))
    made.arguments = "--pins 2048"
    made.run(made.start())
    yield made
    made.run(made.close())


class Pinned:
    """A share of a few directories, mounted at `path`.

    Six of them are pinned: the root, a, b, c, src and node_modules, but nothing below that.
    """

    def __init__(self, bench: Bench, path: str, *, share_read_only: bool = False, **how: Any) -> None:
        self.bench = bench
        self.path = path
        self.options = bench.share(read_only=share_read_only)
        self.host = bench.directory / f"share{bench.made}"
        for each in ("a/b/c", "src", "node_modules/x/y"):
            (self.host / each).mkdir(parents=True)
        self.share = bench.run(bench.mounts.map(self.options, path, owner="a", **how)).share_name

        self.until_pinned(6)

    def until_pinned(self, directories: int) -> None:
        """Wait until so many are pinned: of a slow guest the mount is told to be ready before."""

        async def pinned() -> bool:
            listed = [each.pins for each in await self.bench.agent.listed() if each.mount_path == self.path]
            return bool(listed) and listed[0] is not None and listed[0].directories == directories

        self.bench.until(pinned)

    def until_seen(self, command: str, wanted: str) -> None:
        """Wait until a command in the mounted directory says that."""

        async def seen() -> bool:
            return (await self.bench.guest.run(f"cd {self.path} && {command}")).text == wanted

        self.bench.until(seen)

    def shuffle(self, seed: int) -> None:
        """Make random changes on both sides at once, and see that both have the same afterwards."""
        sh, host = self.bench.sh, self.host
        for part in range(3):  # in between both are quiet, and what was wrong then would stay so
            at = f"{self.path} {10 * seed + part} 60 guest{part}-"
            sh("rm -f /run/shuffled")  # of a test that failed
            sh(f"(python3 -I -S {shuffle.__file__} {at} >/run/shuffle.log 2>&1; echo over >/run/shuffled) & true")
            shuffle.shuffle(str(host), 1000 + 10 * seed + part, 60, f"host{part}-")
            sh("until [ -e /run/shuffled ]; do sleep 0.1; done; cat /run/shuffle.log")
            there = sorted(str(path.relative_to(host)) for path in host.rglob("*"))
            self.until_seen("find . -mindepth 1 | cut -c3- | LC_ALL=C sort", "".join(f"{name}\n" for name in there))
            inodes = "".join(f"{of_guest((host / name).stat().st_ino)}\n" for name in there)
            self.until_seen("find . -mindepth 1 | LC_ALL=C sort | xargs stat -c %i", inodes)

    @contextmanager
    def listening(self, *directories: str) -> Iterator[Callable[[str], None]]:
        """Listen at these directories, and give what waits for a line of what is heard."""
        where = " ".join(f"{self.path}/{each}" for each in directories)
        self.bench.sh(
            f"(python3 -I -S {listener.__file__} /run/heard {where} >/run/listener.log 2>&1 & "
            "echo $! >/run/listener.pid); until grep -qs ready /run/heard; do sleep 0.05; done"
        )
        try:
            yield lambda line: self.until_seen(f"grep -cxF '{line}' /run/heard", "1\n")
        finally:
            self.bench.sh("kill $(cat /run/listener.pid); rm /run/heard")


def _replace(host: Path) -> None:
    (host / "a").rename(host / "z")
    (host / "a").mkdir()
    (host / "a" / "new").touch()


def of_guest(inode: int) -> int:
    """Return which number a guest's kernel gives to a file of this number on the host (QID2INO of its fs/9p)."""
    return (inode + 2) ^ (inode >> 32)


@pytest.fixture
def pinned(bench: Bench) -> Iterator[Pinned]:
    made = Pinned(bench, f"/run/mnt/pins{bench.made}")
    yield made
    bench.run(bench.mounts.unmap(made.path, owner="a"))


def test_a_watch_on_a_directory_hears_what_the_guest_does_there(pinned: Pinned) -> None:
    with pinned.listening("src", "a/b") as heard:
        pinned.bench.sh(f"cd {pinned.path}; echo 1 >src/f; mkdir a/b/made; mv src/f src/g")
        for line in ("src/f CREATE", "src/f MODIFY", "src/f MOVED_FROM", "src/g MOVED_TO", "b/made CREATE"):
            heard(line)
        # Its name is the guest's own doing, and the watch stays with the directory.
        pinned.bench.sh(f"cd {pinned.path}; mv src other; touch other/later")
        heard("src/later CREATE")


@pytest.mark.parametrize(
    ("change", "command", "wanted"),
    [
        (lambda host: (host / "a").rename(host / "z"), "ls -d a z a/b z/b 2>/dev/null", "z\nz/b\n"),
        (_replace, "ls a z", "a:\nnew\n\nz:\nb\n"),
        *(
            pytest.param(*row, marks=pytest.mark.long)
            for row in (
                (lambda host: shutil.rmtree(host / "a"), "mkdir a 2>/dev/null && ls -d a/b a 2>/dev/null", "a\n"),
                (lambda host: (host / "a" / "b").rename(host / "src" / "b"), "ls a src", "a:\n\nsrc:\nb\n"),
            )
        ),
    ],
    ids=["rename", "replace", "remove", "move"],
)
def test_a_directory_that_the_host_changes_is_what_it_is_on_the_host(
    pinned: Pinned, change: Callable[[Path], object], command: str, wanted: str
) -> None:
    change(pinned.host)
    pinned.until_seen(command, wanted)


def test_a_directory_that_the_host_makes_is_held_too(pinned: Pinned) -> None:
    (pinned.host / "src" / "made" / "below").mkdir(parents=True)
    pinned.until_pinned(8)
    with pinned.listening("src/made/below") as heard:
        pinned.bench.sh(f"touch {pinned.path}/src/made/below/f")
        heard("below/f CREATE")


def test_a_mount_that_somebody_unmounts_is_not_busy_and_its_connection_ends(pinned: Pinned) -> None:
    assert len(mount_processes(pinned.bench, pinned.share)) == 1
    pinned.bench.sh(f"umount {pinned.path}")

    async def ended() -> bool:
        shares = (await pinned.bench.server.status()).shares
        return not any(share.mounts for share in shares if share.name == pinned.share)

    pinned.bench.until(ended)
    pinned.bench.run(pinned.bench.mounts.settle())
    pinned.until_seen("cat f", "text")


def test_a_lost_mount_is_let_go_and_the_new_one_is_held(pinned: Pinned) -> None:
    cut(pinned.bench)
    pinned.bench.until_back(pinned.path, 1)
    pinned.until_pinned(6)
    assert len(mount_processes(pinned.bench, pinned.share)) == 1


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
def test_after_random_changes_on_both_sides_both_see_the_same(pinned: Pinned, seed: int) -> None:
    pinned.shuffle(seed)
