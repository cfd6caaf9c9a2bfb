"""Hooks of mkdocs: what of the site is generated when it is built, and where links out of docs/ lead.

What lives here: which pages are made, and the links. What must not: what stands on a page of the reference; that comes
from the help texts, the OpenAPI document, the docstrings and `Limits` (`tools/reference.py`).
"""

from __future__ import annotations

import os
import posixpath
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

sys.path.insert(0, os.path.dirname(__file__))

from mkdocs.structure.files import File

import reference

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).resolve().parent.parent
PROJECT: Final = ("README.md", "CONTRIBUTING.md", "AGENTS.md", "SECURITY.md", "CHANGELOG.md", "examples/README.md")
"""Pages beside docs/ that are on the site too, below project/."""
_LINK: Final = re.compile(r"(\]\()([^)\s]+)(\))")
_COMMENT: Final = re.compile(r"<!-- (?:run|before|elsewhere):.*?-->\n?", re.DOTALL)
"""What a page says to the tests alone."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put pages that the navigation does not name at its end, so that none is lost."""
    assert config.nav is not None
    named = set(_named(config.nav))
    listed = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
    if more := [name for name in listed if name not in named]:
        config.nav.append({"More": more})
    return config


def _named(nav: object) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    elif isinstance(nav, list | dict):
        for each in nav.values() if isinstance(nav, dict) else nav:
            yield from _named(each)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are generated, those beside docs/, and the files of the repository that pages link to."""
    for name, text in reference.pages().items():
        files.append(File.generated(config, f"reference/{name}", content=text))
    for name in PROJECT:
        if (ROOT / name).exists():
            files.append(File.generated(config, f"project/{name}", abs_src_path=str(ROOT / name)))
    linked = {
        target
        for file in list(files.documentation_pages())
        for target in map(_outside, _targets(file.content_string, _home(file.src_uri)))
        if target is not None and not target.endswith(".md")
    }
    for target in sorted(linked):
        # The name ends in .txt, so that every browser shows it.
        content = (ROOT / target).read_bytes() if (ROOT / target).is_file() else _listing(ROOT / target)
        files.append(File.generated(config, f"source/{target}.txt", content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links out of docs/ lead to where those files are on the site."""
    del config, files
    home = _home(page.file.src_uri)

    def mended(found: re.Match[str]) -> str:
        path, mark, anchor = found[2].partition("#")
        if not path or "://" in path:
            return found[0]
        target = posixpath.normpath(posixpath.join(home, path))
        outside = _outside(target)
        if outside is None:
            place = target.removeprefix("docs/")
        else:
            place = f"project/{outside}" if outside in PROJECT else f"source/{outside}.txt"
        here = posixpath.dirname(page.file.src_uri) or "."
        return f"{found[1]}{posixpath.relpath(place, here)}{mark}{anchor}{found[3]}"

    return _LINK.sub(mended, _COMMENT.sub("", markdown))


def _home(uri: str) -> str:
    """Return the directory, from the root of the repository, that a page's links are relative to."""
    return posixpath.dirname(uri.removeprefix("project/") if uri.startswith("project/") else f"docs/{uri}")


def _targets(markdown: str, home: str) -> set[str]:
    links = {found[2].partition("#")[0] for found in _LINK.finditer(markdown)}
    return {posixpath.normpath(posixpath.join(home, link)) for link in links if link and "://" not in link}


def _outside(target: str) -> str | None:
    """Return a path of the repository that is not below docs/ and is there, else None."""
    return target if not target.startswith(("docs/", "..")) and (ROOT / target).exists() else None


def _listing(directory: Path) -> str:
    return "".join(f"{path.name}{'/' if path.is_dir() else ''}\n" for path in sorted(directory.iterdir()))
