"""Fuzz one target with coverage as the guide, until told to stop or something does not hold.

    python fuzz/run.py codec|session|agent [libFuzzer's options] [CORPUS...]

What lives here: atheris, and nothing of what is tried (`targets`). A failing input is left beside as ``crash-...``; it
belongs into ``fuzz/corpus`` with the correction.
"""

# ruff: noqa: INP001  a folder of scripts, not a package
from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["uvmshare"]):
    import targets


def main(arguments: list[str]) -> None:
    """Run libFuzzer; it never returns."""
    name, *options = arguments[1:] or ["nothing"]
    target = {"codec": targets.codec, "session": targets.session, "agent": targets.agent}.get(name)
    if target is None:
        sys.exit(f"fuzz/run.py: {name!r} is no target; use codec, session or agent")
    atheris.Setup([arguments[0], *options], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
