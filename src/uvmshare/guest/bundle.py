"""Everything that runs in a guest as one file: ``uvmshare guest agent --print > uvmshare-guest``.

What lives here: making that file, and its command line. What must not: what it does then. It is a zip archive that
Python runs (zipapp): the modules of this directory, and those of `uvmshare.linux` that they use, as they are and
uncompressed, so that a guest needs neither this package nor zlib::

    guest# python3 uvmshare-guest agent --allow /mnt
    guest# python3 uvmshare-guest mount vsock:2 0 /mnt/project
"""

from __future__ import annotations

import io
import os
import pkgutil
import sys
import zipfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["LINUX", "MODULES", "bundle", "main"]

MODULES = (
    "__init__",
    "agent",
    "attempt",
    "bundle",
    "check",
    "keepalive",
    "loop",
    "mount",
    "pinning",
    "pins",
    "mount_paths",
    "repeating",
    "session",
    "survey",
    "table",
    "watches",
    "wire",
    "work",
)
LINUX = ("__init__", "boot", "credentials", "loopback", "mountinfo", "notify", "sockets")
"""Modules of `uvmshare.linux` that the guest's use."""
_MAIN = "import sys\nfrom uvmshare.guest.bundle import main\nsys.exit(main(sys.argv[1:]))\n"
_WHEN = (1980, 1, 1, 0, 0, 0)
"""The earliest time that a zip archive can say: the same modules give the same file."""
_COMMANDS = ("agent", "mount")


def bundle() -> bytes:
    """Return the file."""
    made = io.BytesIO()
    made.write(b"#!/usr/bin/env python3\n")
    with zipfile.ZipFile(made, "a") as archive:
        archive.writestr(zipfile.ZipInfo("__main__.py", _WHEN), _MAIN)
        archive.writestr(zipfile.ZipInfo("uvmshare/__init__.py", _WHEN), "")
        for package, names in (("guest", MODULES), ("linux", LINUX)):
            for name in names:
                source = pkgutil.get_data(f"uvmshare.{package}", f"{name}.py")
                assert source is not None, "the loaders of files and of archives have it"
                archive.writestr(zipfile.ZipInfo(f"uvmshare/{package}/{name}.py", _WHEN), source)
    return made.getvalue()


def main(arguments: Sequence[str]) -> int:
    """Run one of the guest's commands; the agent when none is named."""
    for stream in ("stdin", "stdout", "stderr"):  # as in `mount.py`
        setattr(sys, stream, getattr(sys, stream) or open(os.devnull, "r+", encoding="utf-8"))  # noqa: SIM115  to the end
    command, rest = (
        ("agent", arguments) if not arguments or arguments[0].startswith("-") else (arguments[0], arguments[1:])
    )
    program = f"uvmshare-guest {command}"
    if command == "agent":
        from uvmshare.guest import agent  # noqa: PLC0415  each command loads what it needs

        return agent.main(rest, program=program)
    if command == "mount":
        from uvmshare.guest import mount  # noqa: PLC0415  each command loads what it needs

        return mount.main(rest, program=program)
    sys.stderr.write(f"uvmshare-guest: there is no command {command!r}; there are {' and '.join(_COMMANDS)}\n")
    return 2
