"""The commands that speak to the daemon: a table, JSON, and one line when something is wrong."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from tests.daemon.harness import Home

from uvmshare.cli.main import run
from uvmshare.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.daemon.harness import Running


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with Home.made() as home, home.running() as daemon:
        yield daemon


@pytest.fixture(autouse=True)
def host(running: Running, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("UVMSHARE_HOST", running.home.host)
    return running.home.host


def printed(capfd: pytest.CaptureFixture[str], *args: str, status: int = 0) -> str:
    capfd.readouterr()
    assert run(args) == status
    out, err = capfd.readouterr()
    return out if status == 0 else err


def test_a_file_of_certificates_that_is_not_there_hinders_nobody(
    running: Running, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", running.home.folder + "/nowhere")
    assert json.loads(printed(capfd, "vm", "ls", "--json")) == []


def test_vm_and_share_from_the_first_to_the_last(running: Running, capfd: pytest.CaptureFixture[str]) -> None:
    home = running.home
    path = home.directory("project")
    address = f"unix:{home.folder}/build.9p"
    assert printed(capfd, "vm", "add", "build", address) == "build\n"
    assert address in printed(capfd, "vm", "ls")
    (vm,) = json.loads(printed(capfd, "vm", "ls", "--json"))
    assert (vm["id"], vm["state"], vm["addresses"]) == ("build", "running", [address])

    name = printed(capfd, "share", "add", "build", f"{path}:ro", "--owner", "job", "--lease", "60").strip()
    table = printed(capfd, "share", "ls")
    assert table.splitlines()[0].split() == ["VM", "SHARE", "PATH", "ACCESS", "STATE", "DIRECTORY", "HELD", "BY"]
    assert f"{path}" in table
    assert "job (1m)" in table
    assert json.loads(printed(capfd, "share", "ls", "build", "--json"))[0]["read_only"] is True
    assert json.loads(printed(capfd, "share", "inspect", "build", name))["path"] == path
    assert printed(capfd, "share", "renew", "job", "--lease", "1m30s") == ""
    assert "(1m30s)" in printed(capfd, "share", "ls")
    assert "held" in printed(capfd, "vm", "rm", "build", status=1)
    assert printed(capfd, "share", "rm", "build", name, "--owner", "job") == f"{name}\n"
    assert json.loads(printed(capfd, "share", "ls", "--json")) == []
    kinds = [
        json.loads(line)["kind"]
        for line in printed(capfd, "events", "--since", "0", "--no-follow", "--json").splitlines()
    ]
    assert kinds[:3] == ["vm.added", "share.held", "share.released"]
    assert "build share.held" in printed(capfd, "events", "--since", "0", "--no-follow")
    assert printed(capfd, "vm", "rm", "build") == "build\n"
    assert printed(capfd, "vm", "ls") == ""


def test_what_is_hidden_and_mapped_shows_in_the_list_of_shares(
    running: Running, capfd: pytest.CaptureFixture[str]
) -> None:
    path = running.home.directory("project")
    printed(capfd, "vm", "add", "hiding", f"unix:{running.home.folder}/hiding.9p")
    options = ("--hide", "*.key", "--hide", "!a.key", "--map-owner", "1000:0")
    name = printed(capfd, "share", "add", "hiding", f"{path}:ro:hide=b", *options).strip()
    assert "ro hide=*.key,!a.key,b owner=1000/1000:0/0" in " ".join(printed(capfd, "share", "ls", "hiding").split())
    (shown,) = json.loads(printed(capfd, "share", "ls", "hiding", "--json"))
    assert (shown["hide"], shown["map_owner"]) == (["*.key", "!a.key", "b"], "1000/1000:0/0")
    assert "a part that no path has" in printed(capfd, "share", "add", "hiding", path, "--hide", "../x", status=1)
    for wrong in (("--map-owner", "alice:0"), ("--hide", ""), ("--hide", "x" * 1025)):
        assert "Invalid value for '--" in printed(capfd, "share", "add", "hiding", path, *wrong, status=2)
    printed(capfd, "share", "rm", "hiding", name)
    printed(capfd, "vm", "rm", "hiding")


def test_of_several_shares_none_stays_when_one_fails(running: Running, capfd: pytest.CaptureFixture[str]) -> None:
    home = running.home
    printed(capfd, "vm", "add", "several", f"unix:{home.folder}/several.9p", "--json")
    try:
        said = printed(capfd, "share", "add", "several", home.directory("one"), f"{home.folder}/missing", status=1)
        assert "missing" in said
        assert json.loads(printed(capfd, "share", "ls", "several", "--json")) == []
    finally:
        printed(capfd, "vm", "rm", "--force", "several")


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["share", "ls", "nothing"], "'nothing'"),
        (["share", "inspect", "nothing", "0"], "'nothing'"),
        (["share", "renew", "nobody"], "'nobody'"),
        (["vm", "rm", "nothing"], "'nothing'"),
        (["vm", "add", "x", "nonsense"], "nonsense"),
    ],
)
def test_what_the_daemon_refuses_is_one_line(args: list[str], named: str, capfd: pytest.CaptureFixture[str]) -> None:
    said = printed(capfd, *args, status=2 if named == "nonsense" else 1)
    assert said.count("\n") == 1
    assert named in said


def test_what_was_held_before_stays_when_another_fails(running: Running, capfd: pytest.CaptureFixture[str]) -> None:
    home = running.home
    printed(capfd, "vm", "add", "before", f"unix:{home.folder}/before.9p")
    try:
        held = printed(capfd, "share", "add", "before", home.directory("one")).strip()
        printed(capfd, "share", "add", "before", home.directory("one"), f"{home.folder}/missing", status=1)
        assert [each["name"] for each in json.loads(printed(capfd, "share", "ls", "before", "--json"))] == [held]
    finally:
        printed(capfd, "vm", "rm", "--force", "before")


@pytest.mark.parametrize(
    "args",
    [
        ["vm", "add", "a b", "unix:/x"],
        ["vm", "add", "x"],
        ["vm", "add", "x", "unix:/x", "--socket-mode", "9"],
        ["map", "x", "/tmp", "/"],
        ["share", "add", "x", "/tmp", "--lease", "nan"],
        ["share", "renew", "job", "--lease", "inf"],
    ],
)
def test_what_the_api_would_not_take_is_a_command_line_that_cannot_be(
    args: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert printed(capfd, *args, status=2).count("\n") == 1


def test_without_a_daemon_the_remedy_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    said = printed(capfd, "vm", "ls", "--host", "unix:/nonexistent/socket", status=1)
    assert said.count("\n") == 1
    assert "no daemon answers at /nonexistent/socket" in said
    assert "uvmshare daemon" in said
    assert "unix:PATH" in printed(capfd, "vm", "ls", "--host", "/nonexistent", status=2)


def test_health_names_a_vm_that_is_not_served_and_a_daemon_that_cannot_write(
    running: Running, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = f"unix:{running.home.folder}/nobody"
    printed(capfd, "vm", "add", "well", f"unix:{running.home.folder}/well.9p")
    printed(capfd, "vm", "add", "ill", f"unix:{running.home.folder}/ill.9p", "--agent", agent)
    try:
        assert "VMs: 2 running" in printed(capfd, "health", "well")
        assert f"VM ill: its agent at {agent} is not reached" in printed(capfd, "health", "ill", status=1)
        assert "'none'" in printed(capfd, "health", "none", status=1)
        assert json.loads(printed(capfd, "health", "--json"))["daemon"]["vms"] == {"running": 2}

        def fail(_: object) -> None:
            msg = "/state/daemon.sqlite: database or disk is full"
            raise DaemonError(msg)

        monkeypatch.setattr("uvmshare.daemon.store.DaemonStore.check", fail)
        assert "disk is full" in printed(capfd, "health", status=1)
        with running.home.http() as http:
            assert http.get("/v1/health").status_code == 503
    finally:
        printed(capfd, "vm", "rm", "--force", "well", "ill")


def test_lists_owners_and_paths_are_for_programs_and_people(
    running: Running, capfd: pytest.CaptureFixture[str]
) -> None:
    path = running.home.directory("listed")
    printed(capfd, "vm", "add", "listing", f"unix:{running.home.folder}/listing.9p")
    name = printed(capfd, "share", "add", "listing", path, "--owner", "job", "--lease", "5m").strip()
    try:
        assert "listing" in printed(capfd, "vm", "ls", "-q").split()
        assert json.loads(printed(capfd, "vm", "inspect", "listing"))["shares"] == 1
        assert printed(capfd, "share", "ls", "-q", "listing") == f"{name}\n"
        template = "{vm:>8} {name} {read_only}"
        assert printed(capfd, "share", "ls", "listing", "--format", template) == f" listing {name} false\n"
        assert printed(capfd, "share", "ls", "-q", "listing", f"{path}/below") == f"{name}\n"
        assert printed(capfd, "share", "ls", "-q", "listing", "/usr") == ""
        assert "job" in printed(capfd, "owner", "ls", "listing")
        (held,) = json.loads(printed(capfd, "owner", "ls", "listing", "--json"))
        assert (held["owner"], held["shares"], held["mounts"]) == ("job", [name], [])
        assert "owner 'nobody' holds nothing" in printed(capfd, "owner", "release", "nobody", status=1)
        assert printed(capfd, "owner", "release", "job") == f"listing share {name}\n"
        assert printed(capfd, "share", "ls", "-q", "listing") == ""
        shown = json.loads(printed(capfd, "top", "--times", "1", "--interval", "0.1", "--json"))
        assert shown == []
    finally:
        printed(capfd, "vm", "rm", "--force", "listing")
