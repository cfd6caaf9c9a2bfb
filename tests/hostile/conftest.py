"""A file server under attack: its shares, what lies outside them, and what must hold afterwards.

What lives here: servers with a log that is read, a canary beside each share, a witness on another mount; servers
and directories themselves are those of `tests/fileserver/harness.py`. What must not: the
attacks; they are in the tests.
"""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from tests.conformance.harness import write_down
from tests.fileserver.harness import Device, directory_with_xattrs, remove_tree
from tests.forked import forked_supervisors, zygote
from tests.processes import await_answer, children_of, descriptors_of, wait_for_end
from tests.root import require_root

from uvmshare.ninep.constants import NONUNAME

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from uvmshare.testing.client import NinePClient

__all__ = [
    "CANARY",
    "Target",
    "attack",
    "forked_supervisors",
    "xattr_directory",
    "zygote",
]

if sys.platform == "win32":
    collect_ignore_glob = ["test_*.py"]

CANARY: Final = b"the host's own secret, 41 bytes and a few"
"""What lies outside. Its size is nobody else's."""

BUGS: Final = ("Error:", "signal", "Traceback", "Exception ignored", "Fatal")
"""Words of a log line that an attack must not bring about: no exception of Python's, no crash."""


@dataclass
class Target:
    """A file server, a share of it to attack, and those who must not notice."""

    device: Device
    model: str
    top: Path
    log: Path
    user: tuple[int, int]
    """Whom the shares belong to."""
    root: Path = field(init=False)
    outside: Path = field(init=False)
    name: str = field(init=False)
    witness: NinePClient = field(init=False)
    _open: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.root, self.outside = self.top / "root", self.top / "outside"
        quiet = self.top / "quiet"
        for path in (self.root, self.outside, quiet):
            path.mkdir()
            if sys.platform != "win32":
                os.chown(path, *self.user)
        (self.outside / "canary").write_bytes(CANARY)
        (self.outside / "canary").chmod(0o640)
        (quiet / "file").write_bytes(b"content")
        self.name = self.device.share(self.root)
        self.witness = self.connect(self.device.share(quiet))
        self.witness.read_file("file")
        self._before = self._outside()
        self._idle = descriptors_of(self.pid)

    @property
    def pid(self) -> int:
        """The supervisor's process. Asking lets it finish what it was at."""
        return self.device.pid()

    def connect(self, name: str | None = None, *, msize: int = 1 << 20, n_uname: int = NONUNAME) -> NinePClient:
        return self._open.enter_context(self.device.connect(name or self.name, msize=msize, n_uname=n_uname))

    def mounts(self) -> list[int]:
        return self.device.mounts(self.name)

    def reasons(self) -> list[str]:
        self.device.pid()
        return self.log.read_text().splitlines()

    def _outside(self) -> object:
        if sys.platform == "win32":
            pytest.skip("the file server runs on Linux")
        found = (self.outside / "canary").stat()
        there = self.outside.stat()
        return (
            (self.outside / "canary").read_bytes(),
            os.listxattr(self.outside / "canary"),
            (found.st_mode, found.st_uid, found.st_gid, found.st_nlink, found.st_size, found.st_mtime_ns),
            sorted(os.listdir(self.outside)),
            os.listxattr(self.outside),
            (there.st_mode, there.st_uid, there.st_gid, there.st_mtime_ns),
        )

    def require_unharmed(self) -> None:
        """Nothing outside was changed, the witness is served as before, and no line of the log tells of a bug."""
        assert self._outside() == self._before
        assert self.witness.read_file("file") == b"content"
        with self.device.connect(self.name) as another:
            another.stat()
        assert not [line for line in self.reasons() if any(word in line for word in BUGS)]

    def require_nothing_left(self) -> None:
        """The supervisor has the processes and descriptors that it had before the attack."""
        self._require_no_mounts()  # first, because the mounts may be as many as are allowed
        with self.device.connect(self.name) as last:
            last.stat()  # connections are accepted in turn: all earlier ones have been
        self._require_no_mounts()
        assert descriptors_of(self.pid) == self._idle
        assert len(children_of(self.pid)) == 1  # the witness's

    def _require_no_mounts(self) -> None:
        """Wait until the mounts that are ending have ended; none goes on."""

        def left() -> tuple[list[int], int]:
            status = self.device.run(self.device.server.status())
            mounts = [mount.pid for share in status.shares if share.name == self.name for mount in share.mounts]
            for pid in mounts:
                wait_for_end(pid)
            return mounts, status.half_open

        await_answer(left, ([], 0))

    def close(self) -> None:
        self._open.close()
        self.device.close()
        remove_tree(self.top)


@pytest.fixture(scope="session")
def xattr_directory() -> Iterator[Path]:
    """A directory whose file system keeps user extended attributes, which mapped-xattr needs."""
    with directory_with_xattrs() as made:
        yield made


@pytest.fixture
def attack(xattr_directory: Path) -> Iterator[Callable[..., Target]]:
    """Start a file server of the test's own, with the settings of `FileServer`, and what surrounds it."""
    with ExitStack() as started:

        def start(model: str = "none", **settings: Any) -> Target:
            if sys.platform == "win32":
                pytest.skip("the file server runs on Linux")
            if model == "passthrough":
                require_root("passthrough changes owners, which needs root")
            top = Path(tempfile.mkdtemp(dir=xattr_directory))
            log = top / "log"
            user = os.geteuid(), os.getegid()
            if "run_as" in settings:
                user = settings["run_as"][:2]
                for path in (xattr_directory, top):
                    path.chmod(0o755)
            made = Target(Device(security_model=model, log=log, **settings), model, top, log, user)
            started.callback(made.close)
            return made

        yield start


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Write down what a long test found, for docs/conformance.md."""
    report = yield
    if item.get_closest_marker("long") and (call.when == "call" or report.failed):
        write_down(item.nodeid, passed=report.passed, seconds=report.duration)
    return report
