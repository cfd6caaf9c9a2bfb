"""Which commit a run was of: a checkout's own, with what differs from it; and no other's."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests import reliability_results

import commits
import results

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="checkouts are made with git, which Wine has none of")

_spec = importlib.util.spec_from_file_location(
    "reliability_page", Path(__file__).parent.parent / "tools" / "reliability.py"
)
assert _spec is not None
assert _spec.loader is not None
page: Any = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = page  # msgspec looks for the module of a struct
_spec.loader.exec_module(page)


def git(tree: Path, *arguments: str) -> str:
    who = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org")
    return subprocess.run(["git", *who, *arguments], cwd=tree, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "file").write_text("first\n")
    (tmp_path / ".gitignore").write_text("results/\n")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message", "First")
    return tmp_path


def test_a_checkout_has_the_commit_that_it_is_on(checkout: Path) -> None:
    assert commits.current(checkout) == git(checkout, "rev-parse", "HEAD")[:10]


def test_what_git_ignores_changes_nothing(checkout: Path) -> None:
    (checkout / "results").mkdir()
    (checkout / "results" / "one.json").write_text("{}")
    assert not commits.current(checkout).endswith("-dirty")


@pytest.mark.parametrize("name", ["file", "new"])
def test_a_file_that_differs_or_is_in_no_commit_is_said(checkout: Path, name: str) -> None:
    (checkout / name).write_text("second\n")
    assert commits.current(checkout) == git(checkout, "rev-parse", "HEAD")[:10] + "-dirty"


def test_a_tree_that_is_no_checkout_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commits.current(tmp_path) == commits.UNKNOWN


def test_a_checkout_without_a_commit_has_none(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    assert commits.current(tmp_path) == commits.UNKNOWN


def test_a_tree_inside_another_checkout_is_not_of_that_ones_commit(checkout: Path) -> None:
    unpacked = checkout / "results" / "unpacked"
    unpacked.mkdir(parents=True)
    assert commits.current(unpacked) == commits.UNKNOWN


def test_there_need_be_no_git(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert commits.current(checkout) == commits.UNKNOWN


def test_what_a_conformance_test_found_has_the_commit_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.conformance import harness

    monkeypatch.setattr(results, "CONFORMANCE", tmp_path)
    monkeypatch.setattr(harness, "COMMIT", "aaaa")
    harness.write_down("tests/conformance/test_x.py::test_y", passed=True, seconds=1.5)
    (written,) = tmp_path.iterdir()
    assert json.loads(written.read_text())["commit"] == "aaaa"


def test_what_a_reliability_test_found_has_the_commit_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "RELIABILITY", tmp_path)
    monkeypatch.setattr(reliability_results, "COMMIT", "aaaa")
    reliability_results.write_down("soak", "A soak", points=1, kills=2, losses=0)
    assert json.loads((tmp_path / "soak.json").read_text())["commit"] == "aaaa"
    assert msgspec.json.decode((tmp_path / "soak.json").read_bytes(), type=page.Tries).commit == "aaaa"


def test_the_reliability_page_says_of_which_commits_its_rows_are() -> None:
    one, other = (page.Tries(name, name, 1, 0, 0, {}, commit) for name, commit in (("soak", "aaaa"), ("x", "b-dirty")))
    both = page.page([one, other])
    assert "The runs were **of different commits**: `aaaa` (1 tests), `b-dirty` (1 tests); each row says which" in both
    assert "| soak | 1 | 0 | 0 | `aaaa` |" in both
    assert "| x | 1 | 0 | 0 | `b-dirty` |" in both
    alone = page.page([one])
    assert "The runs were of commit `aaaa`." in alone
    assert "| soak | 1 | 0 | 0 |\n" in alone
