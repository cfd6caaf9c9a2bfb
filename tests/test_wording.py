"""What libraries say of an error never shows through: each text has words, and one without gets a true sentence."""

from __future__ import annotations

import errno
import json
import re
from datetime import datetime  # noqa: TC003  msgspec reads annotations when the program runs
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Meta
from tests.for_people import assert_for_people

from uvmshare import wording
from uvmshare.wording import complaint, kind_in_words, reason_of, told


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    text: Annotated[str, Meta(min_length=1, max_length=4)] = "x"


class Document(msgspec.Struct, forbid_unknown_fields=True):
    needed: int
    text: Annotated[str, Meta(min_length=1, max_length=4)] = "x"
    longer: Annotated[str, Meta(min_length=2)] = "xx"
    named: Annotated[str, Meta(pattern="^[a-z]+$")] = "x"
    coded: Annotated[str, Meta(pattern="^[0-9]+$")] = "1"
    few: Annotated[tuple[str, ...], Meta(max_length=2)] = ()
    some: Annotated[tuple[str, ...], Meta(min_length=2)] = ("a", "b")
    pair: tuple[int, int] = (1, 2)
    table: Annotated[dict[str, int], Meta(max_length=1)] = {}
    number: Annotated[int, Meta(ge=1, le=9)] = 1
    above: Annotated[float, Meta(gt=0, lt=5)] = 1.0
    either: int | None = None
    word: Literal["a", "b"] = "a"
    when: datetime | None = None
    inner: Inner | None = None
    deep: Any = None


PATTERNS = {"^[a-z]+$": "small letters"}
TABLE: dict[str, str] = {
    '{"needed": "x"}': "needed: it is a text, and has to be a whole number",
    "{}": "the field needed is missing",
    '{"needed": 1, "other": 2}': "there is no field other",
    '{"needed": 1, "text": ""}': "text: it is empty",
    '{"needed": 1, "text": "abcde"}': "text: it has more than 4 characters",
    '{"needed": 1, "longer": "x"}': "longer: it has fewer than 2 characters",
    '{"needed": 1, "named": "A"}': "named: it has to be small letters",
    '{"needed": 1, "coded": "A"}': "coded: it has characters that it may not have, or not there",
    '{"needed": 1, "few": ["a", "b", "c"]}': "few: it has more than 2 items",
    '{"needed": 1, "some": ["a"]}': "some: it has fewer than 2 items",
    '{"needed": 1, "pair": [1]}': "pair: it has another number of items than 2",
    '{"needed": 1, "few": [1]}': "few: it is a whole number, and has to be a text",
    '{"needed": 1, "table": {"a": 1, "b": 2}}': "table: it has more than 1 members",
    '{"needed": 1, "table": {"a": "b"}}': "table: it is a text, and has to be a whole number",
    '{"needed": 1, "number": 0}': "number: it is less than 1",
    '{"needed": 1, "number": 10}': "number: it is more than 9",
    '{"needed": 1, "above": 0}': "above: it is not more than 0",
    '{"needed": 1, "above": 5}': "above: it is not less than 5",
    '{"needed": 1, "either": true}': "either: it is true or false, and has to be a whole number or null",
    '{"needed": 1, "word": "c"}': "word: 'c' is none of the values that it may have",
    '{"needed": 1, "when": "noon"}': "when: it is no time as RFC 3339 writes it",
    '{"needed": 1, "inner": {"text": ""}}': "inner.text: it is empty",
    '{"needed": 1' + "0" * 5000 + "}": "needed: it is a number too large",
    '{"needed": 1e999}': "needed: it is a number too large",
    "{": "it is no JSON",
    "": "it is no JSON",
    "[1": "it is a list, and has to be an object",
    '{"needed": 1, "deep": ' + "[" * 100_000 + "}": "it is nested too deeply",
    "[]": "it is a list, and has to be an object",
}


@pytest.mark.parametrize(("sent", "words"), TABLE.items(), ids=[each[:60] for each in TABLE])
def test_what_msgspec_says_of_a_document_is_said_in_words(sent: str, words: str) -> None:
    with pytest.raises((ValueError, RecursionError)) as raised:
        msgspec.json.decode(sent, type=Document)
    if isinstance(raised.value, RecursionError):
        assert reason_of(raised.value) == words
        return
    assert told([complaint(str(raised.value), PATTERNS)]) == words


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EACCES, "Permission denied", "/x"), "/x: Permission denied"),
        (OSError(errno.EXDEV, "Invalid cross-device link", "/x", None, "/y"), "/x: /y: Invalid cross-device link"),
        (OSError(errno.EPIPE, "Broken pipe"), "Broken pipe"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", b"/x"), "/x: No such file or directory"),
        (UnicodeDecodeError("utf-8", b"x", 0, 1, "invalid start byte"), "it is not UTF-8"),
        (KeyError("mounts"), "it is not what is expected there"),
        (TypeError("'int' object is not iterable"), "it is not what is expected there"),
        (ValueError("they are another VM's"), "they are another VM's"),
        (ConnectionResetError(), "ConnectionResetError"),
    ],
)
def test_an_error_of_the_system_or_of_python_is_said_in_words(error: Exception, words: str) -> None:
    assert reason_of(error) == words


@pytest.mark.parametrize("sent", ["{", "", "[1,]", '{"a" 1}', '"x', '"\x01"', "nul", "1 2", r'"\x"', "9" * 5000])
def test_what_json_says_is_said_in_words(sent: str) -> None:
    with pytest.raises(ValueError) as raised:
        json.loads(sent)
    assert reason_of(raised.value) in {"it is no JSON", "it is a number too large"}


def test_what_json_of_a_later_python_says_is_said_in_words_too() -> None:
    error = json.JSONDecodeError("Illegal trailing comma before end of array", "[1,]", 2)
    assert reason_of(error) == "it is no JSON"


@settings(deadline=None)  # the first one compiles
@given(st.text(max_size=20))
def test_a_text_that_nobody_knows_never_shows_a_path_of_a_validator(text: str) -> None:
    assert "`$" not in told([complaint(f"Expected `{text}` - at `$.x`")])
    assert_for_people(told([complaint("Expected `str` of a length that is new in this version - at `$.x`")]))


def test_every_text_in_the_table_of_words_is_provoked_by_a_test() -> None:
    said = set()
    for sent in TABLE:
        try:
            msgspec.json.decode(sent, type=Document)
        except (ValueError, RecursionError) as error:
            said.add(str(error).partition(" - at ")[0])
    elsewhere = {
        r"(?:Expecting |Extra data|Unterminated |Illegal |Invalid (?:control character|\\)).*",  # json's, above
        r"Exceeds the limit .* for integer string conversion.*",  # as above
        r"Missing required (?:query parameter|header) '(\w+)'.*",  # Litestar's: tests/daemon/test_words.py
        r"'data'",  # as above
        r"Invalid UTF-8.*",  # as above
    }
    unused = {
        pattern
        for pattern, _ in wording._WORDS
        if pattern not in elsewhere and not any(re.fullmatch(pattern, text, re.DOTALL) for text in said)
    }
    assert unused == set()


def test_a_kind_is_named_in_words() -> None:
    assert kind_in_words("int | str | null") == "a whole number or a text or null"
    assert kind_in_words("surprise") == "something else"
