"""The failures of etcd and gRPC as our errors: what was certainly not done, and what nobody knows.

What lives here: the words of etcd's errors (api/v3rpc/rpctypes) and what each means. What must not: what to do then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import grpc

from uvmshare.errors import (
    InvalidOptions,
    LeaseNotFound,
    RevisionCompacted,
    StoreDenied,
    StoreError,
    StoreFull,
    StoreOutcomeUnknown,
    StoreUnavailable,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from uvmshare.errors import (
        UvmshareError,
    )

__all__ = ["EXISTS", "NO_LEASE", "STANDING", "refusal", "understood"]

EXISTS: Final = "lease already exists"
NO_LEASE: Final = "lease not found"

STANDING: Final = ("name already exists", "name not found", "already enabled", "role is already granted")
"""What etcd says of a user or role that is already as it was asked for, after `refusal` has named others."""

_REFUSED: Final[Mapping[str, tuple[type[UvmshareError], str]]] = {
    "has been compacted": (RevisionCompacted, "list, and watch from there"),
    "is a future revision": (StoreError, "read at a revision that there is"),
    "database space exceeded": (StoreFull, "compact and defragment etcd, and disarm its alarm"),
    NO_LEASE: (LeaseNotFound, "it has ended: grant another"),
    "permission denied": (StoreDenied, "give the certificate's user a role that allows it"),
    "user name is empty": (StoreDenied, "show a certificate that has a common name"),
    "user name not found": (StoreDenied, "add the certificate's common name as a user of etcd"),
    "invalid auth token": (StoreDenied, "show a certificate that has a common name"),
    "request is too large": (InvalidOptions, "send less at a time"),
}
"""What is in the words of a refusal, and what it means. Nothing was done."""

_AGAIN: Final = ("too many requests", "auth store is old", "etcdserver: no leader", "not capable")
"""Refusals that another member, or the same a moment later, may not repeat. Nothing was done."""

_BY_CODE: Final[Mapping[grpc.StatusCode, type[UvmshareError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidOptions,
    grpc.StatusCode.PERMISSION_DENIED: StoreDenied,
    grpc.StatusCode.UNAUTHENTICATED: StoreDenied,
    grpc.StatusCode.FAILED_PRECONDITION: StoreError,
}
"""Other refusals. Nothing was done."""


def refusal(words: str) -> UvmshareError | None:
    """Return the error that etcd's words stand for, where they say that nothing was done and nothing will be."""
    for part, (cls, remedy) in _REFUSED.items():
        if part in words:
            return cls(f"{words.removeprefix('etcdserver: ')}: {remedy}")
    return None


def understood(error: grpc.aio.AioRpcError, where: str, *, changes: bool) -> tuple[UvmshareError, bool]:
    """Return the error that a failed call was, and whether to ask again, which a call of unknown outcome is not."""
    code, words = error.code(), error.details() or ""
    refused = refusal(words)
    if refused is not None:
        return refused, False
    if any(part in words for part in _AGAIN):
        return StoreUnavailable(f"etcd at {where}: {words}"), True
    if code in _BY_CODE:
        return _BY_CODE[code](f"etcd at {where} refuses the request: {words}"), False
    if changes:
        return StoreOutcomeUnknown(f"no answer came from etcd at {where} to a change: {words}"), False
    return StoreUnavailable(f"etcd at {where} does not answer: {words}"), True
