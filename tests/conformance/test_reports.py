"""What people reported elsewhere, done in a real guest: one test, and one process there, for each way of mounting."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from tests.conformance.harness import TREE, USER, Setting, keep
from tests.conformance.reports.guest import ANSWERS, ASKS, WORKS
from tests.conformance.reports.host import Host
from tests.conformance.reports.people import DEVELOPER
from tests.conformance.reports.table import OWN, REPORTS

from results import NO_CAUSE

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conformance.harness import Bench, Mount
    from tests.conformance.reports.guest import Report

pytestmark = [pytest.mark.guest, pytest.mark.long, pytest.mark.timeout(3600)]  # one test is fifty checks

SETTINGS = {
    "few": Setting("", cache="loose", server="few descriptors"),
    "limited": Setting("", cache="loose", server="few open files"),
    "hidden": Setting("", server="hidden names"),
    "owner": Setting("", server="mapped owner"),
    "user": Setting("", model="mapped-xattr", server="a user's"),
    "links": Setting("", model="mapped-xattr", server="real links"),
    "mapped": Setting("", model="mapped-xattr"),
    "loose": Setting("", cache="loose"),
    "mmap": Setting("", cache="mmap"),
    "none": Setting(""),
}
SHORT = ("few", "limited", "hidden", "owner", "mmap")
"""These have few checks each; the others take minutes."""
SHOWN: dict[str, dict[str, Any]] = {
    "hidden": {"hide": ["node_modules", "**/.env"]},
    "owner": {"map_owner": f"{USER}:{DEVELOPER}"},
}
"""What else is asked for with the share."""


KERNELS = os.environ.get("UVMSHARE_REPORT_KERNELS", "6.1").split()
"""The guest's kernels. Each takes minutes: ``UVMSHARE_REPORT_KERNELS='6.1 6.12'`` tries both."""


def known(report: Report, name: str, kernel: str) -> dict[str, str]:
    """Return the other outcomes that are known in a setting, with the reason of each."""
    return {
        one.outcome: one.why
        for one in report.otherwise
        if name in (one.settings.split() or (name,)) and kernel in (one.kernels.split() or (kernel,))
    }


def tried(up: Bench, mount: Mount, checks: list[str]) -> dict[str, str]:
    """Make checks in the guest, do on the host what they ask for, and return their outcomes."""
    host = Host(mount)
    results, said = "/run/results/reports.json", "/run/results/reports.said"
    up.check(f"rm -f {ASKS} {ANSWERS} {results} && mkfifo {ASKS} {ANSWERS}")
    command = f"cd {TREE} && python3 -B -m tests.conformance.reports {mount.at} {results} {' '.join(checks)}"
    asked = up.check(f"(({command}) > {said} 2>&1; echo [] > {ASKS}) > /dev/null 2>&1 & cat {ASKS}")
    while step := json.loads(asked):
        try:
            answer = json.dumps([True, host.do(*step)])
        except Exception as error:  # noqa: BLE001  the guest waits, and says it in the outcome
            answer = json.dumps([False, f"{step[0]}: {error!r}"])
        asked = up.check(f"printf %s {shlex.quote(answer)} > {ANSWERS}; cat {ASKS}")
    outcomes: dict[str, str] = json.loads(up.check(f"cat {said} >&2; cat {results}"))
    return outcomes


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        pytest.param(
            *(name, replace(setting, kernel=kernel)),
            id=f"{name}-{kernel}",
            marks=() if name in SHORT else pytest.mark.soak,
        )
        for kernel in KERNELS
        for name, setting in SETTINGS.items()
    ],
)
def test_what_people_reported_elsewhere(
    bench: Callable[[str], Bench], directory: str, name: str, setting: Setting
) -> None:
    up = bench(setting.kernel)
    reports = [report for report in (*REPORTS, *OWN) if name in report.settings]
    if setting.server == "a user's":
        os.chown(directory, USER, USER)
    with up.mounted(setting, directory, **SHOWN.get(name, {})) as mount:
        outcomes = tried(up, mount, list(dict.fromkeys(report.check.__name__ for report in reports)))
    wrong = []
    for report in reports:
        outcome = outcomes[report.check.__name__]
        otherwise = known(report, name, setting.kernel)
        expected = outcome in (otherwise or (WORKS,))
        if not expected:
            wrong.append(f"{report.where}, {report.tried}: {outcome}")
        found = {
            "number": (*REPORTS, *OWN).index(report),
            "report": report.where,
            "tried": report.tried,
            "outcome": outcome,
        }
        failures = {} if expected and outcome == WORKS else {report.tried: otherwise.get(outcome, NO_CAUSE)}
        keep("reports" if report in REPORTS else "real-hosts", setting, found, failures)
    assert wrong == []
