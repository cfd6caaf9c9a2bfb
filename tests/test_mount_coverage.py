"""The coverage plugin of tools/: which children of a measured process measure themselves, and which must not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

CONFIGURATION = Path(__file__).parents[1] / "pyproject.toml"

PROGRAM = """
    import os, posix, sys, threading
    from coverage import Coverage

    Coverage(data_file=None, config_file=sys.argv[1]).start()
    end = threading.Event()
    threads = [threading.Thread(target=end.wait) for _ in range(int(sys.argv[2]))]
    for thread in threads:
        thread.start()
    child = os.fork()
    if child == 0:
        posix._exit(3 if os._exit is posix._exit else 4)
    end.set()
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork(2)")
@pytest.mark.parametrize(("threads", "what"), [(0, 4), (1, 3)], ids=["measured", "ends at once beside threads"])
def test_a_child_of_a_process_with_threads_writes_no_data_when_it_ends(threads: int, what: int) -> None:
    command = [sys.executable, "-c", dedent(PROGRAM), str(CONFIGURATION), str(threads)]
    assert subprocess.run(command, check=False, timeout=60).returncode == what
