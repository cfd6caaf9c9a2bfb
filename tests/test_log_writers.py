"""No log has a line, a control character or a field that a name in it made up."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from tests.hostile_text import HOSTILE, assert_safe

from uvmshare.fileserver.log import Log
from uvmshare.guest.agent import Agent

DAEMON = """
import logging, sys
import structlog
from tests.hostile_text import HOSTILE
from uvmshare.daemon import logs
logs.configure(sys.argv[1])
log, foreign = structlog.get_logger("uvmshare.daemon"), logging.getLogger("uvicorn")
for text in HOSTILE:
    log.info("share.held", vm=text, path=text, count=1, other=(text, b"\\xff", None))
    foreign.warning("invalid request %s", text)
    try:
        raise ValueError(text)
    except ValueError:
        log.exception("defect", thing=text)
        foreign.exception(text)
"""


@pytest.mark.parametrize("form", ["json", "logfmt"])
def test_each_thing_that_happened_is_one_safe_line_of_the_daemons_log(form: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", DAEMON, form]
    ended = subprocess.run(command, capture_output=True, check=True, env=environment)
    output = ended.stderr.decode()
    assert_safe(output)
    lines = output.splitlines()
    assert len(lines) == 4 * len(HOSTILE)
    for line in lines:
        if form == "json":
            assert "event" in json.loads(line)
        else:
            assert line.startswith("timestamp=")
    assert ended.stdout == b""


def test_each_line_of_a_file_servers_log_is_one() -> None:
    ours, theirs = os.pipe()
    log = Log(theirs)
    for text in HOSTILE:
        log(f"connection 1 ({text}): {text}; connection closed")
    os.close(theirs)
    with os.fdopen(ours, "rb") as reader:
        output = reader.read().decode()
    assert_safe(output)
    assert output.count("\n") == len(HOSTILE)
    assert all(line.startswith("uvmshare: connection 1") for line in output.splitlines())


def test_each_line_of_an_agents_log_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    agent = Agent.__new__(Agent)
    for text in HOSTILE:
        agent.log(f"mount of {text}: {text}")
    output = capsys.readouterr().err
    assert_safe(output)
    assert output.count("\n") == len(HOSTILE)
