"""What can be asked for, that two ways of asking for it are equal, and what is said about the rest."""

from __future__ import annotations

import copy
import dataclasses
import ntpath
import os
import pickle
import socket
import sys
from typing import TYPE_CHECKING, Any

import pytest

from uvmshare.errors import InvalidOptions, UvmshareError
from uvmshare.share import options as options_module
from uvmshare.share.options import AddOptions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(name="tree")
def _tree(tmp_path: Path) -> Path:
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir/file").write_text("x")
    (tmp_path / "link").symlink_to("dir")
    (tmp_path / "dir/link-to-file").symlink_to("file")
    return tmp_path


def test_two_spellings_of_one_share_are_equal(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    plain = AddOptions(str(tree / "dir"))
    spellings = [
        AddOptions(tree / "dir"),
        AddOptions("dir"),
        AddOptions("./dir/../dir/"),
        AddOptions(tree / "link"),
        AddOptions(str(tree / "dir"), read_only=False, allowed_names=None),
    ]
    assert all(other == plain and hash(other) == hash(plain) for other in spellings)
    assert plain.host_path == os.path.realpath(tree / "dir")


def test_names_are_sorted_and_unique(tree: Path) -> None:
    once = AddOptions(tree, allowed_names=("b", "a", "b"))
    assert once.allowed_names == ("a", "b")
    assert once == AddOptions(tree, allowed_names=iter(["a", "b"]))


def test_patterns_and_maps_have_one_spelling(tree: Path) -> None:
    once = AddOptions(tree, hide=["b", "a", "b"], map_owner="1000:0")
    assert (once.hide, once.map_owner) == (("a", "b"), "1000/1000:0/0")
    assert once == AddOptions(tree, hide=iter(["a", "b"]), map_owner="1000/1000:0/0")
    assert once != AddOptions(tree, hide=["a", "b", "!a"], map_owner="1000:0")
    known = AddOptions.recalled(
        once.host_path, read_only=False, hide=once.hide, map_owner=once.map_owner, directory=once.directory
    )
    assert known == once


@pytest.mark.parametrize(
    "difference",
    [
        {"read_only": True},
        {"allowed_names": ("file",)},
        {"hide": ("x",)},
        {"map_owner": "1:2"},
    ],
)
def test_another_share_is_not_equal(tree: Path, difference: dict[str, Any]) -> None:
    assert AddOptions(tree / "dir", **difference) != AddOptions(tree / "dir")


@pytest.mark.parametrize("spelling", ["dir/file", "dir/link-to-file", "link/file"])
def test_a_file_is_its_directory_with_one_allowed_name(tree: Path, spelling: str) -> None:
    written_out = AddOptions(tree / "dir", allowed_names=("file",), read_only=True)
    assert AddOptions(tree / spelling, read_only=True) == written_out
    assert AddOptions(tree / spelling, read_only=True, allowed_names=("file",)) == written_out


def test_options_can_be_copied_but_not_changed(tree: Path) -> None:
    one = AddOptions(tree / "dir/file", read_only=True)
    assert pickle.loads(pickle.dumps(one)) == copy.deepcopy(one) == dataclasses.replace(one) == one
    assert dataclasses.replace(one, read_only=False) == AddOptions(tree / "dir/file")
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.read_only = False  # type: ignore[misc]  # that it cannot be set is what is tested


def test_a_path_with_words_beyond_ascii_is_fine(tree: Path) -> None:
    (tree / "größe 大").mkdir()
    assert AddOptions(tree / "größe 大", allowed_names=("ü" * 127,)).host_path.endswith("größe 大")


REFUSED: list[tuple[str, Callable[[Path], AddOptions], str]] = [
    ("missing path", lambda t: AddOptions(t / "nowhere"), "nowhere: No such file.*exists"),
    ("path below a file", lambda t: AddOptions(t / "dir/file/x"), "Not a directory"),
    ("dangling link", lambda t: AddOptions(t / "dangling"), "No such file"),
    ("loop of links", lambda t: AddOptions(t / "loop"), "Too many levels"),
    ("empty path", lambda t: AddOptions(""), "host_path is empty"),
    ("NUL in path", lambda t: AddOptions("/tmp/a\0b"), "contains a NUL"),
    ("bytes as path", lambda t: AddOptions(b"/tmp"), "pass a str"),  # type: ignore[arg-type]  # the mistake tested
    ("number as path", lambda t: AddOptions(3), "pass a str or"),  # type: ignore[arg-type]  # the mistake tested
    ("path not UTF-8", lambda t: AddOptions(os.fsdecode(os.fsencode(t) + b"/\xff")), "not UTF-8"),
    ("FIFO", lambda t: AddOptions(t / "fifo"), "is a FIFO: only directories"),
    ("socket", lambda t: AddOptions(t / "socket"), "is a socket: only directories"),
    ("character device", lambda t: AddOptions("/dev/null"), "is a character device"),
    ("names, and none of them", lambda t: AddOptions(t, allowed_names=()), "allowed_names is empty"),
    ("file with other names", lambda t: AddOptions(t / "dir/file", allowed_names=("x",)), "is a file"),
    ("file, and none of the names", lambda t: AddOptions(t / "dir/file", allowed_names=[]), "allowed_names is empty"),
    ("word for read_only", lambda t: AddOptions(t, read_only="no"), "read_only is 'no'"),  # type: ignore[arg-type]  # the mistake tested
    ("one string as patterns", lambda t: AddOptions(t, hide="x"), "hide is 'x': pass a list"),
    ("patterns that are none", lambda t: AddOptions(t, hide=5), "hide is 5"),  # type: ignore[arg-type]  # the mistake tested
    ("a pattern that never matches", lambda t: AddOptions(t, hide=["a//b"]), "hide: pattern 'a//b' has a part"),
    ("a map that is none", lambda t: AddOptions(t, map_owner="x"), "owner map 'x' has no colon"),
    ("one string as names", lambda t: AddOptions(t, allowed_names="file"), "allowed_names is 'file': pass a list"),
    ("names that are none", lambda t: AddOptions(t, allowed_names=5), "is 5"),  # type: ignore[arg-type]  # the mistake tested
]


@pytest.mark.parametrize(("build", "message"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_cannot_be_is_refused_with_its_reason(
    tree: Path, build: Callable[[Path], AddOptions], message: str
) -> None:
    if sys.platform == "win32":
        pytest.skip("made of what only POSIX systems have")
    os.mkfifo(tree / "fifo")
    (tree / "dangling").symlink_to("nowhere")
    (tree / "loop").symlink_to("loop")
    os.mkdir(os.fsencode(tree) + b"/\xff")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tree / "socket"))
        with pytest.raises(InvalidOptions, match=message) as raised:
            build(tree)
    assert isinstance(raised.value, ValueError)
    assert isinstance(raised.value, UvmshareError)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "is empty"),
        (".", "no name of a file"),
        ("..", "no name of a file"),
        ("a/b", "contains '/'"),
        ("/etc", "contains '/'"),
        ("a\0", "contains a NUL"),
        ("ü" * 128, "more than 255 bytes"),
        ("\udcff", "not UTF-8"),
        (7, "allowed_names has 7 in it: pass a list of names"),
    ],
)
def test_a_name_that_cannot_be_one_is_refused(tree: Path, name: str, message: str) -> None:
    with pytest.raises(InvalidOptions, match=message):
        AddOptions(tree, allowed_names=("fine", name))


def test_the_longest_name_is_allowed(tree: Path) -> None:
    assert AddOptions(tree, allowed_names=("n" * 255, "..hidden", "a\\b:c")).allowed_names


def test_a_path_out_of_reach_says_so(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(path: str) -> os.stat_result:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "stat", deny)
    with pytest.raises(InvalidOptions, match=r"Permission denied.*you may reach") as raised:
        AddOptions(tree)
    assert isinstance(raised.value.__cause__, PermissionError)


def test_windows_folds_case_and_refuses_its_own_separators(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options_module, "_WINDOWS", True)
    monkeypatch.setattr(options_module, "_SEPARATORS", "/\\:")
    monkeypatch.setattr(os.path, "normcase", ntpath.normcase)
    names = AddOptions(tree, allowed_names=("B", "a", "b"))
    assert names.allowed_names == ("a", "b")
    assert names.host_path == ntpath.normcase(os.path.realpath(tree))
    for name in ("a\\b", "file:stream"):
        with pytest.raises(InvalidOptions, match="contains"):
            AddOptions(tree, allowed_names=(name,))


def test_other_kinds_of_file_are_named() -> None:
    assert options_module._kind(0o060000) == "block device"
    assert options_module._kind(0) == "special file"
