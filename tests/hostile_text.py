"""Text as somebody writes it who wants to reach past a line, and what no output may hold."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from hypothesis import strategies as st

if TYPE_CHECKING:
    from types import UnionType

__all__ = ["HOSTILE", "ODD", "assert_safe", "document", "texts"]

HOSTILE = (
    "\x1b[2J\x1b]0;title\x07",
    "one\ntwo",
    "back\rover\b\b",
    "\x00",
    "\x7f\x85\x9b31m",
    "\u202egnp.exe",
    "a\u2066b\u2069",
    "zero\u200bwidth\u200d\ufeff",
    "\u2028line\u2029",
    "byte \udcff",
    "half \ud83d",
    "\U000e0041tag\U0010ffff",
    "[/x] [bold]no[/bold] :smile: [link=http://x]y[/link]",
    "back\\slash \\x1b",
    '="quoted" key=value',
    "%s {0} $(id) `id`",
    "\u3164\u115f\ufe0f",
    "x" * 20_000,
    "",
)

ODD = {
    "a byte that is not UTF-8": "x\udcff",
    "half a character": "x\ud83d",
    "a NUL": "x\0y",
    "nothing": "",
    "a path that is too long": "x/" * 3000,
    "a name that is too long": "x" * 256,
    "a newline": "x\ny",
    "control characters": "\x1b[2J\x7f\x85\u202e",
    "dots": "../..",
    "a space": " ",
    "many digits": "9" * 5000,
    "a label that is too long": "x" * 64,
    "letters of all kinds": "Übung目录",
    "percent signs": "%ff%00%",
}
"""Text that some place takes and another does not: what is refused, is refused in words."""


def texts() -> st.SearchStrategy[str]:
    """Return text of any code points, lone surrogates among them, and the worst that is known."""
    return st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(codec=None), max_size=40))


def assert_safe(output: str) -> None:
    """Fail if anything but whole lines of what shows itself was written."""
    assert all(line.isprintable() for line in output.split("\n")), ascii(output)
    output.encode()


def document(kind: type) -> st.SearchStrategy[Any]:
    """Return documents of a class whose every string is hostile."""
    hints = get_type_hints(kind)
    return st.builds(kind, **{field: _values(hints[field]) for field in kind.__struct_fields__})  # type: ignore[attr-defined]


def _values(hint: type | UnionType | Any) -> st.SearchStrategy[Any]:  # noqa: PLR0911  a table
    origin, args = get_origin(hint), get_args(hint)
    if hint is str:
        return texts()
    if hint is Any:
        return texts()
    if hint is bool:
        return st.booleans()
    if hint is int:
        return st.integers(-(2**63), 2**64 - 1)
    if hint is float:
        return st.floats(allow_nan=False, allow_infinity=False)
    if hint is datetime:
        return st.just(datetime(2026, 1, 2, tzinfo=UTC))
    if hint is type(None):
        return st.none()
    if origin is Literal:
        return st.sampled_from(args)
    if origin is tuple:
        return st.lists(_values(args[0]), max_size=2).map(tuple)
    if origin is dict:
        return st.dictionaries(_values(args[0]), _values(args[1]), max_size=2)
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return document(hint)
    return st.one_of(*map(_values, args))
