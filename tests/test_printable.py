"""What others named is safe to show, wherever it is shown."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.hostile_text import HOSTILE, assert_safe, texts

from uvmshare import printable as module
from uvmshare.guest import mount
from uvmshare.printable import ENOUGH, briefly, json_text, printable, printable_lines, valid


@given(texts())
def test_any_text_becomes_one_line_that_shows_itself(text: str) -> None:
    shown = printable(text)
    assert_safe(shown)
    assert "\n" not in shown
    assert printable(shown) == shown
    assert len(shown) <= ENOUGH + 3


@given(texts(), st.integers(1, 30))
def test_text_is_cut_where_it_is_too_long_and_says_so(text: str, most: int) -> None:
    shown = printable(text, most)
    assert len(shown) <= most + 3
    assert shown == printable(text) or shown.endswith("...")
    assert printable(shown, most) == shown


@given(texts(), st.integers(4, 30), st.integers(10, 60))
def test_what_is_too_long_to_read_keeps_its_beginning_and_its_end(text: str, word: int, whole: int) -> None:
    shown = briefly(text, word, whole)
    assert_safe(shown)
    assert len(shown) <= whole
    everything = printable(text, len(text) * 10 + 10)
    assert shown == everything or (shown[0] == everything[0] and shown[-1] == everything[-1] and "..." in shown)


@given(texts())
def test_the_guest_has_the_same_function(text: str) -> None:
    assert mount.printable(text) == printable(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("Übung/目录/файл", "Übung/目录/файл"),
        ("a\nb\tc\r", r"a\nb\tc\r"),
        ("\x1b[31m", r"\x1b[31m"),
        ("\x7f\x9b", r"\x7f\x9b"),
        ("\u202e", r"\u202e"),
        ("\udcff", r"\udcff"),
        ("\u2028", r"\u2028"),
        ("\u00a0", r"\xa0"),
        ("\u200b\ufeff\ufe0f", r"\u200b\ufeff\ufe0f"),
        ("\U000e0100", r"\U000e0100"),
        ("C:\\src", "C:\\src"),
    ],
)
def test_what_does_not_show_itself_is_written_as_python_writes_it(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.recursive(texts(), lambda inner: st.lists(inner) | st.dictionaries(texts(), inner), max_leaves=5))
def test_json_shows_itself_and_says_what_it_said(document: Any) -> None:
    text = json_text(document)
    assert_safe(text)
    assert "\n" not in text
    read = json.loads(text)
    if not any(surrogate in ascii(document) for surrogate in ("\\ud8", "\\ud9", "\\uda", "\\udb", "\\udc", "\\udd")):
        assert read == document


@given(texts())
def test_what_is_valid_can_be_encoded(text: str) -> None:
    valid(text).encode()
    if "\\ud" not in ascii(text):
        assert valid(text) == text


@given(texts())
def test_several_lines_stay_several(text: str) -> None:
    shown = printable_lines(text)
    assert_safe(shown)
    assert shown.count("\n") == text.count("\n")


def test_standard_error_shows_tracebacks_and_warnings_safely() -> None:
    program = (
        "import sys, warnings; from uvmshare.printable import safe_stderr; safe_stderr(); safe_stderr()\n"
        "bad = '\\x1b[2J\\u202e\\udcff'\n"
        "warnings.warn(bad); print(bad, file=sys.stderr); sys.stderr.writelines([bad]); print(bad)\n"
        "raise ValueError(bad)"
    )
    # An encoding that has few letters is no reason to fail either.
    environment = {"PYTHONIOENCODING": "ascii"}
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, env=environment)
    assert_safe(ended.stderr.decode())
    assert r"ValueError: \x1b[2J\u202e\udcff" in ended.stderr.decode()
    assert ended.stdout == b"\x1b[2J\\u202e\\udcff\n"


def test_standard_error_stays_the_stream_that_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    module.safe_stderr()
    for text in HOSTILE:
        sys.stderr.write(text)
    sys.stderr.flush()
    assert not sys.stderr.isatty()
    assert_safe(stream.getvalue())


ENDS = {
    "process": "raise ValueError(bad)",
    "thread": "thread = threading.Thread(target=fail); thread.start(); thread.join()",
    "destructor": "type('D', (), {'__del__': lambda _: fail()})()",
    "log": "logging.getLogger('x').error(bad, exc_info=ValueError(bad))",
    "task": "asyncio.run(leave())",
    "cause": "try: fail()\nexcept ValueError as error: raise KeyError(bad) from error",
    "note": "error = ValueError(bad); error.add_note(bad); raise error",
    "group": "raise ExceptionGroup(bad, [ValueError(bad)])",
}


@pytest.mark.parametrize("way", ENDS)
def test_no_message_of_an_exception_makes_up_a_line(way: str) -> None:
    program = f"""
import asyncio, gc, logging, sys, threading
from uvmshare.printable import safe_stderr
safe_stderr()
bad = "a\\nforged \\x85forged\\u2028forged\\rforged"
def fail():
    raise ValueError(bad)
async def afail():
    fail()
async def leave():
    task = asyncio.get_running_loop().create_task(afail())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    del task
    gc.collect()
{ENDS[way]}
"""
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).stderr.decode()
    assert_safe(output)
    assert r"a\nforged" in output
    assert not [line for line in output.splitlines() if line.lstrip("| ").startswith("forged")]
