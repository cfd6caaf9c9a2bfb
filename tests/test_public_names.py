"""What `import uvmshare` gives, and ``python -m uvmshare``."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

import uvmshare


@pytest.mark.parametrize("name", uvmshare.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(uvmshare, name)
    assert name in dir(uvmshare)


def test_the_version_is_that_of_the_package() -> None:
    assert uvmshare.__version__ == version("uvmshare")


def test_other_names_are_not_there() -> None:
    with pytest.raises(AttributeError, match="'uvmshare' has no attribute 'Sharer'"):
        _ = uvmshare.Sharer


def test_importing_it_loads_nothing_else() -> None:
    loaded = "import sys, uvmshare; print(sorted(name for name in sys.modules if name.startswith('uvmshare')))"
    done = subprocess.run([sys.executable, "-c", loaded], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "['uvmshare']"


def test_the_command_line_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "uvmshare", "--version"], check=True, capture_output=True, text=True)
    assert done.stdout.strip().endswith(version("uvmshare"))
