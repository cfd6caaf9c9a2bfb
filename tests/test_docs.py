"""What the documentation shows exists: the files it links to, the commands and the Python in it."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import textwrap

import click
import pytest

from uvmshare.cli.main import cli

ROOT = os.path.dirname(os.path.dirname(__file__))
PAGES = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()


def read(page: str) -> str:
    with open(os.path.join(ROOT, page), encoding="utf-8") as file:
        return file.read()


def blocks(text: str, language: str) -> list[str]:
    return [
        textwrap.dedent(block)
        for block in re.findall(rf"^ *```{language}\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    ]


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
        assert os.path.exists(os.path.join(ROOT, target)), f"{page} links to {link}"
        assert not anchor or anchor in anchors(read(target)), f"{page} links to {link}"


@pytest.mark.parametrize("page", PAGES)
def test_python_is_python(page: str) -> None:
    for block in blocks(read(page), "python"):
        compile(block, page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def commands() -> list[str]:
    lines = [line for page in PAGES for block in blocks(read(page), "console") for line in block.splitlines()]
    found = {
        re.sub(r"^(\w*[$#]) ", "", line).partition("    #")[0].rstrip(" &")
        for line in lines
        if re.match(r"\w*[$#] ", line)
    }
    return sorted(found)


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("uvmshare ")])
def test_commands_are_ours(line: str) -> None:
    context: click.Context = click.Context(cli, info_name="uvmshare")
    command: click.Command = cli
    words = shlex.split(line)[1:]
    while isinstance(command, click.Group):
        assert words, line
        found = command.get_command(context, words[0])
        assert found is not None, line
        command, words = found, words[1:]
    # Parsing finds unknown options and missing arguments; nothing is run.
    command.make_context("uvmshare", words)


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("make")])
def test_make_targets_exist(line: str) -> None:
    done = subprocess.run(
        ["make", "--dry-run", *shlex.split(line)[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
