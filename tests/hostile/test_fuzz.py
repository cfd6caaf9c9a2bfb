"""The fuzzer's targets over its corpus, and over a fixed number of mutations of it; `make fuzz` goes on from there."""

from __future__ import annotations

import functools
import importlib.util
import os
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from uvmshare.ninep import messages

if TYPE_CHECKING:
    from fuzz import targets

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

FUZZ: Final = Path(__file__).parents[2] / "fuzz"
CORPUS: Final = FUZZ / "corpus"

if not TYPE_CHECKING:  # fuzz/ is a folder of scripts and not on the path
    spec = importlib.util.spec_from_file_location("targets", FUZZ / "targets.py")
    targets = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(targets)


def seeds(name: str) -> list[Path]:
    return sorted((CORPUS / name).iterdir())


@functools.cache
def inputs(name: str) -> list[bytes]:
    return [path.read_bytes() for path in seeds(name)]


def mutated(name: str, seed: int) -> bytes:
    """One input of the corpus, or two joined, with a few bytes changed, taken out and put in."""
    chance = random.Random(seed)
    data = bytearray(chance.choice(inputs(name)))
    if chance.random() < 0.5:
        data += chance.choice(inputs(name))[1:]
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(3):
            case 0:
                data[at : at + 1] = bytes([chance.choice((0, 1, 2, 0x7F, 0x80, 0xFF, chance.randrange(256)))])
            case 1:
                del data[at : at + chance.randint(1, 4)]
            case _:
                data[at:at] = chance.randbytes(chance.randint(1, 4))
    return bytes(data)


def test_the_corpus_has_seeds() -> None:
    assert {cls.__name__ for cls in messages.BY_TYPE.values()} <= {path.name for path in seeds("codec")}
    assert len(seeds("session")) >= 26


@pytest.mark.parametrize("path", seeds("codec"), ids=lambda path: path.name)
def test_codec_on_its_corpus(path: Path) -> None:
    targets.codec(path.read_bytes())


@pytest.mark.parametrize("path", seeds("session"), ids=lambda path: path.name)
def test_session_on_its_corpus(path: Path) -> None:
    targets.session(path.read_bytes())


@pytest.mark.parametrize("path", seeds("agent"), ids=lambda path: path.name)
def test_agent_on_its_corpus(path: Path) -> None:
    targets.agent(path.read_bytes())


def test_agent_on_mutations() -> None:
    for seed in range(400):
        targets.agent(mutated("agent", seed))


def test_codec_on_mutations() -> None:
    for seed in range(10_000):
        targets.codec(mutated("codec", seed))


@pytest.mark.parametrize("block", range(5))
def test_session_on_mutations(block: int) -> None:
    for seed in range(block * 40, block * 40 + 40):
        targets.session(mutated("session", seed))


def test_the_session_target_fails_when_something_outside_is_told() -> None:
    # The target itself must be able to fail: here a reply carries what it looks for.
    with pytest.raises(AssertionError, match="was told"):
        targets._check_replies(b"\x2b\0\0\0\x75\0\0" + targets.CANARY, [], 65536)


REFUSED: Final = {"append", "count-long", "count-short", "msize", "nowhere", "offset", "size"}
"""Which of the large writes of the corpus are received whole and then served, or refused, as any message is."""


@pytest.mark.parametrize("path", sorted((CORPUS / "session").glob("large*")), ids=lambda path: path.name)
def test_large_writes_of_the_corpus_are_spliced(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    into_files: list[bool] = []
    splice = os.splice

    def noted(source: int, sink: int, count: int, offset_dst: int | None = None) -> int:
        into_files.append(offset_dst is not None)
        return splice(source, sink, count, offset_dst=offset_dst)

    monkeypatch.setattr(os, "splice", noted)
    targets.session(path.read_bytes())
    assert set(into_files) == (set() if path.name.removeprefix("large-") in REFUSED else {False, True})


def test_the_session_target_fails_when_a_write_is_another_one_spliced(monkeypatch: pytest.MonkeyPatch) -> None:
    splice = os.splice

    def beside(source: int, sink: int, count: int, offset_dst: int | None = None) -> int:
        return splice(source, sink, count, offset_dst=None if offset_dst is None else offset_dst + 1)

    monkeypatch.setattr(os, "splice", beside)
    with pytest.raises(AssertionError, match="another one"):
        targets.session((CORPUS / "session" / "large").read_bytes())
