"""A real file server for every security model, and a share of it for every test.

What lives here: the fixtures, and what many tests look at. What must not: what they are made of (`harness`), or what
the server should do; that is in the tests.

A server is started once for a security model and serves all the tests of the session. Each test has
directories of its own: `host.root`, which is shared, and `host.outside`, beside it, which is not.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import stat
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final

import pytest
from tests.fileserver.harness import (
    CANARY,
    IN_AND_OUT,
    LIMITS,
    MODELS,
    WITHOUT_FANOTIFY,
    Device,
    Host,
    InProcess,
    directory_with_xattrs,
    one_of,
)
from tests.forked import forked_supervisors, zygote
from tests.processes import wait_for_end
from tests.refusing import fanotify_refused
from tests.root import require_root

from uvmshare.fileserver import speed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.fileserver.harness import Refused

    from uvmshare.testing.client import NinePClient


__all__ = ["forked_supervisors", "zygote"]

if sys.platform == "win32":
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def xattr_directory() -> Iterator[Path]:
    """A directory whose file system keeps user extended attributes, which mapped-xattr needs."""
    with directory_with_xattrs() as made:
        yield made


@pytest.fixture(scope="session")
def devices() -> Iterator[Callable[[str], Device | InProcess]]:
    """The server of a security model, started when it is first asked for."""
    started: dict[str, Device | InProcess] = {}

    def device(model: str) -> Device | InProcess:
        if model not in started and model == WITHOUT_FANOTIFY:
            with fanotify_refused():
                started[model] = Device(security_model="passthrough", limits=LIMITS)
        elif model not in started:
            started[model] = InProcess() if model == "in-process" else Device(security_model=model, limits=LIMITS)
        return started[model]

    yield device
    for each in started.values():
        each.close()


@pytest.fixture(scope="module")
def start_device() -> Iterator[Callable[..., Device]]:
    """Start a file server of the test's own, with the settings of `FileServer`."""
    with ExitStack() as started:

        def start(**settings: Any) -> Device:
            device = Device(**settings)
            started.callback(device.close)
            return device

        yield start


@pytest.fixture(scope="module")
def device(start_device: Callable[..., Device]) -> Device:
    """A file server of the test module's own."""
    return start_device(security_model="none")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory to share, with one file in it."""
    directory = (tmp_path / "root").resolve()
    directory.mkdir()
    (directory / "file").write_bytes(b"content")
    return directory


model = one_of(*(each if each in IN_AND_OUT else pytest.param(each, marks=pytest.mark.long) for each in MODELS))
"""Each security model in turn; in ``make test`` passthrough, and mapped-xattr in this process.

A module with a `model` of its own, or a test that parametrises it, has some alone.
"""


_directories: Final = itertools.count()


@pytest.fixture
def host(devices: Callable[[str], Device | InProcess], model: str, xattr_directory: Path) -> Iterator[Host]:
    if sys.platform == "win32":
        pytest.skip("the file server runs on Linux")
    if model in ("passthrough", WITHOUT_FANOTIFY):
        require_root("passthrough changes owners, which needs root")
    top = xattr_directory / str(next(_directories))
    root, outside = top / "root", top / "outside"
    for path in (root, outside):
        path.mkdir(parents=True)
    (outside / "canary").write_bytes(CANARY)
    made = Host(devices(model), model, root, outside)
    umask = os.umask(0) if model == "in-process" else None  # a mount process has none either
    try:
        with pytest.MonkeyPatch.context() as patch:
            if model == "in-process":
                patch.setattr(speed, "compiled", None)
            yield made
            made.close()
    finally:
        if umask is not None:
            os.umask(umask)
    assert (outside / "canary").read_bytes() == CANARY
    shutil.rmtree(top)


@pytest.fixture
def guest(host: Host) -> NinePClient:
    """A client of a writable share of `host.root`."""
    return host.guest()


@pytest.fixture
def refused() -> Refused:
    """What is inside must be answered with one of these errnos; with any at all when none is given."""

    @contextmanager
    def answers(*numbers: int) -> Iterator[None]:
        with pytest.raises(OSError, match="in answer to") as caught:
            yield
        if numbers:
            got, wanted = os.strerror(caught.value.errno or 0), [os.strerror(number) for number in numbers]
            assert caught.value.errno in numbers, f"answered {got!r}, expected {wanted}"

    return answers


@pytest.fixture
def ended() -> Callable[[int], None]:
    """`wait_for_end`, for tests that take everything from here as fixtures."""
    return wait_for_end


def _describe(path: Path) -> tuple[object, ...]:
    if sys.platform == "win32":
        pytest.skip("the file server runs on Linux")
    found = path.lstat()
    content: object = None
    if stat.S_ISREG(found.st_mode):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
    elif stat.S_ISLNK(found.st_mode):
        content = os.readlink(path)
    elif stat.S_ISDIR(found.st_mode):
        content = sorted(entry.name for entry in path.iterdir())
    attributes = {
        name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)
    }
    return (
        content,
        attributes,
        *(found.st_mode, found.st_uid, found.st_gid, found.st_nlink, found.st_rdev, found.st_size),
        *(found.st_mtime_ns, found.st_ctime_ns, found.st_ino),
    )


@pytest.fixture
def snapshot() -> Callable[[Path], dict[str, tuple[object, ...]]]:
    """Everything of a host tree that a guest could change: contents, names, modes, owners, times, attributes."""

    def take(top: Path) -> dict[str, tuple[object, ...]]:
        return {str(path.relative_to(top)): _describe(path) for path in [top, *sorted(top.rglob("*"))]}

    return take
