"""What Prometheus reads at /metrics: the daemon's tables and the mounts' counters, as they are when it asks.

What lives here: the names, and how they are filled. What must not: counting (`uvmshare.fileserver.counters` does).

Everything is read at the moment of the scrape, so that nothing has to be kept in step. A mount that ends takes its
numbers with it, so sums over a VM may fall; `rate()` takes that for a restart of the counter, as it should.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import msgspec
import structlog
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from uvmshare.daemon.shares import holder_of
from uvmshare.fileserver.counters import BUCKETS, Events, errno_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from uvmshare.daemon.identity import Identity
    from uvmshare.daemon.machine import Machine
    from uvmshare.daemon.service import Service
    from uvmshare.fileserver.control import ShareStatus

__all__ = ["CONTENT_TYPE", "NAMES", "render"]

CONTENT_TYPE = CONTENT_TYPE_LATEST

NAMES = (
    "uvmshare_vms",
    "uvmshare_shares",
    "uvmshare_references",
    "uvmshare_leases",
    "uvmshare_guest_mounts",
    "uvmshare_restarts_total",
    "uvmshare_agent_reached",
    "uvmshare_file_server_answers",
    "uvmshare_mounts",
    "uvmshare_operations_total",
    "uvmshare_errors_total",
    "uvmshare_expected_errors_total",
    "uvmshare_received_bytes_total",
    "uvmshare_sent_bytes_total",
    "uvmshare_operation_seconds",
    "uvmshare_events_total",
    "uvmshare_watched_directories",
)
"""Every name there is, as queries write it; histograms without their suffixes."""


async def render(service: Service, who: Identity) -> bytes:
    """Return the metrics of what `who` may see, in Prometheus' text format.

    All file servers are asked beside each other. One that does not answer in time, or not what can be, costs what is
    told of its own VM's mounts, and ``uvmshare_file_server_answers`` says so.
    """
    machines = service.visible(who)
    outcomes = await asyncio.gather(*(service.counted(who, machine) for machine in machines), return_exceptions=True)
    answers = GaugeMetricFamily(
        "uvmshare_file_server_answers", "Whether the file server tells what its mounts have done.", labels=["vm"]
    )
    shares = {}
    for machine, found in zip(machines, outcomes, strict=True):
        key = machine.record.key
        answers.add_metric([_name(key)], not isinstance(found, BaseException))
        if isinstance(found, Exception):
            structlog.get_logger("uvmshare.daemon").warning(
                "a file server tells no counters", vm=_name(key), reason=str(found)
            )
        elif isinstance(found, BaseException):
            raise found
        else:
            shares[key] = found
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once([*_tables(service, who, machines), answers, *_mounts(shares)]))
    return generate_latest(registry)


class _Once(Collector):
    """Metrics that were made already."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        """Return them."""
        return self._metrics


def _name(key: tuple[int, str]) -> str:
    return f"{key[0]}:{key[1]}"


def _tables(service: Service, who: Identity, machines: list[Machine]) -> list[Metric]:
    vms = GaugeMetricFamily("uvmshare_vms", "VMs by the state of their file server.", labels=["state"])
    for state, count in Counter(str(machine.state) for machine in machines).items():
        vms.add_metric([state], count)
    shares = GaugeMetricFamily("uvmshare_shares", "Shares by state.", labels=["vm", "state"])
    references = GaugeMetricFamily("uvmshare_references", "References to shares.", labels=["vm"])
    leases = GaugeMetricFamily("uvmshare_leases", "Leases that run.", labels=["vm"])
    mounts = GaugeMetricFamily("uvmshare_guest_mounts", "Mounts in guests by state.", labels=["vm", "state"])
    restarts = CounterMetricFamily("uvmshare_restarts", "Restarts of file servers.", labels=["vm"])
    agents = GaugeMetricFamily("uvmshare_agent_reached", "Whether the guest's agent is reached.", labels=["vm"])
    for machine in machines:
        vm = _name(machine.record.key)
        found = service.shares.all(who, machine)
        for state, count in Counter(share.state for share in found).items():
            shares.add_metric([vm, state], count)
        for state, count in Counter(mount.state for mount in service.mounts.all(who, machine)).items():
            mounts.add_metric([vm, state], count)
        references.add_metric([vm], sum(len(share.references) + len(share.mounts) for share in found))
        leased = (holder_of(lease.owner) for lease in service.leases.of_vm(machine.record.key))
        leases.add_metric([vm], sum(who.is_root or (one is not None and one[0] == who.uid) for one in leased))
        restarts.add_metric([vm], machine.restarts)
        if machine.agent is not None:
            agents.add_metric([vm], int(machine.agent_reached))
    return [vms, shares, references, leases, mounts, restarts, agents]


def _mounts(shares: Mapping[tuple[int, str], list[ShareStatus]]) -> list[Metric]:
    labels = ["vm", "share"]
    mounts = GaugeMetricFamily("uvmshare_mounts", "Connections of guests that are mounted.", labels=labels)
    operations = CounterMetricFamily("uvmshare_operations", "9P requests by kind.", labels=[*labels, "kind"])
    errors = CounterMetricFamily(
        "uvmshare_errors", "Requests answered with an error that tells of trouble.", labels=[*labels, "errno"]
    )
    expected = CounterMetricFamily(
        "uvmshare_expected_errors",
        "Requests answered with an error that programs meet in normal use.",
        labels=[*labels, "errno"],
    )
    received = CounterMetricFamily("uvmshare_received_bytes", "Bytes from guests.", labels=labels)
    sent = CounterMetricFamily("uvmshare_sent_bytes", "Bytes to guests.", labels=labels)
    seconds = HistogramMetricFamily(
        "uvmshare_operation_seconds", "Time in a request's handler, of one turn in sixteen.", labels=[*labels, "kind"]
    )
    events = CounterMetricFamily(
        "uvmshare_events",
        "What was done for events in guests: changes heard, coalesced and told, operations pretended and refused, "
        "overflows.",
        labels=[*labels, "what"],
    )
    watched = GaugeMetricFamily(
        "uvmshare_watched_directories", "Directories that are watched for pins and events.", labels=labels
    )
    for key, served in shares.items():
        vm = _name(key)
        for share in served:
            where = [vm, share.name]
            counted = [mount.counted for mount in share.mounts if mount.counted is not None]
            mounts.add_metric(where, len(share.mounts))
            received.add_metric(where, sum(each.received for each in counted))
            sent.add_metric(where, sum(each.sent for each in counted))
            kinds: Counter[str] = Counter()
            latencies: dict[str, list[float]] = {}
            buckets: dict[str, list[int]] = {}
            for each in counted:
                kinds.update(each.operations)
                for kind, latency in each.latencies.items():
                    latencies.setdefault(kind, []).append(latency.seconds)
                    so_far = buckets.setdefault(kind, [0] * len(latency.buckets))
                    buckets[kind] = [a + b for a, b in zip(so_far, latency.buckets, strict=True)]
            for kind, count in kinds.items():
                operations.add_metric([*where, kind], count)
            for family, is_expected in ((errors, False), (expected, True)):
                answered: Counter[int] = Counter()
                for each in counted:
                    answered.update(each.answered(expected=is_expected))
                for number, count in answered.items():
                    family.add_metric([*where, errno_name(number)], count)
            for what, count in msgspec.structs.asdict(Events.of(counted)).items():
                if what == "watched":
                    watched.add_metric(where, count)
                elif count:
                    events.add_metric([*where, what], count)
            for kind, counts in buckets.items():
                bounds = [*(f"{bound:g}" for bound in BUCKETS), "+Inf"]
                sums = [sum(counts[: index + 1]) for index in range(len(counts))]
                seconds.add_metric([*where, kind], list(zip(bounds, sums, strict=True)), sum(latencies[kind]))
    return [mounts, operations, errors, expected, received, sent, seconds, events, watched]
