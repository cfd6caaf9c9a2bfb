"""docs/conformance.md: what the tests wrote down is what the page says, and it hides nothing."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import msgspec

PATH = Path(__file__).parent.parent / "tools" / "conformance.py"
_spec = importlib.util.spec_from_file_location("conformance_page", PATH)
assert _spec is not None
assert _spec.loader is not None
tool: Any = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = tool  # msgspec looks for the module of a struct
_spec.loader.exec_module(tool)


def run(test: str, *, passed: bool = True, failures: dict[str, str] | None = None, **figures: object) -> Any:
    record = tool.Record(
        *(test, "6.12", "passthrough", "none", 8192, "client", ""),
        {name: str(value) for name, value in figures.items()},
        failures or {},
    )
    return tool.Run(f"tests/{test}", passed, (record,), "2026-01-02T03:04:05+00:00", 1.5, "Linux 6.12 under TCG")


def test_the_summary_counts_checks_and_what_came_out_otherwise() -> None:
    page = tool.page(
        [run("posix", checks=9000, differ=1, failures={"a/b": "the client's"}), run("fsx", operations=7)], []
    )
    assert "2 tests ran in 2 settings; all passed. They made 9,000 single checks, of which 1 came out otherwise" in page
    assert "Of the 9,000 POSIX checks under `passthrough`" in page
    assert "| 6.12 | passthrough | none | 8192 | client | 9000 | 1 | passes |" in page


def test_each_cause_has_its_checks_and_where() -> None:
    failures = {f"utimensat/{number}": "the client cuts times" for number in range(9)}
    page = tool.page([run("posix", checks=10, differ=9, failures=failures)], [])
    assert "- the client cuts times. 9 in 1 settings: `utimensat/0`, `utimensat/1`" in page
    assert "`utimensat/8`" not in page


def test_what_has_no_cause_stands_first_and_whole() -> None:
    failures = {"known": "a cause"} | {f"wrong-{number}": tool.NO_CAUSE for number in range(9)}
    page = tool.page([run("posix", passed=False, checks=10, differ=10, failures=failures)], [])
    assert "**1 failed**" in page
    assert "**9 without a known cause**" in page
    assert page.index(f"- {tool.NO_CAUSE}.") < page.index("- a cause.")
    assert all(f"`wrong-{number}`" in page for number in range(9))
    assert "| **fails** |" in page


def test_a_test_that_died_is_named() -> None:
    died = tool.Run("tests/conformance/test_x.py::test_y", False, (), "2026-01-02T03:04:05+00:00", 1.5, "")
    page = tool.page([died, run("fsx", operations=7)], [])
    assert "- `tests/conformance/test_x.py::test_y`" in page


def test_nothing_is_said_of_a_client_where_none_took_part() -> None:
    record = tool.Record("races", "", "none", "", 0, "", "", {"tries": "5"}, {})
    page = tool.page([tool.Run("n", True, (record,), "2026-01-02T03:04:05+00:00", 1.5, "")], [])
    assert "| model | tries | result |" in page
    assert "| none | 5 | passes |" in page


def of_commit(commit: str, found: Any) -> Any:
    return msgspec.structs.replace(found, commit=commit)


def test_each_row_has_its_commit_where_they_differ_and_none_where_they_do_not() -> None:
    one, other = (of_commit(name, run("posix", checks=1, differ=0)) for name in ("aaaa", "bbbb-dirty"))
    died = tool.Run("tests/died", False, (), "2026-01-02T03:04:05+00:00", 1.5, "", "cccc")
    page = tool.page([one, other, died], [])
    assert "| result | commit |" in page
    assert "| passes | `aaaa` |" in page
    assert "| passes | `bbbb-dirty` |" in page
    assert "- `tests/died`, of `cccc`" in page
    assert "commit |" not in tool.page([one, one], [])


def test_the_head_says_of_which_commits_the_runs_are() -> None:
    one, other = (of_commit(name, run("posix", checks=1)) for name in ("aaaa", "bbbb"))
    assert "UTC, of commit `aaaa`," in tool._ran([one, one])[0]
    assert "UTC, **of different commits**: `aaaa` (2 tests), `bbbb` (1 tests)" in tool._ran([one, other, one])[0]


def test_a_record_of_before_there_were_commits_in_them_is_of_an_unknown_one() -> None:
    written = msgspec.json.encode(run("posix", checks=1)).replace(b',"commit":"unknown"', b"")
    assert b"commit" not in written
    assert "UTC, of an unknown commit," in tool._ran([msgspec.json.decode(written, type=tool.Run)])[0]


def report(number: int, where: str, outcome: str, *, why: str = "", passed: bool = True, cache: str = "none") -> Any:
    figures = {"number": str(number), "report": where, "tried": "do it", "outcome": outcome}
    record = tool.Record(
        tool.REPORTS, "6.1", "passthrough", cache, 1 << 20, "client", "", figures, {"do it": why} if why else {}
    )
    return tool.Run(f"n{number}{cache}", passed, (record,), "2026-01-02T03:04:05+00:00", 1.5, "Linux 6.1", "aaaa")


def test_a_report_is_one_row_with_each_result_its_mounts_and_its_reason() -> None:
    runs = [
        report(10, "them/b#2", "works"),
        report(9, "them/a#1", "EINVAL", why="the client refuses"),
        report(9, "them/a#1", "works", cache="mmap"),
        report(9, "them/a#1", "works", cache="loose"),
        report(11, "them/c#3", "ENOENT", why=tool.NO_CAUSE, passed=False),
    ]
    lines = tool.page(runs, []).splitlines()
    first = lines.index("| report | tried | result |") + 2
    rows = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines[first : first + 3]]
    assert rows == [
        [
            "[them/a#1](https://github.com/them/a/issues/1)",
            "do it",
            "EINVAL: `cache=none` (6.1). The client refuses; works: `cache=mmap`, `cache=loose` (6.1)",
        ],
        ["[them/b#2](https://github.com/them/b/issues/2)", "do it", "works: `cache=none` (6.1)"],
        [
            "[them/c#3](https://github.com/them/c/issues/3)",
            "do it",
            "**fails**: ENOENT: `cache=none` (6.1). None known",
        ],
    ]
    assert "3 reports, 5 checks, **1 failed**. Run until 2026-01-02 03:04 UTC, of `aaaa`. Guests: Linux 6.1." in lines


def test_the_section_of_reports_alone_is_written_anew_and_all_else_stays() -> None:
    written = tool.page([report(1, "them/a#1", "works"), run("races", tries=5), run("fsx", operations=7)], [])
    anew = tool.with_section(written, tool.REPORTS, [report(1, "them/a#1", "works", cache="mmap")])
    assert anew == written.replace("| do it | works: `cache=none`", "| do it | works: `cache=mmap`")


def test_the_section_of_reports_comes_before_the_last_one_of_a_page_that_had_none() -> None:
    others = [run("races", tries=5), run("fsx", operations=7)]
    reports = [report(1, "them/a#1", "works")]
    anew = tool.with_section(tool.page(others, []), tool.REPORTS, reports)
    sections = [line for line in anew.splitlines() if line.startswith("## ")]
    assert sections == [line for line in tool.page([*others, *reports], []).splitlines() if line.startswith("## ")]
    assert tool.with_section(anew, tool.REPORTS, reports) == anew
