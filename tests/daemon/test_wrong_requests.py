"""Whatever is wrong with a request, on whichever route: the answer says so in words, and nothing has changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.wrong_requests import assert_all_refused

if TYPE_CHECKING:
    from tests.daemon.harness import Running

    from uvmshare.daemon.client import Client

PARTS = {"vm": "vm", "share": "0", "owner": "default", "operation": "none"}


def state(client: Client) -> Any:
    vms = client.vms()
    happened = list(client.events("0", follow=False))
    return [(vm.id, vm.state, vm.addresses) for vm in vms], client.shares("vm"), client.mounts("vm"), happened


def test_every_route_refuses_wrong_requests_in_words_and_changes_nothing(daemon: Running, client: Client) -> None:
    daemon.add_vm()
    path = daemon.home.directory("project")
    share = daemon.add_share(path)
    bodies: dict[str, dict[str, Any]] = {
        "NewVm": {"id": "vm", "listen": ["unix:/of/another"]},  # there is another of this name
        "NewShare": {"path": "/nowhere"},
        "NewMount": {"path": "/nowhere", "guest_path": "/mnt/x"},
        "Renewal": {"lease": 60},  # there is none to renew
    }
    before = state(client)
    with daemon.home.http() as http:
        assert_all_refused(http, {**PARTS, "share": share.name}, bodies)
    assert state(client) == before
