"""A CI job that holds a share while its command runs, through the daemon.

    python ci_job.py build /srv/project make test

The share has a lease of 30 seconds, which a thread renews. If this program is killed, nobody renews it, and the daemon
removes the share by itself.
"""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

from uvmshare import Client
from uvmshare.daemon.documents import NewShare

LEASE = 30.0


@contextlib.contextmanager
def renewed(owner: str) -> Iterator[None]:
    """Renew what an owner holds, to the end of the block."""
    ended = threading.Event()

    def renew() -> None:
        with Client() as client:  # a client is one thread's
            while not ended.wait(LEASE / 3):
                client.renew(owner)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def main(vm: str, path: str, command: list[str]) -> int:
    """Run a command while a VM has a directory. Return its exit status."""
    owner = f"ci-{os.getpid()}"
    with Client() as client:
        share = client.add_share(vm, NewShare(path=path, owner=owner, lease=LEASE))
        try:
            print(f"{vm} has {path} as share {share.name}, held by {owner}", flush=True)
            with renewed(owner):
                return subprocess.run(command, env={**os.environ, "SHARE": share.name}, check=False).returncode
        finally:
            client.release_share(vm, share.name, owner=owner)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit("usage: python ci_job.py VM PATH COMMAND...")
    sys.exit(main(sys.argv[1], os.path.abspath(sys.argv[2]), sys.argv[3:]))
