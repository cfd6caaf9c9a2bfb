"""Writes the map of the repository from the first lines of its modules, and the rooms of the package into AGENTS.md.

    python tools/map.py            # writes docs/map.md, and the table between the marks in AGENTS.md
    python tools/map.py --check    # fails when what is committed is stale

What lives here: the order of the rooms. What must not: a word of what a module is for; its own first sentence says it.
"""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- rooms: written by tools/map.py -->\n", "<!-- end of the rooms -->\n"
PACKAGE = "src/uvmshare"
FILES = ("*.py", f"{PACKAGE}/*.sh", f"{PACKAGE}/*.js")
COMMENT = re.compile(r"(?:#!.*\n)?(?:#|//) (.+?\.)(?:\s|$)")
OTHERS = ("tests", "tools", "benchmarks", "fuzz", "contrib")
PREAMBLE = """# Map

Every module, and the package's scripts, by their folders, with the first sentence that each says of itself. A folder's
own sentence is that of its `__init__.py`. `tools/map.py` writes this page, and `make lint` checks it. Files of tests
(`test_*.py`) are left out: they stand in the folder of the layer that they try.
"""


def first_sentence(path: Path) -> str:
    """Return the first paragraph of a module's docstring, as one line; of a script, its comment's first sentence.

    Raises `SystemExit` when there is none.
    """
    if path.suffix != ".py":
        comment = COMMENT.match(path.read_text(encoding="utf-8"))
        if not comment:
            sys.exit(f"{path.relative_to(ROOT)} does not say what it is for: it begins with no comment")
        return comment[1].replace("|", "\\|")
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if not text:
        sys.exit(f"{path.relative_to(ROOT)} does not say what it is for: it has no docstring")
    return " ".join(text.partition("\n\n")[0].split()).replace("|", "\\|")


def modules() -> dict[str, list[Path]]:
    """Return the modules of each folder that git knows, folders in the order of the package and of `OTHERS`."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", *FILES], cwd=ROOT, check=True, capture_output=True, text=True
    )
    found: defaultdict[str, list[Path]] = defaultdict(list)
    for name in sorted(listed.stdout.split()):
        path = ROOT / name
        if path.exists() and not path.name.startswith("test_"):
            found[str(Path(name).parent)].append(path)
    order = [folder for top in (PACKAGE, *OTHERS) for folder in found if folder == top or folder.startswith(f"{top}/")]
    return {folder: found[folder] for folder in order}


def page(found: dict[str, list[Path]]) -> str:
    """Return docs/map.md."""
    parts = [PREAMBLE]
    for folder, paths in found.items():
        parts.append(f"\n## {folder}/\n")
        rows = []
        for path in paths:
            if path.name == "__init__.py":
                if path.read_text(encoding="utf-8").strip():
                    parts.append(f"\n{first_sentence(path)}\n")
            else:
                rows.append(f"| `{path.name}` | {first_sentence(path)} |\n")
        if rows:
            parts += ["\n| Module | What it is for |\n| --- | --- |\n", *rows]
    return "".join(parts)


def rooms(found: dict[str, list[Path]]) -> str:
    """Return the table for AGENTS.md: the package's folders."""
    rows = ["\n| Room | What is done there |\n| --- | --- |\n"]
    for folder, paths in found.items():
        if folder.startswith(PACKAGE):
            said = next(first_sentence(path) for path in paths if path.name == "__init__.py")
            rows.append(f"| `{folder}/` | {said} |\n")
    return "".join([*rows, "\n"])


def main() -> int:
    """Write the files, or compare them."""
    parser = argparse.ArgumentParser(description="Write the map of the repository from its modules.")
    parser.add_argument("--check", action="store_true", help="fail when the committed files are stale")
    check = parser.parse_args().check
    found = modules()
    agents = (ROOT / "AGENTS.md").read_text(encoding="utf-8")
    head, _, rest = agents.partition(BEGIN)
    tail = rest.partition(END)[2]
    wanted = {"docs/map.md": page(found), "AGENTS.md": f"{head}{BEGIN}{rooms(found)}{END}{tail}"}
    status = 0
    for name, text in wanted.items():
        path = ROOT / name
        if not check:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            sys.stderr.write(f"{name} is stale: run python tools/map.py\n")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
