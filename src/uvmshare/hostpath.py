"""Paths of this host, as callers give them.

What lives here: the check before a path reaches the first system call, which is the same for a share, a run directory,
a log and a journal. What must not: what is at the path.

Python raises `ValueError`, `UnicodeEncodeError` or `RecursionError` for a path that no system call takes, and `OSError`
for all others. Who has checked a path here has only `OSError` left.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from uvmshare import arguments

if TYPE_CHECKING:
    from uvmshare.errors import UvmshareError

__all__ = ["absolute", "require_path", "text_of"]

_LONGEST: Final = 32_767 if os.name == "nt" else 4095
"""Bytes of a path without its NUL: PATH_MAX of Linux; UNICODE_STRING of Windows."""


def absolute(
    what: str, path: str | os.PathLike[str], refused: type[UvmshareError], *, utf8_for: str | None = None
) -> str:
    """Return the path made absolute, without following symlinks.

    `what` it is of, is named in the message. `utf8_for` says what it will be written down in, where that is JSON.
    Raises `refused` when no system call, or no JSON, takes it; `WrongType` when it is no path.
    """
    text = text_of(what, path)
    require_path(what, text, refused)
    text = os.path.abspath(text)
    require_path(what, text, refused)
    if utf8_for is not None and any("\ud800" <= character <= "\udfff" for character in text):
        msg = f"{what} {text!r} is not UTF-8, and {utf8_for} holds nothing else: choose another path"
        raise refused(msg)
    return text


def text_of(
    what: str,
    path: str | os.PathLike[str],
    remedy: str = "a str or a pathlib.Path; os.fsdecode makes a str of bytes",
) -> str:
    """Return the path as text. Raises `WrongType` when it is no path; `what` it is of, is named in the message."""
    try:
        text = os.fspath(path)
    except TypeError:
        text = None
    if not isinstance(text, str):
        arguments.refuse_type(what, path, remedy)
    return text


def require_path(what: str, path: str, refused: type[UvmshareError]) -> None:
    """See that system calls take the path. Raises `refused` when they do not."""
    if not path:
        msg = f"{what} is empty: name one, or '.' for the current directory"
        raise refused(msg)
    if "\0" in path:
        msg = f"{what} {path!r} contains a NUL, which no path does: give the path without it"
        raise refused(msg)
    try:
        size = len(os.fsencode(path))
    except UnicodeEncodeError as error:  # no bytes of a name become that (PEP 383)
        msg = f"{what} {path!r} holds half a character, which no path does: os.fsdecode makes a str of a path's bytes"
        raise refused(msg) from error
    if size > _LONGEST:
        msg = f"{what} {path[:40]!r}... has {size} bytes, and a path has at most {_LONGEST}: give a shorter one"
        raise refused(msg)
