"""What can be seen from outside: /metrics, the dashboard that reads it, and the commands `stats` and `top`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.daemon.harness import Home

from uvmshare.cli import stats
from uvmshare.cli.main import run
from uvmshare.daemon.metrics import NAMES
from uvmshare.testing.client import Client as Guest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.daemon.harness import Running

DASHBOARD = Path(__file__).parents[2] / "contrib" / "grafana" / "uvmshare.json"


@pytest.fixture(scope="module")
def busy() -> Iterator[Running]:
    """A daemon whose guest has read a file and looked for one that is not there."""
    with Home.made() as home, home.running() as daemon:
        path = home.directory("project")
        Path(path, "file").write_bytes(b"x" * 5000)
        vm = daemon.add_vm()
        share = daemon.add_share(path, read_only=True, owner="job", lease=60)
        daemon.add_share(path, read_only=True, owner="other")
        with Guest.connect(vm.addresses[0], share.name) as guest:
            for _ in range(40):
                guest.read_file("file")
                with pytest.raises(OSError, match=r"."):
                    guest.read_file("missing")
            yield daemon


def samples(daemon: Running) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    with daemon.home.http() as http:
        answer = http.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain")
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def value(daemon: Running, name: str, **labels: str) -> float:
    return sum(number for where, number in samples(daemon)[name].items() if labels.items() <= dict(where).items())


def test_shares_references_leases_and_what_guests_do_are_there(busy: Running) -> None:
    assert value(busy, "uvmshare_vms", state="running") == 1
    assert value(busy, "uvmshare_shares", state="added") == 1
    assert value(busy, "uvmshare_references") == 2
    assert value(busy, "uvmshare_leases") == 1
    assert value(busy, "uvmshare_mounts", share="0") == 1
    assert value(busy, "uvmshare_restarts_total") == 0
    assert value(busy, "uvmshare_operations_total", kind="Tread") >= 40
    assert value(busy, "uvmshare_errors_total", errno="ENOENT") == 40
    assert value(busy, "uvmshare_sent_bytes_total") > 40 * 5000
    assert value(busy, "uvmshare_received_bytes_total") > 0
    count = value(busy, "uvmshare_operation_seconds_count")
    assert 0 < count == value(busy, "uvmshare_operation_seconds_bucket", le="+Inf")
    assert value(busy, "uvmshare_operation_seconds_sum") > 0


def test_the_dashboard_reads_names_that_there_are_and_all_of_them(busy: Running) -> None:
    text = DASHBOARD.read_text()
    dashboard = json.loads(text)
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    used = {name for expression in expressions for name in re.findall(r"uvmshare_\w+", expression)}
    with busy.home.http() as http:
        described = set(re.findall(r"^# TYPE (uvmshare_\w+)", http.get("/metrics").text, re.MULTILINE))
    assert described == set(NAMES)
    plain = {re.sub(r"(_seconds)_(bucket|sum|count)$", r"\1", name) for name in used}
    assert plain == set(NAMES)
    labels = {key for series in samples(busy).values() for where in series for key, _ in where}
    for expression in expressions:
        for group in re.findall(r"by \(([^)]*)\)", expression):
            assert set(group.replace(" ", "").split(",")) <= labels


def test_the_commands_show_it(
    busy: Running, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UVMSHARE_HOST", busy.home.host)
    assert run(["stats"]) == 0
    assert busy.home.directory("project") in capfd.readouterr().out
    assert run(["stats", "vm", "--json"]) == 0
    (found,) = json.loads(capfd.readouterr().out)
    assert (found["errors"], found["connections"]) == (40, 1)
    assert found["operations"] == sum(found["kinds"].values())
    assert found["latency"] > 0
    assert run(["top", "--interval", "0.1", "--times", "1"]) == 0
    assert "OPS/S" in capfd.readouterr().out


def test_rates_are_of_what_was_done_meanwhile_and_never_below_nothing() -> None:
    from uvmshare.daemon.documents import Stats

    def made(share: str, operations: int) -> Stats:
        return Stats(
            vm="vm",
            share=share,
            path="/p",
            read_only=True,
            connections=1,
            operations=operations,
            errors=0,
            received=operations * 10,
            sent=operations * 1000,
            latency=None,
            kinds={},
        )

    before = {("vm", "0"): made("0", 100), ("vm", "1"): made("1", 100)}
    table = stats.picture(before, [made("0", 120), made("1", 1100), made("2", 50)], 2.0)
    assert list(table.columns[1].cells) == ["1", "2", "0"]
    assert list(table.columns[4].cells) == ["500", "25", "10"]
    assert list(table.columns[6].cells) == ["500.0 kB", "25.0 kB", "10.0 kB"]
    (cells,) = [list(column.cells) for column in stats.picture(before, [made("0", 5)], 1.0).columns[4:5]]
    assert cells == ["0"], "its connection was another one"
    assert stats.size(10**18) == "1000000.0 TB"
    assert stats.micros(0.0000123) == "12 µs"
