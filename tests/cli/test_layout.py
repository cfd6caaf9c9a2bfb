"""Tables and pictures fit into a terminal of any width, and no header is ever cut."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from uvmshare.cli.layout import lay_out, left_part, right_part
from uvmshare.cli.top import Rates, picture, rates
from uvmshare.daemon.documents import EventCounts, Stats

HEADERS = ("vm", "guest path", "share", "path", "access", "state", "directory", "held by")
TEXTS = st.text(max_size=30)
HEADS = ["VM", "SHARE", "PATH", "AGENT", "MNT", "OPS/S", "IN/S", "OUT/S", "LAT", "EXP", "ERR"]


@settings(deadline=None)
@given(st.lists(st.tuples(*[TEXTS] * len(HEADERS)), min_size=1, max_size=4), st.integers(1, 200))
def test_a_table_cuts_no_header_and_no_value_at_any_width(rows: list[tuple[str, ...]], width: int) -> None:
    lines = lay_out(HEADERS, rows, width)
    told = "\n".join(lines)
    for header in HEADERS:
        assert re.search(rf"(?:^|\s){header.upper()}(?:\s|:|$)", told, re.MULTILINE), header
    if lines[0].startswith("VM:"):  # a list: the terminal itself folds its lines
        assert width < sum(map(len, HEADERS)) + 8 * len(HEADERS) * 2
        return
    assert all(cell_len(line) <= width for line in lines)
    whole = "".join("".join(lay_out(HEADERS, rows, None)[1:]).split())
    assert sorted("".join(told.split("\n", 1)[1].split())) == sorted(whole)


def test_a_table_whose_headers_do_not_fit_becomes_a_list() -> None:
    assert lay_out(("id", "state"), [("a", "running"), ("b", "")], 8) == [
        *("ID: a", "STATE: running", "", "ID: b", "STATE: -"),
    ]


def test_programs_that_cut_columns_get_whole_lines() -> None:
    assert lay_out(("id", "path"), [("a", "x" * 500)], None)[1] == "a   " + "x" * 500


def some(count: int = 3) -> list[Rates]:
    each = Rates(
        vm="a-long-name-of-a-vm",
        share="1234567",
        path="/srv/a/long/path/to/a/project",
        agent="unreachable",
        mounts=12,
        operations=123456.0,
        received=9.9e11,
        sent=12.0,
        latency=0.000123,
        expected=40,
        errors=99999,
        new_errors=1,
    )
    return [each] * count


@given(st.integers(1, 200), st.integers(0, 5), st.integers(4, 50))
@settings(deadline=None)
def test_the_picture_of_top_cuts_no_header_at_any_width(width: int, count: int, height: int) -> None:
    lines = picture(some(count), width, height).plain.split("\n")
    heads = lines[0].split()
    assert all(cell_len(line) <= width for line in lines)
    assert len(lines) <= height + 1
    if width >= 2:
        assert heads
        assert set(heads) <= set(HEADS)
    if width >= 60:
        assert heads == HEADS


def test_all_columns_of_top_keep_their_numbers_in_sixty_columns() -> None:
    head, row, *_, total = picture(some(), 60).plain.split("\n")
    assert head.split() == HEADS
    assert row == "a-l… 1234… …ject lost   12  123k  990G    12 123µs   40 100k"
    assert total.startswith("1 VM 3     total 1lost  36  370k  3.0T    36 123µs  120 300k")


@pytest.mark.parametrize("told", [1.7e308, math.inf, math.nan])
def test_numbers_that_no_machine_can_reach_are_shown_all_the_same(told: float) -> None:
    rows = [each._replace(latency=told, operations=told, received=told, sent=told) for each in some(2)]
    assert "SHARE" in picture(rows, 100, 20).plain


def test_what_top_leaves_out_of_a_low_window_is_counted() -> None:
    assert picture(some(9), 80, 6).plain.endswith("and 6 more: make the window higher, or name VMs")


def stats(operations: int, errors: int = 0, share: str = "0") -> Stats:
    return Stats(
        vm="vm",
        share=share,
        path="/x",
        read_only=False,
        connections=1,
        operations=operations,
        errors=errors,
        received=operations * 10,
        sent=0,
        latency=None,
        kinds={},
        events=EventCounts(*[0] * 7),
        compiled=0,
        expected=0,
        errnos={},
        unreachable_since=None,
    )


def test_rates_are_by_the_second_the_busiest_first_and_never_below_none() -> None:
    before = {("vm", "0"): stats(10), ("vm", "1"): stats(10, share="1")}
    quiet, busy = stats(4), stats(30, errors=2, share="1")
    first, second = rates(before, [quiet, busy], {"vm": "reached"}, 2.0)
    assert (first.share, first.operations, first.received, first.new_errors) == ("1", 10, 100, 2)
    assert (second.share, second.operations, second.agent) == ("0", 0, "reached")


@pytest.mark.parametrize(
    ("width", "left", "right"), [(5, "abcd…", "…efgh"), (1, "…", "…"), (0, "", ""), (9, "abcdefgh", "abcdefgh")]
)
def test_a_text_that_is_too_long_says_so(width: int, left: str, right: str) -> None:
    assert left_part("abcdefgh", width) == left
    assert right_part("abcdefgh", width) == right
