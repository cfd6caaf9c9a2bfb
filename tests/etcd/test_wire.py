"""The encoding of messages: there and back, beside bytes that were written down by hand, and what is none."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uvmshare.etcd import messages
from uvmshare.etcd.wire import UNSIGNED, Message, decode, encode

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

CLASSES = [
    cls
    for cls in vars(messages).values()
    if isinstance(cls, type) and issubclass(cls, Message) and cls.__module__ == messages.__name__
]


def values(hint: Any) -> SearchStrategy[Any]:
    kind, _, *more = get_args(hint)
    parts = [part for part in get_args(kind) if part is not Ellipsis]
    if type(None) in parts:
        return st.none() | of(parts[0])
    if parts:
        return st.lists(of(parts[0]), max_size=3).map(tuple)
    if kind is int and UNSIGNED in more:
        return st.integers(0, 2**64 - 1)
    return of(kind)


@cache
def of(kind: Any) -> SearchStrategy[Any]:
    simple: dict[Any, SearchStrategy[Any]] = {
        int: st.integers(-(2**63), 2**63 - 1),
        bool: st.booleans(),
        bytes: st.binary(max_size=200),
        str: st.text(max_size=50),
    }
    if kind in simple:
        return simple[kind]
    hints = get_type_hints(kind, include_extras=True)
    return st.builds(kind, **{name: values(hint) for name, hint in hints.items()})


MESSAGES = st.sampled_from(CLASSES).flatmap(of)


@settings(max_examples=50)
@given(MESSAGES)
def test_every_message_comes_back_as_it_was(message: Message) -> None:
    assert decode(type(message), encode(message)) == message


@given(st.sampled_from(CLASSES), st.binary(max_size=60))
def test_bytes_that_are_no_message_are_a_value_error(cls: type[Message], data: bytes) -> None:
    try:
        message = decode(cls, data)
    except ValueError:
        return
    assert isinstance(message, cls)


@settings(max_examples=50)
@given(MESSAGES, st.data())
def test_a_message_that_is_cut_short_is_another_or_a_value_error(message: Message, data: st.DataObject) -> None:
    whole = encode(message)
    cut = whole[: data.draw(st.integers(0, len(whole)))]
    try:
        found = decode(type(message), cut)
    except ValueError:
        return
    assert len(encode(found)) <= len(whole)


def test_messages_are_the_bytes_that_the_format_asks_for() -> None:
    put = messages.RequestOp(request_put=messages.PutRequest(b"k", b"v" * 200, 300))
    assert encode(put) == b"\x12\xd1\x01" + b"\x0a\x01k" + b"\x12\xc8\x01" + b"v" * 200 + b"\x18\xac\x02"
    assert encode(messages.LeaseRevokeRequest(-1)) == b"\x08" + b"\xff" * 9 + b"\x01"
    progress = messages.WatchRequest(progress_request=messages.WatchProgressRequest())
    assert encode(progress) == b"\x1a\x00"


def test_fields_of_later_versions_are_skipped() -> None:
    more = b"\x78\x01" + b"\x82\x01\x02zz" + b"\x8d\x01abcd" + b"\x91\x01abcdefgh" + b"\x10\x05"
    assert decode(messages.DeleteRangeResponse, more) == messages.DeleteRangeResponse(deleted=5)


@pytest.mark.parametrize(
    "data", [b"\x08", b"\x12\x05abc", b"\x0b", b"\x10" + b"\xff" * 11, b"\x12\x01a", b"\x0d", b"\x91\x01a", b"\xff"]
)
def test_what_is_broken_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"ends too early|kind|longer"):
        decode(messages.DeleteRangeResponse, data)
