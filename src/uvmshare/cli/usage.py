"""What is wrong with a command line, in one line and in our words: click's own are written for programmers.

What lives here: click's texts and what they are called here. What must not: what somebody may have meant (`guesses`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import click

__all__ = ["what_is_wrong"]

_WORDS: Final = (
    (r"(\S+) is not in the range (\S+)<=x<=(\S+?)\.?", r"\1 is not from \2 to \3"),
    (r"(\S+) is not in the range x>=(\S+?)\.?", r"\1 is less than \2"),
    (r"(\S+) is not in the range x>(\S+?)\.?", r"\1 is not more than \2"),
    (r"(.+) is not a valid (?:integer|int)(?: range)?\.?", r"\1 is no whole number"),
    (r"(.+) is not a valid float(?: range)?\.?", r"\1 is no number"),
)


def what_is_wrong(error: click.ClickException, guess: str = "") -> str:
    """Return what click says, on one line, since of a choice it makes several; and a guess of ours behind it."""
    said = " ".join(error.format_message().split())
    if guess:  # click's own is by letters alone
        return said.partition(" Did you mean")[0] + guess
    # "Invalid value for '--msize': 5 is not ...": what stands before names the option.
    named, colon, wrong = said.partition("': ")
    for pattern, words in _WORDS:
        if re.fullmatch(pattern, wrong if colon else said):
            return named + colon + re.sub(rf"^(?:{pattern})$", words, wrong if colon else said)
    return said
