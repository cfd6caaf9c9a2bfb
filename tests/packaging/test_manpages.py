"""The manual pages: one for each command, with all that its help says, in characters that man(7) leaves as they are."""

from __future__ import annotations

import re

import click
import pytest

import manpages
from uvmshare.cli.main import cli

PAGES = manpages.pages()
COMMANDS = {manpages.page_name(context): (command, context) for command, context in manpages.commands(
    cli, click.Context(cli, info_name="uvmshare", **cli.context_settings)
)}  # fmt: skip


def shown(page: str) -> str:
    """What a reader sees of a page, but for its layout."""
    text = re.sub(r"^\.(\w+) ?", "", page, flags=re.MULTILINE)
    for escape, character in {r"\-": "-", r"\(aq": "'", r"\(ga": "`", r"\(ha": "^", r"\(ti": "~", r"\(dq": '"'}.items():
        text = text.replace(escape, character)
    return text.replace(r"\&", "").replace(r"\e", "\\")


def test_every_command_has_a_page() -> None:
    assert set(PAGES) == {f"{name}.1" for name in COMMANDS}
    assert {"uvmshare.1", "uvmshare-serve.1", "uvmshare-share-add.1"} <= PAGES.keys()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_page_has_every_option_and_the_words_of_the_help(name: str) -> None:
    command, context = COMMANDS[name]
    words = shown(PAGES[f"{name}.1"]).split()
    for parameter in command.get_params(context):
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert {option.rstrip(",") for option in parameter.opts} <= {word.rstrip(",") for word in words}
    assert set((command.help or "").replace("\b", "").split()) <= set(words)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_made_of_known_requests_and_escapes(name: str) -> None:
    page = PAGES[name]
    requests = set(re.findall(r"^[.\'](\S*)", page, re.MULTILINE))
    assert requests <= {"TH", "SH", "PP", "RS", "RE", "EX", "EE", "TP", "B"}
    assert page.count("\n.EX\n") == page.count("\n.EE\n")
    assert set(re.findall(r"\\(\(..|.)", page)) <= {"-", "&", "e", "(aq", "(ga", "(ha", "(ti", "(dq"}


def test_a_date_that_is_given_is_the_date_of_the_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert "1970\\-01\\-02" in manpages.pages()["uvmshare.1"]


def test_lines_that_begin_as_requests_do_are_text() -> None:
    @click.command(help="\b\n.hidden\n'quoted'\nback\\slash")
    def command() -> None: ...

    page = manpages.page(command, click.Context(command, info_name="x"), "2026-01-01")
    assert "\n\\&.hidden\n\\(aqquoted\\(aq\nback\\eslash\n" in page
