"""The modify documents of the Host Compute Service, field by field.

What lives here: the documents, their flags, and how they become JSON and are read back.
What must not: sending them, and who takes them. The file server refuses flags that it does not know
(`uvmshare.fileserver.export`).

Field names and values are HCS's: ``ModifySettingRequest`` and ``Plan9Share`` of the HCS schema
reference. Every field is left out of the JSON when it is empty, as Go's ``omitempty`` does, because
HCS tells an absent field from an empty one. Both hosts take the same documents: Windows through
``HcsModifyComputeSystem``, Linux through the file server's control socket.
"""

from __future__ import annotations

import enum

import msgspec

from uvmshare.errors import UNREADABLE, InvalidDocument
from uvmshare.wording import reason_of

__all__ = [
    "DEFAULT_PORT",
    "MAPPED_DIRECTORY",
    "PLAN9_SHARES",
    "Beside",
    "ComputeSystemProperties",
    "ExitStatus",
    "GuestRequest",
    "MappedDirectory",
    "ModifySettingRequest",
    "Plan9Share",
    "Plan9ShareFlags",
    "RequestType",
    "SystemQuery",
    "addition",
    "decode",
    "decode_exit_status",
    "decode_properties",
    "encode",
    "removal",
]

PLAN9_SHARES = "VirtualMachine/Devices/Plan9/Shares"
"""The resource path of a VM's Plan 9 shares."""

MAPPED_DIRECTORY = "MappedDirectory"
"""The guest's resource type of a directory that it mounts."""

DEFAULT_PORT = 564
"""The port that HCS's guests dial, 9P's own (``9pfs`` in /etc/services)."""


class RequestType(enum.StrEnum):
    """What to do with the resource (``ModifyRequestType`` of the HCS schema)."""

    ADD = "Add"
    REMOVE = "Remove"


class Plan9ShareFlags(enum.IntFlag):
    """``Flags`` of a Plan 9 share document."""

    READ_ONLY = 0x1
    LINUX_METADATA = 0x4
    CASE_SENSITIVE = 0x8
    USE_SHARE_ROOT_IDENTITY = 0x10
    ALLOW_OPTIONS = 0x20
    ALLOW_SUB_PATHS = 0x40
    RESTRICT_FILE_ACCESS = 0x80
    """Only `allowed_files` exist for the guest. Windows build 18362 or later."""
    UNLIMITED_CONNECTIONS = 0x100


class _Document(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="pascal", forbid_unknown_fields=True
):
    """What all documents have in common."""


class Plan9Share(_Document, frozen=True):
    """``Plan9Share``: one share of a VM's Plan 9 device.

    `name` is the host's identifier; `access_name` is what the guest passes as aname. `port` and
    `access_name` together are the key of a removal.
    """

    name: str = ""
    access_name: str = ""
    path: str = ""
    port: int = 0
    flags: int = 0
    allowed_files: tuple[str, ...] = ()


