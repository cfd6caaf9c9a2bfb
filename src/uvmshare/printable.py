r"""What others named, made safe for a terminal, a log and a document.

What lives here: the one function that every line for people goes through, its counterpart for JSON, and the stream that
puts all of a process's standard error through it. What must not: what is written, or where to.

A guest, its agent and another user of the host choose names, reasons and paths. In a terminal, a control character
moves the cursor or changes the title, a newline makes up a line of a log, and a bidi control shows one path as
another. So whatever Python's `str.isprintable` does not call printable is written as `repr` writes it: ``\n``,
``\x1b``, ``\u202e``, and ``\udcff`` for the byte 0xff of a name that is not UTF-8 (PEP 383). Letters of all
languages stay.

A backslash stays one backslash: paths of Windows are read by people, and what was escaped once may be escaped again,
by the next log that it passes through, without a change. So a name that has ``\x1b`` in four letters looks like one
with the control character. Programs read the JSON, which tells the two apart.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import traceback
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TextIO

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

__all__ = [
    "ENOUGH",
    "briefly",
    "json_escaped",
    "json_text",
    "made_valid",
    "printable",
    "printable_lines",
    "safe_stderr",
    "traceback_lines",
    "valid",
]

ENOUGH: Final = 8192
"""Characters of one line: two paths as long as Linux takes them. What goes past it is cut off, and the line says so."""
LONGEST_WORD: Final = 4096
"""Characters of a path as long as Linux takes it."""

_INVISIBLE: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""What Python calls printable although it shows nothing: two names that differ in it look the same. These have the
property Default_Ignorable_Code_Point of Unicode (and no category that `isprintable` refuses), or are the empty Braille
pattern."""

_SURROGATES: Final = re.compile("[\ud800-\udfff]")


def printable(text: str, most: int = ENOUGH) -> str:
    """Return the text on one line, with everything escaped that does not show itself; at most `most` characters of it.

    Text that was made so stays as it is.
    """
    cut = len(text) > most
    if cut:
        text = text[:most]
    if not _shows(text):
        text = "".join(map(_shown, text))
        cut = cut or len(text) > most
        text = text[:most]
    return f"{text}..." if cut else text


def briefly(text: str, word: int = LONGEST_WORD, whole: int = ENOUGH) -> str:
    """Return the text as `printable` does, but without the middle of what is too long: a reason stands at the end.

    `word` and `whole` are how many characters a word, such as a path, and all of it may have.
    """
    shown = printable(text, len(text) * 10 + 10)
    if len(shown) > word:
        shown = " ".join(_without_middle(each, word) for each in shown.split(" "))
    return _without_middle(shown, whole)


