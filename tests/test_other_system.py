"""The public names on a system without Linux's modules: all can be imported. Wine shows the same (tests/windows)."""

from __future__ import annotations

import subprocess
import sys

import pytest

if sys.platform == "win32":
    pytest.skip("tests/windows has this there", allow_module_level=True)

PROGRAM = """
import sys

# What the standard library has imported stays; what the package imports of Linux's own is not there.
import asyncio, concurrent.futures, ctypes, email, importlib.metadata, os
import sqlite3, socket, ssl, subprocess, tempfile, types
import httpcore, msgspec, structlog

for name in ("fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty"):
    sys.modules[name] = None
for owner, names in {
    os: ("fork", "geteuid", "getuid", "getgid", "getegid", "getgroups", "uname", "mknod", "chown", "setns", "sendfile"),
    socket: ("AF_UNIX", "AF_VSOCK", "SO_PEERCRED", "SCM_RIGHTS"),
}.items():
    for name in names:
        vars(owner).pop(name, None)
for name in [name for name in vars(os) if name in ("O_PATH", "O_DIRECTORY", "O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK")]:
    delattr(os, name)
sys.modules["msvcrt"] = types.ModuleType("msvcrt")
ctypes.WINFUNCTYPE = ctypes.CFUNCTYPE
whole = ctypes.CDLL


def no_process(name, *args, **more):  # LoadLibrary(NULL) is an error
    if name is None:
        raise TypeError("LoadLibrary() argument 1 must be str, not None")
    return whole(name, *args, **more)


ctypes.CDLL = no_process
sys.platform = "win32"

import uvmshare

for name in uvmshare.__all__:
    getattr(uvmshare, name)
for call in (
    lambda: uvmshare.FileServer(listen=["unix:/run/x"]),
    lambda: uvmshare.FileServer.connect("/run/x"),
    lambda: uvmshare.serve(listen=["unix:/run/x"]),
    lambda: uvmshare.Client(),
    lambda: uvmshare.Client("unix:/run/x"),
    lambda: uvmshare.AsyncClient(),
):
    try:
        call()
    except uvmshare.errors.UnsupportedPlatform as error:
        assert "Linux" in str(error) and "\\n" not in str(error), error
    else:
        raise AssertionError("it was not refused")
sys.stdout.write("all of them")
"""


def test_every_public_name_can_be_imported_and_what_is_linuxs_refuses_in_one_line() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("all of them", 0), done.stderr
