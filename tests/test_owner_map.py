"""Owner maps: their text, and whom they show."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uvmshare.owner_map import OwnerMap


def test_a_map_has_one_spelling() -> None:
    assert str(OwnerMap.parse("1000:0")) == "1000/1000:0/0"
    assert OwnerMap.parse("1000/1000:0/0") == OwnerMap.parse("01000:0")
    assert str(OwnerMap.parse("all:1000/100")) == "all:1000/100"


def test_the_one_owner_is_shown_as_the_other_and_all_else_as_it_is() -> None:
    owners = OwnerMap.parse("1000/100:0/5")
    assert owners.shown(1000, 100) == (0, 5)
    assert owners.shown(1001, 100) == (1001, 5)
    assert owners.meant(0, 5) == (1000, 100)
    assert owners.meant(0, 6) == (1000, 6)
    assert owners.meant(-1, 5) == (-1, 100)


def test_all_are_shown_as_one() -> None:
    assert OwnerMap.parse("all:7").shown(0, 12) == (7, 7)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("1000", "has no colon"),
        ("", "has no colon"),
        (":0", "'' is no owner"),
        ("1000:", "'' is no owner"),
        ("0:all", "'all' is no owner"),
        ("alice:0", "'alice' is no owner"),
        ("1:2:3", "'2:3' is no owner"),
        ("1/:2", "'1/' is no owner"),
        ("-1:0", "'-1' is no owner"),
        ("\u0661:0", "is no owner"),
        ("4294967295:0", "the highest is 4294967294"),
        ("0:0/4294967295", "the highest is 4294967294"),
        (1000, "is no str"),
    ],
)
def test_what_is_no_map_is_refused_with_what_to_write(text: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=re.escape(wrong)):
        OwnerMap.parse(text)


@given(st.text("0123456789/:al", max_size=20))
def test_any_text_is_a_map_or_an_error_in_words(text: str) -> None:
    try:
        owners = OwnerMap.parse(text)
    except ValueError:
        with pytest.raises(ValueError, match="owner map"):
            OwnerMap.parse(text)
    else:
        assert OwnerMap.parse(str(owners)) == owners
