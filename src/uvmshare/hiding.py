"""Patterns of names that do not exist for a guest: what one may be, and what it matches.

What lives here: the one spelling of a list of patterns (`canonical`) and the matcher (`Patterns`). What must not:
files, and what is answered to a guest (`uvmshare.fileserver.mount.files.hidden`).

The syntax is that of gitignore(5), as git takes a pattern from a command line (``git ls-files -x``): ``*``, ``?`` and
``[...]`` match bytes and never a slash; ``**`` between slashes is any number of directories; a pattern with a slash
that is not its last byte begins at the root of the share, others match names at any depth; a slash at the end
means directories alone; ``!`` shows again what an earlier pattern hides, and the last pattern that matches decides.
What lies in a hidden directory is hidden, whatever else matches it.

A path is matched name by name. What the directories above have come to is a `MatchState`: where in which patterns the
rest goes on. Two directories of equal state hide the same below them, which is how a rename is judged. Each name is
matched against each part of a pattern once, in time that grows with the length of the one times that of the other at
most.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["MOST_BYTES", "MOST_BYTES_TOGETHER", "MOST_PATTERNS", "MatchState", "Patterns", "Visibility", "canonical"]

MOST_PATTERNS: Final = 256
MOST_BYTES: Final = 1024
"""In one pattern."""

MOST_BYTES_TOGETHER: Final = 16384
"""In all patterns of a share: what they cost each mount process when a guest attaches."""

_NAME_MAX: Final = 255

MatchState = frozenset[tuple[int, int]]
"""For each pattern that has begun to match a directory's path: its place in the list, and the part that is next."""


class Visibility(enum.Enum):
    """What the patterns make of a name in a directory."""

    SHOWN = "shown"
    HIDDEN = "hidden"
    HIDDEN_DIRECTORY = "hidden if it is a directory"
    SHOWN_DIRECTORY = "hidden unless it is a directory"

    def hides(self, *, directory: bool) -> bool:
        """Say whether it hides a directory, or what is none."""
        return self is Visibility.HIDDEN or self is (
            Visibility.HIDDEN_DIRECTORY if directory else Visibility.SHOWN_DIRECTORY
        )

    @property
    def depends(self) -> bool:
        """Whether it depends on what has the name."""
        return self is Visibility.HIDDEN_DIRECTORY or self is Visibility.SHOWN_DIRECTORY


_FATES: Final = {
    (False, False): Visibility.SHOWN,
    (True, True): Visibility.HIDDEN,
    (True, False): Visibility.HIDDEN_DIRECTORY,
    (False, True): Visibility.SHOWN_DIRECTORY,
}


# ---------------------------------------------------------------------- what a pattern may be


def canonical(patterns: Iterable[str]) -> tuple[str, ...]:
    """Return the patterns checked, in the one form in which lists that hide the same by their words are equal.

    Of equal ones the last counts, and the order only where one shows something again. Raises `ValueError` with what is
    wrong and what to write.
    """
    found: dict[str, None] = {}
    size = 0
    for count, pattern in enumerate(patterns, 1):
        if count > MOST_PATTERNS:
            msg = f"there are more than {MOST_PATTERNS} patterns: write fewer, with * where names are alike"
            raise ValueError(msg)
        _parse(pattern)
        size += len(pattern.encode())
        if size > MOST_BYTES_TOGETHER:
            msg = f"the patterns have more than {MOST_BYTES_TOGETHER} bytes together: write shorter ones, with *"
            raise ValueError(msg)
        found.pop(pattern, None)
        found[pattern] = None
    return tuple(found) if any(pattern.startswith("!") for pattern in found) else tuple(sorted(found))


@dataclass(frozen=True, slots=True)
class _Pattern:
    """One pattern, taken apart. A part that is None is any number of directories."""

    shows: bool
    directories_only: bool
    anchored: bool
    parts: tuple[bytes | None, ...]


