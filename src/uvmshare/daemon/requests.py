"""What a client asks for, as the document that the daemon reads: one place that finds what the daemon would refuse.

What lives here: `as_document` and what it raises. What must not: the sentence about it, which names an argument of
Python (`client_calls`) or an option of the command line (`uvmshare.cli.remote`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from uvmshare import arguments
from uvmshare.daemon.documents import HINTS, PATTERNS, SECRETS
from uvmshare.wording import complaint

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Unfit", "as_document"]

D = TypeVar("D", bound=msgspec.Struct)

_WRONG_TYPE: Final = ", got `"


class Unfit(ValueError):
    """A field of a document has a value that the daemon does not take."""

    def __init__(self, field: str, words: str, value: object, *, is_type: bool) -> None:
        super().__init__(f"{field}: {words}")
        self.field = field
        self.words = words
        """What is wrong with the value."""
        self.hint = HINTS.get(field)
        """What to give instead, where the words do not say it."""
        self.is_type = is_type
        """Whether the type of the value is wrong, not the value alone."""
        self.shown = None if field in SECRETS else arguments.shown(value)
        """The value in one line, shortened. None for a secret."""
        self.is_scalar = isinstance(value, str | int | float)


def as_document(kind: type[D], wanted: Mapping[str, Any]) -> D:
    """Return the document with these fields. Raises `Unfit` for the first field that the daemon does not take."""
    try:
        return msgspec.convert(wanted, kind)
    except msgspec.ValidationError as error:
        field, words = complaint(str(error), PATTERNS)
        raise Unfit(field, words, wanted.get(field), is_type=_WRONG_TYPE in str(error)) from None
