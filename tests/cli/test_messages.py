"""Every message about an argument that cannot be, each provoked: no validator's text reaches a person."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING

import click
import pytest
from tests.for_people import assert_for_people

from uvmshare.cli.main import cli, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME = "it has to be letters, digits and . _ @ - alone, and begin with a letter or digit"
TIME = "is no length of time: write seconds (90), or 90s, 5m, 1h30m, 2d"
TABLE: dict[str, str] = {
    "vm add a~b unix:/x": f"'ID': 'a~b': {NAME}",
    "vm add '' unix:/x": "'ID': it is empty: give a value (see",
    f"vm add {'x' * 65} unix:/x": "it has more than 64 characters",
    "vm add x ''": "'[ADDRESS]...': it is empty: give a value (see",
    "vm ls --host foo": "host 'foo': the daemon is reached on a unix socket: write unix:PATH",
    "vm ls --host https://gate/x": "is no gate of a fleet: write https://NAME:PORT, several with commas",
    "vm add x unix:/x --socket-mode 9": "'--socket-mode': '9': it has to be three octal digits, such as 660",
    "vm add x unix:/x --allow-uid me": "'me' is no uid; write a number, such as 64055, or any",
    "vm add x unix:/x --security-model all": "'all' is not one of 'mapped-xattr', 'passthrough', 'none'",
    "vm add x unix:/x --limit mounts": "'mounts' is no limit; write NAME=NUMBER, such as mounts=16",
    "vm add x unix:/x --limit mounts=x": "limit mounts is 'x': it has to be a whole number",
    "vm add x unix:/x --limit mounts=none": "limit mounts cannot be lifted: a whole number is needed",
    "vm add x unix:/x --cgroup pids": "'pids' is no limit; write NAME=VALUE, such as pids.max=64",
    "vm add x unix:/x --agent ''": "'--agent': it is empty: give a value, or leave the option out",
    "vm add x unix:/x --agent-token-file {folder}/none": "No such file or directory",
    "vm add x": "VM 'x' is reached at an ADDRESS or is a --compute-system, and has neither",
    "vm add x unix:/x --compute-system y": "VM 'x' is reached at an ADDRESS or is a --compute-system, and has both",
    "events --since x": "'--since': 'x' is no event's id: give one that --json shows, or 0",
    "serve --listen unix:/x --listen unix:/x /tmp": "address 'unix:/x': it is given twice; give each address once",
    "share add x /tmp --owner 'a b'": f"'--owner': 'a b': {NAME}",
    "share add x /tmp --owner ''": "'--owner': it is empty: give a value, or leave the option out",
    "share add x /tmp --map-owner me:0": "'--map-owner': 'me:0': it has to be HOST:GUEST in numbers, such as 1000:0",
    "share add x /tmp --hide ''": "'--hide': it is empty",
    "share add x /tmp --lease soon": f"'soon' {TIME}",
    "share add x /tmp --lease nan": f"'nan' {TIME}",
    "share add x /tmp --lease 5m1h": f"'5m1h' {TIME}",
    "share add x /tmp --lease -5": f"'-5' {TIME}",
    "share add x /tmp --lease 0": "'0' is no time at all: write more than 0",
    "share add x /tmp --lease 400d": "it is more than 31536000; give seconds, at most a year of them",
    "share add x /tmp:ro:rw": "'/tmp:ro:rw' says more than once whether it is read-only",
    "share add x ''": "'' has no path",
    "share rm x 0 --uid -1": "'--uid': -1 is less than 0",
    "share rm x 0 --uid me": "'--uid': 'me' is no whole number",
    "map x /tmp /": "'GUEST_PATH': '/': it has fewer than 2 characters; give an absolute path in the guest",
    "map x /tmp /mnt --msize 5": "'--msize': 5 is not from 4096 to 16777216",
    "map x /tmp /mnt --msize big": "'--msize': 'big' is no whole number",
    "map x /tmp /mnt --cache all": "'all' is not one of 'auto', 'none', 'loose', 'mmap', 'readahead'",
    "top --interval 0": "'--interval': 0.0 is not from 0.1 to 86400",
    "top --interval nan": "'--interval': nan is no number",
    "top --interval inf": "'--interval': inf is not from 0.1 to 86400",
    "top --interval soon": "'--interval': 'soon' is no number",
    "daemon --user-vms -1": "'--user-vms': -1 is less than 0",
    "daemon --user-vms many": "'--user-vms': 'many' is no whole number",
    "daemon --socket-mode rw": "'rw' is no mode; write three octal digits, such as 660",
    "daemon --log-level LOUD": "'LOUD' is not one of 'DEBUG', 'INFO', 'WARNING', 'ERROR'",
    "serve --listen unix:/x --limit mounts=0 /tmp": "limit mounts is '0': it is less than 1",
    "serve --listen unix:/x --limit peer_seconds=1 /tmp": "limit peer_seconds is '1': it is less than 4",
    "serve --listen unix:/x --limit mount=1 /tmp": "there is no limit 'mount'; there are connections, ",
    "serve --listen unix:/x --limit read_only_host_locks=7 /tmp": "it has to be true or false",
    "serve --listen unix:/x --limit msize=99999999999999999999999 /tmp": "it is more than 16777216",
    "hcs serve x /tmp --port 0": "'--port': 0 is not from 1 to 4294967295",
    "guest mount vsock:2 0 /mnt --msize many": "argument --msize: 'many' is no whole number",
    "guest mount vsock:2 0 /mnt --timeout long": "argument --timeout: 'long' is no number of seconds from 0 to 86400",
    "guest mount vsock:2 0 /mnt --timeout nan": "'nan' is no number of seconds from 0 to 86400",
    "guest agent --hung-after=-1": "'-1' is no number of seconds from 0 to 86400",
    "guest mount x 0 /mnt": "address 'x': want vsock:CID[:PORT] (CID 2 is the host), tcp:HOST[:PORT] or unix:PATH",
    "guest mount vsock:2 '' /mnt": "share '': it must not be empty",
    "guest mount vsock:2 0 ''": "TARGET is empty: name the directory to mount on",
    "guest mount vsock:2 0 /mnt --access ''": "access '': want client, user, any or a uid",
    "guest mount vsock:2 0 /mnt --msize 3": "msize 3: want 4096 to ",
    "guest agent --token-file ''": "argument --token-file: it is empty: give a file, or leave the option out",
    "guest mount vsock:2 0": "the following arguments are required: TARGET",
    "guest agent --allow relative": "'relative': want a directory as an absolute path",
    "guest agent --check-every often": "argument --check-every: 'often' is no number of seconds from 0 to 86400",
    "fleet init --etcd https://x:1 --gate 'a b'": "'--gate': 'a b' is no name and no number of a machine: give one",
    "fleet init --etcd https://x:1 --gate ''": "'--gate': it is empty: give a value (see",
    "completion tcsh": "'tcsh' is not one of 'bash', 'zsh', 'fish'",
}


@pytest.mark.parametrize(("line", "said"), TABLE.items(), ids=[each[:60] for each in TABLE])
def test_an_argument_that_cannot_be_is_refused_in_words(
    line: str, said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    status: int | str | None
    try:
        status = run(shlex.split(line.replace("{folder}", str(tmp_path))))
    except SystemExit as ended:  # argparse's, of the guest's commands
        status = ended.code
    assert status == 2
    told = capfd.readouterr().err
    assert told.count("\n") == 1
    assert said in told
    assert_for_people(told.replace("there are connections", ""))


def parameters(group: click.Group, *above: str) -> Iterator[tuple[tuple[str, ...], click.Parameter]]:
    """Give every option and argument of every command, with the words before it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from parameters(command, *above, name)
        for each in command.params:
            takes_a_value = isinstance(each, click.Argument) or (isinstance(each, click.Option) and not each.is_flag)
            if takes_a_value and not isinstance(each.type, click.types.UnprocessedParamType):
                yield (*above, name), each