def _without_middle(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most // 4]}...{text[-(most // 4) :]}"


def printable_lines(text: str) -> str:
    """Return text of several lines, each of them made printable; no line is cut."""
    return "\n".join(printable(line, len(line) * 10 + 10) for line in text.split("\n"))


def _shows(text: str) -> bool:
    return text.isprintable() and _INVISIBLE.search(text) is None


def _shown(character: str) -> str:
    if _shows(character):
        return character
    return ascii(character)[1:-1]


def valid(text: str) -> str:
    """Return the text with lone surrogates written out: what can be encoded as UTF-8, and else is as it was."""
    return _SURROGATES.sub(lambda found: _shown(found[0]), text)


def json_text(document: Any) -> str:
    """Return a document as one line of JSON that may be shown in a terminal.

    Every string in it is what it was, but is written with JSON's own escapes where `printable` would escape. Lone
    surrogates, which JSON does not have, are written out as `printable` does.
    """
    import msgspec  # noqa: PLC0415  most who need `printable` write no JSON

    try:
        encoded = msgspec.json.encode(document).decode()
    except UnicodeEncodeError:
        encoded = msgspec.json.encode(made_valid(msgspec.to_builtins(document))).decode()
    return json_escaped(encoded)


def json_escaped(text: str) -> str:
    """Return JSON with JSON's own escapes for what is not printable, which only strings in it have; newlines stay."""
    return "\n".join(line if _shows(line) else "".join(map(_shown_in_json, line)) for line in text.split("\n"))


def _shown_in_json(character: str) -> str:
    if _shows(character):
        return character
    return "\\u007f" if character == "\x7f" else json.dumps(character)[1:-1]  # dumps leaves that one as it is


def made_valid(value: Any) -> Any:
    """Return a document whose every text is `valid`."""
    if isinstance(value, str):
        return valid(value)
    if isinstance(value, dict):
        return {made_valid(key): made_valid(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [made_valid(each) for each in value]
    return value


class _SafeStream:
    """A text stream that makes every line printable which is written to it; all else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text, its lines made printable."""
        self._stream.write(printable_lines(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each."""
        for line in lines:
            self.write(line)

    @property
    def raw_stream(self) -> TextIO:
        """The stream itself, for control codes of our own (`uvmshare.cli.progress`)."""
        return self._stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _given(lines: list[str], *_: object, **__: object) -> Generator[str, None, None]:
    """Return lines that are there, whatever is asked for of them: later Pythons ask for colours."""
    yield from lines


def traceback_lines(error: BaseException) -> str:
    """Return a traceback as Python writes it, but with each message and note on one line, whatever name is in it."""
    told = traceback.TracebackException.from_exception(error)
    waiting = [told]
    while waiting:
        each = waiting.pop()
        notes, each.__notes__ = each.__notes__, None  # Python makes one of several lines
        said = [*each.format_exception_only(), *(map(str, notes) if isinstance(notes, list) else ())]
        lines = [printable(line.removesuffix("\n")) + "\n" for line in said]
        each.format_exception_only = partial(_given, lines)  # type: ignore[method-assign]  # of this one object
        waiting += [other for other in (each.__cause__, each.__context__, *(each.exceptions or ())) if other]
    return "".join(told.format())


class _OneLine(logging.Formatter):
    """A line for each thing that is logged, and its traceback below it."""

    def format(self, record: logging.LogRecord) -> str:
        line = printable(record.getMessage())
        error = record.exc_info and record.exc_info[1]
        return f"{line}\n{traceback_lines(error).removesuffix(chr(10))}" if error else line


def open_standard_streams() -> None:
    """Have standard input, output and error, be it on /dev/null, where whoever started this process closed them.

    Python has None for such a stream. And the first file or socket that is opened would have its number, where the
    programs that this one starts write.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)  # the lowest free number, and those below were seen to
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115  to the end


def safe_stderr() -> None:
    """Have all that this process writes on standard error be printable: tracebacks, warnings, and libraries' lines too.

    No newline in the message of an exception that nobody caught begins a line, whether it ended the process or a
    thread, was raised where nothing can be (`sys.unraisablehook`), or is logged before logging was set up. And have
    standard output escape what its encoding has not, instead of raising. Again is a no-op.
    """
    open_standard_streams()
    if not isinstance(sys.stderr, _SafeStream):
        sys.stderr = _SafeStream(sys.stderr)
        sys.excepthook = lambda _, error, __: _tell(error)
        sys.unraisablehook = lambda what: _tell(
            what.exc_value, f"{what.err_msg or 'Exception ignored in'} {what.object!r}"
        )
        threading.excepthook = lambda ended: _tell(ended.exc_value, f"in thread {ended.thread and ended.thread.name}")
        if logging.lastResort is not None:
            logging.lastResort.setFormatter(_OneLine())
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


def _tell(error: BaseException | None, where: str = "") -> None:
    if error is not None and not (where and isinstance(error, SystemExit)):  # a thread may end so
        sys.stderr.write(f"{printable(where)}\n{traceback_lines(error)}" if where else traceback_lines(error))
