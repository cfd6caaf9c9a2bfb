"""A supervisor's process, as `link` starts it: the supervisor, and the code of the mount processes that it forks.

What lives here: nothing but that. A supervisor forks mount processes, and neither knows the other's modules.
"""

from __future__ import annotations

import sys

from uvmshare.fileserver.mount.confinement import missing
from uvmshare.fileserver.mount.process import serve
from uvmshare.fileserver.supervisor.main import main
from uvmshare.fileserver.supervisor.shares import MountProcesses

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], MountProcesses(serve, missing)))
