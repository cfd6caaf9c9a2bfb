"""The daemon through its real socket: VMs, shares, references, leases, operations, events."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any

import pytest

from uvmshare import errors
from uvmshare.daemon.documents import ReleasedOwner
from uvmshare.testing.client import NinePClient as Guest

if TYPE_CHECKING:
    from tests.daemon.harness import Home, Running

    from uvmshare.daemon.client import Client


def test_a_guest_reads_what_a_client_of_the_daemon_shares(daemon: Running, client: Client) -> None:
    path = daemon.home.directory("project")
    with open(f"{path}/hello", "w") as file:
        file.write("from the host")
    vm = daemon.add_vm()
    share = client.shares.add("vm", path, read_only=True)
    assert (share.vm, share.state, share.read_only, share.path) == ("vm", "added", True, path)
    with Guest.connect(vm.addresses[0], share.name) as guest:
        assert guest.read_file("hello") == b"from the host"
    client.shares.release("vm", share.name)
    assert client.shares("vm") == []
    with pytest.raises(OSError, match=r"."):
        Guest.connect(vm.addresses[0], share.name)


def test_equal_shares_are_one_and_each_owner_holds_it_once(daemon: Running, client: Client) -> None:
    path = daemon.home.directory("project")
    daemon.add_vm()
    names = {client.shares.add("vm", path, owner=owner).name for owner in ("a", "b", "a")}
    assert len(names) == 1
    (share,) = client.shares("vm")
    assert [reference.owner for reference in share.references] == ["a", "b"]
    released = [client.shares.release("vm", share.name, owner=owner) for owner in ("a", "a", "nobody")]
    assert [each.released for each in released] == [True, False, False], "again it does no harm, and says so"
    assert [[holder.owner for holder in each.holders] for each in released] == [["b"]] * 3
    assert [reference.owner for reference in client.shares.get("vm", share.name).references] == ["b"]
    assert client.owners.release("nobody") == ReleasedOwner(released=False, shares=0, mounts=0)
    assert client.owners.release("b") == ReleasedOwner(released=True, shares=1, mounts=0)
    assert client.owners.release("b") == ReleasedOwner(released=False, shares=0, mounts=0)
    assert client.shares("vm") == []


def test_a_lease_that_is_not_renewed_releases_the_share(daemon: Running, client: Client) -> None:
    path = daemon.home.directory("project")
    daemon.add_vm()
    share = daemon.add_share(path, owner="job", lease=30)
    assert share.references[0].lease == 30
    daemon.pass_time(29)
    assert client.owners.renew("job").leases == 1
    daemon.pass_time(29)
    assert client.owners.renew("job", vm="vm", share=share.name).leases == 1
    daemon.pass_time(29)
    assert [each.name for each in client.shares("vm")] == [share.name]
    daemon.pass_time(1)
    assert client.shares("vm") == []
    with pytest.raises(errors.NotThere, match="job"):
        client.owners.renew("job")


def test_a_renewal_may_change_the_length(daemon: Running, client: Client) -> None:
    daemon.add_vm()
    share = daemon.add_share(daemon.home.directory("project"), owner="job", lease=30)
    client.owners.renew("job", lease=300)
    daemon.pass_time(200)
    (reference,) = client.shares.get("vm", share.name).references
    assert reference.lease == 300
    assert reference.expires_in == pytest.approx(100)


def test_asking_again_without_a_lease_holds_it_for_good(daemon: Running, client: Client) -> None:
    path = daemon.home.directory("project")
    daemon.add_vm()
    daemon.add_share(path, lease=30)
    share = daemon.add_share(path)
    assert share.references[0].lease is None
    daemon.pass_time(1000)
    assert [each.name for each in client.shares("vm")] == [share.name]


def test_one_lease_that_ends_takes_nothing_from_others(daemon: Running, client: Client) -> None:
    path = daemon.home.directory("project")
    daemon.add_vm()
    daemon.add_share(path, owner="short", lease=10)
    daemon.add_share(path, owner="long", lease=100)
    daemon.pass_time(50)
    (share,) = client.shares("vm")
    assert [reference.owner for reference in share.references] == ["long"]


def test_a_share_that_cannot_be_leaves_no_lease(daemon: Running, client: Client) -> None:
    daemon.add_vm(read_only=True)
    path = daemon.home.directory("project")
    with pytest.raises(errors.OperationDenied, match="read_only"):
        client.shares.add("vm", path, owner="job", lease=30)
    with pytest.raises(errors.NotThere):
        client.owners.renew("job")
    assert client.shares.add("vm", path, read_only=True).read_only


def test_an_allow_list_passes_through_to_the_guest(daemon: Running, client: Client) -> None:
    path = daemon.home.directory("project")
    for name in ("shown", "hidden"):
        with open(f"{path}/{name}", "w") as file:
            file.write(name)
    vm = daemon.add_vm()
    share = client.shares.add("vm", path, read_only=True, only=("shown",))
    with Guest.connect(vm.addresses[0], share.name) as guest:
        assert guest.read_file("shown") == b"shown"
        with pytest.raises(OSError, match=r"."):
            guest.read_file("hidden")


def test_hidden_names_and_mapped_owners_pass_through_to_the_guest(daemon: Running, client: Client) -> None:
    path = daemon.home.directory("project")
    for name in ("shown", "x.key"):
        with open(f"{path}/{name}", "w") as file:
            file.write(name)
    vm = daemon.add_vm()
    wanted: dict[str, Any] = {"path": path, "hide": ("*.key", "*.key"), "map_owner": "all:7", "lease": 60}
    share = client.shares.add("vm", **wanted)
    assert (share.hide, share.map_owner) == (("*.key",), "all:7/7")
    assert client.shares.add("vm", **wanted).name == share.name
    plain = client.shares.add("vm", path)
    assert plain.name != share.name
    assert (plain.hide, plain.map_owner) == ((), None)
    with Guest.connect(vm.addresses[0], share.name) as guest:
        assert guest.listdir() == [b"shown"]
        assert guest.stat("shown").uid == 7
    assert client.shares.get("vm", share.name).references[0].lease == 60
    client.shares.release("vm", share.name)
    assert [each.name for each in client.shares("vm")] == [plain.name]


@pytest.mark.parametrize(
    ("more", "error", "wrong"),
    [
        ({"hide": ("a//b",)}, errors.InvalidOptions, "a part that no path has"),
        ({"hide": ("[x",)}, errors.InvalidOptions, "without its ']'"),
        ({"hide": ("x",) * 257}, errors.UvmshareError, "256"),
        ({"hide": ("x" * 1025,)}, errors.UvmshareError, "1024"),
        ({"map_owner": "0"}, errors.UvmshareError, "map_owner"),
        ({"map_owner": "4294967295:0"}, errors.InvalidOptions, "the highest is 4294967294"),
    ],
)
def test_what_cannot_be_hidden_or_mapped_is_refused_in_words(
    daemon: Running, client: Client, more: dict[str, Any], error: type[Exception], wrong: str
) -> None:
    daemon.add_vm()
    with pytest.raises(error, match=re.escape(wrong)):
        client.shares.add("vm", daemon.home.directory("project"), **more)
    assert client.shares("vm") == []


def test_an_operation_can_be_waited_for_later(daemon: Running, client: Client) -> None:
    daemon.add_vm()
    begun = client.shares.begin_add("vm", daemon.home.directory("project"))
    assert (begun.action, begun.vm) == ("add share", "vm")
    ended = client.operations.get(begun.id, wait=True)
    assert ended.state == "succeeded"
    assert ended.result["name"] == client.shares("vm")[0].name
    assert ended.ended is not None
    failing = client.shares.begin_add("vm", "/nonexistent")
    failed = client.operations.get(failing.id, wait=True)
    assert failed.state == "failed"
    assert failed.problem is not None
    assert failed.problem.error == "InvalidOptions"
    with daemon.home.http() as http:
        listed = http.get("/v1/operations").json()
    assert {begun.id, failing.id} <= {each["id"] for each in listed}


def test_at_once_says_202_and_where_to_look(daemon: Running) -> None:
    daemon.add_vm()
    with daemon.home.http() as http:
        answer = http.post("/v1/vms/vm/shares?wait=false", json={"path": daemon.home.directory("project")})
        assert answer.status_code == 202
        assert answer.headers["Location"] == f"/v1/operations/{answer.json()['id']}"
        assert http.get(answer.headers["Location"], params={"wait": "true"}).json()["state"] == "succeeded"
        assert http.delete("/v1/vms/vm?force=true&wait=false").status_code == 202


def test_a_vm_in_use_goes_only_by_force(daemon: Running, client: Client) -> None:
    vm = daemon.add_vm()
    share = daemon.add_share(daemon.home.directory("project"), lease=30)
    with pytest.raises(errors.StillInUse, match="1 share"):
        client.vms.remove("vm")
    guest = Guest.connect(vm.addresses[0], share.name)
    client.vms.remove("vm", force=True)
    assert client.vms() == []
    with guest, pytest.raises((OSError, EOFError)):
        guest.listdir("")
    assert not os.path.exists(vm.addresses[0].removeprefix("unix:"))
    with pytest.raises(errors.NotThere):
        client.owners.renew("default")


def test_the_same_vm_again_changes_nothing_and_another_of_its_id_is_refused(daemon: Running, client: Client) -> None:
    vm = daemon.add_vm()
    assert daemon.add_vm() == vm
    with pytest.raises(errors.AlreadyThere, match="'vm'"):
        daemon.add_vm(read_only=True)
    assert client.vms() == [vm]


LOOPBACK = ["tcp:127.0.0.1:0"]


@pytest.mark.parametrize(
    ("wanted", "error"),
    [
        ({"id": "x"}, errors.InvalidOptions),
        ({"id": "x", "listen": ("unix:/x",), "compute_system": "y"}, errors.InvalidOptions),
        ({"id": "x", "compute_system": "y"}, errors.UnsupportedPlatform),
        ({"id": "x", "listen": ("nonsense",)}, errors.InvalidAddress),
        ({"id": "x", "listen": ("unix:/nonexistent/9p",)}, errors.FileServerError),
        ({"id": "x", "listen": ("tcp:0.0.0.0:0",)}, errors.UvmshareError),
        ({"id": "x", "listen": ("unix:/x",), "limits": {"mounts": -1}}, errors.InvalidOptions),
        ({"id": "x", "listen": ("unix:/x",), "limits": {"mounts": 0}}, errors.FileServerError),
        ({"id": "x", "listen": ("unix:relative",)}, errors.InvalidAddress),
        ({"id": "x", "listen": LOOPBACK, "agent": "nonsense"}, errors.InvalidAddress),
        ({"id": "x", "listen": LOOPBACK, "agent": "unix:relative"}, errors.InvalidAddress),
        (
            {"id": "x", "listen": LOOPBACK, "agent": "tcp:0.0.0.0:0", "agent_dials": True},
            errors.InvalidAddress,
        ),
        (
            {"id": "x", "listen": LOOPBACK, "agent": "tcp:name:0", "agent_dials": True},
            errors.InvalidAddress,
        ),
        (
            {"id": "x", "listen": LOOPBACK, "agent": "unix:/dev/null", "agent_dials": True},
            errors.FileServerError,
        ),
    ],
)
def test_a_vm_that_cannot_be_leaves_nothing(shared: Running, wanted: dict[str, Any], error: type[Exception]) -> None:
    lock = f"{shared.home.settings.run_dir}/vms/{os.getuid()}/x/lock"
    with shared.home.client() as client:
        with pytest.raises(error):
            client.vms.add(**wanted)
        assert not os.path.exists(lock), "its file server has ended"
        assert [vm.id for vm in client.vms()] == ["vm"]
        with pytest.raises(errors.NotThere):
            client.vms.get("x")


def test_a_compute_system_is_refused_with_what_to_do_on_windows(shared: Running) -> None:
    with shared.home.http() as http:
        answer = http.post("/v1/vms", json={"id": "x", "compute_system": "build-7"})
    assert answer.status_code == 501
    assert re.search(
        r"'build-7'.*Windows host.*process of your own.*Manager over uvmshare\.hcs\.compute_system\.ComputeSystem",
        answer.json()["reason"],
    )


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "error"),
    [
        ("GET", "/v1/vms/none", None, 404, "NotThere"),
        ("GET", "/v1/vms/0:none", None, 404, "NotThere"),
        ("GET", "/v1/vms/99999999999:x", None, 404, "NotThere"),
        ("GET", "/v1/vms/vm/shares/7", None, 404, "NotThere"),
        ("DELETE", "/v1/vms/vm/shares/7", None, 404, "NotThere"),
        ("PUT", "/v1/vms/vm/shares/7/leases/x", {}, 404, "NotThere"),
        ("PUT", "/v1/leases/x", {}, 404, "NotThere"),
        ("GET", "/v1/operations/none", None, 404, "NotThere"),
        ("GET", "/v1/nothing", None, 404, "NotThere"),
        ("GET", "/elsewhere", None, 404, "NotThere"),
        ("PATCH", "/v1/vms", None, 405, "UvmshareError"),
        ("POST", "/v1/vms", {"id": "a b", "listen": ["unix:/x"]}, 400, "InvalidDocument"),
        ("POST", "/v1/vms", {"id": "a", "listn": ["unix:/x"]}, 400, "InvalidDocument"),
        ("POST", "/v1/vms", {"id": "a\n", "listen": ["unix:/x"]}, 400, "InvalidDocument"),
        ("POST", "/v1/vms", {"id": "a", "listen": ["vsock:" + 500 * "9"]}, 422, "InvalidAddress"),
        ("POST", "/v1/vms/vm/shares", {"path": "relative"}, 422, "InvalidOptions"),
        ("POST", "/v1/vms/vm/shares", {"path": "/nonexistent"}, 422, "InvalidOptions"),
        ("POST", "/v1/vms/vm/shares", {"path": "/tmp", "lease": 0}, 400, "InvalidDocument"),
        ("POST", "/v1/vms/vm/shares", {"path": "/tmp", "owner": "a/b"}, 400, "InvalidDocument"),
        ("POST", "/v1/vms/vm/shares", {"path": "/tmp", "owner": "a\n"}, 400, "InvalidDocument"),
        ("GET", "/v1/vms/vm/shares?wait=true", None, 400, "InvalidDocument"),
        ("DELETE", "/v1/vms/vm?force=perhaps", None, 400, "InvalidDocument"),
    ],
)
def test_whatever_fails_says_the_thing_the_reason_and_the_remedy(
    shared: Running, method: str, path: str, body: object, *, status: int, error: str
) -> None:
    with shared.home.http() as http:
        answer = http.request(method, path, json=body)
    assert answer.status_code == status
    assert answer.headers["Content-Type"].startswith("application/problem+json")
    problem = answer.json()
    assert problem["error"] == error
    assert problem["status"] == status
    assert problem["thing"] == f"{method} {path.partition('?')[0]}"
    assert problem["reason"]
    assert problem["remedy"]


@pytest.mark.parametrize("body", [b"{", 100_000 * b"["])
def test_a_body_that_is_no_json_is_a_problem_too(shared: Running, body: bytes) -> None:
    with shared.home.http() as http:
        answer = http.post("/v1/vms", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"] == "InvalidDocument"


def test_events_come_in_order_and_go_on_behind_an_id(daemon: Running, client: Client) -> None:
    daemon.add_vm()
    share = daemon.add_share(daemon.home.directory("project"), owner="job", lease=5)
    daemon.pass_time(5)
    seen = [event for event in client.events("0", follow=False) if event is not None]
    assert [event.kind for event in seen] == ["vm.added", "share.held", "lease.ended", "share.removed"]
    assert {event.vm for event in seen} == {"vm"}
    assert (seen[1].share, seen[1].owner, seen[1].detail["lease"]) == (share.name, "job", 5)
    again = list(client.events(seen[1].id, follow=False))
    assert again == seen[2:]
    assert list(client.events(seen[-1].id, follow=False)) == []


def test_events_from_the_beginning_say_that_some_are_missing_only_when_some_are(
    daemon: Running, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.add_vm()
    (first,) = client.events("0", follow=False)
    assert first is not None
    share = daemon.add_share(daemon.home.directory("project"))
    client.shares.release("vm", share.name)
    whole = list(client.events("0", follow=False))
    assert None not in whole
    assert len(whole) == 4
    assert daemon.daemon is not None
    (kept,) = daemon.daemon.service.events._of_user.values()
    monkeypatch.setattr(kept, "_most", 2)
    daemon.add_share(daemon.home.directory("project"))
    left = list(client.events("0", follow=False))
    assert left[0] is None
    assert None not in left[1:]
    assert len(left) == 3


def test_an_id_of_another_daemon_says_that_events_may_be_missing(daemon: Running, client: Client) -> None:
    daemon.add_vm()
    assert daemon.daemon is not None
    for id_ in ("another.daemon-17", f"{daemon.daemon.service.events.instance}-{30 * '9'}"):
        first, *rest = client.events(id_, follow=False)
        assert first is None
        assert [event.kind for event in rest if event is not None] == ["vm.added"]


def test_a_stream_of_events_goes_on_until_the_daemon_ends(home: Home) -> None:
    with home.running() as daemon, home.client() as client:
        events = client.events("0")
        daemon.add_vm()
        event = next(events)
        assert event is not None
        assert event.kind == "vm.added"
        assert daemon.daemon is not None
        daemon.daemon.stop()
        assert list(events) == []


def test_the_daemon_describes_itself(daemon: Running, client: Client) -> None:
    info = client.info()
    assert info.pid == os.getpid()
    assert info.you == os.getuid()
    with daemon.home.http() as http:
        document = http.get("/v1/openapi.json").json()
    assert document["openapi"].startswith("3.")
    assert "/v1/vms/{vm}/shares/{share}" in document["paths"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], f"{method} {path}"
            problems = [status for status in operation["responses"] if int(status) >= 400]
            for status in problems:
                content = operation["responses"][status]["content"]
                assert list(content) == ["application/problem+json"], f"{method} {path} {status}"


def test_no_daemon_is_one_line_with_the_remedy(home: Home) -> None:
    with home.client() as client, pytest.raises(errors.DaemonError, match=r"no daemon answers at .*uvmshare daemon"):
        client.info()
    for wrong in ("tcp:127.0.0.1:1", "", "unix:"):
        with pytest.raises(errors.InvalidAddress, match="unix:PATH"):
            type(client)(wrong)


def test_every_error_has_an_answer_of_its_own_or_of_its_parent() -> None:
    from uvmshare.daemon.problems import _MANY, problem_of, to_exception

    for name in errors.__all__:
        cls = getattr(errors, name)
        error = cls({}) if cls in _MANY else cls("the reason")
        problem = problem_of(error, "the thing")
        assert 400 <= problem.status < 600
        assert problem.error == name
        assert problem.remedy
        assert re.fullmatch(r"[A-Z][a-z ]+", problem.title)
        back = to_exception(problem)
        assert isinstance(back, errors.DaemonError if cls in _MANY else cls)
        assert json.loads(json.dumps(problem.reason)) == problem.reason


def test_what_is_none_of_our_errors_tells_nothing_but_its_class() -> None:
    from uvmshare.daemon.problems import problem_of

    done = problem_of(errors.OutcomeNotWritten("share 7 is off the VM, and that could not be written down yet"), "it")
    assert done.remedy.startswith("What the reason says was done.")
    problem = problem_of(KeyError("secret"), "the thing")
    assert problem.status == 500
    assert "secret" not in problem.reason
    assert "KeyError" in problem.reason
