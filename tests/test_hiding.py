"""Patterns of hidden names: what they may be, and what they match, with git as the witness."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uvmshare.hiding import MOST_BYTES, MOST_BYTES_TOGETHER, MOST_PATTERNS, Patterns, Visibility, canonical

if TYPE_CHECKING:
    from pathlib import Path

HIDDEN = [
    ("node_modules", "node_modules a/node_modules a/b/node_modules/c", "node_modules2 a/xnode_modules"),
    ("**/.env", ".env a/.env a/b/.env", "env .envy a/.env.local"),
    ("/a/secret", "a/secret a/secret/x", "secret b/a/secret a/b/secret"),
    ("a/secret", "a/secret", "secret b/a/secret"),
    ("/build", "build build/x", "a/build"),
    ("*.key", "x.key a/y.key .key", "key x.keys"),
    ("a/*/c", "a/b/c a/x/c/d", "a/c a/b/b/c"),
    ("a/**/c", "a/c a/b/c a/b/b/c", "c b/a/c"),
    ("a/**", "a/b a/b/c", "a b/a"),
    ("a/b**", "a/b a/bc", "a/c/b"),
    ("?", "a b/c", "ab"),
    ("[a-c]x", "ax cx", "dx x"),
    ("[!a-c]x", "dx", "ax"),
    ("[[:digit:]]*", "1 2x a/3", "x1"),
    ("\\*", "*", "a"),
    ("\\!x", "!x", "x"),
    ("é", "é a/é", "e"),
]


@pytest.mark.parametrize(("pattern", "hidden", "shown"), HIDDEN, ids=[row[0] for row in HIDDEN])
def test_a_pattern_hides_what_the_page_says(pattern: str, hidden: str, shown: str) -> None:
    patterns = Patterns([pattern])
    assert [path for path in hidden.split() if not patterns.hides(path.encode(), directory=False)] == []
    assert [path for path in shown.split() if patterns.hides(path.encode(), directory=False)] == []


def test_a_slash_at_the_end_is_for_directories() -> None:
    patterns = Patterns(["build/"])
    assert patterns.hides(b"a/build", directory=True)
    assert patterns.hides(b"build/x", directory=False)
    assert not patterns.hides(b"build", directory=False)
    assert patterns.fate(patterns.root, b"build") is Visibility.HIDDEN_DIRECTORY


def test_the_last_pattern_that_matches_decides_and_nothing_shows_what_lies_in_a_hidden_directory() -> None:
    patterns = Patterns(["*.log", "!keep.log", "dir", "!dir/keep.log"])
    assert patterns.hides(b"a.log", directory=False)
    assert not patterns.hides(b"a/keep.log", directory=False)
    assert patterns.hides(b"dir/keep.log", directory=False)
    assert Patterns(["!keep.log", "*.log"]).hides(b"keep.log", directory=False)
    only_directories = Patterns(["*", "!*/"])
    assert only_directories.fate(only_directories.root, b"x") is Visibility.SHOWN_DIRECTORY


def test_the_root_is_never_hidden() -> None:
    assert not Patterns(["*", "**", "/**"]).hides(b"", directory=True)


def test_names_that_are_not_utf8_are_matched_as_bytes() -> None:
    assert Patterns(["caf?"]).hides(b"caf\xe9", directory=False)
    assert Patterns(["*"]).hides(b"\xff\n", directory=False)
    assert not Patterns(["caf?"]).hides("café".encode(), directory=False)


@pytest.mark.parametrize(
    ("pattern", "wrong"),
    [
        ("", "names nothing"),
        ("/", "names nothing"),
        ("!", "names nothing"),
        ("!/", "names nothing"),
        ("a//b", "a part that no path has"),
        ("./a", "a part that no path has"),
        ("a/../b", "a part that no path has"),
        ("..", "a part that no path has"),
        ("a//", "a part that no path has"),
        ("a\\", "backslash with nothing to mean"),
        ("a\\/b", "backslash with nothing to mean"),
        ("[a", "without its ']'"),
        ("[]", "without its ']'"),
        ("[a/b]", "without its ']'"),
        ("[a\\", "without its ']'"),
        ("[a-\\", "without its ']'"),
        ("[[:word:]]", "a class of bytes that there is not"),
        ("a\0b", "contains a NUL"),
        ("\udcff", "is not UTF-8"),
        ("a" * (MOST_BYTES + 1), f"more than {MOST_BYTES} bytes"),
        (5, "is no str"),
    ],
)
def test_what_never_matches_is_refused_with_the_reason(pattern: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=re.escape(wrong)):
        canonical([pattern])
    with pytest.raises(ValueError, match=re.escape(wrong)):
        Patterns([pattern])


def test_there_are_only_so_many_patterns() -> None:
    assert len(canonical(map(str, range(MOST_PATTERNS)))) == MOST_PATTERNS
    with pytest.raises(ValueError, match="more than"):
        canonical(map(str, range(MOST_PATTERNS + 1)))
    every = [f"{number:0{MOST_BYTES}}" for number in range(MOST_BYTES_TOGETHER // MOST_BYTES)]
    assert len(canonical(every)) == len(every)
    with pytest.raises(ValueError, match=f"more than {MOST_BYTES_TOGETHER} bytes together"):
        canonical([*every, "a"])
    with pytest.raises(ValueError, match=f"more than {MOST_BYTES_TOGETHER} bytes together"):  # bytes, not characters
        canonical([f"{number:02}{'ä' * 500}" for number in range(17)])


def test_lists_that_hide_the_same_by_their_words_are_equal() -> None:
    assert canonical(["b", "a", "b"]) == canonical(["a", "b"]) == ("a", "b")
    assert canonical(["a", "!a", "a"]) == ("!a", "a")
    assert canonical(["a", "!a"]) != canonical(["!a", "a"])


def test_directories_of_equal_state_hide_the_same() -> None:
    patterns = Patterns(["/a/*/secret", "x/**/y", "name"])
    root = patterns.root
    assert patterns.below(root, b"b") == patterns.below(root, b"c") != patterns.below(root, b"a")
    a = patterns.below(root, b"a")
    assert patterns.below(a, b"1") == patterns.below(a, b"2")
    x = patterns.below(root, b"x")
    assert patterns.below(x, b"1") == patterns.below(patterns.below(x, b"1"), b"2")


def test_no_name_takes_long_whatever_the_pattern() -> None:
    """Stars that could match in exponentially many ways: this ends, or the time-out of the tests ends it."""
    stars = "*a" * 60
    patterns = Patterns(
        [stars + "*b", f"x/{stars}*b", "**/" * 60 + "b/c", *(f"*a*{number}*b" for number in range(100))]
    )
    assert not patterns.hides(b"a" * 255, directory=False)
    assert not patterns.hides(b"/".join([b"a"] * 2000), directory=False)
    assert not patterns.hides(b"x/" + b"a" * 255, directory=False)


WORDS = [
    "a",
    "b",
    "ab",
    "*",
    "?",
    "**",
    "a*",
    "*b",
    "[ab]",
    "[!a]",
    "[a-c]",
    "[[:alpha:]]",
    "\\a",
    "***",
    "[]a]",
]
"""Not "a**": gitignore(5) says that it is "a*", and git before 2.44 compares pointers there of different texts."""
NAMES = ["a", "b", "ab", "c", "ba", "aab", "]"]


def _patterns(choose: random.Random) -> list[str]:
    found = []
    for _ in range(choose.randint(1, 4)):
        parts = choose.choices(WORDS, k=choose.choice((1, 1, 2, 2, 3)))
        pattern = choose.choice(("", "", "", "!")) + choose.choice(("", "", "/")) + "/".join(parts)
        found.append(pattern + choose.choice(("", "", "/")))
    return found


@pytest.mark.skipif(shutil.which("git") is None, reason="git is the witness")
def test_git_hides_the_same(tmp_path: Path) -> None:
    """Two hundred lists of patterns, each over a tree of its own with directories and files of every name."""
    choose = random.Random(12)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    trees = {f"t{number}": _patterns(choose) for number in range(200)}
    asked: dict[str, bool] = {}
    for top, patterns in trees.items():
        (tmp_path / top).mkdir()
        (tmp_path / top / ".gitignore").write_text("".join(f"{pattern}\n" for pattern in patterns))
        matcher = Patterns(patterns)
        for _ in range(20):
            *above, name = choose.choices(NAMES, k=choose.randint(1, 4))
            path = "/".join((*above, name))
            is_directory = choose.random() < 0.4
            made = tmp_path / top / path
            try:
                made.parent.mkdir(parents=True, exist_ok=True)
                if is_directory:
                    made.mkdir(exist_ok=True)
                else:
                    made.touch()
            except (FileExistsError, NotADirectoryError):
                continue
            asked[f"{top}/{path}"] = matcher.hides(path.encode(), directory=made.is_dir())
    command = ["git", "-C", str(tmp_path), "check-ignore", "--no-index", "--stdin", "-z"]
    answer = subprocess.run(command, input="\0".join(asked), capture_output=True, text=True, check=True).stdout
    ignored = set(answer.split("\0")[:-1])
    wrong = {
        path: (trees[path.partition("/")[0]], "we hide it" if ours else "git hides it")
        for path, ours in asked.items()
        if ours != (path in ignored)
    }
    assert wrong == {}
    assert len(asked) > 2000
    assert len(ignored) > 500


_PARTS = st.sampled_from(WORDS)
_PATHS = st.lists(st.sampled_from([name.encode() for name in NAMES]), min_size=1, max_size=5)


def _matches(parts: list[str], names: list[bytes]) -> bool:
    """The same by its definition, name by name and without a thought to how long it takes."""
    if not parts:
        return not names
    first, *rest = parts
    if len(first) > 1 and not first.strip("*"):
        if not rest:
            return bool(names)
        return any(_matches(rest, names[skipped:]) for skipped in range(len(names) + 1))
    return bool(names) and Patterns([first]).hides(names[0], directory=False) and _matches(rest, names[1:])


@given(parts=st.lists(_PARTS, min_size=2, max_size=5), names=_PATHS)
def test_a_path_is_hidden_if_it_or_a_directory_above_it_matches(parts: list[str], names: list[bytes]) -> None:
    expected = any(_matches(parts, names[: count + 1]) for count in range(len(names)))
    assert Patterns(["/".join(parts)]).hides(b"/".join(names), directory=False) == expected


@given(pattern=st.text(max_size=12) | st.text("ab*?[]!-\\/^:", max_size=12), name=st.binary(max_size=20))
def test_any_text_is_a_pattern_or_an_error_in_words(pattern: str, name: bytes) -> None:
    try:
        patterns = Patterns([pattern])
    except ValueError:
        with pytest.raises(ValueError, match="pattern "):
            canonical([pattern])
    else:
        assert canonical([pattern]) == (pattern,)
        patterns.hides(name.replace(b"/", b"_"), directory=False)
