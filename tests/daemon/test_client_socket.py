"""What the blocking client's connections leave behind: nothing, whatever they meet."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import sys
from typing import TYPE_CHECKING

import pytest

from uvmshare.daemon.client import AsyncClient, Client
from uvmshare.errors import DaemonError, InvalidOptions, UvmshareError

if sys.platform == "win32":
    pytest.skip("the daemon runs on Linux", allow_module_level=True)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.daemon.harness import Running


def descriptors() -> set[str]:
    return {f"{each} {os.readlink(f'/proc/self/fd/{each}')}" for each in os.listdir("/proc/self/fd") if is_open(each)}


def is_open(descriptor: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{descriptor}")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A socket that nobody listens at, named shortly."""
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind("s")
    return str(tmp_path / "s")


def ask(path: str) -> DaemonError:
    with Client(f"unix:{path}") as client, pytest.raises(DaemonError, match="no daemon answers") as raised:
        client.info()
    return raised.value


def ask_in_a_loop(path: str) -> DaemonError:
    async def main() -> DaemonError:
        async with AsyncClient(f"unix:{path}") as client:
            with pytest.raises(DaemonError, match="no daemon answers") as raised:
                await client.info()
        return raised.value

    return asyncio.run(main())


def follow(path: str) -> DaemonError:
    with Client(f"unix:{path}") as client, pytest.raises(DaemonError, match="no daemon answers") as raised:
        next(client.events())
    return raised.value


@pytest.mark.parametrize("ask", [ask, ask_in_a_loop, follow])
def test_a_client_that_cannot_connect_keeps_no_descriptor_not_even_with_its_error(
    path: str, ask: Callable[[str], DaemonError]
) -> None:
    errors = [ask(path)]  # what is loaded once is loaded
    gc.disable()  # it would tidy up behind the client
    try:
        before = descriptors()
        errors += [ask(path) for _ in range(5)]
        assert descriptors() == before
    finally:
        gc.enable()
    assert len(errors) == 6


def test_names_that_are_longer_than_any_request_are_refused_before_anything_is_sent(path: str) -> None:
    with Client(f"unix:{path}") as client, pytest.raises(InvalidOptions, match="more than 16384 bytes"):
        client.vms.get("a" * 20_000)


def test_a_client_goes_on_when_what_it_was_connected_to_was_started_again(daemon: Running) -> None:
    with daemon.home.client() as client:
        assert client.info().version
        (connection,) = client._pool.connections
        stream = connection._connection._network_stream  # type: ignore[attr-defined]
        assert stream.get_extra_info("is_readable") is False
        stream._socket.shutdown(socket.SHUT_RD)  # as when the daemon had closed it
        assert stream.get_extra_info("is_readable") is True
        assert client.info().version
        assert client._pool.connections != [connection]


def test_an_answer_that_does_not_come_is_a_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind("s")
        silent.listen()
        with (
            Client(f"unix:{tmp_path}/s", timeout=0.01) as client,
            pytest.raises(UvmshareError, match="gave no answer in time"),
        ):
            client.info()
