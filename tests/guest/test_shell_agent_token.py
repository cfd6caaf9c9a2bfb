"""The token of the shell's agent, with busybox's own programs and without a guest: only mounting needs one."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from tests.root import needs_root

from uvmshare.guest import mount as beside
from uvmshare.guest import wire
from uvmshare.testing.kernel import find_busybox

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SCRIPT = os.path.join(os.path.dirname(beside.__file__), "agent.sh")
HUNG = 60.0

TOKENS = ["secret", "64 bytes ".ljust(64, "."), "more than 64 bytes ".ljust(80, "."), "\\n%s$HOME`'\"", "schlüssel"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH of busybox's programs alone."""
    directory = str(tmp_path_factory.mktemp("bin"))
    busybox = os.path.abspath(find_busybox())
    subprocess.run([busybox, "--install", "-s", directory], check=True)
    return directory


class Conversation:
    """What the agent says on one connection, which is its standard input and output."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.greeting = self.next()
        self.nonce = wire.new_nonce()

    def next(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    def ask(self, number: int, op: str, **fields: object) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(wire.encode({"id": number, "op": op, **fields}))
        self.process.stdin.flush()
        return self.next()

    def greet(self, proof: str) -> dict[str, Any]:
        return self.ask(0, "hello", client="c", nonce=self.nonce, proof=proof)


@contextmanager
def talking(path: str, state: Path, token: str) -> Iterator[Conversation]:
    (state / "agent").write_text("an-agent")
    environment = {"PATH": path, "UVMSHARE_STATE": str(state), "UVMSHARE_AGENT_TOKEN": token}
    pipe = subprocess.PIPE
    with subprocess.Popen([f"{path}/sh", SCRIPT, "serve"], env=environment, stdin=pipe, stdout=pipe) as process:
        yield Conversation(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(HUNG) == 0


@pytest.mark.parametrize("token", TOKENS)
def test_each_end_proves_that_it_knows_the_token(path: str, tmp_path: Path, token: str) -> None:
    with talking(path, tmp_path, token) as agent:
        theirs = agent.greeting["nonce"]
        assert agent.greeting["token"] is True
        answer = agent.greet(wire.prove(token, "host", agent.nonce, theirs))
        assert answer["ok"]
        assert wire.proven(token, "agent", theirs, agent.nonce, answer["result"]["proof"])
        assert agent.ask(1, "ping")["ok"]


@pytest.mark.parametrize("known", ["another", None])
def test_whoever_does_not_know_it_is_refused_and_cut(path: str, tmp_path: Path, known: str | None) -> None:
    with talking(path, tmp_path, "secret") as agent:
        proof = "" if known is None else wire.prove(known, "host", agent.nonce, agent.greeting["nonce"])
        refused = agent.greet(proof)
        assert (refused["ok"], refused["error"]["code"]) == (False, wire.REFUSED)
        assert "token" in refused["error"]["message"]
        assert agent.process.wait(HUNG) == 0
    assert not list(tmp_path.glob("client-*"))


def test_a_proof_is_good_for_one_connection(path: str, tmp_path: Path) -> None:
    with talking(path, tmp_path, "secret") as first:
        heard = wire.prove("secret", "host", first.nonce, first.greeting["nonce"])
        assert first.greet(heard)["ok"]
    with talking(path, tmp_path, "secret") as second:
        second.nonce = first.nonce
        assert not second.greet(heard)["ok"]


@pytest.mark.parametrize("flag", ["suid", "dev"])
def test_it_mounts_nosuid_and_nodev_alone_and_says_so(path: str, tmp_path: Path, flag: str) -> None:
    with talking(path, tmp_path, "") as agent:
        agent.greet("")
        settings = {"MountPath": "/run/uvmshare/x", "Port": 5640, "ShareName": "0"}
        request = {"RequestType": "Add", "ResourceType": "MappedDirectory", "Settings": settings}
        options = {"cache": "none", "msize": 8192, "suid": False, "dev": False, flag: True}
        refused = agent.ask(1, "modify", request=request, options=options)
        assert (refused["ok"], refused["error"]["code"]) == (False, wire.REFUSED)
        assert "nosuid and nodev alone" in refused["error"]["message"]
    assert not list(tmp_path.glob("mount*"))


def test_without_a_token_it_says_so_and_asks_for_none(path: str, tmp_path: Path) -> None:
    with talking(path, tmp_path, "") as agent:
        assert agent.greeting["token"] is False
        assert agent.greet("")["result"] == {"proof": ""}


@needs_root
def test_a_state_of_somebody_elses_is_not_believed(path: str, tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    command = [f"{path}/sh", SCRIPT, "--listen", "5641", "--no-token", "--allow", "/tmp", "--state", str(tmp_path)]
    done = subprocess.run(command, env={"PATH": path}, capture_output=True, text=True, check=False, timeout=HUNG)
    assert done.returncode == 1
    assert "another user's" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--listen", "5641"], 2, "--no-token"),
        (["--listen", "5641", "--token-file", "/dev/null"], 1, "/dev/null is empty"),
        (["--listen", "5641", "--token-file", "/nonexistent"], 1, "/nonexistent"),
        (["--no-token"], 2, "--listen PORT"),
    ],
)
def test_it_listens_to_everybody_only_if_it_is_told_to(
    path: str, tmp_path: Path, arguments: list[str], *, status: int, words: str
) -> None:
    command = [f"{path}/sh", SCRIPT, *arguments, "--state", str(tmp_path)]
    done = subprocess.run(command, env={"PATH": path}, capture_output=True, text=True, check=False, timeout=HUNG)
    assert done.returncode == status
    assert words in done.stderr
