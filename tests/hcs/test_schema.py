from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uvmshare.errors import InvalidDocument
from uvmshare.hcs import schema

# The three documents of the HCS reference, as hcsshim sends them: field for field, byte for byte.
ADD = (
    rb'{"ResourcePath":"VirtualMachine/Devices/Plan9/Shares","RequestType":"Add",'
    rb'"Settings":{"Name":"0","AccessName":"0","Path":"C:\\x","Port":564,"Flags":5,"AllowedFiles":["f"]}}'
)
REMOVE = (
    rb'{"ResourcePath":"VirtualMachine/Devices/Plan9/Shares","RequestType":"Remove",'
    rb'"Settings":{"Name":"0","AccessName":"0","Port":564}}'
)
GUEST = (
    rb'{"GuestRequest":{"RequestType":"Add","ResourceType":"MappedDirectory",'
    rb'"Settings":{"MountPath":"/run/mounts/plan9/0","Port":564,"ShareName":"0","ReadOnly":true}}}'
)

LITERALS = [
    pytest.param(
        schema.ModifySettingRequest(
            resource_path=schema.PLAN9_SHARES,
            request_type=schema.RequestType.ADD,
            settings=schema.Plan9Share(
                name="0",
                access_name="0",
                path="C:\\x",
                port=schema.DEFAULT_PORT,
                flags=schema.Plan9ShareFlags.READ_ONLY | schema.Plan9ShareFlags.LINUX_METADATA,
                allowed_files=("f",),
            ),
        ),
        ADD,
        id="add",
    ),
    pytest.param(
        schema.ModifySettingRequest(
            resource_path=schema.PLAN9_SHARES,
            request_type=schema.RequestType.REMOVE,
            settings=schema.Plan9Share(name="0", access_name="0", port=schema.DEFAULT_PORT),
        ),
        REMOVE,
        id="remove",
    ),
    pytest.param(
        schema.ModifySettingRequest(
            guest_request=schema.GuestRequest(
                request_type=schema.RequestType.ADD,
                resource_type=schema.MAPPED_DIRECTORY,
                settings=schema.MappedDirectory(
                    mount_path="/run/mounts/plan9/0", port=schema.DEFAULT_PORT, share_name="0", read_only=True
                ),
            ),
        ),
        GUEST,
        id="guest",
    ),
]


@pytest.mark.parametrize(("request_", "document"), LITERALS)
def test_the_documents_of_the_reference_byte_for_byte(request_: schema.ModifySettingRequest, document: bytes) -> None:
    assert schema.encode(request_) == document
    assert schema.decode(document) == request_


def test_every_flag_has_the_value_of_the_reference() -> None:
    assert {flag.name: flag.value for flag in schema.Plan9ShareFlags} == {
        "READ_ONLY": 0x1,
        "LINUX_METADATA": 0x4,
        "CASE_SENSITIVE": 0x8,
        "USE_SHARE_ROOT_IDENTITY": 0x10,
        "ALLOW_OPTIONS": 0x20,
        "ALLOW_SUB_PATHS": 0x40,
        "RESTRICT_FILE_ACCESS": 0x80,
        "UNLIMITED_CONNECTIONS": 0x100,
    }


def test_empty_fields_are_left_out() -> None:
    assert schema.encode(schema.ModifySettingRequest()) == b"{}"
    assert schema.encode(schema.ModifySettingRequest(settings=schema.Plan9Share())) == b'{"Settings":{}}'


def _each_field_misspelt(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Every copy of the document in which exactly one field's name has lost its capital letter."""
    copies = []
    for name, value in document.items():
        copies.append({(key.lower() if key == name else key): held for key, held in document.items()})
        if isinstance(value, dict):
            copies += [{**document, name: inner} for inner in _each_field_misspelt(value)]
    return copies


def _each_field_of_the_wrong_type(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Every copy of the document in which exactly one field holds what no field of HCS holds there."""
    copies = []
    for name, value in document.items():
        copies.append({**document, name: 1.5})
        if isinstance(value, dict):
            copies += [{**document, name: inner} for inner in _each_field_of_the_wrong_type(value)]
    return copies


@pytest.mark.parametrize("literal", [ADD, REMOVE, GUEST], ids=["add", "remove", "guest"])
def test_a_misspelt_field_or_a_wrong_type_is_refused(literal: bytes) -> None:
    document = json.loads(literal)
    broken = _each_field_misspelt(document) + _each_field_of_the_wrong_type(document)
    assert len(broken) >= 12
    for copy in broken:
        with pytest.raises(InvalidDocument, match="not a modify document"):
            schema.decode(json.dumps(copy).encode())


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff",
        ADD[:-1],
        ADD + b"x",
        b'{"RequestType":"Update"}',
        b'{"RequestType":"add"}',
        b'{"Settings":{"AllowedFiles":"f"}}',
        b'{"Settings":{"Port":"564"}}',
        b'{"GuestRequest":{}}',
    ],
)
def test_what_is_no_modify_document_is_refused(document: bytes) -> None:
    with pytest.raises(InvalidDocument, match="not a modify document"):
        schema.decode(document)


_share = st.builds(
    schema.Plan9Share,
    name=st.text(),
    access_name=st.text(),
    path=st.text(),
    port=st.integers(0, 2**32 - 1),
    flags=st.integers(0, 2**32 - 1),
    allowed_files=st.lists(st.text()).map(tuple),
)
_directory = st.builds(
    schema.MappedDirectory,
    mount_path=st.text(),
    port=st.integers(0, 2**32 - 1),
    share_name=st.text(),
    read_only=st.booleans(),
)
_requests = st.builds(
    schema.ModifySettingRequest,
    resource_path=st.text(),
    request_type=st.none() | st.sampled_from(schema.RequestType),
    settings=st.none() | _share,
    guest_request=st.none()
    | st.builds(schema.GuestRequest, request_type=st.sampled_from(schema.RequestType), settings=st.none() | _directory),
)


@given(_requests)
def test_round_trip(request_: schema.ModifySettingRequest) -> None:
    assert schema.decode(schema.encode(request_)) == request_


_truncated = st.sampled_from([ADD, REMOVE, GUEST]).flatmap(
    lambda literal: st.integers(0, len(literal)).map(lambda end: literal[:end])
)


@given(st.binary() | _truncated)
def test_any_bytes_are_read_or_refused_as_an_invalid_document(data: bytes) -> None:
    try:
        request_ = schema.decode(data)
    except InvalidDocument:
        return
    assert schema.decode(schema.encode(request_)) == request_


def test_text_that_json_cannot_hold_is_refused() -> None:
    with pytest.raises(InvalidDocument, match="rename that file"):
        schema.encode(schema.ModifySettingRequest(settings=schema.Plan9Share(path="C:\\\udc80")))
