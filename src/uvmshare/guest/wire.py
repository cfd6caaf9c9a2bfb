"""What the host and the agent in a guest say to each other: lines of JSON.

What lives here: the framing, the greeting, the proofs of a common secret, and the names of requests and errors, for
both ends. What must not: sockets, or what a request does; and nothing but the standard library (Python 3.9), because
it runs in guests.

The agent speaks first, whoever dialled::

    agent   {"uvmshare":"agent","version":1,"agent":ID,"boot":ID,"nonce":HEX,"token":true,...}
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
    "BUSY",
    "DEFAULT_PORT",
    "FAILED",
    "INVALID",
    "MAX_LINE",
    "NOT_FOUND",
    "REFUSED",
    "UNKNOWN",
    "VERSION",
    "Lines",
    "WireError",
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
MAX_LINE = 256 * 1024
"""Bytes of a line with its newline. The longest are lists of mounts; a path has 4 KiB at most."""


class WireError(Exception):
    """What came is not of this protocol; the connection cannot go on."""


def encode(message: dict[str, Any]) -> bytes:
    """Return the message as one line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


class Lines:
    """Bytes in, messages out."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """Return the messages that are whole now. Raises `WireError` for what is none, and for a line too long."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) >= MAX_LINE:
            message = f"a line of more than {MAX_LINE} bytes"
            raise WireError(message)
        return [_decode(line) for line in lines]


def _decode(line: bytes) -> dict[str, Any]:
    if len(line) >= MAX_LINE:
        message = f"a line of more than {MAX_LINE} bytes"
        raise WireError(message)
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        problem = f"not a line of JSON: {line[:80]!r}"
        raise WireError(problem) from error
    if not isinstance(message, dict):
        problem = f"not a JSON object: {line[:80]!r}"
        raise WireError(problem)
    return message


def new_nonce() -> str:
    """Return what a proof is to be made of, once."""
    return os.urandom(16).hex()


def prove(token: str, who: str, own_nonce: str, other_nonce: str) -> str:
    """Return the proof that `who` ("host" or "agent") knows the token, without telling it."""
    return hmac.new(token.encode(), f"{who} {own_nonce} {other_nonce}".encode(), hashlib.sha256).hexdigest()


def proven(token: str, who: str, own_nonce: str, other_nonce: str, proof: object) -> bool:
    """Tell whether the proof of `who` is right. The nonces are in the order in which `who` gave them."""
    return isinstance(proof, str) and hmac.compare_digest(
        prove(token, who, own_nonce, other_nonce).encode(), proof.encode(errors="replace")
    )
