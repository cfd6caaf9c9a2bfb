"""Messages of Protocol Buffers: bytes to typed messages and back, for the few that etcd is asked with.

    class RangeRequest(Message):
        key: Annotated[bytes, 1] = b""
        limit: Annotated[int, 3] = 0

    encode(RangeRequest(key=b"a"))
    decode(RangeRequest, data)

What lives here: the encoding (protobuf.dev/programming-guides/encoding), as far as etcd's messages use it. What must
not: the messages. With these few lines no generated code is needed, and nothing is registered in the process: generated
messages of two clients of etcd in one process cannot be (``duplicate symbol mvccpb.KeyValue``).

A field's number is its annotation; its kind follows from its type: a number is a signed varint, or with `UNSIGNED` an
unsigned one; a message or None is a message that may be left out; a tuple is repeated. A number of 0 and an empty text
are not sent, as in proto3.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import msgspec

__all__ = ["UNSIGNED", "Message", "decode", "encode"]

UNSIGNED: Final = "unsigned"

_VARINT, _BYTES = 0, 2
_FIXED: Final = {1: 8, 5: 4}
"""Kinds that no message here has, and their bytes."""

_TOP, _MODULUS = 1 << 63, 1 << 64
_ALL = _MODULUS - 1


class Message(msgspec.Struct, frozen=True):
    """The parent of every message."""


class _Field(NamedTuple):
    name: str
    tag: bytes
    kind: Any
    """int, bool, bytes, str, or a class of messages."""
    repeated: bool
    signed: bool
    wire: int


M = TypeVar("M", bound=Message)


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    byte = data[at]
    at += 1
    if byte < 0x80:
        return byte, at
    value, shift = byte & 0x7F, 7
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _ALL, at
        shift += 7
        if shift > 63:
            msg = "a number is longer than ten bytes"
            raise ValueError(msg)


@cache
def _fields(cls: type[Message]) -> dict[int, _Field]:
    """Return the fields of a class by their numbers."""
    fields = {}
    for name, hint in get_type_hints(cls, include_extras=True).items():
        kind, number, *more = get_args(hint)
        parts = [part for part in get_args(kind) if part not in (Ellipsis, type(None))]
        repeated = get_origin(kind) is tuple
        base = parts[0] if parts else kind
        wire = _VARINT if issubclass(base, int) else _BYTES
        fields[number] = _Field(name, _varint(number << 3 | wire), base, repeated, UNSIGNED not in more, wire)
    return fields


def _encode_one(field: _Field, value: Any) -> bytes:
    if issubclass(field.kind, int):
        return field.tag + _varint(int(value) & _ALL)
    if issubclass(field.kind, Message):
        data = encode(value)
    else:
        data = value.encode("utf-8", "surrogateescape") if field.kind is str else value
    return field.tag + _varint(len(data)) + data


def encode(message: Message) -> bytes:
    """Return a message as bytes."""
    out = []
    for field in _fields(type(message)).values():
        value = getattr(message, field.name)
        if field.repeated:
            out += [_encode_one(field, each) for each in value]
        elif value or (value is not None and issubclass(field.kind, Message)):
            out.append(_encode_one(field, value))
    return b"".join(out)


def decode(cls: type[M], data: bytes) -> M:
    """Return the message that bytes are. Raises `ValueError` for what is none; fields that it has not are skipped."""
    try:
        return _decode(cls, data)
    except IndexError as error:
        msg = f"a {cls.__name__} of {len(data)} bytes ends too early"
        raise ValueError(msg) from error


def _decode(cls: type[M], data: bytes) -> M:
    fields = _fields(cls)
    values: dict[str, Any] = {}
    at, end = 0, len(data)
    while at < end:
        tag, at = _read_varint(data, at)
        wire = tag & 7
        if wire == _VARINT:
            value, at = _read_varint(data, at)
            raw: int | bytes = value
        elif wire == _BYTES:
            size, at = _read_varint(data, at)
            raw = data[at : at + size]
            at += size
        elif wire in _FIXED:
            raw = b""
            at += _FIXED[wire]
        else:
            msg = f"a {cls.__name__} has a field of the unknown kind {wire}"
            raise ValueError(msg)
        if at > end:
            raise IndexError
        field = fields.get(tag >> 3)
        if field is None:
            continue
        if wire != field.wire:
            msg = f"{field.name} of a {cls.__name__} is of another kind"
            raise ValueError(msg)
        if field.repeated:
            values.setdefault(field.name, []).append(_decode_one(field, raw))
        else:
            values[field.name] = _decode_one(field, raw)
    for name, found in values.items():
        if isinstance(found, list):
            values[name] = tuple(found)
    return cls(**values)


def _decode_one(field: _Field, raw: Any) -> Any:
    kind = field.kind
    if kind is int:
        return raw - _MODULUS if field.signed and raw >= _TOP else raw
    if kind is bytes:
        return raw
    if kind is bool:
        return bool(raw)
    if kind is str:
        return raw.decode("utf-8", "replace")
    return _decode(kind, raw)
