"""Lengths of time on a command line: `90`, `90s`, `5m`, `1h30m`, `2d`.

What lives here: from the text to seconds, and from seconds to a text. What must not: what they are for.
"""

from __future__ import annotations

import re
from typing import Final

import click

__all__ = ["in_words", "seconds_of"]

_UNITS: Final = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)([dhms])", re.ASCII)
_PLAIN: Final = re.compile(r"\d+(?:\.\d+)?", re.ASCII)
_MOST_CHARACTERS: Final = 32


def seconds_of(text: str) -> float:
    """Return the seconds of a length of time: a plain number, or numbers with d, h, m or s behind them.

    Raises `click.BadParameter` for anything else, and for nothing at all: a length is more than zero.
    """
    seconds = _read(text) if len(text) <= _MOST_CHARACTERS else None
    if seconds is None:
        msg = f"{text!r} is no length of time: write seconds (90), or 90s, 5m, 1h30m, 2d"
        raise click.BadParameter(msg)
    if not seconds:
        msg = f"{text!r} is no time at all: write more than 0"
        raise click.BadParameter(msg)
    return seconds


def _read(text: str) -> float | None:
    if _PLAIN.fullmatch(text):
        return float(text)
    parts = _PART.findall(text)
    units = [unit for _, unit in parts]
    # Each unit once, the largest first: "5m1h" or "5m5m" is most likely a slip.
    if not parts or "".join(map("".join, parts)) != text or units != sorted(set(units), key=list(_UNITS).index):
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def in_words(seconds: float) -> str:
    """Return a length of time for people, its two largest units: "45s", "4m59s", "1h30m", "2d"."""
    left = max(0, round(seconds))
    parts: list[str] = []
    for unit, size in _UNITS.items():
        count, left = divmod(left, size)
        if count or parts:
            parts.append(f"{count}{unit}")
    shown = [part for part in parts[:2] if not part.startswith("0")]
    return "".join(shown) or "0s"
