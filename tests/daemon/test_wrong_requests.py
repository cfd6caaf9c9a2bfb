"""Whatever is wrong with a request, on whichever route: the answer says so in words, and nothing has changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.for_people import assert_for_people
from tests.wrong_requests import wrong_requests

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
    count = 0
    with daemon.home.http() as http:
        document = http.get("/v1/openapi.json").json()
        for wrong in wrong_requests(document, {**PARTS, "share": share.name}, bodies):
            count += 1
            answer = http.request(wrong.method, wrong.path, content=wrong.content, headers=dict(wrong.headers))
            said = f"{wrong.method} {wrong.path[:80]}, {wrong.what}: {answer.status_code} {answer.text[:300]}"
            assert 400 <= answer.status_code < 500, said
            assert answer.headers["Content-Type"].startswith("application/problem+json"), said
            problem = answer.json()
            for part in ("thing", "reason", "remedy"):
                assert problem[part], said
                assert "\n" not in problem[part], said
                assert_for_people(problem[part])
            assert problem["status"] == answer.status_code, said
    assert state(client) == before
    assert count > 700
