"""Serve mutations of the corpus with a compiled hot path that was built with AddressSanitizer and UBSan.

    python fuzz/sanitized.py SECONDS [SEED]

What lives here: the mutations, of a few kinds. What must not: what is tried (`targets.session`, which also holds the
compiled hot path to the handlers). `make fuzz` builds the module and sets the environment; atheris is not in it, since
it brings a sanitizer of its own. A failing input is left beside as ``crash-...``.
"""

# ruff: noqa: INP001, S311  a folder of scripts, and no cryptography
from __future__ import annotations

import pathlib
import random
import sys
import time
from typing import Final

import targets

CORPUS: Final = pathlib.Path(__file__).parent / "corpus" / "session"
_MOST_CHANGES: Final = 6


def mutated(source: random.Random, corpus: list[bytes]) -> bytes:
    """Return one input with a few bytes changed, cut, repeated, or taken from another."""
    data = bytearray(source.choice(corpus))
    for _ in range(source.randrange(_MOST_CHANGES)):
        at = source.randrange(len(data) + 1)
        kind = source.randrange(4)
        if kind == 0 and at < len(data):
            data[at] = source.choice((0, 1, 0x7F, 0x80, 0xFF, source.randrange(256)))
        elif kind == 1:
            del data[at : at + source.randrange(16)]
        elif kind == 2:
            data[at:at] = data[at : at + source.randrange(64)]
        else:
            other = source.choice(corpus)
            data[at:] = other[source.randrange(len(other) + 1) :]
    return bytes(data)


def main(seconds: float, seed: int) -> None:
    """Serve the corpus, and then mutations of it for so long."""
    source = random.Random(seed)
    corpus = [path.read_bytes() for path in sorted(CORPUS.iterdir())]
    end, count = time.monotonic() + seconds, 0
    while count < len(corpus) or time.monotonic() < end:
        data = corpus[count] if count < len(corpus) else mutated(source, corpus)
        try:
            targets.session(data)
        except BaseException:
            pathlib.Path(f"crash-{seed}-{count}").write_bytes(data)
            raise
        count += 1
    print(f"{count} inputs, seed {seed}: nothing found")  # noqa: T201  what it is for


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns())
