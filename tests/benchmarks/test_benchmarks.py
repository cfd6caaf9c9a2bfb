"""The benchmarks run: the C programs compile, and every workload ends without an error on both servers of our own.

Nothing here looks at how fast anything is.
"""

from __future__ import annotations

import shutil
import tempfile
import xml.etree.ElementTree as ET
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from benchmarks.cases import Case, cases
from benchmarks.reasons import REASONS
from benchmarks.trees import make_tree

from benchmarks import guest_peers, journal_cost, manager_cost, manager_large, plots, report, run, servers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.servers import Server

OURS = ("uvmshare", "minimal")
"""diod is only installed where somebody benchmarks."""

WORKLOADS = sorted({case.workload for case in cases()})
MIB = 1 << 20
ROW = Case("getattr", 1, 1, 1, "tmpfs", to_diod=1.3, to_minimal=0.7, pure_to_diod=1.0)
UNLIKE = Case("readdir", 1, 1, 1, "tmpfs", to_diod=1.3)
"""A row whose servers may not send the same messages."""


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="9p-") as path:
        yield Path(path)


@pytest.fixture(scope="module")
def tree(place: Path) -> Path:
    path = place / "tree"
    path.mkdir()
    make_tree(path, with_cold=False)
    with (path / "cold").open("wb") as cold:
        cold.truncate(256 << 20)  # holes do here, where nothing is measured
    return path


@pytest.fixture(scope="module")
def running(place: Path, tree: Path) -> Iterator[dict[str, list[Server]]]:
    run.CACHE.mkdir(parents=True, exist_ok=True)
    servers.build(run.CACHE)
    with ExitStack() as stack:
        started = {name: servers.start(name, tree, place, run.CACHE) for name in OURS}
        for some in started.values():
            for server in some:
                stack.enter_context(server)
        yield started


@pytest.mark.parametrize(
    ("name", "workload"),
    [
        *(("uvmshare", each) for each in WORKLOADS),
        *(
            pytest.param("minimal", each, marks=pytest.mark.long if number % 4 else ())
            for number, each in enumerate(WORKLOADS)
        ),
    ],
)
def test_every_workload_ends_without_an_error(
    running: dict[str, list[Server]], tree: Path, name: str, workload: str
) -> None:
    for server in running[name]:
        for transport in server.addresses:
            case = Case(workload, 2, 1, 2, "disk", "tcp" if transport == "tcp" else "unix", uid=1000)
            result = run.measure(server, case, tree, run_ms=1)
            assert "error" not in result
            assert result["messages"] > 0


def test_an_error_reply_ends_the_load(running: dict[str, list[Server]], tree: Path) -> None:
    (tree / "listed").rename(tree / "elsewhere")
    try:
        result = run.measure(running["uvmshare"][0], Case("readdir", 1, 1, 2, "disk"), tree, run_ms=1)
    finally:
        (tree / "elsewhere").rename(tree / "listed")
    assert "walked 0 names of 1" in result["error"] or "No such file" in result["error"]


def test_a_listing_that_lacks_an_entry_ends_the_load(running: dict[str, list[Server]], tree: Path) -> None:
    shutil.move(tree / "listed" / "entry00000", tree / "entry")
    try:
        result = run.measure(running["uvmshare"][0], Case("readdir", 1, 1, 2, "disk"), tree, run_ms=1)
    finally:
        shutil.move(tree / "entry", tree / "listed" / "entry00000")
    assert "entries where 10000 were due" in result["error"]


def sample(operations: float, cpu: float, msize: int = 1 << 20) -> dict[str, Any]:
    times = {"p50_us": 1.0, "p99_us": 2.0, "p999_us": 3.0, "cpu_us": cpu, "server_cpu_us": cpu}
    return {"operations_per_second": operations, "bytes_per_second": 0, "msize": msize, "unlinkat": True, **times}


def test_a_row_has_medians_spreads_and_ratios() -> None:
    samples = {
        "uvmshare": [sample(10, 2.0), sample(30, 2.0), sample(20, 2.0)],
        "pure": [sample(5, 4.0)] * 3,
        "diod": [sample(10, 3.0), sample(10, 2.0), sample(20, 3.0)],
        "minimal": [{"error": "cannot"}],
    }
    result = report.summarise(ROW, samples)
    assert result["servers"]["uvmshare"]["value"] == {"median": 20, "min": 10, "max": 30}
    assert result["ratios"]["diod"] == {"median": 2.0, "min": 1.0, "max": 3.0}
    assert result["cpu_ratios"]["diod"] == {"median": 1.5, "min": 1.0, "max": 1.5}
    assert result["cpu_ratios"]["pure"] == {"median": 0.75, "min": 0.5, "max": 0.75}
    assert report.one_line(result).endswith(
        "diod 1.3: not met: the median is, not every round; limit 0.7: not compared; pure Python to diod 1: not met"
    )


@pytest.mark.parametrize(
    ("rounds", "said"),
    [((14, 20), "diod 1.3: met"), ((5, 12), "diod 1.3: not met;"), ((5, 14), "diod 1.3: not met: some rounds are")],
)
def test_a_figure_is_settled_when_every_round_says_the_same(rounds: tuple[int, int], said: str) -> None:
    samples = {"uvmshare": [sample(9, 1 / each) for each in rounds], "diod": [sample(9, 1 / 10)] * 2}
    assert said in report.one_line(report.summarise(ROW, samples))


