"""Between the protocol and etcd's messages: keys, ranges, comparisons, operations, and what came of them.

What lives here: functions without a state. What must not: I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvmshare.etcd.messages import (
    RELATIONS,
    TARGETS,
    CompareMessage,
    DeleteRangeRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
)
from uvmshare.etcd.protocol import Delete, Get, KeyValue, Outcome, Put

if TYPE_CHECKING:
    from collections.abc import Sequence

    from uvmshare.etcd.messages import KeyValueMessage, TxnResponse
    from uvmshare.etcd.protocol import Compare, Operation

__all__ = ["key_bytes", "key_value", "outcome", "prefix_range", "transaction"]


def key_bytes(key: str) -> bytes:
    """Return a key as etcd has it."""
    return key.encode("utf-8", "surrogateescape")


def prefix_range(prefix: str) -> tuple[bytes, bytes]:
    """Return the first key of a prefix, and the first behind it. An empty prefix is every key."""
    key = key_bytes(prefix)
    behind = key.rstrip(b"\xff")
    if not behind:
        return key or b"\0", b"\0"  # "\0" to "\0" is everything
    return key, behind[:-1] + bytes((behind[-1] + 1,))


def key_value(message: KeyValueMessage) -> KeyValue:
    """Return a key and what it has."""
    return KeyValue(
        message.key.decode("utf-8", "surrogateescape"),
        message.value,
        message.create_revision,
        message.mod_revision,
        message.version,
        message.lease,
    )


def _comparison(compare: Compare) -> CompareMessage:
    relation, target, key = RELATIONS[compare.relation], TARGETS[compare.target], key_bytes(compare.key)
    if isinstance(compare.to, bytes):
        return CompareMessage(relation, target, key, value=compare.to)
    match compare.target:
        case "version":
            return CompareMessage(relation, target, key, version=compare.to)
        case "create":
            return CompareMessage(relation, target, key, create_revision=compare.to)
        case "mod":
            return CompareMessage(relation, target, key, mod_revision=compare.to)
        case _:
            return CompareMessage(relation, target, key, lease=compare.to)


def _operation(operation: Operation) -> RequestOp:
    match operation:
        case Put(key, value, lease):
            return RequestOp(request_put=PutRequest(key_bytes(key), value, lease))
        case Delete(key, prefix):
            first, end = prefix_range(key) if prefix else (key_bytes(key), b"")
            return RequestOp(request_delete_range=DeleteRangeRequest(first, end))
        case Get(key):
            return RequestOp(request_range=RangeRequest(key_bytes(key)))


def transaction(
    compare: Sequence[Compare], then: Sequence[Operation], otherwise: Sequence[Operation]
) -> tuple[TxnRequest, int]:
    """Return a transaction as etcd is asked for it, and how many readings of ours come before those of the caller.

    Etcd answers a transaction without operations from what one member has, which may be old. One reading more makes it
    look at what the majority has.
    """
    first, second = [_operation(each) for each in then], [_operation(each) for each in otherwise]
    added = 0
    if not first and not second:
        first = second = [RequestOp(request_range=RangeRequest(key_bytes(compare[0].key)))]
        added = 1
    return TxnRequest(tuple(map(_comparison, compare)), tuple(first), tuple(second)), added


def outcome(answer: TxnResponse, added: int) -> Outcome:
    """Return what a transaction came to, without the readings that were `added`."""
    found: list[KeyValue | None] = []
    deleted = 0
    for response in answer.responses[added:]:
        if response.response_range is not None:
            kvs = response.response_range.kvs
            found.append(key_value(kvs[0]) if kvs else None)
        elif response.response_delete_range is not None:
            deleted += response.response_delete_range.deleted
    return Outcome(answer.succeeded, answer.header.revision, tuple(found), deleted)
