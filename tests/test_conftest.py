"""What tests are run in: a skip is a failure in CI, signals are as they are elsewhere, and what was odd is told."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SKIPS = {
    "a mark": "import pytest\n@pytest.mark.skip(reason='because')\ndef test(): pass\n",
    "a condition": "import pytest\n@pytest.mark.skipif(True, reason='because')\ndef test(): pass\n",
    "a call": "import pytest\ndef test(): pytest.skip('because')\n",
    "a fixture": "import pytest\n@pytest.fixture\ndef it(): pytest.skip('because')\ndef test(it): pass\n",
    "a module": "import pytest\npytest.skip('because', allow_module_level=True)\n",
    "an import": "import pytest\npytest.importorskip('no_such_module', reason='because')\n",
}

UNUSED = ("cacheprovider", "schemathesis", "faker")
"""Plugins that are left out, as in pyproject.toml: the last two take two seconds to load."""


def run(folder: Path, source: str, ci: str = "", *, begun_by: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    (folder / "test_it.py").write_text(source)
    (folder / "pytest.ini").write_text("[pytest]\n")
    conftest = os.path.join(os.path.dirname(__file__), "conftest.py")
    with open(conftest, encoding="utf-8") as original:
        (folder / "conftest.py").write_text(original.read())
    return subprocess.run(
        [*begun_by, sys.executable, "-m", "pytest", "-q", *(f"-pno:{each}" for each in UNUSED), str(folder)],
        env={**os.environ, "CI": ci},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("source", SKIPS.values(), ids=SKIPS)
def test_a_skip_fails_in_ci_and_says_why(source: str, tmp_path: Path) -> None:
    done = run(tmp_path, source, ci="true")
    assert done.returncode != 0, done.stdout
    assert "nothing is skipped in CI" in done.stdout
    assert "because" in done.stdout


def test_elsewhere_a_skip_is_a_skip(tmp_path: Path) -> None:
    done = run(tmp_path, f"{SKIPS['a call']}\ndef test_more(): pass\n", ci="")
    assert done.returncode == 0, done.stdout
    assert "1 passed, 1 skipped" in done.stdout


def test_an_expected_failure_is_no_skip(tmp_path: Path) -> None:
    done = run(tmp_path, "import pytest\n@pytest.mark.xfail\ndef test(): assert False\n", ci="true")
    assert done.returncode == 0, done.stdout
    assert "1 xfailed" in done.stdout


def test_no_example_fails_because_the_machine_is_busy() -> None:
    assert hypothesis.settings().deadline is None
    assert hypothesis.HealthCheck.too_slow in hypothesis.settings().suppress_health_check


SIGNALS = """
import signal
def test():
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no nohup")
def test_signals_that_were_ignored_when_the_tests_began_are_not_ignored_in_them(tmp_path: Path) -> None:
    """As with nohup, and in the background of a shell."""
    ignoring = ("sh", "-c", "trap '' HUP INT; exec \"$@\"", "sh")
    done = run(tmp_path, SIGNALS, begun_by=ignoring)
    assert done.returncode == 0, done.stdout


def test_how_often_guests_were_booted_again_is_told_at_the_end(tmp_path: Path) -> None:
    done = run(tmp_path, "from uvmshare.testing.guest_vm import GuestVM\ndef test(): GuestVM.booted_again = 2\n")
    assert done.returncode == 0, done.stdout
    assert "2 guests booted again: their kernels ended before a word" in done.stdout
    assert "booted again" not in run(tmp_path, "def test(): pass\n").stdout
