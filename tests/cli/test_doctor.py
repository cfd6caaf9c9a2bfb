"""`uvmshare doctor`: what it finds, how it says so, and how it ends."""

from __future__ import annotations

import errno
import json
import os
import platform
from typing import TYPE_CHECKING

import pytest

from uvmshare.cli.main import run
from uvmshare.fileserver import syscalls
from uvmshare.fileserver.host import examine
from uvmshare.fileserver.mount import confinement
from uvmshare.finding import Finding

if TYPE_CHECKING:
    from pathlib import Path


def test_a_directory_that_can_be_shared_leaves_the_status_at_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["doctor", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert f"share {tmp_path}: can be listed" in " ".join(printed.split())


def test_a_directory_that_is_not_there_is_bad_and_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_path / "missing")
    assert run(["doctor", "--json", missing]) == 1
    findings = json.loads(capsys.readouterr().out)
    (finding,) = [finding for finding in findings if finding["subject"] == f"share {missing}"]
    assert finding["verdict"] == "bad"
    assert finding["found"] == os.strerror(2)
    assert finding["remedy"]


def test_a_file_can_be_shared_too_and_what_is_neither_cannot(tmp_path: Path) -> None:
    file, pipe = tmp_path / "file", tmp_path / "pipe"
    file.touch()
    os.mkfifo(pipe)
    found = {finding.subject: finding for finding in examine([str(file), str(pipe)])}
    assert found[f"share {file}"].verdict == "good"
    assert found[f"share {pipe}"].verdict == "bad"
    assert "neither a directory nor a regular file" in found[f"share {pipe}"].found


def test_whatever_is_not_good_says_what_it_breaks_and_what_to_do(tmp_path: Path) -> None:
    for finding in examine([str(tmp_path)]):
        assert bool(finding.breaks) == bool(finding.remedy) == (finding.verdict != "good"), finding


def test_a_kernel_without_landlock_is_a_warning_here_and_a_note_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls, "landlock_abi", lambda: 0)
    findings = {finding.subject: finding for finding in examine()}
    assert findings["Landlock"].verdict == "warning"
    assert any("no Landlock" in note for note in confinement.missing())


def test_an_old_landlock_says_what_it_cannot_forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls, "landlock_abi", lambda: 2)
    assert any("truncation" in note for note in confinement.missing())


def test_a_machine_without_a_filter_is_a_warning_here_and_a_note_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls, "has_seccomp_filters", lambda: False)
    findings = {finding.subject: finding for finding in examine()}
    assert findings["seccomp"].verdict == "warning"
    assert any("no seccomp" in note for note in confinement.missing())


@pytest.mark.parametrize(
    ("number", "remedy"), [(errno.EMFILE, "fs.fanotify.max_user_groups"), (errno.EPERM, "5.13"), (errno.ENOSYS, "5.13")]
)
@pytest.mark.parametrize("has_inotify", [True, False])
def test_a_host_that_refuses_fanotify_has_events_by_inotify_and_is_told_by_which_way(
    monkeypatch: pytest.MonkeyPatch, number: int, remedy: str, *, has_inotify: bool
) -> None:
    def refuse() -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(syscalls, "fanotify_init", refuse)
    if not has_inotify:
        monkeypatch.setattr(syscalls, "inotify_init", refuse)
    found = {finding.subject: finding for finding in examine()}["events"]
    assert found.verdict == "warning"
    assert remedy in found.remedy
    assert ("by inotify" in found.found, "no inotify" in found.found) == (has_inotify, not has_inotify)


def test_an_old_kernel_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "release", lambda: "4.19.0-27-amd64")
    findings = {finding.subject: finding for finding in examine()}
    assert findings["kernel"].verdict == "bad"


def test_a_user_who_is_not_root_learns_what_that_rules_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    findings = {finding.subject: finding for finding in examine()}
    assert findings["privileges"].verdict == "warning"
    assert "passthrough" in findings["privileges"].breaks


def test_a_file_system_without_user_attributes_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bytes:
        raise OSError(95, os.strerror(95))

    monkeypatch.setattr(os, "getxattr", refuse)
    (finding,) = [finding for finding in examine([str(tmp_path)]) if finding.subject == f"share {tmp_path}"]
    assert finding == Finding(
        finding.subject, "warning", finding.found, "a writable share under mapped-xattr, the default", finding.remedy
    )