def _parse(pattern: str) -> _Pattern:
    """Take a pattern apart. Raises `ValueError`."""
    if not isinstance(pattern, str):
        msg = f"pattern {pattern!r} is no str"
        raise ValueError(msg)  # noqa: TRY004  one kind of error for all that a pattern may not be
    try:
        text = pattern.encode()
    except UnicodeEncodeError as error:
        msg = f"pattern {pattern!r} is not UTF-8, and documents hold nothing else: write ? for such a byte"
        raise ValueError(msg) from error
    if len(text) > MOST_BYTES:
        msg = f"pattern {pattern[:40]!r}... has more than {MOST_BYTES} bytes: write a shorter one, with *"
        raise ValueError(msg)
    if b"\0" in text:
        msg = f"pattern {pattern!r} contains a NUL, which no name does"
        raise ValueError(msg)
    shows = text.startswith(b"!")
    text = text[shows:]
    directories_only = text.endswith(b"/")
    text = text[: len(text) - directories_only]
    anchored = b"/" in text
    text = text.removeprefix(b"/")
    if not text:
        msg = f"pattern {pattern!r} names nothing: write a name, or a path below the share's root"
        raise ValueError(msg)
    parts = text.split(b"/")
    if any(part in (b"", b".", b"..") for part in parts):
        msg = f"pattern {pattern!r} has a part that no path has ('', '.' or '..'): write the names alone, such as a/b"
        raise ValueError(msg)
    for part in parts:
        _tokens(part, pattern)
    is_any = [anchored and len(part) > 1 and not part.strip(b"*") for part in parts]
    taken = tuple(None if any_number else part for any_number, part in zip(is_any, parts, strict=True))
    return _Pattern(shows, directories_only, anchored, taken)


_Token = frozenset[int] | None
"""The bytes of which one matches; None for any bytes."""

_ANY_BYTE: Final = frozenset(range(256))
_LETTERS: Final = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_DIGITS: Final = frozenset(b"0123456789")
_GRAPHIC: Final = frozenset(range(0x21, 0x7F))
_CLASSES: Final = {
    b"alnum": _LETTERS | _DIGITS,
    b"alpha": _LETTERS,
    b"blank": frozenset(b" \t"),
    b"cntrl": frozenset((*range(0x20), 0x7F)),
    b"digit": _DIGITS,
    b"graph": _GRAPHIC,
    b"lower": frozenset(b"abcdefghijklmnopqrstuvwxyz"),
    b"print": _GRAPHIC | {0x20},
    b"punct": _GRAPHIC - _LETTERS - _DIGITS,
    b"space": frozenset(b" \t\n\v\f\r"),
    b"upper": frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    b"xdigit": frozenset(b"0123456789abcdefABCDEF"),
}
"""Those of the C locale, which git has too."""


def _tokens(part: bytes, pattern: str) -> list[_Token]:
    """Take one part apart. Raises `ValueError` for what git takes and never matches."""
    found: list[_Token] = []
    at = 0
    while at < len(part):
        byte = part[at]
        at += 1
        if byte == ord("*"):
            if not found or found[-1] is not None:
                found.append(None)
        elif byte == ord("?"):
            found.append(_ANY_BYTE)
        elif byte == ord("["):
            chosen, at = _bracket(part, at, pattern)
            found.append(chosen)
        elif byte == ord("\\"):
            if at == len(part):
                msg = f"pattern {pattern!r} has a backslash with nothing to mean: write \\\\ for a backslash"
                raise ValueError(msg)
            found.append(frozenset((part[at],)))
            at += 1
        else:
            found.append(frozenset((byte,)))
    return found


def _bracket(part: bytes, at: int, pattern: str) -> tuple[frozenset[int], int]:
    """Read the bytes of a ``[...]`` from behind its beginning; return them, and where it ended. Raises `ValueError`."""
    unclosed = ValueError(f"pattern {pattern!r} has a '[' without its ']': write \\[ for a bracket")
    negated = part[at : at + 1] in (b"!", b"^")
    at += negated
    chosen: set[int] = set()
    before = -1  # what a range would begin with
    first = True
    while True:
        if at >= len(part):
            raise unclosed
        byte = part[at]
        if byte == ord("]") and not first:
            break
        first = False
        if byte == ord("[") and part[at + 1 : at + 2] == b":":
            end = part.find(b"]", at + 2)
            if end < 0:
                raise unclosed
            name = part[at + 2 : end]
            if name.endswith(b":"):
                try:
                    chosen |= _CLASSES[name[:-1]]
                except KeyError:
                    classes = ", ".join(each.decode() for each in _CLASSES)
                    msg = f"pattern {pattern!r} has a class of bytes that there is not: use one of {classes}"
                    raise ValueError(msg) from None
                at, before = end + 1, -1
                continue
        is_range = byte == ord("-") and before > 0 and part[at + 1 : at + 2] not in (b"", b"]")
        at += 1
        if is_range:
            byte = part[at]
            at += 1
        if byte == ord("\\"):
            if at >= len(part):
                raise unclosed
            byte = part[at]
            at += 1
        chosen.update(range(before, byte + 1) if is_range else (byte,))
        before = -1 if is_range else byte
    return frozenset(_ANY_BYTE - chosen if negated else chosen), at + 1


