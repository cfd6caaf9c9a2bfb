"""`uvmshare dashboard` as somebody types it: the link, how to reach it over ssh, and its end."""

from __future__ import annotations

import json
import os
import queue
import signal
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tests.daemon.harness import Home
from tests.dashboard.harness import Viewer
from tests.hostile_text import assert_safe
from tests.processes import DEADLINE

from uvmshare.cli import dashboard
from uvmshare.cli.main import run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LINK = "http://127.0.0.1:4711/?token=sesame"


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    with Home.made() as home, home.running():
        yield home.host


def test_it_prints_the_link_lets_the_browser_in_and_ends_with_ctrl_c(host: str) -> None:
    command = [sys.executable, "-m", "uvmshare", "dashboard", "--json", "--host", host]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = json.loads(process.stdout.readline())
        assert line["ready"] is True
        viewer = Viewer(line["port"]).enter(line["url"])
        stream = viewer.messages()
        assert next(stream)
        process.send_signal(signal.SIGINT)
        assert [kind for kind, _ in stream][-1] == "end"
        _, err = process.communicate(timeout=DEADLINE)
        viewer.close()
    assert err == ""
    assert process.returncode >= 0, "no signal killed it: it ended by itself"


def test_without_json_the_link_is_all_of_standard_output(host: str) -> None:
    environment = {**os.environ, "SSH_CONNECTION": "192.0.2.1 50000 192.0.2.2 22", "DISPLAY": ":0"}
    command = [sys.executable, "-m", "uvmshare", "dashboard", "--host", host]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        link = process.stdout.readline()
        assert link.startswith("http://127.0.0.1:")
        port = int(link.split(":")[2].partition("/")[0])
        Viewer(port).enter(link.strip()).close()
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=DEADLINE)
    assert out == ""
    assert "This link lets one browser in, once. Ctrl-C ends the page." in err
    assert f"ssh -L {port}:127.0.0.1:{port} " in err, "no browser is opened over ssh"


@pytest.mark.parametrize(
    ("environment", "opened"),
    [
        ({}, False),
        ({"DISPLAY": ""}, False),
        ({"DISPLAY": ":0"}, True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, True),
        ({"DISPLAY": ":0", "SSH_CONNECTION": "192.0.2.1 50000 192.0.2.2 22"}, False),
        ({"DISPLAY": ":0", "SUDO_UID": "1000"}, os.geteuid() != 0),
    ],
)
def test_a_browser_is_opened_where_the_user_has_a_screen(environment: dict[str, str], opened: bool) -> None:
    assert dashboard._has_screen(environment) is opened


@pytest.mark.parametrize("has_runtime_dir", [True, False])
def test_a_browser_gets_the_link_by_a_file_of_the_users_own_and_not_as_an_argument(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, has_runtime_dir: bool
) -> None:
    """Arguments of a process are seen by every user of the host."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path if has_runtime_dir else tmp_path / "is-not-there"))
    given: queue.Queue[str] = queue.Queue()
    monkeypatch.setattr("webbrowser.open", given.put)
    secret = LINK.partition("token=")[2]
    with dashboard._file_that_leads_to(LINK) as address:
        dashboard._open(address)
        assert given.get(timeout=DEADLINE) == address
        assert secret not in address
        (file,) = tmp_path.iterdir()
        assert file.as_uri() == address
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert f'content="0; url={LINK}"' in file.read_text()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "root", "-1", "1" * 20, "٣", "1000\n"])
def test_what_is_no_uid_behind_sudo_lets_nobody_in(text: str) -> None:
    assert dashboard._behind_sudo({"SUDO_UID": text}) == []


def test_a_user_behind_sudo_may_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert dashboard._behind_sudo({"SUDO_UID": "1000"}) == [1000]
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert dashboard._behind_sudo({"SUDO_UID": "1001"}) == [], "anybody can set it for themselves"


def test_the_line_for_ssh_is_one_that_a_shell_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "a; rm -rf ~")
    (line,) = dashboard._over_ssh(LINK, {"SSH_CONNECTION": "a 1 b 22", "SUDO_USER": "alice"})
    assert "ssh -L 4711:127.0.0.1:4711 'alice@a; rm -rf ~', and" in line
    assert dashboard._over_ssh(LINK, {}) == dashboard._over_ssh(LINK, {"SSH_CONNECTION": "x"}) == []


@pytest.mark.parametrize(
    ("args", "status", "named"),
    [
        (["--port", "x"], 2, "x"),
        (["--port", "65536"], 2, "65536"),
        (["--port", "-1"], 2, "-1"),
        (["--allow-uid", "alice"], 2, "alice"),
        (["--host", "tcp:127.0.0.1:1"], 2, "unix:PATH"),
        (["--host", "unix:/nowhere/x"], 1, "uvmshare daemon"),
        (["now"], 2, "now"),
    ],
)
def test_what_is_wrong_is_one_line(args: list[str], status: int, named: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["dashboard", *args]) == status
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert named in err
    assert "defect" not in err
    assert_safe(err)
