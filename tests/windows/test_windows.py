"""Windows' own side: the DLL in System32, LocalFree of kernel32, the proactor loop, paths without case."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from uvmshare import AddOptions, InvalidOptions
from uvmshare.errors import UnsupportedPlatform
from uvmshare.hcs import compute_system
from uvmshare.hcs.computecore import ComputeCore

if TYPE_CHECKING:
    from pathlib import Path

VM = "vm-of-the-environment"


def uvmshare(*args: str, state: Path) -> tuple[int, list[dict[str, object]], str]:
    """Run the command as a process of its own; its computecore.dll is the one in System32."""
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from uvmshare.cli import main; sys.exit(main())", *args],
        env={**os.environ, "STANDIN_SYSTEMS": f"{VM},other", "UVMSHARE_STATE_DIR": str(state)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_it_is_a_windows_with_its_own_event_loop() -> None:
    assert sys.platform == "win32"
    loop = asyncio.new_event_loop()
    assert type(loop).__name__ == "ProactorEventLoop"
    loop.close()


def test_the_command_finds_the_dll_in_system32_and_frees_with_kernel32(tmp_path: Path) -> None:
    status, lines, error = uvmshare("hcs", "list", state=tmp_path)
    assert (status, error) == (0, "")
    assert [line["vm"] for line in lines] == [VM, "other"]


def test_add_and_remove_through_system32(tmp_path: Path) -> None:
    (tmp_path / "Source").mkdir()
    status, [added], error = uvmshare("hcs", "add", VM, f"{tmp_path}\\Source:ro", state=tmp_path)
    assert (status, error) == (0, "")
    assert added["path"] == os.path.normcase(str(tmp_path / "Source"))
    # HCS is another with each process here, so that the share is not there; which is what was asked for.
    assert uvmshare("hcs", "remove", VM, str(added["share"]), state=tmp_path) == (0, [], "")
    assert uvmshare("hcs", "shares", VM, state=tmp_path) == (0, [], "")
    status, _, error = uvmshare("hcs", "add", "nobody", str(tmp_path), state=tmp_path)
    assert (status, error.count("\n")) == (1, 1)
    assert "0xC037010E" in error


def test_the_systems_own_dll_is_loaded_once() -> None:
    assert compute_system._system_core() is compute_system._system_core()
    assert (compute_system._system_core().windows_build or 0) >= 10240


def test_a_dll_that_lacks_a_function_or_is_none_is_named() -> None:
    with pytest.raises(UnsupportedPlatform, match=r"kernel32\.dll has no function HcsCreateOperation"):
        ComputeCore.load("kernel32.dll")
    with pytest.raises(UnsupportedPlatform, match=r"nothing\.dll cannot be loaded"):
        ComputeCore.load("nothing.dll")


def test_importing_the_package_loads_nothing_of_linux() -> None:
    code = (
        "import sys, uvmshare; from uvmshare import AddOptions, Manager, UtilityVM; "
        "print(sorted(name for name in sys.modules if name.startswith('uvmshare.fileserver')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_two_spellings_of_one_directory_are_one_share(tmp_path: Path) -> None:
    (tmp_path / "Source").mkdir()
    options = AddOptions(tmp_path / "Source", allowed_names=("A", "b"))
    spelt = str(tmp_path / "SOURCE").replace("\\", "/") + "/."
    assert options == AddOptions(spelt, allowed_names=("B", "a", "A"))
    assert hash(options) == hash(AddOptions(spelt, allowed_names=("B", "a")))


@pytest.mark.parametrize("name", ["a\\b", "a/b", "a:stream"])
def test_names_that_are_paths_on_windows_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidOptions, match="contains"):
        AddOptions(tmp_path, allowed_names=(name,))
