"""What libraries and the system say of an error, in words for people: one place for all of it.

What lives here: `reason_of`, which gives the words for an error that is not ours, and `complaint`, which takes a
validator's text about one field apart. What must not: which thing the error is about, or what can be done; whoever
catches the error says these.

msgspec says "Expected `str` of length >= 1 - at `$.owner`", OSError "[Errno 13] Permission denied: '/x'", json
"Expecting value: line 1 column 1 (char 0)". None of that is for people. A text that is not in the table below becomes a
sentence that is always true, and never shows through.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Complaint", "complaint", "kind_in_python", "kind_in_words", "reason_of", "told"]

_KINDS: Final[Mapping[str, str]] = {
    "str": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
    "datetime": "a time",
    "bytes": "bytes in base64",
}
_KINDS_OF_PYTHON: Final[Mapping[str, str]] = {
    "str": "a str",
    "int": "a whole number",
    "float": "a number",
    "bool": "True or False",
    "array": "a list",
    "object": "a dict",
    "null": "None",
}
_WORDS: Final[tuple[tuple[str, str], ...]] = (
    (r"Expected `(?:str|bytes|array|object)` of length >= 1", "it is empty"),
    (r"Expected `(?:str|bytes)` of length <= (\d+)", "it has more than {0} characters"),
    (r"Expected `(?:str|bytes)` of length >= (\d+)", "it has fewer than {0} characters"),
    (r"Expected `array` of length <= (\d+)", "it has more than {0} items"),
    (r"Expected `object` of length <= (\d+)", "it has more than {0} members"),
    (r"Expected `(?:array|object)` of length >= (\d+)", "it has fewer than {0} items"),
    (
        r"Expected `array` of (?:at least |at most )?length (\S+?)(?:, got .*)?",
        "it has another number of items than {0}",
    ),
    (r"Expected `(?:int|float)` <= ([-\d.e+]+)", "it is more than {0}"),
    (r"Expected `(?:int|float)` < ([-\d.e+]+)", "it is not less than {0}"),
    (r"Expected `(?:int|float)` >= ([-\d.e+]+)", "it is less than {0}"),
    (r"Expected `(?:int|float)` > ([-\d.e+]+)", "it is not more than {0}"),
    (r"(?:Integer value|Number) out of range", "it is a number too large"),
    (r"Object contains unknown field `(.*)`", "there is no field {0}"),
    (r"Object missing required field `(.*)`", "the field {0} is missing"),
    (r"Missing required (?:query parameter|header) '(\w+)'.*", "{0} is missing"),
    (r"Invalid (?:enum )?value (.*)", "{0} is none of the values that it may have"),
    (r"Invalid RFC3339 encoded .*", "it is no time as RFC 3339 writes it"),
    (r"'data'", "it is missing"),
    (r"(?:JSON is malformed|Input data was truncated).*", "it is no JSON"),
    (r"(?:Expecting |Extra data|Unterminated |Illegal |Invalid (?:control character|\\)).*", "it is no JSON"),
    (r"Invalid UTF-8.*", "it is not UTF-8"),
    (r"Exceeds the limit .* for integer string conversion.*", "it is a number too large"),
)
"""What msgspec, json and Litestar say of a value, and what it is called here."""
_ALWAYS_TRUE: Final = "it is not what is expected there"
_FOREIGN: Final = re.compile(
    r"`\$|\$\.|matching regex|of length|Expected `|Object (?:contains|missing)|\[Errno|line \d+ column"
    r"|Expecting |JSON is malformed|codec can't|truncated"
)
"""What only a library says. What has nothing of it is a sentence of ours that was raised as a `ValueError`."""
_MOST_TOLD: Final = 5
_LONGEST_TOLD: Final = 100
"""Fields, and characters of what somebody else sent, that are said again."""


class Complaint(NamedTuple):
    """What is wrong with one field of a document."""

    field: str
    """Its name, behind those of what it is in: "wanted.listen". A list's for what is in it; empty for the whole."""
    words: str
    """What is wrong with it."""


def complaint(text: str, patterns: Mapping[str, str] | None = None) -> Complaint:
    """Take what msgspec says apart: which field it is about, and what is wrong with that.

    `patterns` has words for regular expressions: what a value has to be that matches one.
    """
    said, _, place = text.partition(" - at ")
    names = re.findall(r"\.(\w+)", place)
    return Complaint(".".join(names), _in_words(said, patterns or {}))


def _in_words(said: str, patterns: Mapping[str, str]) -> str:
    if kinds := re.fullmatch(r"Expected `(.*)`, got `(.*)`", said):
        return f"it is {kind_in_words(kinds[2])}, and has to be {kind_in_words(kinds[1])}"
    if regex := re.fullmatch(r"Expected `str` matching regex (.*)", said, re.DOTALL):
        meant = next((words for pattern, words in patterns.items() if repr(pattern) == regex[1]), None)
        return f"it has to be {meant}" if meant else "it has characters that it may not have, or not there"
    for pattern, words in _WORDS:
        if found := re.fullmatch(pattern, said, re.DOTALL):
            return words.format(*(each[:_LONGEST_TOLD].removesuffix(".0") for each in found.groups()))
    return _ALWAYS_TRUE if _FOREIGN.search(said) else said[:_LONGEST_TOLD]


def kind_in_words(kinds: str) -> str:
    """Return a kind of msgspec's in words: "a whole number or null" for ``int | null``."""
    return " or ".join(_KINDS.get(kind.strip(), "something else") for kind in kinds.split("|"))


def kind_in_python(kinds: str) -> str:
    """Return a kind of msgspec's as a programmer in Python passes it: "a whole number or None" for ``int | null``."""
    return " or ".join(_KINDS_OF_PYTHON.get(kind.strip(), "another type") for kind in kinds.split("|"))


def told(complaints: Iterable[Complaint]) -> str:
    """Return the complaints in one line, at most five of them."""
    return "; ".join(f"{field}: {words}" if field else words for field, words in list(complaints)[:_MOST_TOLD])


def reason_of(error: BaseException) -> str:
    """Return why an operation failed, without what only programmers read: errno's number, a validator's grammar.

    For an error of the system it is the system's own word, with the path in front where the error has one.
    """
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeError):
        return "it is not UTF-8"
    if isinstance(error, OSError) and error.strerror:
        named = [os.fsdecode(each) for each in (error.filename, error.filename2) if isinstance(each, str | bytes)]
        return ": ".join([*named, error.strerror])
    if isinstance(error, ValueError):
        return told([complaint(str(error))])
    if isinstance(error, KeyError | TypeError | AttributeError | IndexError):  # repr() of a key says nothing
        return _ALWAYS_TRUE
    return str(error) or f"{type(error).__name__}"