PARAMETERS = {f"{' '.join(words)} {each.opts[0]}": (words, each) for words, each in parameters(cli)}


@pytest.mark.parametrize(("words", "parameter"), PARAMETERS.values(), ids=PARAMETERS)
def test_an_empty_value_is_refused_by_every_option_and_argument(
    words: tuple[str, ...], parameter: click.Parameter, capfd: pytest.CaptureFixture[str]
) -> None:
    before = [] if isinstance(parameter, click.Option) else ["--", *(["x"] * _position(words, parameter))]
    assert run([*words, *before, f"{max(parameter.opts, key=len)}=" if not before else ""]) == 2
    told = capfd.readouterr().err
    assert told.count("\n") == 1
    assert "it is empty: give a value" in told or "''" in told
    assert_for_people(told)


def _position(words: tuple[str, ...], parameter: click.Parameter) -> int:
    arguments = [each for other, each in PARAMETERS.values() if other == words and isinstance(each, click.Argument)]
    return arguments.index(parameter) if isinstance(parameter, click.Argument) else 0


def test_an_agent_whose_token_cannot_be_read_says_why_in_words(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "token").write_bytes(b"\xff")
    for name, why in (("none", "No such file or directory"), ("token", "it is not UTF-8")):
        assert run(["guest", "agent", "--token-file", os.fspath(tmp_path / name)]) == 1
        assert capfd.readouterr().err.endswith(f"{tmp_path}/{name}: {why}: name the file with the secret\n")


