"""Tools that watch files, in a real guest: what the host saves is told by each, as on a disk, and nothing else is.

What lives here: the tools, and what they say. What must not: which events there are (`test_events`).

The tools are the unpacked packages of `tools/packages watching`, watchdog of this Python, and what npm installs below
.cache: by tests/guest/watching/package-lock.json, which has the versions and their checksums.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from tests.guest.test_agent import Bench
from tests.guest.test_pins import Pinned, of_guest

from uvmshare.testing.kernel import cache_directory

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator

    from tests.guest.transports import Transport

pytestmark = [pytest.mark.guest, pytest.mark.transports("firecracker", over=("firecracker",))]

HERE: Final = Path(__file__).with_name("watching")
REST: Final = "quiet.txt", "read.txt"
"""Files that nobody changes, in `src`."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool: the command that has it watch `src` in its working directory, and tell by names below that."""

    command: Callable[[], str]
    needs: str = ""
    """A command before it."""
    ready: str = ""
    """What it says when it watches; else the guest's kernel says that it does."""
    tells_removals: bool = True


def _unpacked(package: str, path: str) -> str:
    """Return where a package of `tools/packages watching` has something."""
    found = sorted(Path(cache_directory(), "packages", package).glob(path))
    if not found:
        pytest.skip(f"{package} is not below .cache/packages: tools/packages watching")
    return str(found[0])


def _inotifywait() -> str:
    library = os.path.dirname(_unpacked("libinotifytools0", "usr/lib/*/libinotifytools.so.0"))
    return (
        f"env LD_LIBRARY_PATH={library} {_unpacked('inotify-tools', 'usr/bin/inotifywait')} "
        "-m -r -e modify,attrib,close_write,create,delete,move --format '%e %w%f' src"
    )


def _node_modules() -> str:
    """Return where the packages of npm are, which are fetched when they are not there."""
    lock = (HERE / "package-lock.json").read_bytes()
    made = Path(cache_directory(), "node", hashlib.sha256(lock).hexdigest()[:12])
    if not made.exists():
        if shutil.which("npm") is None:
            pytest.skip("no npm: tools/packages watching")
        made.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=made.parent, prefix=".new-") as scratch:
            new = Path(scratch, "new")
            new.mkdir()
            for name in ("package.json", "package-lock.json"):
                shutil.copy(HERE / name, new)
            subprocess.run(
                ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=new, check=True, timeout=600
            )
            os.rename(new, made)  # in one step: what is there is whole
    return str(made / "node_modules")


TOOLS: Final = {
    "inotifywait": Tool(_inotifywait, ready="Watches established."),
    "watchdog": Tool(lambda: f"{sys.executable} {HERE / 'watchdog_events.py'}", ready="ready"),
    "chokidar": Tool(lambda: f"node {HERE / 'chokidar.js'} {_node_modules()}", ready="ready"),
    # It restarts what it runs, and says by which file.
    "nodemon": Tool(
        lambda: f"node {_node_modules()}/nodemon/bin/nodemon.js --verbose --watch src --ext txt --exec 'echo served'",
        ready="clean exit - waiting for changes before restart",
    ),
    # It looks what a file is before it runs its command, and runs none where there is no file any more.
    "reflex": Tool(
        lambda: f"{_unpacked('reflex', 'usr/bin/reflex')} --decoration=none -r . -- echo {{}}",
        needs="mkdir -p /dev/pts && mount -t devpts devpts /dev/pts",
        tells_removals=False,
    ),
}


