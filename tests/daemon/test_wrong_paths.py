"""Every path that the daemon is given at its start, with something else there than is wanted: what is said."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest
from tests.for_people import assert_for_people

from uvmshare.cli.main import run

if TYPE_CHECKING:
    from pathlib import Path

if sys.platform == "win32":
    pytest.skip("the daemon runs on Linux", allow_module_level=True)

OWN = "give directories of your own with --run-dir and --state-dir"
ANOTHER = "or choose another socket with --socket"
TABLE = {
    "--run-dir {file}": f"{{file}}: it is there, and is no directory: {OWN}",
    "--run-dir {file}/below": f"{{file}}/below: '{{file}}' is there, and is no directory: {OWN}",
    "--run-dir {open}/run": f"'{{open}}' on the way to it belongs to user {{uid}}, or everybody writes in it: {OWN}",
    "--state-dir {file}": f"{{file}}: it is there, and is no directory: {OWN}",
    "--state-dir /proc/uvmshare": f"/proc/uvmshare: No such file or directory: {OWN}",
    "--socket {folder}": "{folder}: there is a file that is no socket: move it away, or choose another path",
    "--socket {file}": "{file}: there is a file that is no socket: move it away, or choose another path",
    "--socket {folder}/none/s": f"{{folder}}/none/s: there is no directory '{{folder}}/none': make it, {ANOTHER}",
    "--socket {file}/s": f"{{file}}/s: there is no directory '{{file}}': make it, {ANOTHER}",
    "--socket {long}": "bytes and unix sockets take 107; use a shorter directory",
    "--fleet {folder}": "'--fleet': File '{folder}' is a directory.",
    "--fleet {folder}/none": "{folder}/none: No such file or directory: give the file that `uvmshare fleet` wrote",
    "--cgroup {file}": "group '{file}' cannot be divided: Not a directory: delegate one to this user",
    "--cgroup {folder}": "group '{folder}' cannot be divided: it is no control group (cgroup v2): delegate one",
    "--cgroup {folder}/none": "group '{folder}/none' cannot be divided: No such file or directory: delegate one",
}


@pytest.mark.parametrize(("options", "said"), TABLE.items(), ids=TABLE)
def test_the_daemon_says_what_is_wrong_with_a_path(
    options: str, said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uvmshare.daemon.logs.configure", lambda *_: None)  # this process goes on, its stderr does not
    places = {name: str(tmp_path / name) for name in ("folder", "file", "open")}
    places["long"] = f"{tmp_path}/".ljust(120, "x")
    places["uid"] = str(os.geteuid())
    os.mkdir(places["folder"])
    os.mkdir(places["open"])
    os.chmod(places["open"], 0o777)
    (tmp_path / "file").touch()
    words = ["--run-dir", str(tmp_path / "run"), "--state-dir", str(tmp_path / "state")]
    assert run(["daemon", *words, *(each.format_map(places) for each in options.split())]) in (1, 2)
    told = capfd.readouterr().err
    assert ": error: " in told.splitlines()[-1]
    assert said.format_map(places) in told
    assert_for_people(told)
