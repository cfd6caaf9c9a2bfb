"""`uvmshare hcs` over the stand-in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from tests.hcs.conftest import AFTER_DOING_IT, VM

from uvmshare.cli import hcs as hcs_commands
from uvmshare.cli.foreground import Ready, print_line
from uvmshare.cli.hcs_record import RecordedShares
from uvmshare.cli.main import run
from uvmshare.errors import UnsupportedPlatform
from uvmshare.hcs import compute_system

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.hcs.conftest import StandIn

    from uvmshare.cli.foreground import Served


@pytest.fixture(autouse=True)
def _host(standin: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose HCS is the stand-in, and whose records are this test's."""
    monkeypatch.setattr(compute_system, "_system_core", lambda: standin.core)
    monkeypatch.setenv("UVMSHARE_STATE_DIR", str(tmp_path / "state"))


@pytest.fixture
def source(tmp_path: Path) -> str:
    (tmp_path / "source").mkdir()
    return os.path.normcase(str(tmp_path / "source"))


@pytest.fixture
def hcs(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, list[dict[str, Any]], str]]:
    """Run a command: its exit status, the lines of JSON it prints, and what it says on stderr."""

    def command(*args: str) -> tuple[int, list[dict[str, Any]], str]:
        status = run(["hcs", *args])
        captured = capsys.readouterr()
        return status, [json.loads(line) for line in captured.out.splitlines()], captured.err

    return command


def test_list(hcs: Callable[..., Any], standin: StandIn) -> None:
    standin.add_system("another")
    status, lines, _ = hcs("list")
    assert status == 0
    assert lines == [
        {"vm": VM, "owner": "standin", "os": "Linux", "state": "Running"},
        {"vm": "another", "owner": "standin", "os": "Linux", "state": "Running"},
    ]


def test_add_shares_remove(hcs: Callable[..., Any], standin: StandIn, source: str) -> None:
    status, added, error = hcs("add", VM, "--port", "50001", f"{source}:ro", f"{source}:only=f")
    assert (status, error) == (0, "")
    first, second = added
    assert first == {"share": first["share"], "path": source, "read_only": True, "port": 50001}
    assert second == {"share": second["share"], "path": source, "read_only": False, "port": 50001, "only": ["f"]}
    assert first["share"].isdecimal()
    assert int(second["share"]) > int(first["share"]) > 1_700_000_000
    assert [(share["Name"], share["Port"], share["Flags"]) for share in standin.shares()] == [
        (first["share"], 50001, 5),
        (second["share"], 50001, 0x84),
    ]
    assert hcs("shares", VM) == (0, added, "")
    assert hcs("shares", "another") == (0, [], "")
    assert hcs("remove", VM, first["share"]) == (0, [], "")  # the port is in the record
    assert standin.names() == [second["share"]]
    assert hcs("shares", VM)[1] == [second]
    assert hcs("remove", VM, first["share"])[0] == 0  # again: it is not there, as asked
    assert hcs("add", VM, source)[0] == 0
    assert len(set(standin.names()) | {first["share"]}) == 3, "a name came back"


def test_all_are_added_or_none_is(hcs: Callable[..., Any], standin: StandIn, source: str) -> None:
    standin.inject("HcsModifyComputeSystem", 0)
    standin.inject("HcsModifyComputeSystem", 0x80310000)
    status, lines, error = hcs("add", VM, f"{source}:ro", source)
    assert (status, lines) == (1, [])
    assert "BitLocker" in error
    assert error.count("\n") == 1
    assert standin.names() == []
    assert hcs("shares", VM) == (0, [], "")


def test_what_could_not_be_taken_out_stays_on_record(hcs: Callable[..., Any], standin: StandIn, source: str) -> None:
    standin.inject("HcsModifyComputeSystem", 0x80370118, AFTER_DOING_IT)  # the add: done, and not known
    standin.inject("HcsModifyComputeSystem", 0x80370118)  # its undoing
    assert hcs("add", VM, source)[0] == 1
    _, [left], _ = hcs("shares", VM)
    assert standin.names() == [left["share"]]
    assert hcs("remove", VM, left["share"])[0] == 0
    assert (standin.names(), hcs("shares", VM)[1]) == ([], [])


