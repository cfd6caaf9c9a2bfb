"""What the host and the agent in a guest say to each other: lines of JSON.

What lives here: the framing, the greeting, the proofs of a common secret, and the names of requests and errors, for
both ends. What must not: sockets, or what a request does; and nothing but the standard library (Python 3.9), because
it runs in guests.

The agent speaks first, whoever dialled::

    agent   {"uvmshare":"agent","version":1,"agent":ID,"boot":ID,"nonce":HEX,"token":true,"features":[...],...}
    host    {"id":0,"op":"hello","version":1,"client":ID,"nonce":HEX,"proof":HEX}
    agent   {"id":0,"ok":true,"result":{"proof":HEX}}
    host    {"id":1,"op":"modify","request":{"RequestType":"Add","ResourceType":"MappedDirectory",
             "Settings":{"MountPath":"/run/uvmshare/0","Port":5640,"ShareName":"0"}},"options":{...},"timeout":30}
    agent   {"id":1,"ok":true,"result":{...}}   or   {"id":1,"ok":false,"error":{"code":"busy","message":"..."}}

`request` is the GuestRequest document that HCS's guests take. Requests may be answered in any order. A new connection
with the same `client` ends the older one: what that one sent and the agent has not begun is never begun. So a host
that lost an answer may dial again and send the request again, because each of them can be carried out twice.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from typing import Any

__all__ = [
    "AUTO",
    "BUSY",
    "DEFAULT_PORT",
    "EVENTS",
    "FAILED",
    "FEATURES",
    "INVALID",
    "MAX_LINE",
    "NOT_FOUND",
    "POSIXACL",
    "REFUSED",
    "UNKNOWN",
    "VERSION",
    "Lines",
    "RequestError",
    "WireError",
    "decode",
    "encode",
    "new_nonce",
    "prove",
    "proven",
]

VERSION = 1
DEFAULT_PORT = 5641
"""The agent's port: the one after the file server's."""
BUSY, NOT_FOUND, REFUSED, INVALID, FAILED = "busy", "not-found", "refused", "invalid", "failed"
"""Codes of errors after which nothing was done."""
UNKNOWN = "unknown"
"""The code of the one after which that is not known."""
AUTO, POSIXACL, EVENTS = "auto", "posixacl", "events"
FEATURES = (AUTO, POSIXACL, EVENTS)
"""What an agent says in its greeting that it knows of a mount's options, beyond the first ones; those that it does not
name it would pass over. "auto": it takes that for a cache mode, chooses msize where none is given, and tells both."""
MAX_LINE = 256 * 1024
"""Bytes of a line with its newline. The longest are lists of mounts; a path has 4 KiB at most."""
_MOST_DIGITS = 20
"""Of a whole number: 64 bits and a sign."""


class WireError(Exception):
    """What came is not of this protocol; the connection cannot go on."""


class RequestError(Exception):
    """The agent does not carry out a request. `code` is one of the words above, and says why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def encode(message: dict[str, Any]) -> bytes:
    """Return the message as one line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


class Lines:
    """Bytes in, lines out. `longest` is how many bytes a line may have, with its newline.

    What a line costs is a matter of its length alone, in however many pieces it comes.
    """

    def __init__(self, longest: int = MAX_LINE) -> None:
        self._longest = longest
        self._rest = bytearray()

    @property
    def has_rest(self) -> bool:
        """Whether a line has begun that has not ended yet."""
        return bool(self._rest)

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that are whole now, without their newlines. Raises `WireError` for one that is too long."""
        first, newline, behind = data.partition(b"\n")
        self._rest += first
        lines = []
        if newline:
            *more, rest = behind.split(b"\n")
            lines = [bytes(self._rest), *more]
            self._rest = bytearray(rest)
        if len(self._rest) >= self._longest or any(len(line) >= self._longest for line in lines):
            message = f"a line of more than {self._longest} bytes"
            raise WireError(message)
        return lines


def decode(line: bytes) -> dict[str, Any]:
    """Return the message of a line. Raises `WireError` for what is none."""
    try:
        message = json.loads(line, parse_int=_integer, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        problem = f"not a line of JSON: {line[:80]!r}"
        raise WireError(problem) from error
    if not isinstance(message, dict):
        problem = f"not a JSON object: {line[:80]!r}"
        raise WireError(problem)
    return message


def _integer(digits: str) -> int:
    if (
        len(digits) > _MOST_DIGITS
    ):  # reading takes the square of their number before Python 3.9.14, and no field has more
        problem = f"a number of {len(digits)} digits"
        raise ValueError(problem)
    return int(digits)


def _no_number(word: str) -> float:
    problem = f"{word} is no JSON"
    raise ValueError(problem)


def new_nonce() -> str:
    """Return what a proof is to be made of, once."""
    return os.urandom(16).hex()


def prove(token: str, who: str, own_nonce: str, other_nonce: str) -> str:
    """Return the proof that `who` ("host" or "agent") knows the token, without telling it."""
    words = f"{who} {own_nonce} {other_nonce}"
    # A nonce comes from the other end, and what JSON may say in a string is not always UTF-8.
    return hmac.new(token.encode(), words.encode(errors="surrogatepass"), hashlib.sha256).hexdigest()


def proven(token: str, who: str, own_nonce: str, other_nonce: str, proof: object) -> bool:
    """Tell whether the proof of `who` is right. The nonces are in the order in which `who` gave them."""
    return isinstance(proof, str) and hmac.compare_digest(
        prove(token, who, own_nonce, other_nonce).encode(), proof.encode(errors="replace")
    )
