"""A process with a Manager in it, which the soak kills and starts again.

Run as ``python keeper.py RUN_DIR ADDRESS``. Takes a line of JSON a command on standard input and answers each with a
line, in any order. What lives here: the calls to the library. What must not: what is expected of them.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

from uvmshare import AddOptions, FileServer, Manager, SqliteJournal
from uvmshare.errors import FileServerError


class Keeper:
    """The Manager, the file server, and the commands."""

    def __init__(self, server: FileServer, manager: Manager) -> None:
        self.server = server
        self.manager = manager

    async def add(self, path: str, owner: str, *, read_only: bool) -> str:
        return await self.manager.add(AddOptions(path, read_only=read_only), owner=owner)

    async def remove(self, name: str, owner: str) -> None:
        await self.manager.remove(name, owner=owner)

    async def shares(self) -> dict[str, Any]:
        status = await self.server.status()
        return {
            "pid": status.pid,
            "mounts": {share.name: [each.pid for each in share.mounts] for share in status.shares},
            "held": {
                share.name: [share.options.host_path, share.options.read_only, sorted(map(str, share.owners))]
                for share in self.manager.shares()
                if share.owners and share.busy is None and not share.orphan
            },
            # What is being taken out, as somebody had asked for, since the answer was lost.
            "orphans": [share.name for share in self.manager.shares() if not share.owners or share.orphan],
        }

    async def obey(self, line: bytes) -> None:
        request = json.loads(line)
        try:
            result = await getattr(self, request["do"])(**request["with"])
            answer = {"id": request["id"], "result": result}
        except Exception as error:  # noqa: BLE001  whoever asked decides what it means
            answer = {"id": request["id"], "error": f"{type(error).__name__}: {error}"}
        os.write(1, json.dumps(answer).encode() + b"\n")


async def main(run_dir: str, address: str) -> None:
    try:
        server = await FileServer.connect(run_dir).start()
    except FileServerError:
        server = await FileServer([address], run_dir=run_dir, security_model="none").start()
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    with SqliteJournal(os.path.join(run_dir, "journal.db")) as journal:
        async with server, Manager(server, journal=journal.for_vm()) as manager:
            keeper = Keeper(server, manager)
            tasks: set[asyncio.Task[None]] = set()
            os.write(1, b'{"id": 0, "result": "ready"}\n')
            while line := await reader.readline():
                task = asyncio.create_task(keeper.obey(line))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            if tasks:
                await asyncio.wait(tasks)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
