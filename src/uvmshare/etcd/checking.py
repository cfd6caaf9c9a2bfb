"""Arguments that etcd accepts from nobody: they are refused before anything is asked.

What lives here: checks of what calls of a `Store` are given, which etcd's client and the fake have in common. What must
not: what only etcd knows, such as who may read a key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from uvmshare.errors import InvalidOptions
from uvmshare.etcd.protocol import MOST_OPERATIONS, Delete, Get, Put

if TYPE_CHECKING:
    from collections.abc import Sequence

    from uvmshare.etcd.protocol import Compare, Operation

__all__ = ["MOST_BYTES", "changes_nothing", "check_key", "check_lease", "check_txn", "tells_itself"]

MOST_BYTES: Final = 1024 * 1024
"""Bytes of a transaction: etcd takes requests of 1.5 MiB (``--max-request-bytes``), with all that is around them."""

_LONGEST_LEASE: Final = 9_000_000_000


def check_key(key: str) -> str:
    """Return a key. Raises `InvalidOptions` for one that is empty."""
    if not key:
        msg = "a key is empty: name one"
        raise InvalidOptions(msg)
    return key


def check_lease(seconds: int) -> int:
    """Return the seconds of a lease. Raises `InvalidOptions` for what etcd grants nobody."""
    if not 1 <= seconds <= _LONGEST_LEASE:
        msg = f"a lease of {seconds} seconds cannot be: ask for 1 to {_LONGEST_LEASE}"
        raise InvalidOptions(msg)
    return seconds


def _check_branch(branch: Sequence[Operation]) -> int:
    if len(branch) > MOST_OPERATIONS:
        msg = f"a transaction has {len(branch)} operations: etcd takes {MOST_OPERATIONS}"
        raise InvalidOptions(msg)
    size = 0
    put: set[str] = set()
    deleted: list[Delete] = []
    for operation in branch:
        check_key(operation.key)
        size += len(operation.key)
        match operation:
            case Put(key, value):
                if key in put:
                    msg = f"a transaction puts the key {key!r} twice: put it once"
                    raise InvalidOptions(msg)
                put.add(key)
                size += len(value)
            case Delete():
                deleted.append(operation)
            case Get():
                pass
    for deletion in deleted:
        if any(key.startswith(deletion.key) if deletion.prefix else key == deletion.key for key in put):
            msg = f"a transaction puts and deletes the key {deletion.key!r}: do one of them"
            raise InvalidOptions(msg)
    return size


def check_txn(compare: Sequence[Compare], then: Sequence[Operation], otherwise: Sequence[Operation]) -> None:
    """Look at a transaction. Raises `InvalidOptions`."""
    if len(compare) > MOST_OPERATIONS:
        msg = f"a transaction has {len(compare)} comparisons: etcd takes {MOST_OPERATIONS}"
        raise InvalidOptions(msg)
    if not compare and not then and not otherwise:
        msg = "a transaction compares nothing and does nothing: give it something"
        raise InvalidOptions(msg)
    size = _check_branch(then) + _check_branch(otherwise)
    for each in compare:
        check_key(each.key)
        if isinstance(each.to, bytes) != (each.target == "value"):
            msg = (
                f"the {each.target} of {each.key!r} is compared with {each.to!r}: pass bytes for a value, else a number"
            )
            raise InvalidOptions(msg)
        size += len(each.key) + (len(each.to) if isinstance(each.to, bytes) else 0)
    if size > MOST_BYTES:
        msg = f"a transaction has {size} bytes: at most {MOST_BYTES} can be sent"
        raise InvalidOptions(msg)


def changes_nothing(then: Sequence[Operation], otherwise: Sequence[Operation]) -> bool:
    """Whether a transaction only reads, whichever branch is carried out."""
    return all(isinstance(operation, Get) for branch in (then, otherwise) for operation in branch)


def tells_itself(compare: Sequence[Compare], then: Sequence[Operation], otherwise: Sequence[Operation]) -> bool:
    """Whether a transaction that was made can be told from its comparisons: they do not hold any more."""
    put = {each.key for each in then if isinstance(each, Put)}
    deleted = {each.key for each in then if isinstance(each, Delete)}
    revisions = [each for each in compare if each.relation == "equal" and each.target in {"create", "mod", "version"}]
    return changes_nothing((), otherwise) and any(
        (each.key in put and (each.target != "create" or each.to == 0)) or (each.key in deleted and each.to != 0)
        for each in revisions
    )
