"""A program with threads and no event loop: it shares some directories until Enter is pressed.

    python synchronous.py firecracker:/run/fc/v.sock /srv/project /srv/cache

Any thread may share and release.
"""

import sys
from concurrent.futures import ThreadPoolExecutor

import uvmshare


def main(address: str, paths: list[str]) -> None:
    """Share the directories, each from a thread of its own."""
    with uvmshare.serve(listen=[address]) as vm, ThreadPoolExecutor() as threads:
        for path, share in zip(paths, threads.map(vm.share, paths), strict=True):
            print(f"the guest mounts share {share.name} of {path}", flush=True)
        input("Enter ends it.\n")
    print("the guest reaches none of them any more")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: python synchronous.py ADDRESS PATH...")
    main(sys.argv[1], sys.argv[2:])
