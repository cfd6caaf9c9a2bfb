"""The site builds without a warning, says all that the program says of itself, and fetches nothing from elsewhere."""

from __future__ import annotations

import html.parser
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Final

import click
import msgspec
import pytest
from tests.docs.pages import ROOT
from tests.docs.test_pages import GENERATED
from tests.processes import DEADLINE

import manpages
import reference
import uvmshare
from uvmshare.cli.main import cli
from uvmshare.fileserver.limits import Limits

if TYPE_CHECKING:
    from pathlib import Path

FETCHED: Final = {
    "script": ("src",),
    "link": ("href",),
    "img": ("src", "srcset"),
    "iframe": ("src",),
    "source": ("src", "srcset"),
    "video": ("src",),
    "object": ("data",),
    "form": ("action",),
}
"""What a browser asks for by itself, and where each says it."""
PLAIN_LINKS: Final = {"canonical", "prev", "next", "edit"}


class Fetches(html.parser.HTMLParser):
    """What a page makes a browser fetch from another host, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = dict(attrs)
        if tag == "link" and said.get("rel") in PLAIN_LINKS:
            return
        if "mermaid" in (said.get("class") or "").split():
            self.found.append("a picture that a script from elsewhere draws")
        for name in FETCHED.get(tag, ()):
            if re.match(r"\s*(https?:)?//", said.get(name) or ""):
                self.found.append(f"{tag} {said[name]}")

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs")
    built = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(built)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=5 * DEADLINE
    )
    assert done.returncode == 0, done.stderr
    return built


def parsed(path: Path) -> Fetches:
    page = Fetches()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def test_no_page_fetches_anything_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    found = {str(path.relative_to(site)): page.found for path in pages if (page := parsed(path)).found}
    assert not found
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", style.read_text(encoding="utf-8")), style
    for picture in site.rglob("*.svg"):
        drawn = picture.read_text(encoding="utf-8")
        assert not re.search(r"(?:href|src)=\"(?:https?:)?//|url\([\"']?(?:https?:)?//", drawn), picture


def test_the_reference_has_the_pages_that_others_link_to() -> None:
    assert set(reference.pages()) == GENERATED


def test_every_command_and_option_is_in_the_reference(site: Path) -> None:
    page = (site / "reference" / "cli.html").read_text(encoding="utf-8")
    for command, context in manpages.commands(cli, click.Context(cli, info_name="uvmshare")):
        assert f">{context.command_path}<" in page
        for option in (name for each in command.params for name in each.opts if name.startswith("--")):
            assert option in page, f"{context.command_path} {option}"
    assert "--hung-after" in page, "the agent reads its arguments itself"


def test_every_path_of_the_http_api_is_in_the_reference(site: Path) -> None:
    text = "".join(parsed(site / "reference" / "http.html").text)
    document = reference.openapi()
    for path, methods in document["paths"].items():
        for method in methods:
            assert f"{method.upper()} {path}" in text
    for name in document["components"]["schemas"]:
        assert name in text


def test_every_public_name_is_in_the_reference_with_its_methods(site: Path) -> None:
    page = (site / "reference" / "python.html").read_text(encoding="utf-8")
    for name in uvmshare.__all__:
        found = getattr(uvmshare, name)
        if isinstance(found, type):
            assert f'id="{found.__module__}.{found.__qualname__}"' in page
            for method in vars(found):
                if callable(getattr(found, method)) and not method.startswith("_") and getattr(found, method).__doc__:
                    assert f"{found.__qualname__}.{method}" in page, f"{name}.{method}"


def test_every_limit_is_in_the_reference_with_unit_and_default(site: Path) -> None:
    text = "".join(parsed(site / "reference" / "limits.html").text)
    units = {"count", "bytes", "seconds", "yes or no", "bytes a second", "requests a second"}
    for line in reference.limits().splitlines():
        if line.startswith("| `"):
            name, unit, default, _, meaning = [cell.strip() for cell in line.strip("|").split(" | ")]
            assert name.strip("`") in Limits.__struct_fields__
            assert unit in units
            assert default
            assert meaning
    for field in msgspec.structs.fields(Limits):
        assert field.name in text


def test_what_a_page_says_to_the_tests_is_not_on_the_site(site: Path) -> None:
    for path in site.rglob("*.html"):
        assert not re.search(r"<!-- (run|before|elsewhere):", path.read_text(encoding="utf-8")), path
