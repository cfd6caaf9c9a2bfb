"""The command line: thin commands over the package, and the one place that turns errors into exit statuses.

What lives here: `main`, the entry point, which needs nothing but the standard library until it has found
that the command line's own dependencies are there. What must not: anything a library user would call.
"""

from __future__ import annotations

import sys
from typing import Final

from uvmshare.printable import safe_stderr

__all__ = ["EXTRAS", "main", "missing_extra"]


def main() -> int:
    """Run `uvmshare` with the arguments of this process; returns the exit status.

    0 is success, 1 a failure, 2 a wrong command line, 130 an interruption (SIGINT).
    """
    safe_stderr()
    try:
        from uvmshare.cli.main import run  # noqa: PLC0415  click and rich are an extra: see below
        from uvmshare.cli.output import name_standard_output  # noqa: PLC0415  as above

        name_standard_output()
        return run(sys.argv[1:])
    except ModuleNotFoundError as error:
        missing = missing_extra(error)
        if missing is None:
            raise
        print(
            f"uvmshare: error: this needs the Python package {missing!r}: pip install 'uvmshare[{EXTRAS[missing]}]'",
            file=sys.stderr,
        )
        return 1


EXTRAS: Final = {
    "click": "cli",
    "rich": "cli",
    "httpcore": "daemon",
    "litestar": "daemon",
    "opentelemetry": "daemon",
    "prometheus_client": "daemon",
    "structlog": "daemon",
    "uvicorn": "daemon",
    "cryptography": "fleet",
    "grpc": "fleet",
}
"""The extra of this package that brings each package which the command line may find missing."""


def missing_extra(error: BaseException) -> str | None:
    """Return the package of an extra that an import did not find, if that is what the error says."""
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        return None
    package = error.name.partition(".")[0]
    return package if package in EXTRAS else None
