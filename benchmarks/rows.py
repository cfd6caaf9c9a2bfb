"""The command line of what measures row by row.

What lives here: which rows are asked for, and how they are told. What must not: any row.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

__all__ = ["command_line", "read", "tell"]


def command_line(about: str | None, rows: Collection[str]) -> argparse.ArgumentParser:
    """Return the command line of a program whose docstring is `about`; it may have further options."""
    parser = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(rows)}; without any, all")
    parser.add_argument("--quick", action="store_true", help="only try it: the figures mean nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def read(parser: argparse.ArgumentParser, rows: Collection[str]) -> argparse.Namespace:
    """Read the command line; `rows` of the answer are those that are wanted. Ends the program where one is unknown."""
    chosen = parser.parse_args()
    unknown = [row for row in chosen.rows if row not in rows]
    if unknown:
        parser.error(f"there is no row {unknown[0]!r}; use some of {', '.join(rows)}")
    chosen.rows = chosen.rows or list(rows)
    return chosen


def tell(found: Mapping[str, Mapping[str, Any]], *, as_json: bool, **beside: object) -> None:
    """Print what was found, a line for each row, or all with what is `beside` as one JSON object."""
    if as_json:
        sys.stdout.write(json.dumps({**beside, **found}) + "\n")
        return
    for row, values in found.items():
        sys.stdout.write(f"{row:8} {'  '.join(f'{name}={value}' for name, value in values.items())}\n")
