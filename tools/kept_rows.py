"""What a page of docs/ says already, so that rows without a new record keep what they say.

What lives here: reading tables and lists of Markdown that `tools/conformance.py` has written. What must not: what is
kept of them, and how a page is laid out.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

Row = dict[str, str]
"""Cells by column."""


class Cause(NamedTuple):
    """One cause as the page has it: its first line, and the settings in which it was found."""

    line: str
    settings: tuple[str, ...]


_SECTION: Final = re.compile(r"^## (.+)$", re.MULTILINE)
_BETWEEN_CELLS: Final = re.compile(r"(?<!\\)\|")


class Written:
    """A page that is there, or an empty one."""

    def __init__(self, text: str) -> None:
        parts = _SECTION.split(text)
        self.head = parts[0]
        self.sections: dict[str, str] = dict(zip(parts[1::2], parts[2::2], strict=True))

    def rows(self, title: str) -> list[Row]:
        """Return the rows of a section's table."""
        lines = [line for line in self.sections.get(title, "").splitlines() if line.startswith("| ")]
        if not lines:
            return []
        columns = _cells(lines[0])
        return [dict(zip(columns, _cells(line), strict=True)) for line in lines[2:]]

    def causes(self, title: str) -> list[Cause]:
        """Return the causes that a section lists."""
        found: list[Cause] = []
        for line in self.sections.get(title, "").splitlines():
            if line.startswith("- "):
                found.append(Cause(line, ()))
            elif line.startswith("  - ") and found:
                found[-1] = found[-1]._replace(settings=(*found[-1].settings, line[4:]))
        return found

    @property
    def date(self) -> str:
        """The last day that the page names above its sections: that of rows which name none."""
        return max(re.findall(r"\d{4}-\d\d-\d\d", self.head), default="")

    @property
    def commit(self) -> str:
        """The first commit that the page names above its sections, as a row has it: that of rows which name none."""
        found = re.search(r"`[0-9a-f]{10}(-dirty)?`", self.head)
        return found[0] if found else ""


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in _BETWEEN_CELLS.split(line)[1:-1]]
