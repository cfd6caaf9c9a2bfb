"""The guests that the tests of this folder share, each booted once, and the event loop that they live in.

A test that takes `transport` runs over each of them: over the first in ``make test``, or over those that it names with
``@pytest.mark.transports("firecracker", "tcp")``; over the others in ``make test-long``, and there once more in a guest
of the newer kernel. What only vsock has says so: ``@pytest.mark.transports("firecracker", over=VSOCK)``.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from typing import TYPE_CHECKING

import pytest
from tests.guest.transports import NEWER, TRANSPORTS, Transport

from uvmshare.testing.guest_vm import GuestVM
from uvmshare.testing.kernel import find_kernel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from uvmshare.testing.kernel import GuestKernel


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "transport" not in metafunc.fixturenames:
        return
    mark = metafunc.definition.get_closest_marker("transports")
    core, over = (TRANSPORTS[:1], TRANSPORTS) if mark is None else (mark.args, mark.kwargs.get("over", TRANSPORTS))
    params = [pytest.param(name, marks=() if name in core else pytest.mark.long) for name in over]
    params.append(pytest.param(NEWER, marks=(pytest.mark.long, pytest.mark.newer_kernel)))
    metafunc.parametrize("transport", params, indirect=True, scope="module")


@pytest.fixture(scope="session")
def runner() -> Iterator[asyncio.Runner]:
    """The event loop of everything that outlives a test: guests and file servers."""
    with asyncio.Runner() as made:
        yield made


@contextlib.contextmanager
def booted(runner: asyncio.Runner, kernel: GuestKernel | None = None) -> Iterator[GuestVM]:
    directory = tempfile.mkdtemp(prefix="v-", dir="/tmp")  # a unix socket's path is short
    vm = runner.run(GuestVM.start(root="host", kernel=kernel, modules=("vsock_loopback",), vsock=f"{directory}/v"))
    yield vm
    runner.run(vm.aclose())
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def guest(runner: asyncio.Runner) -> Iterator[GuestVM]:
    """A guest whose root is this host's, so that Python, git and the project are there; with a vsock device."""
    with booted(runner) as vm:
        yield vm


@pytest.fixture(scope="session")
def newer(runner: asyncio.Runner) -> Iterator[GuestVM]:
    """The same with the newer kernel."""
    with booted(runner, find_kernel("6.12")) as vm:
        yield vm


@pytest.fixture(scope="module")
def transport(request: pytest.FixtureRequest) -> Transport:
    """How a guest reaches its host."""
    if request.param == NEWER:
        return Transport("firecracker", request.getfixturevalue("newer"))
    return Transport(request.param, request.getfixturevalue("guest"))