# ---------------------------------------------------------------------- what it matches


def _expression(tokens: list[_Token]) -> bytes:
    """Return a regular expression of one part that backtracks over no more than the length of a name.

    What stands between two stars is looked for once, at the first place where it is (an atomic group): if the rest
    matches behind a later one, it does behind that too.
    """
    runs: list[list[frozenset[int]]] = [[]]
    for token in tokens:
        if token is None:
            runs.append([])
        else:
            runs[-1].append(token)
    first, *others = (b"".join(map(_one_of, run)) for run in runs)
    if not others:
        return first
    *between, last = others
    return first + b"".join(b"(?>.*?%b)" % run for run in between if run) + b".*" + last


def _one_of(chosen: frozenset[int]) -> bytes:
    if len(chosen) == 256:
        return b"."
    if not chosen:
        return b"(?!)"
    if len(chosen) == 1:
        return re.escape(bytes(chosen))
    negated = len(chosen) > 128
    listed = b"".join(b"\\x%02x" % byte for byte in sorted(_ANY_BYTE - chosen if negated else chosen))
    return b"[^%b]" % listed if negated else b"[%b]" % listed


def _compiled(part: bytes, pattern: str) -> re.Pattern[bytes]:
    return re.compile(_expression(_tokens(part, pattern)), re.DOTALL)


class Patterns:
    """A list of patterns, ready to match. Paths are bytes, relative to the root of the share, without a slash around.

    Raises `ValueError` as `canonical` does.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        given = tuple(patterns)
        self._patterns = [_parse(pattern) for pattern in given]
        self._names: list[re.Pattern[bytes] | None] = []
        """Of each pattern that matches names at any depth."""
        self._parts: list[list[re.Pattern[bytes] | None]] = []
        """Of each other one."""
        for text, pattern in zip(given, self._patterns, strict=True):
            parts = [None if part is None else _compiled(part, text) for part in pattern.parts]
            self._names.append(None if pattern.anchored else parts[0])
            self._parts.append(parts if pattern.anchored else [])
        every = [b"(?:%b)" % name.pattern for name in self._names if name is not None]
        self._any_name = re.compile(b"|".join(every), re.DOTALL) if every else None
        """What no pattern without a place matches, in one look."""
        self.root: MatchState = frozenset(
            place
            for number, pattern in enumerate(self._patterns)
            if pattern.anchored
            for place in self._from(number, 0)
        )
        """The state of the share's root."""

    def _from(self, number: int, part: int) -> list[tuple[int, int]]:
        """Return where a pattern may go on: any number of directories may be none."""
        places = [(number, part)]
        parts = self._parts[number]
        while parts[part] is None and part + 1 < len(parts):
            part += 1
            places.append((number, part))
        return places

    def fate(self, state: MatchState, name: bytes) -> Visibility:
        """Return what becomes of a name in a directory of that state, which itself is shown."""
        if not state and (self._any_name is None or not self._any_name.fullmatch(name)):
            return Visibility.SHOWN
        ends = {number for number, part in state if part + 1 == len(self._parts[number])}
        directory: bool | None = None
        other: bool | None = None
        for number in range(len(self._patterns) - 1, -1, -1):
            pattern = self._patterns[number]
            if pattern.anchored:
                if number not in ends:
                    continue
                expression = self._parts[number][-1]
            else:
                expression = self._names[number]
            if expression is not None and not expression.fullmatch(name):
                continue
            if directory is None:
                directory = not pattern.shows
            if not pattern.directories_only:
                other = not pattern.shows
                break
        return _FATES[bool(directory), bool(other)]

    def below(self, state: MatchState, name: bytes) -> MatchState:
        """Return the state of the directory that has a name in a directory of that state, whether hidden or not."""
        found: set[tuple[int, int]] = set()
        for number, part in state:
            parts = self._parts[number]
            expression = parts[part]
            if expression is None:
                found.update(self._from(number, part))
            elif part + 1 < len(parts) and expression.fullmatch(name):
                found.update(self._from(number, part + 1))
        return frozenset(found)

    def hides(self, path: bytes, *, directory: bool) -> bool:
        """Say whether a path is hidden, itself or with a directory above it. The root never is."""
        state = self.root
        *above, last = path.split(b"/")
        for name in above:
            if self.fate(state, name).hides(directory=True):
                return True
            state = self.below(state, name)
        return bool(path) and self.fate(state, last).hides(directory=directory)
