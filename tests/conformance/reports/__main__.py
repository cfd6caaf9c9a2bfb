"""Checks in the guest: ``python3 -m tests.conformance.reports DIRECTORY RESULTS CHECK...``, as root.

What lives here: the order of the checks. Each runs in a process and a directory of its own, so that none has what
another left open. The outcomes are written into RESULTS as JSON, a check's name to what came of it.
"""

from __future__ import annotations

import json
import os
import sys

from tests.conformance.reports.guest import host, outcome_of
from tests.conformance.reports.table import OWN, REPORTS


def outcomes(directory: str, names: list[str]) -> dict[str, str]:
    """Make the checks of these names and return what came of each."""
    checks = {report.check.__name__: report.check for report in (*REPORTS, *OWN)}
    found = {}
    for name in names:
        at = os.path.join(directory, name)
        os.mkdir(at)
        os.chmod(at, 0o755)
        host("begin", name)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.chdir(at)
            os.write(writing, outcome_of(checks[name]).encode("utf-8", "backslashreplace"))
            os._exit(0)
        os.close(writing)
        with open(reading, encoding="utf-8") as told:
            found[name] = told.read()
        os.waitpid(child, 0)
    return found


os.umask(0o022)
with open(sys.argv[2], "w", encoding="utf-8") as results:
    json.dump(outcomes(sys.argv[1], sys.argv[3:]), results)