def test_a_vm_that_is_gone_has_no_record(hcs: Callable[..., Any], standin: StandIn, source: str) -> None:
    standin.add_system("going")
    _, [added], _ = hcs("add", "going", source)
    standin.exit("going")
    assert hcs("remove", "going", added["share"])[0] == 0
    assert hcs("shares", "going")[1] == []
    status, _, error = hcs("remove", "gone", "1")
    assert (status, error.count("\n")) == (1, 1)
    assert "there is no such compute system" in error


def test_a_record_that_is_none_is_named(hcs: Callable[..., Any], tmp_path: Path) -> None:
    home = tmp_path / "state" / "hcs" / VM
    home.mkdir(parents=True)
    (home / "7.json").write_text("{}")
    status, _, error = hcs("shares", VM)
    assert (status, error.count("\n")) == (1, 1)
    assert "7.json: not a record of a share" in error


def test_two_commands_never_take_one_name(tmp_path: Path) -> None:
    record = RecordedShares(str(tmp_path), "a/../b")
    names = [record.reserve("/p", read_only=True, port=1, only=()).share for _ in range(5)]
    assert sorted(names) == sorted(set(names))
    assert record._create(record.shares()[0]) is False
    assert [share.share for share in record.shares()] == names
    assert {path.name for path in (tmp_path / "hcs").iterdir()} == {"a%2F..%2Fb"}
    record.forget(names[0])
    record.forget(names[0])
    assert [share.share for share in record.shares()] == names[1:]


def test_a_path_that_is_not_there_touches_nothing(hcs: Callable[..., Any], standin: StandIn, source: str) -> None:
    status, _, error = hcs("add", VM, source + "x")
    assert (status, standin.count("modify")) == (1, 0)
    assert "source" in error


@pytest.mark.parametrize("how", ["signal", "exit"])
def test_serve_holds_shares_until_it_ends(
    hcs: Callable[..., Any], standin: StandIn, source: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[list[str]] = []

    def then_end(line: Served | Ready) -> None:
        print_line(line)
        if isinstance(line, Ready):
            served.append(standin.names())
            if how == "signal":
                signal.raise_signal(signal.SIGINT)
            else:
                standin.exit(VM, '{"Status":0,"ExitType":"GracefulExit"}')

    monkeypatch.setattr(hcs_commands, "print_line", then_end)
    status, lines, error = hcs("serve", VM, f"{source}:ro", source)
    assert lines[-1] == {"ready": True}
    assert [(line["share"], line["read_only"]) for line in lines[:-1]] == [("0", True), ("1", False)]
    assert served == [["0", "1"]]
    assert standin.names() == []
    if how == "signal":
        assert status == 130
    else:
        assert status == 1
        assert "the VM has exited (GracefulExit), and its shares with it" in error


def test_serve_takes_out_what_it_added_when_one_fails(hcs: Callable[..., Any], standin: StandIn, source: str) -> None:
    standin.inject("HcsModifyComputeSystem", 0)
    standin.inject("HcsModifyComputeSystem", 0x80070005)
    status, lines, error = hcs("serve", VM, f"{source}:ro", source)
    assert (status, len(lines), standin.names()) == (1, 1, [])
    assert "access is denied" in error


def test_another_system_is_told_so_in_one_line(
    hcs: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    def no_hcs() -> None:
        msg = "the Host Compute Service is part of Windows"
        raise UnsupportedPlatform(msg)

    monkeypatch.setattr(compute_system, "_system_core", no_hcs)
    for args in (["list"], ["add", VM, source], ["remove", VM, "0"], ["serve", VM, source]):
        status, _, error = hcs(*args)
        assert (status, error) == (1, "uvmshare: error: the Host Compute Service is part of Windows\n")


def test_help_does_not_load_the_binding() -> None:
    code = "import sys, uvmshare.cli.hcs; print('uvmshare.hcs.computecore' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
