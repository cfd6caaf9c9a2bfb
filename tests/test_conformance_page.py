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
    assert "2 settings were tried; all passed. They made 9,000 single checks, of which 1 came out otherwise" in page
    assert "Of the 9,000 POSIX checks under `passthrough`" in page
    assert "| 6.12 | passthrough | none | 8192 | client | 9000 | 1 | passes | `unknown` | 2026-01-02 |" in page


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
    assert "| **fails** | `unknown` |" in page


def test_a_test_that_died_is_named() -> None:
    died = tool.Run("tests/conformance/test_x.py::test_y", False, (), "2026-01-02T03:04:05+00:00", 1.5, "")
    page = tool.page([died, run("fsx", operations=7)], [])
    assert "- `tests/conformance/test_x.py::test_y`" in page


def test_nothing_is_said_of_a_client_where_none_took_part() -> None:
    record = tool.Record("races", "", "none", "", 0, "", "", {"tries": "5"}, {})
    page = tool.page([tool.Run("n", True, (record,), "2026-01-02T03:04:05+00:00", 1.5, "")], [])
    assert "| model | tries | result | commit | date |" in page
    assert "| none | 5 | passes | `unknown` | 2026-01-02 |" in page


def of_commit(commit: str, found: Any) -> Any:
    return msgspec.structs.replace(found, commit=commit)


def test_each_row_has_its_commit_and_date() -> None:
    one, other = (
        of_commit(name, run(test, checks=1, differ=0)) for name, test in (("aa", "posix"), ("bb-dirty", "peers"))
    )
    died = tool.Run("tests/died", False, (), "2026-01-02T03:04:05+00:00", 1.5, "", "cccc")
    page = tool.page([one, other, died], [])
    assert "| passes | `aa` | 2026-01-02 |" in page
    assert "| passes | `bb-dirty` | 2026-01-02 |" in page
    assert "- `tests/died`, of `cccc`" in page


def test_the_head_says_of_which_commits_the_runs_are() -> None:
    one, other = (of_commit(name, run("posix", checks=1)) for name in ("aaaa", "bbbb"))
    assert tool._ran([one, one])[1] == "of commit `aaaa`,"
    assert "**of different commits**: `aaaa` (2 tests), `bbbb` (1 tests)" in tool._ran([one, other, one])[1]


def test_a_record_of_before_there_were_commits_in_them_is_of_an_unknown_one() -> None:
    written = msgspec.json.encode(run("posix", checks=1)).replace(b',"commit":"unknown"', b"")
    assert b"commit" not in written
    assert tool._ran([msgspec.json.decode(written, type=tool.Run)])[1] == "of an unknown commit,"


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
    first = lines.index("| report | tried | result | run |") + 2
    rows = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines[first : first + 3]]
    assert rows == [
        [
            "[them/a#1](https://github.com/them/a/issues/1)",
            "do it",
            "EINVAL: `cache=none` (6.1). The client refuses; works: `cache=mmap`, `cache=loose` (6.1)",
            "`aaaa` 2026-01-02",
        ],
        ["[them/b#2](https://github.com/them/b/issues/2)", "do it", "works: `cache=none` (6.1)", "`aaaa` 2026-01-02"],
        [
            "[them/c#3](https://github.com/them/c/issues/3)",
            "do it",
            "**fails**: ENOENT: `cache=none` (6.1). None known",
            "`aaaa` 2026-01-02",
        ],
    ]
    assert "3 rows, **1 failed**." in lines


def later(found: Any) -> Any:
    return msgspec.structs.replace(found, commit="bbbb", ended="2026-02-03T04:05:06+00:00")


def test_rows_without_a_new_record_keep_what_they_say() -> None:
    failures = {f"utimensat/{number}": "the client cuts times" for number in range(9)}
    first = [
        of_commit("aaaa", found)
        for found in (
            run("posix", checks=10, differ=9, failures=failures),
            run("fsx", operations=7),
            run("races", attack="one, other", tries=5),
            report(1, "them/a#1", "works"),
            report(2, "them/a#2", "E|X", why="a reason"),
        )
    ]
    was = tool.page(first, ["Run until 2026-01-02, of `aaaaaaaaaa`."])
    for again in ([], [later(run("fsx", operations=7))], [later(report(1, "them/a#1", "works"))]):
        page = tool.page(again, [], was)
        changed = [line for line in was.splitlines() if line not in page.splitlines()]
        assert len(changed) <= 1 + bool(again), changed  # what was run again, and the head
        assert page.count("| ") == was.count("| ")
        assert tool.page([], [], page) == page
    everything = tool.page(list(map(later, first)), [], was)
    assert "`aaaa`" not in everything
    assert everything == tool.page(list(map(later, first)), [])


def test_a_cause_is_kept_only_where_a_row_that_is_kept_came_out_otherwise() -> None:
    def posix(cache: str, failures: dict[str, str]) -> Any:
        found = run("posix", checks=10, differ=len(failures), failures=failures)
        record = msgspec.structs.replace(found.records[0], cache=cache)
        return msgspec.structs.replace(found, records=(record,))

    cut = {"a": "the client cuts times", "b": "the client cuts times"}
    was = tool.page([posix("none", cut), posix("mmap", cut)], [])
    assert "- the client cuts times. 4 in 2 settings: `a`, `b`" in was
    page = tool.page([posix("none", {})], [], was)
    assert "- the client cuts times. In 1 settings: `a`, `b`" in page
    assert "  - 6.12, passthrough, mmap, 8192, client" in page
    assert "  - 6.12, passthrough, none" not in page
    assert "the client cuts times" not in tool.page([posix("none", {}), posix("mmap", {})], [], was)


def test_rows_of_a_page_that_had_no_commits_have_those_of_its_head() -> None:
    head = "# Conformance\n\nRun from 2026-01-02 to 2026-01-03, of commit `0123456789`.\n\n"
    table = "| kernel | operations | result |\n| --- | --- | --- |\n| 6.1 | 7 | passes |\n"
    row = f"## Random operations against a model (fsx)\n\n{table}"
    assert "| 6.1 | 7 | passes | `0123456789` | 2026-01-03 |" in tool.page([run("posix", checks=1)], [], head + row)
