"""First guesses get an answer: what other tools call it, and what it is called here."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from uvmshare.cli import share, vm
from uvmshare.cli.main import COMMANDS, cli, run

if TYPE_CHECKING:
    import click


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("serv", "Did you mean 'serve'?"),
        ("deamon", "Did you mean 'daemon'?"),
        ("ps", "Did you mean vm ls, or mounts?"),
        ("logs", "Did you mean events, or top?"),
        ("owners", "Did you mean owner ls?"),
        ("volume ls", "Did you mean map"),
        ("owner rm x", "Did you mean 'release'?"),
        ("vm show x", "Did you mean 'inspect'?"),
        ("serve --socket-path /x /srv", "addresses are given by --listen"),
        ("serve --shared-dir /srv", "a share is an argument of its own"),
        ("share add ~/x", "was taken for the VM: name the VM first"),
        ("map build /srv/x", "map VM PATH GUEST_PATH"),
        ("share ls --filter x", "--format and --json are for programs"),
        ("status", "Did you mean health, vm ls, or doctor?"),
        ("mount /srv/x", "Did you mean map (the host asks the guest's agent), or inside a guest `guest mount`?"),
        ("umount /mnt", "Did you mean unmap?"),
        ("share delete x", "Did you mean 'rm'?"),
        ("vm list", "Did you mean 'ls'?"),
        ("serve -v /srv/x:/mnt", "Perhaps: a share is an argument of its own, PATH or PATH:ro"),
        ("serve --listn unix:/run/x /srv", "--listen"),
        ("daemon --host unix:/run/x", "daemon --socket"),
    ],
)
def test_a_guess_is_answered(line: str, meant: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(line.split()) == 2
    told = capfd.readouterr().err
    assert meant in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(("command", "line"), [(vm.inspect, ["build"]), (share.inspect, ["build", "0"])])
def test_who_asks_for_json_where_there_is_nothing_else_gets_it(command: click.Command, line: list[str]) -> None:
    assert command.make_context("inspect", [*line, "--json"]).params == command.make_context("inspect", line).params


def test_what_nobody_can_guess_is_said_without_one(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["zzzzzz"]) == 2
    assert capfd.readouterr().err == "uvmshare: error: No such command 'zzzzzz'. (see 'uvmshare --help')\n"


def test_every_guess_names_commands_that_are_there() -> None:
    from uvmshare.cli import guesses

    for meant in guesses._COMMANDS.values():
        named = re.sub(r"\(.*?\)|; .*|inside a guest |`", "", meant)
        for each in named.split(", "):
            command = each.strip().removeprefix("or ").split()[0]
            assert command in COMMANDS or command in {"--version", "--help"}, each
    assert not set(guesses._COMMANDS) & set(COMMANDS)
    assert cli.name == "cli"


@pytest.mark.parametrize(
    ("address", "meant"),
    [
        ("tcp:5640", "it has no host; use tcp:127.0.0.1:5640"),
        ("127.0.0.1:5640", "it has no kind; use tcp:127.0.0.1:5640"),
        ("/run/vm.sock", "it has no kind; use unix:/run/vm.sock"),
    ],
)
def test_an_address_that_lacks_a_part_is_told_whole(
    address: str, meant: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["serve", "--listen", address, "/"]) == 2
    assert meant in capfd.readouterr().err


@pytest.mark.parametrize(
    ("share", "meant"),
    [
        ("/tmp:/mnt/x", "where the guest mounts it is not said here: share /tmp, and give /mnt/x to `map`"),
        ("unix:/run/x", "an address is given by --listen: --listen unix:/run/x"),
    ],
)
def test_a_share_that_says_too_much_is_told_where_that_goes(
    share: str, meant: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["serve", "--listen", "unix:/x", share]) == 1
    assert meant in capfd.readouterr().err
