"""`uvmshare serve` over a file server that only writes down what it is asked."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from typing import TYPE_CHECKING

import pytest
from tests.daemon.test_users import as_user
from tests.root import needs_root

import uvmshare
from uvmshare.cli import serve as serve_module
from uvmshare.cli.foreground import Ready, print_line
from uvmshare.cli.main import run
from uvmshare.cli.share_spec import ShareSpec
from uvmshare.errors import AccessDenied, FileServerError
from uvmshare.fileserver import host
from uvmshare.fileserver.limits import Limits
from uvmshare.hcs.schema import RequestType
from uvmshare.hostfiles import require_access

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Self

    from uvmshare.cli.foreground import Served
    from uvmshare.share.interfaces import NamedShare


class FakeServer:
    """A VM that grants all but `refuse`, and raises `signal` at one add."""

    refuse: str | None = None
    signal_at: str | None = None
    fail_to_start = False
    started: dict[str, object]
    notes: tuple[str, ...] = ()
    requests: list[tuple[RequestType, str]]
    closed: bool

    def __init__(
        self,
        *,
        listen: Sequence[str],
        security_model: str,
        links: str,
        allow_remote: bool,
        allow_uids: Sequence[int | str],
        socket_mode: int,
        run_dir: str | None,
        limits: Limits,
    ) -> None:
        self.addresses = tuple(listen)
        type(self).started = {
            "listen": list(listen),
            "security_model": security_model,
            "links": links,
            "allow_remote": allow_remote,
            "allow_uids": tuple(allow_uids),
            "socket_mode": socket_mode,
            "run_dir": run_dir,
            "limits": limits,
        }

    async def start(self) -> Self:
        if self.fail_to_start:
            msg = "address in use"
            raise FileServerError(msg)
        type(self).requests = []
        type(self).closed = False
        return self

    @classmethod
    def connect(cls, run_dir: str, *, take_over: bool) -> Self:
        assert not take_over
        msg = f"no file server answers in {run_dir}"
        raise FileServerError(msg)

    def on_takeover(self, callback: object) -> None:
        """Nothing takes over from this one."""

    async def add_plan9(self, share: NamedShare) -> None:
        await asyncio.sleep(0)
        path = share.options.host_path
        if path == self.refuse:
            msg = f"{path}: not for you"
            raise AccessDenied(msg)
        if path == self.signal_at:
            signal.raise_signal(signal.SIGTERM)
            for _ in range(10):  # turns of the event loop, in which the signal reaches the command
                await asyncio.sleep(0)
        self.requests.append((RequestType.ADD, share.name))

    async def remove_plan9(self, share: NamedShare) -> None:
        await asyncio.sleep(0)
        self.requests.append((RequestType.REMOVE, share.name))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *args: object) -> None:
        type(self).closed = True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> type[FakeServer]:
    class Server(FakeServer):
        pass

    monkeypatch.setitem(vars(uvmshare), "FileServer", Server)
    monkeypatch.setattr(host, "_is_socket", lambda _: True)  # this one makes none
    return Server


@pytest.fixture
def dirs(tmp_path: Path) -> list[str]:
    paths = [tmp_path / name for name in ("a", "b", "c")]
    for path in paths:
        path.mkdir()
    return [str(path) for path in paths]


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def signal_when_ready(monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    from uvmshare.cli import serve as module

    def print_and_signal(line: Served | Ready) -> None:
        print_line(line)
        signal.raise_signal(number)

    monkeypatch.setattr(module, "print_line", print_and_signal)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_shares_are_served_until_a_signal(
    number: signal.Signals,
    server: type[FakeServer],
    dirs: list[str],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(host, "_VHOST_VSOCK", "/dev/null")
    signal_when_ready(monkeypatch, number)
    status = run(["serve", "--listen", "unix:/x", "--listen", "vsock:3", dirs[0], f"{dirs[1]}:ro:only=z,y"])
    assert status == (130 if number == signal.SIGINT else 0), "as the help says"
    out, err = capfd.readouterr()
    assert err == ""
    assert lines(out) == [
        {"share": "0", "path": dirs[0], "read_only": False},
        {"share": "1", "path": dirs[1], "read_only": True, "only": ["y", "z"]},
        {"ready": True, "addresses": ["unix:/x", "vsock:3"]},
    ]
    assert sorted(server.requests[2:], key=lambda request: request[1]) == [
        (RequestType.REMOVE, "0"),
        (RequestType.REMOVE, "1"),
    ]
    assert server.closed
    assert server.started == {
        "listen": ["unix:/x", "vsock:3"],
        "security_model": "mapped-xattr",
        "links": "mapped",
        "allow_remote": False,
        "allow_uids": (),
        "socket_mode": 0o600,
        "run_dir": None,
        "limits": Limits(),
    }


def test_options_reach_the_server(
    server: type[FakeServer], dirs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal_when_ready(monkeypatch, signal.SIGTERM)
    args = [
        "--allow-remote",
        "--allow-uid",
        "64055",
        "--allow-uid",
        "any",
        "--socket-mode",
        "660",
        "--links",
        "real",
        "--security-model",
        "none",
        "--run-dir",
        str(tmp_path),
        "--limit",
        "mounts=4",
        "--limit",
        "idle_seconds=none",
        "-l",
        "tcp:0.0.0.0:0",
    ]
    assert run(["serve", *args, dirs[0]]) == 0
    assert server.started == {
        "listen": ["tcp:0.0.0.0:0"],
        "security_model": "none",
        "links": "real",
        "allow_remote": True,
        "allow_uids": (64055, "any"),
        "socket_mode": 0o660,
        "run_dir": str(tmp_path),
        "limits": Limits(mounts=4),
    }


@pytest.mark.parametrize("text", ["mounts", "mounts=many", "mounts=0", "dogs=1"])
def test_a_limit_that_cannot_be_is_a_usage_error_in_one_line(
    text: str, dirs: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["serve", "--listen", "unix:/x", "--limit", text, dirs[0]]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "--limit" in line


def test_what_the_kernel_lacks_is_said_on_stderr(
    server: type[FakeServer], dirs: list[str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.notes = ("no Landlock",)
    signal_when_ready(monkeypatch, signal.SIGTERM)
    assert run(["serve", "--listen", "unix:/x", dirs[0]]) == 0
    out, err = capfd.readouterr()
    assert len(lines(out)) == 2
    assert err == "uvmshare serve: note: no Landlock\n"


def test_an_address_that_no_guest_can_reach_is_said_before_it_is_ready(
    server: type[FakeServer], dirs: list[str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    del server
    monkeypatch.setattr(host, "_VHOST_VSOCK", f"{dirs[0]}/vhost-vsock")
    said: list[str] = []
    monkeypatch.setattr(serve_module, "note", said.append)

    def ready(line: Served | Ready) -> None:
        said.append(type(line).__name__)
        if isinstance(line, Ready):
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(serve_module, "print_line", ready)
    listen = [word for each in ("vsock:3", "unix:/x", "vsock:7:9") for word in ("--listen", each)]
    assert run(["serve", *listen, dirs[0]]) == 0
    assert said[-1] == "Ready"
    assert [line.split(": ")[2] for line in said[:-1]] == ["vsock:3", "vsock:7:9"], "and of none that can be reached"
    assert all("vhost-vsock is missing" in line and "modprobe vhost_vsock" in line for line in said[:-1])


@needs_root
def test_what_the_user_may_not_write_is_served_read_only_or_not_at_all(
    server: type[FakeServer], capfd: pytest.CaptureFixture[str]
) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's are for their user alone
        os.chmod(folder, 0o755)
        file = os.path.join(folder, "file")
        with open(file, "w", opener=lambda path, flags: os.open(path, flags, 0o444)):
            pass
        for path in (folder, file):
            assert as_user(65534, lambda path=path: run(["serve", "--listen", "unix:/x", path])) == 1  # type: ignore[misc]  # it cannot infer the default's type
            out, err = capfd.readouterr()
            assert out == ""
            assert err == (
                f"uvmshare: error: {path}: uid 65534 may not read and write it (Permission denied): share what that "
                "user may read and write themselves, or share it read-only\n"
            )
            require_access(path, 0, read_only=False)
            as_user(65534, lambda path=path: require_access(path, 65534, read_only=True))  # type: ignore[misc]  # as above
        os.chmod(file, 0o666)  # one file is shared by itself, whatever its directory allows
        as_user(65534, lambda: require_access(file, 65534, read_only=False))
        as_user(65534, lambda: serve_module._require_access([ShareSpec(file)]))
    assert not hasattr(server, "started")


def test_one_share_that_fails_takes_the_others_out_again(
    server: type[FakeServer], dirs: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    server.refuse = dirs[2]
    assert run(["serve", "--listen", "unix:/x", *dirs]) == 1
    out, err = capfd.readouterr()
    assert [line["share"] for line in lines(out)] == ["0", "1"]
    assert err == f"uvmshare: error: {dirs[2]}: not for you\n"
    assert sorted(server.requests, key=lambda request: (request[1], request[0].value)) == [
        (RequestType.ADD, "0"),
        (RequestType.REMOVE, "0"),
        (RequestType.ADD, "1"),
        (RequestType.REMOVE, "1"),
    ]
    assert server.closed


def test_a_signal_while_a_share_is_being_added_leaves_nothing(
    server: type[FakeServer], dirs: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    server.signal_at = dirs[1]
    assert run(["serve", "--listen", "unix:/x", *dirs]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert {"ready": True} not in lines(out)
    added = {name for request_type, name in server.requests if request_type is RequestType.ADD}
    removed = {name for request_type, name in server.requests if request_type is RequestType.REMOVE}
    assert added == removed == {"0", "1"}
    assert server.closed


def test_a_path_that_does_not_exist_starts_nothing(
    server: type[FakeServer], dirs: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["serve", "--listen", "unix:/x", dirs[0], f"{dirs[0]}/missing"]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert "missing" in err
    assert err.count("\n") == 1
    assert not hasattr(server, "started")


def test_a_server_that_does_not_start_is_one_line(
    server: type[FakeServer], dirs: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    server.fail_to_start = True
    assert run(["serve", "--listen", "unix:/x", dirs[0]]) == 1
    assert capfd.readouterr() == ("", "uvmshare: error: address in use\n")


def test_a_directory_given_twice_is_one_share(
    server: type[FakeServer], dirs: list[str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    signal_when_ready(monkeypatch, signal.SIGTERM)
    assert run(["serve", "--listen", "unix:/x", dirs[0], f"{dirs[0]}/"]) == 0
    assert [line.get("share") for line in lines(capfd.readouterr().out)] == ["0", "0", None]
    assert server.requests == [(RequestType.ADD, "0"), (RequestType.REMOVE, "0")]


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_other_systems_are_sent_elsewhere_in_one_line(
    platform: str,
    server: type[FakeServer],
    dirs: list[str],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    assert run(["serve", "--listen", "unix:/x", dirs[0]]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert "needs a Linux host" in err
    assert err.count("\n") == 1
    assert not hasattr(server, "started")
