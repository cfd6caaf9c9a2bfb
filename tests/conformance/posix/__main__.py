"""The POSIX checks of a directory: ``python3 -m tests.conformance.posix DIRECTORY RESULTS PART...``, as root.

What lives here: the order of the parts. The result is JSON, the names of the checks with what was got and wanted.
``populate DIRECTORY`` makes what the part "read-only" finds when the directory can no longer be written to.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from typing import TYPE_CHECKING

from tests.conformance.posix import contents, creation, descriptors, features, paths, peers, permissions, renames, times
from tests.conformance.posix.suite import Suite

if TYPE_CHECKING:
    from collections.abc import Callable

PARTS: dict[str, Callable[[Suite], None]] = {
    "paths": paths.check_all,
    "creation": creation.check_all,
    "renames": renames.check_all,
    "times": times.check_all,
    "contents": contents.check_all,
    "descriptors": descriptors.check_all,
    "permissions": permissions.check_all,
    "owners": permissions.check_owners,
    "read-only": permissions.check_read_only,
    "features": features.check_all,
    "peers": peers.check_all,
    "acls": features.check_acls,
    "shared-maps": partial(features.check_shared_maps, writable=True),
    "no-shared-maps": partial(features.check_shared_maps, writable=False),
}


def main(arguments: list[str]) -> None:
    if arguments[0] == "populate":
        os.umask(0)
        permissions.populate(arguments[1])
        return
    directory, results, *parts = arguments
    os.umask(0)
    suite = Suite(os.path.realpath(directory))
    for part in parts:
        PARTS[part](suite)
    suite.end()
    with open(results, "w", encoding="utf-8") as file:
        json.dump(suite.results, file, indent=0)


if __name__ == "__main__":
    main(sys.argv[1:])
