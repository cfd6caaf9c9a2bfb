from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uvmshare import errors
from uvmshare.hcs.hresult import error_from, failed, normalised

KINDS = [
    (0x80070005, errors.AccessDenied),
    (0x80070032, errors.NotSupported),
    (0x8007000D, errors.InvalidDocument),
    (0x80070490, errors.NotSupported),
    (0x80070006, errors.InvalidState),
    (0x8007007F, errors.NotSupported),
    (0xC037010E, errors.ComputeSystemNotFound),
    (0x8037010E, errors.ComputeSystemNotFound),
    (0xC0370110, errors.ComputeSystemStopped),
    (0x80370110, errors.ComputeSystemStopped),
    (0xC0370103, errors.OutcomeUnknown),
    (0x80370103, errors.OutcomeUnknown),
    (0xC0370105, errors.InvalidState),
    (0x80370105, errors.InvalidState),
    (0xC0370106, errors.ComputeSystemStopped),
    (0xC037010B, errors.InvalidDocument),
    (0xC037010D, errors.InvalidDocument),
    (0x8037011F, errors.InvalidState),
    (0x80370118, errors.OperationTimedOut),
    (0x8037011B, errors.NotAdministrator),
    (0x8037011E, errors.ServiceDisconnected),
    (0x80310000, errors.DriveLocked),
    (0x80070070, errors.DiskFull),
    (0x800707DE, errors.ShareExists),
    (0x80070003, errors.HostPathNotFound),
    (0x80004004, errors.OutcomeUnknown),
    (0x80004005, errors.ComputeSystemError),  # E_FAIL, which says nothing
    (0x83700110, errors.ComputeSystemError),  # looks like facility 0x37 and is none
]


@pytest.mark.parametrize(("hresult", "kind"), KINDS, ids=[f"{hresult:08X}" for hresult, _ in KINDS])
def test_each_hresult_has_its_class_and_says_what_to_do(hresult: int, kind: type[errors.ComputeSystemError]) -> None:
    error = error_from("compute system vm1: adding share 0", hresult)
    assert type(error) is kind
    assert error.hresult == hresult
    assert error.hcs_message == ""
    text = str(error)
    assert text.startswith("compute system vm1: adding share 0: ")
    assert f"(HCS 0x{hresult:08X}): " in text
    assert text.rpartition("): ")[2], "no remedy"
    assert "\n" not in text


def test_a_signed_value_is_the_same_one() -> None:
    error = error_from("x", 0x80370110 - 2**32)
    assert (type(error), error.hresult) == (errors.ComputeSystemStopped, 0x80370110)


def test_not_found_is_a_share_when_one_was_to_be_removed() -> None:
    assert type(error_from("x", 0x80070490, removing=True)) is errors.ShareNotFound


def test_the_codes_for_a_vm_that_is_gone_count_as_gone() -> None:
    for hresult in (0xC037010E, 0xC0370110, 0x80370110, 0xC0370106):
        assert isinstance(error_from("x", hresult), errors.ComputeSystemGone)


def test_hcs_own_message_and_its_error_events_are_kept_on_one_line() -> None:
    document = {
        "Error": -2147024891,
        "ErrorMessage": "Access is denied.",
        "ErrorEvents": [
            {"Message": "Failed to share\r\n'C:\\x'.", "Provider": "80ce50de", "EventId": 4096, "Data": [{}]},
            {"Message": "Access is denied."},
            {"StackTrace": "nothing to read"},
        ],
        "Attribution": [],
    }
    error = error_from("x", 0x80070005, json.dumps(document))
    assert error.hcs_message == "Access is denied; Failed to share 'C:\\x'"
    assert "(HCS 0x80070005: Access is denied; Failed to share 'C:\\x')" in str(error)


@pytest.mark.parametrize("document", ["no JSON", "[]", '{"ErrorMessage":1}', '{"ErrorEvents":{}}'])
def test_a_document_that_cannot_be_read_is_shown_as_it_is(document: str) -> None:
    assert error_from("x", 0x80070005, document).hcs_message == document


@given(st.integers(-(2**31), 2**32 - 1), st.text() | st.none(), st.booleans())
def test_any_answer_gives_one_compute_system_error(hresult: int, document: str | None, removing: bool) -> None:
    error = error_from("x", hresult, (document or "").encode("utf-8", "replace").decode(), removing=removing)
    assert isinstance(error, errors.ComputeSystemError)
    assert "\n" not in str(error)


@given(st.integers(0, 2**32 - 1))
def test_failure_is_the_highest_bit(hresult: int) -> None:
    assert failed(hresult) == (hresult >= 2**31) == failed(hresult - 2**32 if hresult >= 2**31 else hresult)
    assert normalised(hresult) in {hresult, hresult & 0x0FFFFFFF}
