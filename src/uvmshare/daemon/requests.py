"""What a client asks for, as the document that the daemon reads: one place that finds what the daemon would refuse.

What lives here: `as_document`, what it raises, and the sentence about an argument of Python. What must not: the
sentence about an option of the command line (`uvmshare.cli.remote`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from uvmshare import arguments
from uvmshare.daemon.documents import HINTS, PATTERNS, SECRETS
from uvmshare.errors import InvalidOptions, WrongType
from uvmshare.printable import made_valid
from uvmshare.wording import complaint, kind_in_python

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Unfit", "as_document", "refused"]

D = TypeVar("D", bound=msgspec.Struct)

_WRONG_TYPE: Final = re.compile("Expected `(.*?)`, got `")


class Unfit(ValueError):
    """A field of a document has a value that the daemon does not take."""

    def __init__(self, field: str, words: str, value: object, *, kinds: str = "", hint: str | None = None) -> None:
        super().__init__(f"{field}: {words}")
        self.field = field
        self.words = words
        """What is wrong with the value."""
        self.hint = HINTS.get(field, hint)
        """What to give instead, where the words do not say it."""
        self.kinds = kinds
        """Which types the value may have, as the validator calls them, if its type is wrong; else empty."""
        self.shown = None if field in SECRETS else arguments.shown(value)
        """The value in one line, shortened. None for a secret."""
        self.is_scalar = isinstance(value, str | int | float)


def as_document(kind: type[D], wanted: Mapping[str, Any]) -> D:
    """Return the document with these fields. Raises `Unfit` for the first field that the daemon does not take."""
    try:
        return _converted(kind, wanted, wanted)
    except UnicodeEncodeError:  # the validator's own, for a text where none may be: it says nothing of the field
        return _converted(kind, made_valid(dict(wanted)), wanted)


def _converted(kind: type[D], fields: Mapping[str, Any], wanted: Mapping[str, Any]) -> D:
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        field, words = complaint(str(error), PATTERNS)
        kinds = _WRONG_TYPE.match(str(error))
        raise Unfit(
            field, words, wanted.get(field), kinds=kinds[1] if kinds else "", hint=_choices(kind, field)
        ) from None


def refused(error: Unfit) -> InvalidOptions:
    """Return the error about an argument of Python."""
    shown = error.shown or "of another form"
    if error.kinds:
        return WrongType(f"{error.field} is {shown}: {error.hint or f'pass {kind_in_python(error.kinds)}'}")
    return InvalidOptions(f"{error.field} is {shown}: {error.words}{f'; {error.hint}' if error.hint else ''}")


def _choices(kind: type[msgspec.Struct], field: str) -> str | None:
    """Return the remedy of a field that has one of a few values."""
    annotation = get_type_hints(kind).get(field)
    if get_origin(annotation) is not Literal:
        return None
    return f"give one of {', '.join(map(repr, get_args(annotation)))}"
