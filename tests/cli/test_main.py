"""How the command ends: its exit status, and one line on stderr whatever went wrong."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest

from uvmshare import UvmshareError
from uvmshare.cli import EXTRAS
from uvmshare.cli.main import COMMANDS, cli, run
from uvmshare.errors import InvalidAddress, InvalidOptions
from uvmshare.guest import mount

IMPORTED_AS = {"grpcio": "grpc", "opentelemetry-api": "opentelemetry", "prometheus-client": "prometheus_client"}
COMMANDS_OF_A_FLEET = [
    ("gate", "--fleet", "/etc/gate.toml"),
    ("fleet", "init", "--etcd", "https://x:1", "--gate", "a"),
    ("daemon", "--fleet", "/etc/f.toml"),
]
UVMSHARE = [sys.executable, "-c", "import sys; from uvmshare.cli import main; sys.exit(main())"]


def one_line(text: str) -> str:
    assert text.endswith("\n")
    assert text.count("\n") == 1, text
    assert "Traceback" not in text
    return text.rstrip("\n")


WRONG: dict[tuple[str, ...], str] = {
    ("nonsense",): "nonsense",
    ("--nonsense",): "--nonsense",
    ("serve",): "SHARE",
    ("serve", "/"): "--listen",
    ("serve", "--listen", "unix:/run/x"): "SHARE",
    ("serve", "--listen"): "--listen",
    ("serve", "--listen", "unix:/run/x", "/:ro:rw"): "'/:ro:rw'",
    ("serve", "--listen", "unix:/run/x", ""): "no path",
    ("serve", "--listen", "unix:/run/x", "/:only="): "empty name",
    ("serve", "--listen", "unix:/run/x", "--security-model", "mapped", "/"): "mapped-xattr",
    ("serve", "--listen", "unix:/run/x", "--socket-mode", "rw", "/"): "'rw'",
    ("serve", "--listen", "unix:/run/x", "--socket-mode", "1777", "/"): "'1777'",
    ("serve", "--nonsense", "/"): "--nonsense",
    ("completion",): "bash",
    ("completion", "csh"): "csh",
    ("guest", "nonsense"): "nonsense",
}


@pytest.mark.parametrize(("args", "named"), WRONG.items(), ids=[" ".join(args) for args in WRONG])
def test_a_command_line_that_cannot_be_is_said_in_one_line(
    args: tuple[str, ...], named: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(args) == 2
    out, err = capfd.readouterr()
    assert out == ""
    line = one_line(err)
    assert line.startswith("uvmshare")
    assert ": error: " in line
    assert named in line
    assert "--help')" in line


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"]])
def test_help_lists_every_command(args: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert run(args) == 0
    out, err = capfd.readouterr()
    assert err == ""
    for name, command in COMMANDS.items():
        assert f"  {name} " in out
        assert command.summary in out


def test_help_loads_no_command() -> None:
    program = (
        "import sys; from uvmshare.cli.main import run; status = run(['--help']);"
        "loaded = {name for name in sys.modules if name.startswith(('uvmshare.', 'asyncio'))};"
        "small = {'uvmshare.' + name for name in ('cli', 'cli.main', 'cli.output', 'errors', 'printable')};"
        "assert loaded == small, loaded; sys.exit(status)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_teaches(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run([name, "--help"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert out.startswith(f"Usage: uvmshare {name}")
    assert f"uvmshare {name} " in out.partition("\n")[2], "an example"


def test_guest_mount_reads_its_own_arguments(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["guest", "mount", "--help"]) == 0
    assert "usage: uvmshare guest mount" in capfd.readouterr().out
    assert run(["guest", "mount", "--msize", "many", "vsock:2", "0", "/mnt"]) == 2
    assert "many" in one_line(capfd.readouterr().err)
    assert run(["guest", "mount", "nonsense", "0", "/nonexistent/mnt"]) == 2
    assert "nonsense" in one_line(capfd.readouterr().err)


def test_version(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capfd.readouterr().out.startswith("uvmshare ")


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """A command `fail` that raises the error put into this list."""
    errors: list[BaseException] = []

    @click.command("fail")
    def fail() -> None:
        raise errors[0]

    monkeypatch.setattr(type(cli), "get_command", lambda *_: fail)
    monkeypatch.delenv("UVMSHARE_DEBUG", raising=False)
    return errors


DEFECT = "(a defect of uvmshare: please report it with what UVMSHARE_DEBUG=1 prints)"
ENDS: list[tuple[BaseException, int, str]] = [
    (UvmshareError("share 3: the disk is gone"), 1, "uvmshare: error: share 3: the disk is gone"),
    (UvmshareError("two\nlines"), 1, r"uvmshare: error: two\nlines"),
    (InvalidOptions("/x: no such directory"), 1, "uvmshare: error: /x: no such directory"),
    (InvalidAddress("'nope' is no address"), 2, "uvmshare: error: 'nope' is no address"),
    (OSError(errno.ENOSPC, "No space left", "/x"), 1, "uvmshare: error: /x: No space left"),
    (OSError(errno.ENOSPC, "No space left"), 1, "uvmshare: error: No space left"),
    (click.ClickException("no terminal"), 1, "uvmshare: error: no terminal"),
    (click.UsageError("not both"), 2, "uvmshare fail: error: not both (see 'uvmshare fail --help')"),
    (
        ZeroDivisionError("oops"),
        1,
        f"uvmshare: error: unexpected ZeroDivisionError: oops {DEFECT}",
    ),
]


@pytest.mark.parametrize(("error", "status", "line"), ENDS, ids=lambda value: repr(value)[:40])
def test_every_error_is_one_line_and_a_status(
    error: BaseException, status: int, line: str, failing: list[BaseException], capfd: pytest.CaptureFixture[str]
) -> None:
    failing.append(error)
    assert run(["fail"]) == status
    assert one_line(capfd.readouterr().err) == line


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_an_interruption_says_nothing(
    error: BaseException, failing: list[BaseException], capfd: pytest.CaptureFixture[str]
) -> None:
    failing.append(error)
    assert run(["fail"]) == 130
    assert capfd.readouterr().err.strip() == ""


def test_the_status_a_command_returns_is_the_exit_status(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command("seven")
    def seven() -> int:
        return 7

    monkeypatch.setattr(type(cli), "get_command", lambda *_: seven)
    assert run(["seven"]) == 7


def test_debugging_shows_where_an_error_came_from(
    failing: list[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UVMSHARE_DEBUG", "1")
    failing.append(UvmshareError("deep inside"))
    with pytest.raises(UvmshareError, match="deep inside"):
        run(["fail"])


@pytest.mark.parametrize("name", ["click", "rich"])
def test_without_the_extra_one_line_says_how_to_install_it(name: str) -> None:
    program = f"import sys; sys.modules[{name!r}] = None; {UVMSHARE[2]}"
    args = ["demo", "--help"] if name == "rich" else []
    done = subprocess.run([sys.executable, "-c", program, *args], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    line = one_line(done.stderr)
    assert name in line
    assert "pip install 'uvmshare[cli]'" in line


def test_a_broken_pipe_is_quiet(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with (tmp_path / "stderr").open("w+b") as stderr:
        done = subprocess.run([*UVMSHARE, "serve", "--help"], stdout=write, stderr=stderr, check=False)
        os.close(write)
        stderr.seek(0)
        assert stderr.read() == b""
    assert done.returncode == 1


def test_interrupting_the_process_gives_130() -> None:
    program = (
        "import signal, sys\n"
        "from uvmshare.cli import main\n"
        "import uvmshare.cli.main as module\n"
        "module.cli.get_command = lambda ctx, name: signal.raise_signal(signal.SIGINT)\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", program, "x"], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert done.stderr.strip() == ""


def test_each_package_of_an_extra_is_one_that_may_be_missing() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {
        IMPORTED_AS.get(name, name): extra
        for extra in ("cli", "daemon", "fleet")
        for name in (re.split(r"[\[>]", each)[0] for each in project["optional-dependencies"][extra])
        if name != "uvmshare"
    }
    assert wanted == EXTRAS


@pytest.mark.parametrize("words", COMMANDS_OF_A_FLEET)
def test_a_command_whose_extra_is_missing_says_which_to_install(words: tuple[str, ...]) -> None:
    without = "import sys; sys.modules['grpc'] = sys.modules['cryptography'] = None; " + UVMSHARE[2]
    done = subprocess.run([UVMSHARE[0], UVMSHARE[1], without, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'uvmshare[fleet]'" in one_line(done.stderr)


MOUNT = os.fspath(Path(mount.__file__))
ALL = "0<&- 1>&- 2>&-"
CLOSED = [
    ([*UVMSHARE, "completion", "bash"], 0, ALL),
    ([*UVMSHARE, "guest", "agent", "--print"], 0, ALL),
    ([*UVMSHARE, "vm", "ls", "--host", "unix:/nowhere/x"], 1, ALL),
    ([*UVMSHARE, "vm", "ls", "--host", "unix:/nowhere/x"], 1, "0<&-"),
    ([*UVMSHARE, "--help"], 0, "1>&-"),
    ([*UVMSHARE, "nonsense"], 2, "2>&-"),
    ([sys.executable, MOUNT, "unix:/nowhere/x", "0", "/nowhere"], 1, ALL),
]


@pytest.mark.parametrize(
    ("command", "status", "closed"), CLOSED, ids=[f"{' '.join(row[0][-3:])} {row[2]}" for row in CLOSED]
)
def test_a_closed_standard_stream_is_one_that_nobody_reads(command: list[str], status: int, closed: str) -> None:
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh", *command]
    ended = subprocess.run(shell, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    told = ended.stderr.decode()
    assert ended.returncode == status
    assert "defect" not in told
    assert "Traceback" not in told
    assert told.count("\n") == (status > 0 and "2>&-" not in closed)


@pytest.mark.parametrize("long", ["x" * 20_000, "x " * 10_000], ids=["a word", "words"])
@pytest.mark.parametrize(
    ("command", "reason", "remedy"),
    [
        ("LONG", "No such command 'x", "(see 'uvmshare --help')"),
        ("doctor --LONG", "No such option", "(see 'uvmshare doctor --help')"),
        ("share add build /srv --lease LONG", "--lease", "(see 'uvmshare share add --help')"),
        ("serve --listen LONG /", "address 'x", "vsock:"),
        ("vm ls --host LONG", "host 'x", "unix:"),
    ],
)
def test_a_value_that_is_much_too_long_takes_neither_the_reason_nor_the_remedy_from_the_line(
    command: str, reason: str, remedy: str, long: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run([word.replace("LONG", long) for word in command.split()]) != 0
    line = one_line(capfd.readouterr().err)
    assert reason in line
    assert remedy in line.partition("...")[2], "behind what is left out"
    assert len(line) < 5000


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize(
    "command", ["--help", "--version", "vm", "vm ls --help", "doctor --json", "completion fish", "guest agent --print"]
)
def test_a_full_disk_below_standard_output_is_named(command: str, unbuffered: str) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        ended = subprocess.run(
            [*UVMSHARE, *command.split()],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )  # fmt: skip
    assert ended.returncode == 1
    assert one_line(ended.stderr) == "uvmshare: error: standard output: No space left on device"
