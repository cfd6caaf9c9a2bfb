"""The command line: thin commands over the package, and the one place that turns errors into exit statuses.

What lives here: `main`, the entry point, which needs nothing but the standard library until it has found
that the command line's own dependencies are there. What must not: anything a library user would call.
"""

from __future__ import annotations

import sys

__all__ = ["EXTRA", "main"]

EXTRA = frozenset({"click", "rich"})
"""What the extra `cli` installs."""


def main() -> int:
    """Run `uvmshare` with the arguments of this process; returns the exit status.

    0 is success, 1 a failure, 2 a command line that cannot be, 130 an interruption (SIGINT).
    """
    try:
        from uvmshare.cli.main import run  # noqa: PLC0415  click and rich are an extra: see below
    except ModuleNotFoundError as error:
        if error.name not in EXTRA:
            raise
        print(
            f"uvmshare: error: the command line needs the Python package {error.name!r}: pip install 'uvmshare[cli]'",
            file=sys.stderr,
        )
        return 1
    return run(sys.argv[1:])
