"""A CI job that holds a share while its command runs, through the daemon.

    python ci_job.py build /srv/project make test

The share has a lease of 30 seconds, which is renewed in the background. If this program is killed, nobody renews it,
and the daemon removes the share by itself.
"""

import os
import subprocess
import sys

from uvmshare import Client


def main(vm: str, path: str, command: list[str]) -> int:
    """Run a command while a VM has a directory. Return its exit status."""
    owner = f"ci-{os.getpid()}"
    with Client() as client, client.holding(vm, path, owner=owner, lease=30) as share:
        print(f"{vm} has {path} as share {share.name}, held by {owner}", flush=True)
        return subprocess.run(command, env={**os.environ, "SHARE": share.name}, check=False).returncode


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit("usage: python ci_job.py VM PATH COMMAND...")
    sys.exit(main(sys.argv[1], os.path.abspath(sys.argv[2]), sys.argv[3:]))
