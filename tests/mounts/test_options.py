"""What may be asked of a guest: one spelling of each path, and a clear line for what cannot be."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uvmshare.errors import InvalidOptions
from uvmshare.mounts.options import MountOptions, canonical_guest_path
from uvmshare.share.options import AddOptions

HERE = os.path.dirname(__file__)


@pytest.mark.parametrize("path", ["/mnt/x", "//mnt//x/", "/mnt/./x", "/./mnt/x/."])
def test_two_spellings_of_a_path_are_one(path: str) -> None:
    assert MountOptions("0", path) == MountOptions("0", "/mnt/x")
    assert hash(MountOptions("0", path)) == hash(MountOptions("0", "/mnt/x"))


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("mnt/x", "an absolute path"),
        ("", "an absolute path"),
        ("/", "over the guest's root"),
        ("//.", "over the guest's root"),
        ("/mnt/../etc", "without '..'"),
        ("/mnt/x\0", "NUL"),
        ("/mnt/\n", "newline"),
        ("/mnt/\ud800", "not UTF-8"),
        ("/" + "x" * 4095, "4096 bytes"),
    ],
)
def test_a_path_that_cannot_be_is_one_clear_line(path: str, words: str) -> None:
    with pytest.raises(InvalidOptions, match=words) as raised:
        MountOptions("0", path)
    assert "\n" not in str(raised.value)


@given(st.text(alphabet="/.a\0\n", max_size=12))
def test_any_text_is_a_path_that_stays_itself_or_one_error(path: str) -> None:
    try:
        canonical = canonical_guest_path(path)
    except InvalidOptions:
        return
    assert canonical_guest_path(canonical) == canonical
    assert ".." not in canonical.split("/")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"share": "x"}, "decimal name"),
        ({"share": 7}, "decimal name"),
        ({"read_only": 1}, "True or False"),
        ({"posixacl": "yes"}, "posixacl is 'yes': pass True or False"),
        ({"events": "yes"}, "events is 'yes': pass True or False"),
        ({"events": True, "cache": "loose"}, "choose another cache, or no events"),
        ({"cache": "all"}, "'auto', 'none', 'loose', 'mmap' or 'readahead'"),
        ({"msize": 4095}, "4096 to"),
        ({"msize": True}, "msize is True: pass a whole number"),
        ({"msize": 1 << 31}, "4096 to"),
    ],
)
def test_an_option_that_cannot_be_is_named(arguments: dict[str, object], words: str) -> None:
    given_arguments: dict[str, object] = {"share": "0", "mount_path": "/mnt/x", **arguments}
    with pytest.raises(InvalidOptions, match=words):
        MountOptions(**given_arguments)  # type: ignore[arg-type]  # a table of wrong values


def test_options_say_what_they_are() -> None:
    assert str(MountOptions("7", "/x", cache="mmap", msize=8192)) == "share 7 (cache=mmap, msize=8192)"
    mapped = MountOptions(AddOptions(HERE, read_only=True), "/x", posixacl=True, events=True)
    assert str(mapped) == f"share {HERE} (cache=auto, msize=auto, read-only, posixacl, events)"


@pytest.mark.parametrize("option", ["posixacl", "events"])
def test_a_mount_with_access_control_lists_or_events_is_another_than_one_without(option: str) -> None:
    given: dict[str, Any] = {option: True}
    with_them = MountOptions(AddOptions(HERE), "/x", **given)
    assert with_them != MountOptions(AddOptions(HERE), "/x")
    assert not with_them.may_be(MountOptions(AddOptions(HERE), "/x"))
    assert with_them.may_be(MountOptions(AddOptions(HERE).of_directory(None), "/x", **given))
