"""A program with threads and no event loop: it shares some directories until Enter is pressed.

python synchronous.py firecracker:/run/fc/v.sock /srv/project /srv/cache
"""

import contextlib
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

from uvmshare import AddOptions, FileServer
from uvmshare.blocking import Manager


@contextlib.asynccontextmanager
async def serving(address: str) -> AsyncIterator[FileServer]:
    """Serve in the Manager's own event loop, which runs in the background."""
    async with FileServer(listen=[address]) as server:
        yield server


def main(address: str, paths: list[str]) -> None:
    """Share the directories, each from a thread of its own."""
    with Manager(serving(address)) as manager, ThreadPoolExecutor() as threads:
        for path, name in zip(paths, threads.map(manager.add, map(AddOptions, paths)), strict=True):
            print(f"the guest mounts share {name} of {path}", flush=True)
        input("Enter ends it.\n")
    print("the guest reaches none of them any more")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: python synchronous.py ADDRESS PATH...")
    main(sys.argv[1], sys.argv[2:])
