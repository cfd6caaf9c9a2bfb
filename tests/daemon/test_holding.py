"""Holding with a lease that is renewed in the background: what is told, and what holds in the end."""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from tests.processes import DEADLINE

from uvmshare import AsyncClient, errors
from uvmshare.daemon import client_calls
from uvmshare.daemon.client_holding import HeldDocument, renew_awaiting, renew_in_thread
from uvmshare.daemon.documents import Share
from uvmshare.testing.schedule import run

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.daemon.harness import Home


def held(lease: float, clock: Callable[[], float]) -> HeldDocument[Share]:
    document = msgspec.convert(
        {
            "vm": "build",
            "name": "0",
            "path": "/",
            "read_only": True,
            "only": (),
            "hide": (),
            "map_owner": None,
            "state": "added",
            "busy": None,
            "orphan": False,
            "since": "2026-01-01T00:00:00Z",
            "last_error": None,
            "directory": "there",
            "references": (),
            "mounts": (),
        },
        Share,
    )
    renewal, release = (
        client_calls.renew("me", vm="build", share="0"),
        client_calls.release_share("build", "0", owner="me"),
    )
    return HeldDocument(document, "me", lease, renewal=renewal, release=release, clock=clock)


def test_a_share_is_held_for_the_length_of_a_block(home: Home) -> None:
    with home.running() as daemon, home.client() as client:
        daemon.add_vm()
        with client.holding("vm", home.directory("project"), read_only=True) as share:
            (reference,) = client.shares.get("vm", share.name).references
            assert (reference.owner, reference.lease, share.document.read_only) == (share.owner, 30, True)
            assert client.ask(share.renewal).leases == 1
        assert client.shares("vm") == []


def test_an_event_loop_holds_as_a_thread_does(home: Home) -> None:
    async def hold() -> None:
        async with AsyncClient(home.host) as client:
            assert [vm.id for vm in await client.vms()] == ["vm"]
            async with client.holding("vm", home.directory("project"), owner="job") as share:
                (reference,) = (await client.shares.get("vm", share.name)).references
                assert (reference.owner, reference.lease) == ("job", 30)
            assert await client.shares("vm") == []
            assert [event.kind async for event in client.events("0", follow=False) if event is not None]
            with pytest.raises(errors.NotThere):
                await client.shares.get("vm", "77")
        with pytest.raises(errors.DaemonError, match="make a new one"):
            await client.info()

    with home.running() as daemon:
        daemon.add_vm()
        asyncio.run(hold())


def test_a_lease_that_was_over_is_told_in_the_end(home: Home) -> None:
    with home.running() as daemon, home.client() as client:
        daemon.add_vm()
        with (
            pytest.raises(errors.LeaseLost, match="did not hold it to the end"),
            client.holding("vm", home.directory("project")),
        ):
            daemon.pass_time(31)
        with (  # noqa: PT012  both are what is tested
            pytest.raises(ZeroDivisionError) as raised,
            client.holding("vm", home.directory("project")),
        ):
            daemon.pass_time(31)
            raise ZeroDivisionError
        assert any("did not hold it to the end" in note for note in raised.value.__notes__)


def test_a_daemon_that_is_gone_in_the_end_is_told_with_what_becomes_of_the_share(home: Home) -> None:
    with ExitStack() as running:
        running.enter_context(home.running()).add_vm()
        client = running.enter_context(home.client())
        with (
            pytest.raises(errors.DaemonError, match=r"could not be released for .*; its lease ends in 30 s"),
            client.holding("vm", home.directory("project")),
        ):
            running.close()


def test_an_asynchronous_end_says_so_too(home: Home) -> None:
    async def hold(running: ExitStack) -> None:
        async with AsyncClient(home.host) as client:
            with pytest.raises(errors.DaemonError, match="could not be released"):
                async with client.holding("vm", home.directory("project")):
                    await asyncio.to_thread(running.close)

    with ExitStack() as running:
        running.enter_context(home.running()).add_vm()
        asyncio.run(hold(running))


def test_a_lease_is_renewed_thrice_in_its_length_and_tried_again_sooner(caplog: pytest.LogCaptureFixture) -> None:
    at: list[float] = []
    failures: list[Exception | None] = [None, errors.DaemonError("gone"), errors.DaemonError("gone"), None, None]
    failures.append(errors.NotThere("no lease of me"))

    async def test() -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        share = held(30, loop.time)

        async def renew() -> None:
            at.append(round(loop.time() - begun, 3))
            if (failure := failures.pop(0)) is not None:
                raise failure

        await renew_awaiting(share, renew)
        assert isinstance(share.lost, errors.LeaseLost)
        assert isinstance(share.not_released(errors.DaemonError("x")), errors.LeaseLost)

    with caplog.at_level(logging.INFO, "uvmshare.leases"):
        run(test())
    assert at == [10, 20, 23, 26, 36, 46]
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO", "ERROR"]


def test_a_lease_that_was_not_renewed_in_time_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    share = held(30, lambda: now[0])
    for now[0] in (10, 20, 30, 40, 50):
        share.not_renewed(errors.DaemonError("no daemon"))
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]
    assert "may be over" in caplog.records[-1].message
    assert share.pause == 3


def test_a_thread_renews_until_the_lease_is_lost() -> None:
    share = held(0.003, lambda: 0.0)
    renewed, lost = [0], threading.Event()

    def renew() -> None:
        renewed[0] += 1
        if renewed[0] == 4:
            lost.set()
            raise errors.NotThere

    renew_in_thread(share, renew)
    assert lost.wait(DEADLINE)
    for thread in threading.enumerate():
        if thread.name == "uvmshare lease":
            thread.join(DEADLINE)
    assert (renewed, share.lost is not None, share.pause) == ([4], True, None)


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda c: c.shares.add("vm", 5), "path is 5: pass a directory or file"),
        (lambda c: c.shares.add(5, "/"), "vm is 5: pass its name"),
        (lambda c: c.shares.add("vm", "/", lease="30"), "lease is '30': pass seconds"),
        (lambda c: c.shares.add("vm", "/", lease=-1), "lease is -1: pass seconds above 0"),
        (lambda c: c.shares.add("vm", "/", owner="a b"), "owner is 'a b': .*letters, digits"),
        (lambda c: c.shares.add("vm", "/", readonly=True), "readonly is no option .*did you mean read_only"),
        (lambda c: c.vms.add("x", listen="unix:/x"), "listen is 'unix:/x': pass a list of addresses"),
        (lambda c: c.vms.add("x", security_model="passthru"), "did you mean 'passthrough'"),
        (lambda c: c.vms.add("x", agent_token=5), "agent_token is a secret of type int: pass"),
        (lambda c: c.mounts.map("vm", "/", "mnt", msize=1), "msize is 1"),
        (lambda c: c.owners.renew("me", vm="vm"), "pass both for one share, or neither"),
        (lambda c: c.vms.remove("vm", force=1), "force is 1: pass True or False"),
    ],
)
def test_arguments_that_cannot_be_are_one_line_before_anything_is_sent(
    home: Home, ask: Callable[[Any], object], words: str
) -> None:
    with home.client() as client, pytest.raises(errors.InvalidOptions, match=words) as raised:
        ask(client)  # and there is no daemon: what is sent would raise DaemonError
    assert "\n" not in str(raised.value)
