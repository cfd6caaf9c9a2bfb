"""How 9P2000.L fields become bytes and are read back.

What lives here: the mini language of message layouts and the codec compiled from it.
What must not: any particular message (`messages`), any buffer handling (`framing`).

A layout is a line of words, one a field, as intro(5) writes them:

=========  ==================================================================
``u8``     one byte; ``u16``, ``u32``, ``u64`` likewise, little endian
``qid``    type[1] version[4] path[8]
``str``    length[2] and that many bytes, any but NUL (the bytes need not be UTF-8)
``str*``   count[2] and that many strings, at most 16 (walk(5))
``qid*``   count[2] and that many qids, at most 16
``data``   count[4] and that many bytes
=========  ==================================================================

Neighbouring numbers and qids are packed and unpacked in one `struct` call.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

from uvmshare.errors import LocalProtocolError, RemoteProtocolError
from uvmshare.ninep.constants import HEADER_SIZE, MAXWELEM
from uvmshare.ninep.types import Qid

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Layout"]

Buffer = bytes | bytearray | memoryview

_NUMBERS: Final = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q"}
_QID: Final = "BIQ"
_U16: Final = struct.Struct("<H")
_U32: Final = struct.Struct("<I")
_QID_STRUCT: Final = struct.Struct("<" + _QID)


def _short(what: str) -> NoReturn:
    msg = f"the message ends inside {what}"
    raise RemoteProtocolError(msg)


def _nul() -> NoReturn:
    msg = "a string contains NUL"
    raise RemoteProtocolError(msg)


class _Part(Protocol):
    """A run of fields: read from a buffer, or written to bytes."""

    def read(self, buffer: Buffer, offset: int, end: int, into: list[Any]) -> int: ...

    def write(self, values: Sequence[Any], at: int, into: list[bytes]) -> int: ...


class _Fixed:
    """Numbers and qids in a row: one struct."""

    def __init__(self, words: list[str]) -> None:
        self.words = words
        self.struct = struct.Struct("<" + "".join(_NUMBERS.get(word, _QID) for word in words))
        self.has_qid = "qid" in words

    def read(self, buffer: Buffer, offset: int, end: int, into: list[Any]) -> int:
        if offset + self.struct.size > end:
            _short("its numbers")
        values = self.struct.unpack_from(buffer, offset)
        if not self.has_qid:
            into.extend(values)
        else:
            flat = iter(values)
            into.extend(Qid(next(flat), next(flat), next(flat)) if word == "qid" else next(flat) for word in self.words)
        return offset + self.struct.size

    def flatten(self, values: Sequence[Any], at: int) -> list[int]:
        flat: list[int] = []
        for value, word in zip(values[at : at + len(self.words)], self.words, strict=True):
            if word == "qid":
                flat += (value.type, value.version, value.path)
            else:
                flat.append(value)
        return flat

    def write(self, values: Sequence[Any], at: int, into: list[bytes]) -> int:
        into.append(self.struct.pack(*self.flatten(values, at)))
        return at + len(self.words)


def _read_string(buffer: Buffer, offset: int, end: int) -> tuple[bytes, int]:
    start = offset + 2
    if start > end:
        _short("the length of a string")
    stop = start + _U16.unpack_from(buffer, offset)[0]
    if stop > end:
        _short("a string")
    value = bytes(buffer[start:stop])
    if 0 in value:
        _nul()
    return value, stop


def _pack_string(value: bytes) -> bytes:
    if len(value) > 0xFFFF or b"\0" in value:
        msg = f"a string of {len(value)} bytes cannot be sent: at most 65535, without NUL"
        raise LocalProtocolError(msg)
    return _U16.pack(len(value)) + value


class _String:
    def read(self, buffer: Buffer, offset: int, end: int, into: list[Any]) -> int:
        value, stop = _read_string(buffer, offset, end)
        into.append(value)
        return stop

    def write(self, values: Sequence[Any], at: int, into: list[bytes]) -> int:
        into.append(_pack_string(values[at]))
        return at + 1


def _read_count(buffer: Buffer, offset: int, end: int) -> int:
    if offset + 2 > end:
        _short("a count")
    count: int = _U16.unpack_from(buffer, offset)[0]
    if count > MAXWELEM:
        msg = f"{count} names or qids in one walk, at most {MAXWELEM} are allowed"
        raise RemoteProtocolError(msg)
    return count


def _pack_count(values: Sequence[Any]) -> bytes:
    if len(values) > MAXWELEM:
        msg = f"{len(values)} names or qids in one walk, at most {MAXWELEM} are allowed"
        raise LocalProtocolError(msg)
    return _U16.pack(len(values))


class _Strings:
    def read(self, buffer: Buffer, offset: int, end: int, into: list[Any]) -> int:
        # Walks are most of what a guest sends: one loop without a call a name takes a third of the time.
        count = _read_count(buffer, offset, end)
        stop: int = offset + 2
        values = []
        for _ in range(count):
            start = stop + 2
            if start > end:
                _short("the length of a string")
            stop = start + buffer[start - 2] + (buffer[start - 1] << 8)
            value = bytes(buffer[start:stop])
            if stop > end:
                _short("a string")
            if 0 in value:
                _nul()
            values.append(value)
        into.append(tuple(values))
        return stop

    def write(self, values: Sequence[Any], at: int, into: list[bytes]) -> int:
        into.append(_pack_count(values[at]))
        into.extend(_pack_string(value) for value in values[at])
        return at + 1


class _Qids:
    def read(self, buffer: Buffer, offset: int, end: int, into: list[Any]) -> int:
        count = _read_count(buffer, offset, end)
        offset += 2
        stop = offset + count * _QID_STRUCT.size
        if stop > end:
            _short("its qids")
        into.append(tuple(Qid(*_QID_STRUCT.unpack_from(buffer, at)) for at in range(offset, stop, _QID_STRUCT.size)))
        return stop

    def write(self, values: Sequence[Any], at: int, into: list[bytes]) -> int:
        into.append(_pack_count(values[at]))
        into.extend(_QID_STRUCT.pack(qid.type, qid.version, qid.path) for qid in values[at])
        return at + 1


class _Data:
    def read(self, buffer: Buffer, offset: int, end: int, into: list[Any]) -> int:
        start = offset + 4
        if start > end:
            _short("the count of its data")
        stop: int = start + _U32.unpack_from(buffer, offset)[0]
        if stop > end:
            _short("its data")
        into.append(buffer[start:stop])
        return stop

    def write(self, values: Sequence[Any], at: int, into: list[bytes]) -> int:
        into.append(_U32.pack(len(values[at])))
        into.append(bytes(values[at]))
        return at + 1


_OTHERS: Final[dict[str, type[_Part]]] = {"str": _String, "str*": _Strings, "qid*": _Qids, "data": _Data}


def _compile(words: list[str]) -> list[_Part]:
    parts: list[_Part] = []
    run: list[str] = []
    for word in words:
        if word in _NUMBERS or word == "qid":
            run.append(word)
            continue
        if run:
            parts.append(_Fixed(run))
            run = []
        parts.append(_OTHERS[word]())
    if run:
        parts.append(_Fixed(run))
    return parts


class Layout:
    """The compiled layout of one message: its body to values and back.

    `fixed` is the `struct` of the whole body when it has numbers and qids alone, otherwise None;
    `frame` is then that of header and body together, for those who pack replies at speed.
    """

    def __init__(self, line: str) -> None:
        words = line.split()
        self._parts = _compile(words)
        self.fields = len(words)
        self.fixed: struct.Struct | None = None
        self.frame: struct.Struct | None = None
        self._plain = False
        if not self._parts:
            self.fixed = struct.Struct("<")
        elif len(self._parts) == 1 and isinstance(self._parts[0], _Fixed):
            self.fixed = self._parts[0].struct
            self._plain = not self._parts[0].has_qid
        if self.fixed is not None:
            self.frame = struct.Struct("<IBH" + self.fixed.format[1:])

    def read(self, buffer: Buffer, offset: int, end: int) -> Sequence[Any]:
        """Read the values of a body that stands at `buffer[offset:end]`.

        Raises `RemoteProtocolError` when it is too short, too long, or has what no field may have.
        `data` fields are slices of `buffer`: a view when it is a memoryview.
        """
        if self._plain:
            assert self.fixed is not None
            if end - offset != self.fixed.size:
                _wrong_size(self.fixed.size, end - offset)
            return self.fixed.unpack_from(buffer, offset)
        values: list[Any] = []
        start = offset
        for part in self._parts:
            offset = part.read(buffer, offset, end, values)
        if offset != end:
            _wrong_size(offset - start, end - start)
        return values

    def write(self, message_type: int, tag: int, values: Sequence[Any]) -> bytes:
        """Return the whole message.

        Raises `LocalProtocolError` when a value does not fit its field.
        """
        chunks: list[bytes] = []
        at = 0
        try:
            for part in self._parts:
                at = part.write(values, at, chunks)
            body = b"".join(chunks)
            return _HEADER.pack(HEADER_SIZE + len(body), message_type, tag) + body
        except struct.error as error:
            msg = f"a value does not fit its field: {error}"
            raise LocalProtocolError(msg) from error


_HEADER: Final = struct.Struct("<IBH")


def _wrong_size(expected: int, found: int) -> NoReturn:
    if found < expected:
        _short("its numbers")
    msg = f"{found - expected} bytes stand behind the end of the message"
    raise RemoteProtocolError(msg)
