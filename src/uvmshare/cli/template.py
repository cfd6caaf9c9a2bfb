"""What `--format` takes: `{name} {state:<10}`, the fields of the JSON document in braces, and nothing more.

What lives here: reading a template, with an error for whatever it cannot be, and filling it. What must not: which
documents there are.

It is the part of Python's `str.format` that reaches no attribute, no item and no conversion. Fields are checked before
the daemon is asked; so is the form behind a colon, by the field's type.
"""

from __future__ import annotations

import string
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from uvmshare.printable import json_text, printable

if TYPE_CHECKING:
    import msgspec

__all__ = ["Template"]


class _Part(NamedTuple):
    """Text as it is, and the field behind it with its form, if there is one."""

    text: str
    field: str | None
    form: str


class Template:
    """A template for the documents of one class. Raises `click.BadParameter` for what is none."""

    def __init__(self, text: str, kind: type[msgspec.Struct]) -> None:
        import msgspec  # noqa: PLC0415  --help need not load it

        self._kinds: dict[str, Any] = {each.name: each.type for each in msgspec.structs.fields(kind)}
        try:
            found = list(string.Formatter().parse(text))
        except ValueError:
            msg = f"{text!r}: a brace has no partner: write {{FIELD}}, or two of them for a brace"
            raise _refused(msg) from None
        self._parts = [self._part(*each) for each in found]

    def _part(self, literal: str, field: str | None, form: str | None, conversion: str | None) -> _Part:
        text = literal.replace("\\t", "\t").replace("\\n", "\n")
        if field is None:
            return _Part(text, None, "")
        if conversion is not None or "{" in (form or ""):
            msg = f"{{{field}}}: write {{FIELD}} or {{FIELD:FORM}}, such as {{{field}:<20}}"
            raise _refused(msg)
        if field not in self._kinds:
            msg = f"there is no field {field!r}; there are {', '.join(self._kinds)}"
            raise _refused(msg)
        kind = self._kinds[field]
        sample = 1 if kind in (int, int | None) else 1.0 if kind in (float, float | None) else "x"
        try:
            format(sample, form or "")
        except ValueError:
            what = "a text" if isinstance(sample, str) else "a number"
            msg = (
                f"{{{field}:{form}}}: {field} is {what}, which has no form {form!r}; write a width, such as {field}:>12"
            )
            raise _refused(msg) from None
        return _Part(text, field, form or "")

    def filled(self, document: msgspec.Struct) -> str:
        """Return the template with the document's values in it: lists and objects as JSON, nothing as "-"."""
        return "".join(
            part.text + ("" if part.field is None else _formed(getattr(document, part.field), part.form))
            for part in self._parts
        )


def _formed(value: object, form: str) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return format(value, form)
    try:
        return format(_shown(value), form)
    except ValueError:  # a number's form, and there is none: keep its width
        return format(_shown(value), form.rstrip("bcdoxXneEfFgG%").partition(".")[0].replace(",", "").lstrip("+"))


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return value.isoformat(timespec="seconds")
    texts = [each for each in value if isinstance(each, str)] if isinstance(value, list | tuple) else None
    if texts is not None and isinstance(value, list | tuple) and len(texts) == len(value):
        return printable(",".join(texts))
    return json_text(value)


def _refused(message: str) -> click.BadParameter:
    return click.BadParameter(message, param_hint="'--format'")