class Beside(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What HCS's documents have no room for, and so goes beside the one that adds a share: to the Linux file server."""

    directory: str | None = None
    """Which directory the path has to lead to, or turned out to (`uvmshare.directory`); None: not known."""
    hide: tuple[str, ...] = ()
    """Patterns of what does not exist for the guest (`uvmshare.hiding`)."""
    map_owner: str | None = None
    """Whose files are whose in the guest (`uvmshare.owner_map`)."""


class MappedDirectory(_Document, frozen=True):
    """``MappedDirectory``: where the guest is to mount a share (the mount manager's part)."""

    mount_path: str = ""
    port: int = 0
    share_name: str = ""
    read_only: bool = False


class GuestRequest(_Document, frozen=True):
    """The part of a modify request that the agent in the guest carries out."""

    request_type: RequestType
    resource_type: str  # no default: a value equal to its default would be left out
    settings: MappedDirectory | None = None


class ModifySettingRequest(_Document, frozen=True):
    """``ModifySettingRequest``: one change to a running compute system."""

    resource_path: str = ""
    request_type: RequestType | None = None
    settings: Plan9Share | None = None
    guest_request: GuestRequest | None = None


class SystemQuery(_Document, frozen=True):
    """``SystemQuery``: which compute systems to enumerate. An empty field is no condition."""

    ids: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    owners: tuple[str, ...] = ()


class ComputeSystemProperties(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """``Properties``: what HCS says of a compute system, as far as it is of use here; other fields are passed over."""

    id: str
    system_type: str = ""
    owner: str = ""
    runtime_os_type: str = ""
    state: str = ""


class ExitStatus(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """``SystemExitStatus``: how a VM ended. `status` is an HRESULT, `exit_type` one word ("GracefulExit"), or ""."""

    status: int = 0
    exit_type: str = ""


def addition(
    name: str, path: str, *, port: int = DEFAULT_PORT, read_only: bool = False, allowed_names: tuple[str, ...] = ()
) -> ModifySettingRequest:
    """Return the document that adds a share. Flags are as hcsshim passes them.

    LinuxMetadata always, ReadOnly as asked, RestrictFileAccess where there are `allowed_names`.
    """
    flags = Plan9ShareFlags.LINUX_METADATA
    if read_only:
        flags |= Plan9ShareFlags.READ_ONLY
    if allowed_names:
        flags |= Plan9ShareFlags.RESTRICT_FILE_ACCESS
    return ModifySettingRequest(
        resource_path=PLAN9_SHARES,
        request_type=RequestType.ADD,
        settings=Plan9Share(
            name=name, access_name=name, path=path, port=port, flags=int(flags), allowed_files=allowed_names
        ),
    )


def removal(name: str, port: int = DEFAULT_PORT) -> ModifySettingRequest:
    """Return the document that removes a share: it holds the key of the share and nothing else."""
    return ModifySettingRequest(
        resource_path=PLAN9_SHARES,
        request_type=RequestType.REMOVE,
        settings=Plan9Share(name=name, access_name=name, port=port),
    )


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(ModifySettingRequest)
_properties = msgspec.json.Decoder(ComputeSystemProperties)
_list_of_properties = msgspec.json.Decoder(tuple[ComputeSystemProperties, ...])
_exit_status = msgspec.json.Decoder(ExitStatus)


def encode(request: ModifySettingRequest | SystemQuery) -> bytes:
    """Return the document as compact JSON, fields in the order of the reference, empty ones left out.

    Raises `InvalidDocument` for text that is no Unicode: JSON has no lone surrogates, which Windows allows
    in the names of files.
    """
    try:
        return _encoder.encode(request)
    except UnicodeEncodeError as error:
        msg = f"the modify document holds {error.object!r}, which cannot be written as JSON: rename that file"
        raise InvalidDocument(msg) from error


def decode(document: bytes) -> ModifySettingRequest:
    """Read a modify document.

    Raises `InvalidDocument` for what is not JSON, has unknown fields or values of the wrong type.
    """
    try:
        return _decoder.decode(document)
    except UNREADABLE as error:
        msg = f"not a modify document: {reason_of(error)}"
        raise InvalidDocument(msg) from error


def decode_properties(document: str) -> tuple[ComputeSystemProperties, ...]:
    """Read the properties of one compute system, or of several in an array.

    Raises `InvalidDocument` for anything else: then HCS is one that this version does not know.
    """
    try:
        return _list_of_properties.decode(document) if document.startswith("[") else (_properties.decode(document),)
    except UNREADABLE as error:
        msg = f"HCS gave properties that cannot be read ({reason_of(error)}): {document[:200]!r}"
        raise InvalidDocument(msg) from error


def decode_exit_status(document: str) -> ExitStatus:
    """Read the data of an exit event. What cannot be read says nothing: the VM has exited all the same."""
    try:
        return _exit_status.decode(document)
    except UNREADABLE:
        return ExitStatus()
