"""What callers pass, looked at before anything is started or touched.

What lives here: a check for each kind of argument, and the one form in which a wrong one is told: its name, what it is,
and what to pass. What must not: what an argument is for.

A value of another type raises `WrongType`, which is an `InvalidOptions` and a `TypeError`; a value that cannot be,
`InvalidOptions`. Every check returns the value, so that it can be taken where it is checked.
"""

from __future__ import annotations

import difflib
import math
import reprlib
import threading
from typing import TYPE_CHECKING, Final, NoReturn, TypeVar, cast, get_args

from uvmshare.errors import InvalidOptions, WrongType
from uvmshare.printable import printable

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Iterable

__all__ = [
    "flag",
    "function",
    "hashable",
    "list_of",
    "number",
    "one_of",
    "only_known",
    "refuse_type",
    "refuse_value",
    "seconds",
    "shown",
    "text",
    "with_methods",
]

T = TypeVar("T")

_REPR: Final = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 80


def shown(value: object) -> str:
    """Return how a value is written in one line, shortened."""
    try:
        return printable(_REPR.repr(value))
    except Exception:  # noqa: BLE001  whatever an object of the caller's raises when it is to show itself
        return f"an object of type {type(value).__name__}"


def refuse_type(name: str, value: object, remedy: str) -> NoReturn:
    """Refuse an argument of another type than it may have; `remedy` is what to pass. Raises `WrongType`."""
    msg = f"{name} is {shown(value)}: pass {remedy}"
    raise WrongType(msg)


def refuse_value(name: str, value: object, remedy: str) -> NoReturn:
    """Refuse an argument whose type is right; `remedy` is what to pass. Raises `InvalidOptions`."""
    msg = f"{name} is {shown(value)}: pass {remedy}"
    raise InvalidOptions(msg)


def flag(name: str, value: bool) -> bool:  # noqa: FBT001  it is what is checked
    """Return True or False. A number or a text is neither."""
    if not isinstance(value, bool):
        refuse_type(name, value, "True or False")
    return value


def text(name: str, value: str, remedy: str, *, secret: bool = False) -> str:
    """Return a text that says something, and that is UTF-8. The value of a `secret` is not told."""
    if not isinstance(value, str):
        refuse_type(name, _Secret(value) if secret else value, remedy)
    if not value or not _is_utf8(value):
        refuse_value(name, _Secret(value) if secret else value, remedy)
    return value


class _Secret:
    """A value of which only the type is told."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __repr__(self) -> str:
        return "empty" if self._value == "" else f"a secret of type {type(self._value).__name__}"


def _is_utf8(value: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in value)


def one_of(name: str, value: T, literal: object) -> T:
    """Return one of the values of a `Literal`."""
    values: tuple[str, ...] = get_args(literal)
    remedy = f"{', '.join(map(repr, values[:-1]))} or {values[-1]!r}"
    if not isinstance(value, str):
        refuse_type(name, value, remedy)
    if value not in values:
        meant = difflib.get_close_matches(value, values, 1)
        refuse_value(name, value, f"{remedy}; did you mean {meant[0]!r}?" if meant else remedy)
    return cast("T", value)


def number(name: str, value: int, *, least: int, most: int, such_as: str = "") -> int:
    """Return a whole number within bounds."""
    example = f", such as {such_as}" if such_as else ""
    if not isinstance(value, int) or isinstance(value, bool):
        refuse_type(name, value, f"a whole number{example}")
    if not least <= value <= most:
        refuse_value(name, value, f"a whole number from {least} to {most}{example}")
    return value


def seconds(name: str, value: float, *, most: float = threading.TIMEOUT_MAX, zero: bool = False) -> float:
    """Return a number of seconds above 0; with `zero`, or 0."""
    above = "of 0 or more" if zero else "above 0"
    if not isinstance(value, int | float) or isinstance(value, bool):
        refuse_type(name, value, f"seconds {above}")
    try:
        fits = math.isfinite(value) and (value >= 0 if zero else value > 0) and value <= most
    except OverflowError:  # an int beyond what a float holds
        fits = False
    if not fits:
        refuse_value(name, value, f"seconds {above}, and at most {most:.0f}")
    return value


def list_of(name: str, value: Iterable[T], kind: type | tuple[type, ...], remedy: str) -> tuple[T, ...]:
    """Return the values of a list as a tuple. A text, which is a list of letters, is none; nor is a mapping."""
    if isinstance(value, str | bytes | dict) or not hasattr(type(value), "__iter__"):
        refuse_type(name, value, remedy)
    values = tuple(value)
    for each in values:
        if not isinstance(each, kind) or isinstance(each, bool):
            msg = f"{name} has {shown(each)} in it: pass {remedy}"
            raise WrongType(msg)
    return values


def function(name: str, value: T) -> T:
    """Return what can be called."""
    if not callable(value):
        refuse_type(name, value, "a function")
    return value


def hashable(name: str, value: Hashable | None) -> Hashable | None:
    """Return a value that can be told from others, as those of a set can."""
    try:
        hash(value)
    except TypeError:
        refuse_type(name, value, "a str or another hashable value")
    return value


def with_methods(name: str, value: T, methods: Iterable[str], remedy: str) -> T:
    """Return an object that has these methods; a class has them for its instances alone."""
    if isinstance(value, type) or not all(callable(getattr(value, method, None)) for method in methods):
        refuse_type(name, value, remedy)
    return value


def only_known(what: str, keywords: Iterable[str], known: Collection[str]) -> None:
    """See that keywords are those that a thing has."""
    for keyword in keywords:
        if keyword not in known:
            meant = difflib.get_close_matches(keyword, known, 1)
            hint = f"; did you mean {meant[0]}?" if meant else ""
            msg = f"{keyword} is no option of {what}: pass one of {', '.join(known)}{hint}"
            raise WrongType(msg)
