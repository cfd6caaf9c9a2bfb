"""Lists are written as a table, as JSON, as names alone, or by a template: and a wrong template is told apart."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click
import msgspec
import pytest
from tests.for_people import assert_for_people

from uvmshare.cli.durations import in_words, seconds_of
from uvmshare.cli.main import COMMANDS, cli, run
from uvmshare.cli.progress import Progress
from uvmshare.cli.template import Template

if TYPE_CHECKING:
    from collections.abc import Iterator


class Thing(msgspec.Struct):
    name: str = "a"
    count: int = 7
    left: float | None = None
    is_well: bool = True
    names: tuple[str, ...] = ("x", "y\n")
    inner: dict[str, int] = msgspec.field(default_factory=lambda: {"k": 1})
    since: datetime = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("{name}", "a"),
        ("{name:<4}|{count:>4}|{count:04d}", "a   |   7|0007"),
        ("{left} {left:.1f}", "- -"),
        ("{left:>4}", "   -"),
        ("{is_well} {names} {inner}", 'true x,y\\n {"k":1}'),
        ("{since}", "2026-01-02T03:04:05+00:00"),
        (r"{name}\t{count}\n{{}}", "a\t7\n{}"),
        ("", ""),
    ],
)
def test_a_template_is_filled_with_fields(text: str, filled: str) -> None:
    assert Template(text, Thing).filled(Thing()) == filled


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{nme}", "there is no field 'nme'; there are name, count, left, is_well, names, inner, since"),
        ("{}", "there is no field ''; there are name"),
        ("{0}", "there is no field '0'"),
        ("{name.__class__}", "there is no field 'name.__class__'"),
        ("{names[0]}", "there is no field 'names[0]'"),
        ("{name!r}", "{name}: write {FIELD} or {FIELD:FORM}"),
        ("{name:{count}}", "{name}: write {FIELD} or {FIELD:FORM}"),
        ("{name", "a brace has no partner"),
        ("name}", "a brace has no partner"),
        ("{name:d}", "name is a text, which has no form 'd'"),
        ("{count:q}", "count is a number, which has no form 'q'"),
        ("{left:s}", "left is a number, which has no form 's'"),
    ],
)
def test_a_template_that_cannot_be_says_why_and_what_there_is(text: str, said: str) -> None:
    with pytest.raises(click.BadParameter) as raised:
        Template(text, Thing)
    assert said in raised.value.format_message()
    assert_for_people(raised.value.format_message())


@pytest.mark.parametrize("command", [["vm", "ls"], ["share", "ls"], ["mounts"], ["stats"], ["owner", "ls"]])
def test_a_wrong_template_is_refused_before_anybody_is_asked(
    command: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    nobody = ["--host", "unix:/nowhere"]
    assert run([*command, "--format", "{nothing}", *nobody]) == 2
    assert "there is no field 'nothing'" in capfd.readouterr().err
    assert run([*command, "--json", "-q", *nobody]) == 2
    assert "--json and --quiet say in two ways" in capfd.readouterr().err
    assert run([*command, "-q", *nobody]) == 1
    assert "no daemon answers" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("0.5", 0.5),
        ("90s", 90),
        ("5m", 300),
        ("1h", 3600),
        ("1h30m", 5400),
        ("2d", 172_800),
        ("1.5h", 5400),
    ],
)
def test_a_length_of_time_is_read(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "5x", "5 m", "5m1h", "5m5m", "-1", "1e3", "nan", "inf", "٣", "9" * 99])
def test_what_is_no_length_of_time_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is no length of time: write seconds"):
        seconds_of(text)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0s"), (59.6, "1m"), (299, "4m59s"), (3600, "1h"), (90061, "1d1h"), (-1, "0s")]
)
def test_a_length_of_time_is_shown_by_its_two_largest_units(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


def test_what_takes_long_says_so_each_second_and_takes_the_line_away_again() -> None:
    waits: Iterator[bool] = iter([False, False, True])
    written: list[str] = []
    progress = Progress("mounting", written.append, lambda _: next(waits))
    progress.run()
    progress.clear()
    progress.clear()
    assert written == [
        "\r\x1b[2Kmounting (1 s; Ctrl-C stops waiting)",
        "\r\x1b[2Kmounting (2 s; Ctrl-C stops waiting)",
        "\r\x1b[2K",
    ]


def test_what_is_done_within_a_second_says_nothing() -> None:
    written: list[str] = []
    progress = Progress("mounting", written.append, lambda _: True)
    progress.run()
    progress.clear()
    assert written == []


HEAVY = {
    *("asyncio", "concurrent.futures", "multiprocessing", "subprocess", "sqlite3", "importlib.metadata"),
    *("email", "http.client", "urllib.request", "rich.console", "uvmshare.share.manager"),
}
PACKAGES = {"anyio", "certifi", "click", "h11", "httpcore", "msgspec", "rich", "typing_extensions", "uvmshare"}
"""What a command for the daemon may load: httpcore needs anyio, certifi and h11; a table needs the widths of rich."""


@pytest.mark.parametrize(
    "command", [["vm", "ls"], ["share", "ls"], ["mounts"], ["share", "rm", "x", "0"], ["map", "x", "/tmp", "/mnt"]]
)
def test_a_command_for_the_daemon_loads_nothing_that_it_does_not_need(command: list[str]) -> None:
    program = (
        "import sys; before = set(sys.modules); from uvmshare.cli.main import run; status = run(sys.argv[1:]);"
        "print(*(set(sys.modules) - before)); sys.exit(status)"
    )
    arguments = [*command, "--host", "unix:/nowhere"]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert "no daemon answers" in done.stderr, done.stderr
    assert done.returncode == 1
    loaded = set(done.stdout.split())
    assert {name.partition(".")[0] for name in loaded} - sys.stdlib_module_names <= PACKAGES
    assert "httpcore" in loaded
    assert not HEAVY & loaded


def _all_commands() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    context = click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        found.append((name,))
        if isinstance(command, click.Group):
            found += [(name, each) for each in command.list_commands(context)]
    return [each for each in found if each[0] != "guest" or len(each) == 1]


@pytest.mark.parametrize(
    "words", [(), *((name,) for name in COMMANDS if isinstance(cli.get_command(click.Context(cli), name), click.Group))]
)
def test_no_list_of_commands_cuts_what_it_says(words: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
    assert run([*words, "--help"]) == 0
    _, _, commands = capfd.readouterr().out.rpartition("\nCommands:\n")
    assert commands
    assert "..." not in commands


@pytest.mark.parametrize("words", _all_commands(), ids=" ".join)
def test_the_help_of_every_command_has_an_example(words: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
    assert run([*words, "--help"]) == 0
    usage, _, rest = capfd.readouterr().out.partition("\n")
    assert usage.startswith("Usage: uvmshare " + " ".join(words))
    assert "uvmshare " + " ".join(words) in rest
