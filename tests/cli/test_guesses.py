"""First guesses get an answer: what other tools call it, and what it is called here."""

from __future__ import annotations

import pytest

from uvmshare.cli.main import COMMANDS, cli, run


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("serv", "Did you mean 'serve'?"),
        ("deamon", "Did you mean 'daemon'?"),
        ("ps", "Did you mean vm ls, or mounts?"),
        ("status", "Did you mean vm ls, or doctor?"),
        ("mount /srv/x", "Did you mean map, or inside a guest `guest mount`?"),
        ("umount /mnt", "Did you mean unmap?"),
        ("share delete x", "Did you mean 'rm'?"),
        ("vm list", "Did you mean 'ls'?"),
        ("serve -v /srv/x:/mnt", "Perhaps: a share is an argument of its own, PATH or PATH:ro"),
        ("serve --listn unix:/run/x /srv", "--listen"),
    ],
)
def test_a_guess_is_answered(line: str, meant: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(line.split()) == 2
    told = capfd.readouterr().err
    assert meant in told
    assert told.count("\n") == 1


def test_what_nobody_can_guess_is_said_without_one(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["zzzzzz"]) == 2
    assert capfd.readouterr().err == "uvmshare: error: No such command 'zzzzzz'. (see 'uvmshare --help')\n"


def test_every_guess_names_commands_that_are_there() -> None:
    from uvmshare.cli import guesses

    for meant in guesses._COMMANDS.values():
        for each in meant.replace("inside a guest ", "").replace("`", "").split(", "):
            command = each.removeprefix("or ").split()[0]
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