FLEET_FILES = {
    "none": (None, "No such file or directory: give the file that `uvmshare fleet` wrote"),
    "no TOML": (b"x = [", "it is no TOML at end of document; docs/fleet.md"),
    "no text": (b"\xff\xfe", "it is not UTF-8; docs/fleet.md shows a fleet file"),
    "another field": (b"nope = 1", "there is no field nope; docs/fleet.md shows a fleet file"),
    "nothing": (b"", "is missing; docs/fleet.md shows a fleet file"),
    "another type": (b"endpoints = 5", "endpoints: it is a whole number, and has to be a list; docs/fleet.md"),
}


@pytest.mark.parametrize(("text", "said"), FLEET_FILES.values(), ids=FLEET_FILES)
def test_a_fleet_file_that_cannot_be_says_why_in_words(
    text: bytes | None,
    said: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("uvmshare.daemon.logs.configure", lambda *_: None)  # this process goes on, its stderr does not
    file = tmp_path / "gate.toml"
    if text is not None:
        file.write_bytes(text)
    assert run(["gate", "--fleet", os.fspath(file)]) == 1
    told = capfd.readouterr().err
    assert told.startswith(f"uvmshare: error: {file}: ")
    assert said in told
    assert_for_people(told)


@pytest.mark.parametrize("what", ["directory", "file"])
def test_what_is_no_socket_is_said_to_be_none(what: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / what
    place.mkdir() if what == "directory" else place.touch()
    assert run(["vm", "ls", "--host", f"unix:{place}"]) == 1
    assert "no daemon answers at" in (told := capfd.readouterr().err)
    assert "what is there is no socket" in told


HOST_COMMANDS = (("host", "ls"), ("host", "rm", "x"), ("vm", "add", "x", "unix:/x", "--on", "y"))


@pytest.mark.parametrize("command", HOST_COMMANDS, ids=" ".join)
def test_what_needs_a_gate_is_not_asked_of_one_hosts_daemon(
    command: tuple[str, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run([*command, "--host", f"unix:{tmp_path}/none"]) == 1
    assert "needs a gate of a fleet, and unix:" in capfd.readouterr().err
