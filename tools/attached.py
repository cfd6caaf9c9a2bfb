"""Writes which functions an attach runs, in the supervisor and in the mount process, until a share is in use.

    python tools/attached.py            # writes src/uvmshare/fileserver/supervisor/attached.py

What lives here: how they are found, in a real file server. What must not: what is done with them (`together`).
"""

from __future__ import annotations

import asyncio
import mmap
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Final
from unittest import mock

import uvmshare.fileserver.mount.process
import uvmshare.fileserver.supervisor.main  # noqa: F401  both, so that their functions are there
from uvmshare import AddOptions, FileServer, Manager
from uvmshare.fileserver.supervisor.together import function_of
from uvmshare.testing.client import NinePClient

__all__ = ["WRITTEN", "found", "page"]

WRITTEN: Final = Path(__file__).resolve().parent.parent / "src/uvmshare/fileserver/supervisor/attached.py"
_ROOM: Final = 1 << 18
"""Bytes for the names of each of the two processes."""
_RECORDER: Final = """
import mmap, os, sys

with open(os.environ["UVMSHARE_RECORDED"], "r+b") as file:
    memory = mmap.mmap(file.fileno(), 0)
own, seen, at = os.getpid(), set(), 1


def record(frame, event, _):
    global at
    if event != "call" or not memory[0]:
        return
    name = f"{frame.f_globals.get('__name__')} {frame.f_code.co_qualname}\\n"
    if name not in seen:
        seen.add(name)
        start = at + (0 if os.getpid() == own else len(memory) // 2)
        memory[start : start + len(name)] = name.encode()
        at += len(name)


sys.setprofile(record)
"""
"""For the start of an interpreter. A mount process may open nothing, but it has this memory."""


async def _attach(place: Path, memory: mmap.mmap) -> None:
    shared = place / "shared"
    shared.mkdir()
    address = f"unix:{place}/s"

    def attach() -> None:
        with NinePClient.connect(address, name) as client:
            client.getattr(client.root)

    async with FileServer(listen=[address]) as server, Manager(server) as manager:
        name = await manager.add(AddOptions(shared))
        await asyncio.to_thread(attach)  # what only the first one does is not for each
        memory[0] = 1
        await asyncio.to_thread(attach)
        memory[0] = 0


def found() -> dict[str, tuple[str, ...]]:
    """Return the functions by their modules, those that have a name there."""
    with tempfile.TemporaryDirectory(prefix="9p-") as name:
        place = Path(name)
        (place / "sitecustomize.py").write_text(_RECORDER, encoding="utf-8")
        with (place / "recorded").open("w+b") as file:
            file.truncate(2 * _ROOM)
            memory = mmap.mmap(file.fileno(), 0)
        with mock.patch.dict(os.environ, PYTHONPATH=name, UVMSHARE_RECORDED=str(place / "recorded")):
            asyncio.run(_attach(place, memory))
        lines = memory[1:].replace(b"\0", b"").decode().splitlines()
    functions: defaultdict[str, set[str]] = defaultdict(set)
    for module, _, function in (line.partition(" ") for line in lines):
        if function_of(module, function) is not None:
            functions[module].add(function)
    return {module: tuple(sorted(functions[module])) for module in sorted(functions)}


def page() -> str:
    """Return the module."""
    entries = "".join(f"    {module!r}: {names!r},\n" for module, names in found().items())
    return (
        '"""Which functions an attach runs, in supervisor and mount process: `tools/attached.py` wrote it.\n\n'
        "What lives here: their names. What must not: what is done with them (`together`).\n"
        '"""\n\nfrom __future__ import annotations\n\nfrom typing import Final\n\n__all__ = ["ATTACHED"]\n\n'
        f"ATTACHED: Final[dict[str, tuple[str, ...]]] = {{\n{entries}}}\n"
    )


if __name__ == "__main__":
    WRITTEN.write_text(page(), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "ruff", "format", "--quiet", WRITTEN], check=True)
