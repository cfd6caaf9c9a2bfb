"""What can be seen from outside: /metrics, the dashboard that reads it, and the commands `stats` and `top`."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.daemon.harness import Home, supervisor_of
from tests.fileserver.test_events import EVENTS
from tests.fileserver.test_watched import BEGIN, CHANGES, asked, watched

from uvmshare import errors
from uvmshare.cli import stats, top
from uvmshare.cli.main import run
from uvmshare.daemon import machine
from uvmshare.daemon.metrics import NAMES
from uvmshare.testing.client import NinePClient as Guest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.daemon.harness import Running

    from uvmshare.fileserver import control

DASHBOARD = Path(__file__).parents[2] / "contrib" / "grafana" / "uvmshare.json"


@pytest.fixture(scope="module")
def busy() -> Iterator[Running]:
    """A daemon whose guest has read a file, looked for one that is not there, and tried to write where it may not."""
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
            for _ in range(2):  # what tells of trouble
                with pytest.raises(OSError, match=r"."):
                    guest.write_file("file", b"")
            asked(guest, "", BEGIN)
            asked(guest, "", EVENTS)
            watched(guest, "")
            Path(path, "other").touch()
            asked(guest, "", CHANGES)
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
    assert value(busy, "uvmshare_expected_errors_total", errno="ENOENT") == 40
    assert value(busy, "uvmshare_errors_total", errno="EROFS") == 2
    assert {dict(where)["errno"] for where in samples(busy)["uvmshare_errors_total"]} == {"EROFS"}
    assert value(busy, "uvmshare_sent_bytes_total") > 40 * 5000
    assert value(busy, "uvmshare_received_bytes_total") > 0
    assert value(busy, "uvmshare_events_total", what="told") == 1
    assert value(busy, "uvmshare_watched_directories", share="0") == 1
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


@pytest.mark.parametrize(
    "forged",
    [
        b'"operations": {"Tread": -1}',
        b'"operations": {"Tread": "many"}',
        b'"operations": {"Tread": 1e400}',
        b'"operations": {"Tread": 99999999999999999999}',
        b'"operations": {"Tread\\n# injected": 1}',
        b'"operations": {"a\\"} 1": 1}',
        b'"operations": [1]',
        b'"errors": {"-5": 1}',
        b'"errors": {"x": 1}',
        b'"received": NaN',
        b'"sent": 1.5',
        b'"sent": null',
        b'"latencies": {"Tread": {"count": 1, "seconds": 1, "buckets": [1]}}',
        b'"latencies": {"Tread": {"count": 1, "seconds": -1, "buckets": [0,0,0,0,0,0,0,0,0,0,0]}}',
    ],
)
def test_counters_that_are_none_are_no_answer(forged: bytes) -> None:
    from uvmshare.fileserver import control

    share = {"name": "0", "path": "/p", "read_only": True, "document": {"Name": "0", "AccessName": "0", "Port": 1}}
    mount = b'{"pid": 1, "connection": 1, "peer": "", "counted": {%b}}'
    answer = json.dumps({"id": 1, "shares": [{**share, "mounts": ["?"]}]}).encode()
    good = mount % b'"operations": {"Tread": 1}'
    assert control.decode_reply(answer.replace(b'"?"', good)).shares
    with pytest.raises((ValueError, msgspec.DecodeError)):
        control.decode_reply(answer.replace(b'"?"', mount % forged))


def test_one_file_server_that_tells_nothing_costs_the_lines_of_its_vm_alone(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_COUNT_SECONDS", 0.2)
    with home.running() as daemon:
        for id_ in ("stopped", "forging", "good"):
            vm = daemon.add_vm(id_)
            share = daemon.add_share(home.directory("project"), id_, read_only=True)
        supervisor = supervisor_of(home, os.getuid(), "stopped")
        os.kill(supervisor, signal.SIGSTOP)

        async def forged() -> tuple[control.ShareStatus, ...]:
            raise IndexError

        daemon.service.machines[os.getuid(), "forging"].counted = forged  # type: ignore[method-assign]  # it lies
        try:
            with Guest.connect(vm.addresses[0], share.name) as guest:
                guest.listdir("")
                found = samples(daemon)["uvmshare_file_server_answers"]
                assert {dict(where)["vm"].partition(":")[2]: number for where, number in found.items()} == {
                    "stopped": 0,
                    "forging": 0,
                    "good": 1,
                }
                assert value(daemon, "uvmshare_mounts") == 1
                assert value(daemon, "uvmshare_references", vm=f"{os.getuid()}:stopped") == 1
            with home.client() as client:
                with pytest.raises(errors.OutcomeUnknown, match=r"no answer within 0\.2 s"):
                    client.vms.stats("stopped")
                assert client.vms.stats("good")
        finally:
            os.kill(supervisor, signal.SIGCONT)


def test_what_a_user_makes_his_file_server_count_is_told_all_the_same(
    busy: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest counts that are taken, of more shares than there are, one of them twice."""
    from uvmshare.fileserver import control, counters

    there = busy.service.machines[os.getuid(), "vm"]
    (share,) = busy.call(there.counted)
    most = counters.Counted(
        operations={"Tread": counters._MOST},
        errors={5: counters._MOST},
        received=counters._MOST,
        latencies={"Tread": counters.Latency(counters._MOST, 1e9, (counters._MOST,) * 11)},
    )
    mounts = tuple(control.MountStatus(1, number, "", most) for number in range(3000))
    large = msgspec.structs.replace(share, mounts=mounts)

    async def counted() -> tuple[control.ShareStatus, ...]:
        return (share, large, msgspec.structs.replace(large, name='7"} 1'))

    monkeypatch.setattr(there, "counted", counted)
    assert value(busy, "uvmshare_mounts") == 3000
    assert {dict(where)["share"] for where in samples(busy)["uvmshare_mounts"]} == {"0"}
    with busy.home.client() as client:
        (stats,) = client.vms.stats("vm")
    assert stats.received == (1 << 63) - 1