@pytest.fixture(scope="module")
def bench(runner: asyncio.Runner, transport: Transport, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = Bench(runner, transport, tmp_path_factory.mktemp("watching"))
    made.run(made.start())
    yield made
    made.run(made.close())


@pytest.fixture
def pinned(bench: Bench) -> Iterator[Pinned]:
    made = Pinned(bench, f"/run/mnt/watching{bench.made}", events=True)
    yield made
    bench.run(bench.mounts.unmap(made.path, owner="a"))


class Watching:
    """A tool that runs in the guest, and the names that it has told."""

    def __init__(self, pinned: Pinned, tool: Tool) -> None:
        self.pinned = pinned
        if tool.needs:
            pinned.bench.sh(tool.needs)
        pinned.bench.sh(
            f"cd {pinned.path} && (HOME=/run setsid {tool.command()} >/run/watching.log 2>&1 </dev/null & "
            "echo $! >/run/watching.pid)"
        )
        try:
            if tool.ready:
                self.until_says(re.escape(tool.ready))
            for directory in ("src", "src/deep"):
                self.until_watched(directory)
        except BaseException:
            self.end()
            raise

    def said(self) -> str:
        return self.pinned.bench.sh("cat /run/watching.log")

    def told(self) -> set[str]:
        """Return which names below `src` it has told by now."""
        return set(re.findall(r"\bsrc/([\w./~-]*[\w~])", self.said()))

    def until_says(self, pattern: str) -> None:
        async def says() -> bool:
            found = await self.pinned.bench.guest.check(
                "kill -0 $(cat /run/watching.pid) && echo runs; cat /run/watching.log"
            )
            if re.search(pattern, found) is not None:
                return True
            assert found.startswith("runs\n"), f"it has ended: {found}"
            return False

        self.pinned.bench.until(says)

    def until_told(self, name: str) -> None:
        self.until_says(rf"\bsrc/{re.escape(name)}(?![\w.~/-])")

    def until_watched(self, directory: str) -> None:
        """Wait until the guest's kernel says that a program watches a directory."""
        inode = of_guest((self.pinned.host / directory).stat().st_ino)
        self.pinned.until_seen(f"grep -qs 'ino:{inode:x} ' /proc/[0-9]*/fdinfo/* && echo watched", "watched\n")

    def end(self) -> None:
        """End it, and print what it and the agent said: that is what a failure is explained by."""
        print(self.said(), self.pinned.bench.listed(self.pinned.path).pins)  # noqa: T201
        self.pinned.bench.run(self.pinned.bench.guest.run("kill -s KILL -- -$(cat /run/watching.pid)"))


def _save_as_vim(path: Path, text: str) -> None:
    """Save as vim does where it may rename (``backupcopy=no``)."""
    before = path.with_name(f"{path.name}~")
    path.rename(before)
    path.write_text(text)
    before.unlink()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "inotifywait" else pytest.mark.long) for name in TOOLS]
)
def test_a_tool_tells_what_the_host_saves_makes_and_removes_and_nothing_that_it_only_reads(
    pinned: Pinned, name: str
) -> None:
    tool, src = TOOLS[name], pinned.host / "src"
    (src / "deep").mkdir()
    for file in (*REST, "written.txt", "saved.txt", "deep/replaced.txt", "removed.txt", "last.txt"):
        (src / file).write_text("before")
    pinned.until_pinned(7)
    watching = Watching(pinned, tool)
    try:
        # What is only read is no change. A change is told after what was before it, so it need not be waited for.
        assert [path.read_text() for path in src.glob("*.txt")]
        pinned.bench.sh(f"cat {pinned.path}/src/*.txt; ls -lR {pinned.path}")
        (src / "written.txt").write_text("written")
        watching.until_told("written.txt")
        assert watching.told() == {"written.txt"}

        _save_as_vim(src / "saved.txt", "saved")
        watching.until_told("saved.txt")

        beside = pinned.host / "node_modules" / "x" / "beside"  # nobody watches there
        beside.write_text("replaced")
        beside.replace(src / "deep" / "replaced.txt")
        watching.until_told("deep/replaced.txt")

        (src / "new").mkdir()
        watching.until_watched("src/new")  # before, the tool would have to look into it by itself
        (src / "new" / "made.txt").write_text("made")
        watching.until_told("new/made.txt")

        (src / "removed.txt").unlink()
        if tool.tells_removals:
            watching.until_told("removed.txt")

        (src / "last.txt").write_text("last")
        watching.until_told("last.txt")
        told = watching.told()
    finally:
        watching.end()
    files = {"written.txt", "saved.txt", "deep/replaced.txt", "new/made.txt", "last.txt"}
    files |= {"removed.txt"} if tool.tells_removals else set()
    assert files <= told
    # Of directories, and of the name that vim takes meanwhile, some tools tell and others do not.
    assert told <= files | {"new", "deep", "saved.txt~"}
    assert not told & set(REST)
