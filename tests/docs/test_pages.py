"""What the documentation shows exists: the files it links to, the commands and the Python in it."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess

import click
import pytest
from tests.docs.pages import PAGES, ROOT, blocks, commands, read

from uvmshare.cli.main import cli

GENERATED = {"cli.md", "http.md", "python.md", "limits.md"}


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", read(page)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = os.path.normpath(os.path.join(os.path.dirname(page), path)) if path else page
        if os.path.dirname(target) == "docs/reference":  # made when the site is built, which looks at its links itself
            assert os.path.basename(target) in GENERATED, f"{page} links to {link}"
            continue
        assert os.path.exists(os.path.join(ROOT, target)), f"{page} links to {link}"
        assert not anchor or anchor in anchors(read(target)), f"{page} links to {link}"


def typed() -> list[str]:
    consoles = [
        block
        for page in PAGES
        for block in blocks(page)
        if block.language == "console" and "source of a kernel" not in block.mark
    ]
    return sorted({re.sub(r"( 2?> \S+)?( &)?$", "", line) for block in consoles for _, line in commands(block)})


@pytest.mark.parametrize("line", [line for line in typed() if line.startswith("uvmshare ")])
def test_commands_are_ours(line: str) -> None:
    context: click.Context = click.Context(cli, info_name="uvmshare")
    command: click.Command = cli
    words = shlex.split(line)[1:]
    while isinstance(command, click.Group) and not words[0].startswith("-"):
        found = command.get_command(context, words[0])
        assert found is not None, line
        command, words = found, words[1:]
    # Parsing finds unknown options and missing arguments; nothing is run.
    with contextlib.suppress(click.exceptions.Exit):  # --version, --help
        command.make_context("uvmshare", words)


@pytest.mark.parametrize("line", [line for line in typed() if line.startswith("make")])
def test_make_targets_exist(line: str) -> None:
    done = subprocess.run(
        ["make", "--dry-run", *shlex.split(line)[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
