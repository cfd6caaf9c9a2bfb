"""The requests and answers of etcd that are used here.

What lives here: their fields and numbers, as etcd's API says (etcd.io/docs/v3.4/dev-guide/api_reference_v3): services
KV, Watch, Lease, Maintenance and Auth. What must not: when to send what.
"""

# ruff: noqa: D101  the API's own names; what each is for is said there

from __future__ import annotations

from typing import Annotated, Final

from uvmshare.etcd.wire import UNSIGNED, Message

RELATIONS: Final = {"equal": 0, "greater": 1, "less": 2, "not_equal": 3}
TARGETS: Final = {"version": 0, "create": 1, "mod": 2, "value": 3, "lease": 4}
DELETED: Final = 1
"""The type of an event that is a deletion; 0 is a put."""
READWRITE: Final = 2
NOSPACE: Final = 1
DEACTIVATE: Final = 2


class ResponseHeader(Message, frozen=True):
    cluster_id: Annotated[int, 1, UNSIGNED] = 0
    member_id: Annotated[int, 2, UNSIGNED] = 0
    revision: Annotated[int, 3] = 0
    raft_term: Annotated[int, 4, UNSIGNED] = 0


class Answer(Message, frozen=True):
    """What every answer has; of some nothing more is read."""

    header: Annotated[ResponseHeader, 1] = ResponseHeader()


class KeyValueMessage(Message, frozen=True):
    key: Annotated[bytes, 1] = b""
    create_revision: Annotated[int, 2] = 0
    mod_revision: Annotated[int, 3] = 0
    version: Annotated[int, 4] = 0
    value: Annotated[bytes, 5] = b""
    lease: Annotated[int, 6] = 0


class EventMessage(Message, frozen=True):
    type: Annotated[int, 1] = 0
    kv: Annotated[KeyValueMessage, 2] = KeyValueMessage()


class RangeRequest(Message, frozen=True):
    key: Annotated[bytes, 1] = b""
    range_end: Annotated[bytes, 2] = b""
    limit: Annotated[int, 3] = 0
    revision: Annotated[int, 4] = 0


class RangeResponse(Answer, frozen=True):
    kvs: Annotated[tuple[KeyValueMessage, ...], 2] = ()
    more: Annotated[bool, 3] = False


class PutRequest(Message, frozen=True):
    key: Annotated[bytes, 1] = b""
    value: Annotated[bytes, 2] = b""
    lease: Annotated[int, 3] = 0


class DeleteRangeRequest(Message, frozen=True):
    key: Annotated[bytes, 1] = b""
    range_end: Annotated[bytes, 2] = b""


class DeleteRangeResponse(Answer, frozen=True):
    deleted: Annotated[int, 2] = 0


class RequestOp(Message, frozen=True):
    request_range: Annotated[RangeRequest | None, 1] = None
    request_put: Annotated[PutRequest | None, 2] = None
    request_delete_range: Annotated[DeleteRangeRequest | None, 3] = None


class ResponseOp(Message, frozen=True):
    response_range: Annotated[RangeResponse | None, 1] = None
    response_put: Annotated[Answer | None, 2] = None
    response_delete_range: Annotated[DeleteRangeResponse | None, 3] = None


class CompareMessage(Message, frozen=True):
    result: Annotated[int, 1] = 0
    target: Annotated[int, 2] = 0
    key: Annotated[bytes, 3] = b""
    version: Annotated[int, 4] = 0
    create_revision: Annotated[int, 5] = 0
    mod_revision: Annotated[int, 6] = 0
    value: Annotated[bytes, 7] = b""
    lease: Annotated[int, 8] = 0


class TxnRequest(Message, frozen=True):
    compare: Annotated[tuple[CompareMessage, ...], 1] = ()
    success: Annotated[tuple[RequestOp, ...], 2] = ()
    failure: Annotated[tuple[RequestOp, ...], 3] = ()


class TxnResponse(Answer, frozen=True):
    succeeded: Annotated[bool, 2] = False
    responses: Annotated[tuple[ResponseOp, ...], 3] = ()


