"""Whatever text is on a command line, in whatever place, is taken or refused in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.hostile_text import ODD, assert_safe

from uvmshare.cli.main import run

if TYPE_CHECKING:
    from pathlib import Path

SERVER = "unix:/nowhere/x"
NO_DAEMON = ("--host", "unix:{folder}/none")
COMMANDS: tuple[tuple[str, ...], ...] = (
    ("serve", "--listen", SERVER, "{}"),
    ("serve", "--listen", SERVER, "/nowhere:only={}"),
    ("serve", "--listen", "{}", "/nowhere"),
    ("serve", "--listen", "unix:{folder}/{}/none", "/nowhere"),
    ("serve", "--listen", "tcp:{}:{}", "--security-model", "none", "/nowhere"),
    ("serve", "--listen", SERVER, "--security-model", "{}", "/nowhere"),
    ("serve", "--listen", SERVER, "--run-dir", "{folder}/{}", "/nowhere"),
    ("serve", "--listen", SERVER, "--limit", "{}", "/nowhere"),
    ("serve", "--listen", SERVER, "--limit", "{}=1", "/nowhere"),
    ("serve", "--listen", SERVER, "--limit", "mounts={}", "/nowhere"),
    ("serve", "--listen", SERVER, "--socket-mode", "{}", "/nowhere"),
    ("serve", "--listen", SERVER, "--allow-uid", "{}", "/nowhere"),
    ("vm", "ls", "--host", "{}"),
    ("vm", "ls", "--host", "unix:{folder}/{}"),
    ("vm", "ls", "--host", "tcp:{}:1"),
    ("vm", "add", "vm", SERVER, "--agent-token-file", "{folder}/{}", *NO_DAEMON),
    ("vm", "add", "{}", "{}", *NO_DAEMON),
    ("share", "add", "vm", "{}", *NO_DAEMON),
    ("share", "rm", "vm", "0", "--uid", "{}", *NO_DAEMON),
    ("share", "renew", "{}", "--lease", "{}", *NO_DAEMON),
    ("map", "vm", "/", "{}", *NO_DAEMON),
    ("map", "vm", "/", "/mnt", "--msize", "{}", *NO_DAEMON),
    ("top", "{}", "--interval", "{}", *NO_DAEMON),
    ("dashboard", "--port", "{}", *NO_DAEMON),
    ("dashboard", "--allow-uid", "{}", *NO_DAEMON),
    ("dashboard", "--host", "unix:{folder}/{}"),
    ("doctor", "{folder}/{}"),
    ("doctor", "--json", "{}"),
    ("doctor", "--vm", "{}", *NO_DAEMON),
    ("guest", "mount", "{}", "0", "{folder}/mnt"),
    ("guest", "mount", "unix:{folder}/{}", "0", "{folder}/mnt"),
    ("guest", "mount", "tcp:{}:1", "0", "{folder}/mnt"),
    ("guest", "mount", "unix:{folder}/none", "{}", "{folder}/mnt", "--uname", "{}"),
    ("guest", "mount", "unix:{folder}/none", "0", "{folder}/{}"),
    ("guest", "mount", "unix:{folder}/none", "0", "{folder}/mnt", "--msize", "{}", "--timeout", "{}"),
    ("guest", "agent", "--allow", "{folder}", "--connect", "{}", "--state", "/proc/none"),
    ("guest", "agent", "--allow", "{folder}/{}", "--state", "/proc/none"),  # the first is made before the second
    ("hcs", "ls", "{}"),
    ("completion", "{}"),
    ("{}",),
    ("--{}",),
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_takes_odd_text_or_says_what_is_wrong_with_it(
    command: tuple[str, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.getaddrinfo", _unknown)
    for what, text in ODD.items():
        args = [part.replace("{folder}", str(tmp_path)).replace("{}", text) for part in command]
        status: int | str | None = None
        try:
            status = run(args)
        except SystemExit as ended:  # argparse's, of the guest's commands
            status = ended.code
        err = capfd.readouterr().err
        assert_safe(err)
        assert "defect" not in err, (what, err)
        assert "Traceback" not in err, (what, err)
        assert status or "doctor" in command, (what, err)
        assert err or "doctor" in command, what


def _unknown(*_: object, **__: object) -> None:
    raise OSError(-2, "Name or service not known")


def test_a_name_with_a_newline_is_shown_as_it_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "--listen", SERVER, f"{tmp_path}/x\n  y"]) == 1
    assert rf"{tmp_path}/x\n  y: No such file" in capfd.readouterr().err


def test_a_token_that_is_not_utf_8_is_refused_in_words(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    token = tmp_path / "token"
    token.write_bytes(b"\xff\xfe")
    assert run(["vm", "add", "vm", SERVER, "--agent-token-file", str(token), "--host", "unix:/nowhere"]) == 2
    assert "not UTF-8" in capfd.readouterr().err