def test_the_commands_show_it(
    busy: Running, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UVMSHARE_HOST", busy.home.host)
    assert run(["stats"]) == 0
    header, row = capfd.readouterr().out.splitlines()
    cells = dict(zip(header.split(), re.split(r"\s{2,}", row), strict=True))
    assert cells["PATH"] == busy.home.directory("project")
    assert (cells["EXPECTED"], cells["ERRORS"], cells["EVENTS"]) == ("40", "2", "1")
    assert run(["stats", "vm", "--json"]) == 0
    (found,) = json.loads(capfd.readouterr().out)
    assert (found["errors"], found["expected"], found["connections"]) == (2, 40, 1)
    assert found["errnos"] == {"ENOENT": 40, "EROFS": 2}
    assert found["unreachable_since"] is None
    assert (found["events"]["told"], found["events"]["watched"], found["events"]["overflows"]) == (1, 1, 0)
    assert found["operations"] == sum(found["kinds"].values())
    assert found["latency"] > 0
    assert run(["top", "--interval", "0.1", "--times", "1"]) == 0
    shown = capfd.readouterr().out
    assert "OPS/S" in shown
    assert re.search(r"µs +40 +2\b", shown), "those that are expected, and those that are not"


def test_rates_are_of_what_was_done_meanwhile_and_never_below_nothing() -> None:
    from uvmshare.daemon.documents import EventCounts, Stats

    def made(share: str, operations: int) -> Stats:
        return Stats(
            vm="vm",
            share=share,
            path="/p",
            read_only=True,
            connections=1,
            operations=operations,
            errors=0,
            expected=0,
            errnos={},
            received=operations * 10,
            sent=operations * 1000,
            latency=None,
            compiled=0,
            kinds={},
            events=EventCounts(*[0] * 7),
            unreachable_since=None,
        )

    before = {("vm", "0"): made("0", 100), ("vm", "1"): made("1", 100)}
    shown = top.rates(before, [made("0", 120), made("1", 1100), made("2", 50)], {}, 2.0)
    assert [each.share for each in shown] == ["1", "2", "0"]
    assert [each.operations for each in shown] == [500, 25, 10]
    assert [each.sent for each in shown] == [500_000, 25_000, 10_000]
    assert [each.operations for each in top.rates(before, [made("0", 5)], {}, 1.0)] == [0], "another connection"
    assert stats.size(10**18) == "1000000.0 TB"
    assert stats.micros(0.0000123) == "12 µs"