class CompactionRequest(Message, frozen=True):
    revision: Annotated[int, 1] = 0
    physical: Annotated[bool, 2] = False


class WatchCreateRequest(Message, frozen=True):
    key: Annotated[bytes, 1] = b""
    range_end: Annotated[bytes, 2] = b""
    start_revision: Annotated[int, 3] = 0
    watch_id: Annotated[int, 7] = 0


class WatchCancelRequest(Message, frozen=True):
    watch_id: Annotated[int, 1] = 0


class WatchProgressRequest(Message, frozen=True):
    pass


class WatchRequest(Message, frozen=True):
    create_request: Annotated[WatchCreateRequest | None, 1] = None
    cancel_request: Annotated[WatchCancelRequest | None, 2] = None
    progress_request: Annotated[WatchProgressRequest | None, 3] = None


class WatchResponse(Answer, frozen=True):
    watch_id: Annotated[int, 2] = 0
    created: Annotated[bool, 3] = False
    canceled: Annotated[bool, 4] = False
    compact_revision: Annotated[int, 5] = 0
    cancel_reason: Annotated[str, 6] = ""
    events: Annotated[tuple[EventMessage, ...], 11] = ()


class LeaseGrantRequest(Message, frozen=True):
    ttl: Annotated[int, 1] = 0
    id: Annotated[int, 2] = 0


class LeaseGrantResponse(Answer, frozen=True):
    id: Annotated[int, 2] = 0
    ttl: Annotated[int, 3] = 0


class LeaseRevokeRequest(Message, frozen=True):
    id: Annotated[int, 1] = 0


class LeaseKeepAliveRequest(Message, frozen=True):
    id: Annotated[int, 1] = 0


class LeaseKeepAliveResponse(Answer, frozen=True):
    id: Annotated[int, 2] = 0
    ttl: Annotated[int, 3] = 0


class LeaseTimeToLiveRequest(Message, frozen=True):
    id: Annotated[int, 1] = 0
    keys: Annotated[bool, 2] = False


class LeaseTimeToLiveResponse(Answer, frozen=True):
    id: Annotated[int, 2] = 0
    ttl: Annotated[int, 3] = 0
    granted_ttl: Annotated[int, 4] = 0
    keys: Annotated[tuple[bytes, ...], 5] = ()


class Empty(Message, frozen=True):
    """A request that says nothing but its name: Status, AuthEnable, Defragment."""


class StatusResponse(Answer, frozen=True):
    version: Annotated[str, 2] = ""
    db_size: Annotated[int, 3] = 0
    leader: Annotated[int, 4, UNSIGNED] = 0
    errors: Annotated[tuple[str, ...], 8] = ()


class AlarmRequest(Message, frozen=True):
    action: Annotated[int, 1] = 0
    member_id: Annotated[int, 2, UNSIGNED] = 0
    alarm: Annotated[int, 3] = 0


class AlarmMember(Message, frozen=True):
    member_id: Annotated[int, 1, UNSIGNED] = 0
    alarm: Annotated[int, 2] = 0


class AlarmResponse(Answer, frozen=True):
    alarms: Annotated[tuple[AlarmMember, ...], 2] = ()


class UserAddOptions(Message, frozen=True):
    no_password: Annotated[bool, 1] = False


class AuthUserAddRequest(Message, frozen=True):
    name: Annotated[str, 1] = ""
    password: Annotated[str, 2] = ""
    options: Annotated[UserAddOptions | None, 3] = None


class AuthUserGrantRoleRequest(Message, frozen=True):
    user: Annotated[str, 1] = ""
    role: Annotated[str, 2] = ""


class AuthNameRequest(Message, frozen=True):
    """A user or role by its name: UserDelete, RoleAdd, RoleDelete."""

    name: Annotated[str, 1] = ""


class Permission(Message, frozen=True):
    perm_type: Annotated[int, 1] = 0
    key: Annotated[bytes, 2] = b""
    range_end: Annotated[bytes, 3] = b""


class AuthRoleGrantPermissionRequest(Message, frozen=True):
    name: Annotated[str, 1] = ""
    perm: Annotated[Permission | None, 2] = None
