"""What no message for people holds: the grammar of a validator, the number of an errno, a name of Python's."""

from __future__ import annotations

import re

__all__ = ["assert_for_people"]

_FOREIGN = re.compile(
    r"`\$|\$\.|matching regex|\bregex\b|of length|Expected |Object (?:contains|missing)|\[Errno|line \d+ column"
    r"|Expecting |malformed|codec can't|x[<>]=?|valid (?:integer|float)|invalid (?:int|float) value|\bNone\b"
    r"|Traceback|msgspec|Error\b(?<!: error)|<class|\?!|\[A-Za"
)


def assert_for_people(message: str) -> None:
    """Fail if only a library says a part of the message."""
    found = _FOREIGN.search(message)
    assert found is None, (found, message)