def test_servers_that_do_not_send_the_same_messages_are_compared_by_throughput() -> None:
    samples = {"uvmshare": [sample(14, 9.0)], "diod": [sample(10, 1.0, msize=1 << 16)]}
    result = report.summarise(UNLIKE, samples)
    assert result["cpu_ratios"]["diod"] is None
    assert report.judged(result, "diod") == {"median": 1.4, "min": 1.4, "max": 1.4}
    assert report.verdicts(result) == {"diod": "met"}


def test_pictures_are_svg() -> None:
    samples = {name: [sample(10, 2.0)] for name in servers.NAMES}
    costs = {"1000": {"add_us": {"median": 10.0}}, "16000": {"add_us": {"median": 12.0}}}
    results = {
        "servers": [report.summarise(ROW, samples)],
        "manager": {"uvmshare": costs, "published": costs},
    }
    for name, drawing in plots.draw(results).items():
        assert name.endswith(".svg")
        assert ET.fromstring(drawing).tag.endswith("svg")


def test_the_committed_page_shows_the_committed_results() -> None:
    page = run.HERE.parent / "docs" / "performance.md"
    if not run.RESULTS.exists():
        pytest.fail("make bench has not been run: there are no results to show")
    results = report.load(run.RESULTS)
    assert page.read_text(encoding="utf-8") == report.filled(page.read_text(encoding="utf-8"), results)
    for name, drawing in plots.draw(results).items():
        assert (page.parent / name).read_text(encoding="utf-8") == drawing


def test_adds_with_a_journal_are_counted_for_each_number_of_callers(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UVMSHARE_BENCH_DIR", str(place))
    found = journal_cost.measure(manager_cost.InstantVM(), manager_cost.options(0, 20), rounds=2)
    assert {int(callers): len(rounds) for callers, rounds in found.items()} == dict.fromkeys(journal_cost.CALLERS, 2)
    assert all(run["adds_per_second"] > 0 for rounds in found.values() for run in rounds)
    assert "| 256 at a time |" in report._journal_table(found)


def test_a_manager_with_many_shares_comes_back_whole_from_its_journal(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UVMSHARE_BENCH_DIR", str(place))
    found = manager_large.measure(300)
    assert found["shares"] == 300
    table = report._large_table(found)
    assert table.count("| to ") == 3
    assert "an add of the last 150, to one of the first" in table
    assert "300 shares in one Manager" in table


def test_a_mount_that_takes_more_memory_than_its_figure_has_not_met_it() -> None:
    found = {
        "mounts": 5,
        "attaches_per_second": 250.0,
        "mount_private_bytes": 1.6 * 2**20,
        "private_bytes": 9.0 * 2**20,
    }
    _, _, attaches, memory, whole = report._small_mounts_table(found).splitlines()[:5]
    assert attaches.endswith("| 250 | 200 or more | met |")
    assert memory.endswith("| 1.60 MiB | under 1.5 | not met |")
    assert whole.endswith("| 9 MiB | under 8 | not met |")


def test_the_table_of_a_guest_has_the_median_seconds_the_requests_and_the_cpu_time_of_each_way(tmp_path: Path) -> None:
    guest_peers.make_tree(tmp_path, guest_peers.Sizes(files=3, packed=2, sources=1, inserts=2))
    assert {path.name for path in tmp_path.iterdir()} == {"repository", "archive.tar", "c", "inserts.sql"}
    some = [guest_peers.Measured(seconds, 1234, 0.5) for seconds in (3.0, 1.0, 2.0)]
    none = [guest_peers.Measured(1.0, None, 0.0)]
    found = {"one way": dict.fromkeys(guest_peers.WORK, some), "another": dict.fromkeys(guest_peers.WORK, none)}
    _, _, one, another = guest_peers.table(found)
    assert one.count("2.00 s (1,234; 0.50 s)") == len(guest_peers.WORK)
    assert another.count("1.00 s (?; 0.00 s)") == len(guest_peers.WORK)


# The results that are kept


def test_every_figure_that_is_missed_has_a_reason() -> None:
    missed = report.not_met(report.load(run.RESULTS)["servers"])
    assert [(workload, peer) for workload, peer, _ in missed if (workload, peer) not in REASONS] == []


def test_a_reason_is_of_a_figure_that_is_set() -> None:
    goals = {
        (row.workload, key)
        for row in cases()
        for key, (_, _, figure) in report.COMPARED.items()
        if getattr(row, figure) is not None
    }
    assert set(REASONS) <= goals


def test_the_page_shows_the_results_that_are_kept() -> None:
    page = (Path(__file__).parents[2] / "docs" / "performance.md").read_text(encoding="utf-8")
    assert report.filled(page, report.load(run.RESULTS)) == page


def test_what_has_no_reason_yet_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "REASONS", {})
    samples = {"uvmshare": [sample(5, 9.0)], "diod": [sample(10, 9.0)]}
    kept = report.load(run.RESULTS)
    machine = {**kept["machine"], "commit": "0", "date": "today"}
    results = {**kept, "machine": machine, "servers": [report.summarise(ROW, samples)]}
    assert "no reason is known yet" in report.filled("<!-- not-met -->\n<!-- end -->", results)
