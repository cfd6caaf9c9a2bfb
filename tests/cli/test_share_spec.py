from __future__ import annotations

import pytest

from uvmshare import AddOptions, InvalidOptions
from uvmshare.cli.share_spec import ShareSpec, parse, share_options, with_sharing_options

TYPICAL = {
    "/srv/a": ShareSpec("/srv/a"),
    "/srv/a:ro": ShareSpec("/srv/a", read_only=True),
    "/srv/a:rw": ShareSpec("/srv/a"),
    "/srv/a:only=x": ShareSpec("/srv/a", only=("x",)),
    "/srv/a:only=x,y": ShareSpec("/srv/a", only=("x", "y")),
    "/srv/a:ro:only=x,y": ShareSpec("/srv/a", read_only=True, only=("x", "y")),
    "/srv/a:only=x,y:ro": ShareSpec("/srv/a", read_only=True, only=("x", "y")),
    "/srv/a:only=x:only=y": ShareSpec("/srv/a", only=("x", "y")),
    "/srv/a:hide=x,**/.env": ShareSpec("/srv/a", hide=("x", "**/.env")),
    "/srv/a:hide=*:ro:only=y:hide=!x": ShareSpec("/srv/a", read_only=True, only=("y",), hide=("*", "!x")),
    "relative": ShareSpec("relative"),
    ".:ro": ShareSpec(".", read_only=True),
}

COLONS = {
    "/srv/a:b": ShareSpec("/srv/a:b"),
    "/srv/a:b:ro": ShareSpec("/srv/a:b", read_only=True),
    "/srv/a:ro/": ShareSpec("/srv/a:ro/"),
    "/srv/a:ro/b": ShareSpec("/srv/a:ro/b"),
    "/srv/a:": ShareSpec("/srv/a:"),
    "/srv/a:RO": ShareSpec("/srv/a:RO"),
    "C:\\src": ShareSpec("C:\\src"),
    "C:\\src:ro": ShareSpec("C:\\src", read_only=True),
}


@pytest.mark.parametrize(("text", "spec"), [*TYPICAL.items(), *COLONS.items()])
def test_a_share_is_read_from_its_end(text: str, spec: ShareSpec) -> None:
    assert parse(text) == spec


WRONG = {
    "": "has no path",
    ":ro": "has no path",
    ":only=a": "has no path",
    "/a:only=": "empty name",
    "/a:only=x,": "empty name",
    "/a:only=,x": "empty name",
    "/a:only=x,,y": "empty name",
    "/a:hide=": "empty name",
    "/a:hide=x,,y": "empty name",
    "/a:ro:rw": "more than once",
    "/a:ro:only=x:ro": "more than once",
}


@pytest.mark.parametrize(("text", "reason"), WRONG.items())
def test_a_share_that_cannot_be_is_named(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        parse(text)
    assert repr(text) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_specs_become_the_options_of_the_manager(tmp_path: object) -> None:
    specs = [parse(f"{tmp_path}"), parse(f"{tmp_path}:ro"), parse(f"{tmp_path}:only=b,a")]
    assert share_options(specs) == [
        AddOptions(str(tmp_path)),
        AddOptions(str(tmp_path), read_only=True),
        AddOptions(str(tmp_path), allowed_names=("a", "b")),
    ]


def test_what_a_command_says_of_all_its_shares_comes_before_what_each_says_of_itself(tmp_path: object) -> None:
    (options,) = share_options([with_sharing_options(parse(f"{tmp_path}:hide=!a"), ("*",), "1000:0")])
    assert options == AddOptions(str(tmp_path), hide=("*", "!a"), map_owner="1000/1000:0/0")


def test_a_misspelt_option_is_hinted_at() -> None:
    with pytest.raises(InvalidOptions, match=r"/nowhere:r0.*only ':ro', ':rw'"):
        share_options([parse("/nowhere:r0")])


def test_a_path_without_a_colon_gets_no_hint() -> None:
    with pytest.raises(InvalidOptions) as caught:
        share_options([parse("/nowhere")])
    assert ":ro" not in str(caught.value)
