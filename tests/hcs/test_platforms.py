"""Neither system's part is loaded on the other, and calling the wrong one says so in one line."""

from __future__ import annotations

import subprocess
import sys

import pytest

from uvmshare.errors import UnsupportedPlatform
from uvmshare.hcs.computecore import ComputeCore, _windows_build


def test_importing_the_package_loads_neither_the_binding_nor_the_file_server() -> None:
    code = (
        "import sys, uvmshare; from uvmshare import AddOptions, Manager, UtilityVM; "
        "other = ('uvmshare.hcs.compute', 'uvmshare.fileserver'); "
        "print(sorted(name for name in sys.modules if name.startswith(other)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_library_that_cannot_be_loaded_is_named() -> None:
    with pytest.raises(UnsupportedPlatform, match="there-is-no-such-library cannot be loaded"):
        ComputeCore.load("there-is-no-such-library")


def test_without_hcs_the_way_out_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(UnsupportedPlatform, match=r"^the Host Compute Service is part of Windows: .*FileServer"):
        ComputeCore.load()


def test_a_library_without_the_functions_is_named() -> None:
    import _ctypes

    library = "kernel32.dll" if sys.platform == "win32" else _ctypes.__file__
    with pytest.raises(UnsupportedPlatform, match="has no function Hcs"):
        ComputeCore.load(library)


def test_the_build_is_known_on_windows_alone() -> None:
    assert (_windows_build() is None) == (sys.platform != "win32")
