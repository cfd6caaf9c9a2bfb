"""A port on loopback is open to every user of the host: only those get in whom the kernel shows to be allowed.

Other users are processes that became them; the worst moments are made with sockets in the state that they have then.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import subprocess
import sys
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from tests.fileserver.harness import Device
from tests.processes import DEADLINE, await_answer
from tests.root import needs_root

if sys.platform != "linux":
    pytest.skip("Linux's sockets", allow_module_level=True)

from uvmshare import address, peers
from uvmshare.errors import AccessDenied
from uvmshare.fileserver.supervisor.listener import Listener
from uvmshare.mounts.channel import Acceptor, Dialler
from uvmshare.testing.client import NinePClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = needs_root

ALICE, BOB = 12345, 65534
LINGER_NOT = struct.pack("ii", 1, 0)


@contextmanager
def another_user(uid: int, program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program of Python's as that user, to the end of the block; it says a line when it is ready."""
    # It becomes that user itself: the interpreter may be where only root reads.
    loading = "import encodings.idna, os, socket, sys\n"
    becoming = f"{loading}os.setgroups([]); os.setresgid(*[{uid}] * 3); os.setresuid(*[{uid}] * 3)\n"
    command = [sys.executable, "-ISc", becoming + program, *arguments]
    started = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with started as process:
        try:
            yield process
        finally:
            process.kill()


DIALS = """
import encodings.idna, socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as connection:
    print("connected", flush=True)
    if sys.stdin.readline() == "read\\n":
        try:
            print(len(connection.recv(1)), flush=True)
        except ConnectionError:
            print(0, flush=True)
    sys.stdin.readline()
"""

LISTENS = """
import encodings.idna, socket, sys
with socket.socket(int(sys.argv[3])) as listening:
    if listening.family == socket.AF_INET6:
        listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listening.bind((sys.argv[1], int(sys.argv[2])))
    listening.listen()
    print(listening.getsockname()[1], flush=True)
    if sys.stdin.readline() == "accept\\n":
        connection, _ = listening.accept()
        print("accepted", flush=True)
    sys.stdin.readline()
"""


def said(process: subprocess.Popen[str], line: str = "") -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    if line:
        process.stdin.write(f"{line}\n")
        process.stdin.flush()
    return process.stdout.readline().strip()


def as_netlink_says(_: pytest.MonkeyPatch) -> None:
    """Ask as usual."""


def as_proc_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be where NETLINK_SOCK_DIAG is not to be had."""

    def refuse(_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(peers, "_from_netlink", refuse)


def without_the_kernels_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be where the kernel has no tcp_diag: nothing is ever found."""
    monkeypatch.setattr(peers, "_from_netlink", lambda _: None)


WAYS = pytest.mark.parametrize("way", [as_netlink_says, as_proc_says, without_the_kernels_module])
HOSTS = pytest.mark.parametrize(
    ("listens", "dials"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "::ffff:127.0.0.1"),
        ("::1", "::1"),
        ("::ffff:127.0.0.1", "127.0.0.1"),
        ("127.7.8.9", "127.7.8.9"),
    ],
)


def listening_at(host: str) -> socket.socket:
    made = socket.socket(family_of(host))
    if ":" in host:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    made.bind((host, 0))
    made.listen()
    return made


def family_of(host: str) -> int:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


@contextmanager
def connected(listens: str = "127.0.0.1", dials: str | None = None) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection within this process: who dialled, and what was accepted."""
    with listening_at(listens) as listening:
        client = socket.socket(family_of(dials or listens))
        with client:
            client.connect((dials or listens, listening.getsockname()[1]))
            accepted, _ = listening.accept()
            with accepted:
                yield client, accepted


@WAYS
@HOSTS
def test_a_peer_is_known_by_the_owner_of_its_socket(
    way: Callable[[pytest.MonkeyPatch], None], listens: str, dials: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    way(monkeypatch)
    with (
        listening_at(listens) as listening,
        another_user(ALICE, DIALS, dials, str(listening.getsockname()[1])) as alice,
    ):
        assert said(alice) == "connected"
        accepted, _ = listening.accept()
        with accepted:
            peers.require_peer(accepted, frozenset({ALICE}))
            peers.require_peer(accepted, None)
            with pytest.raises(AccessDenied, match=r"belongs to uid 12345.*--allow-uid 12345"):
                peers.require_peer(accepted, frozenset({0, BOB}))
    with connected(listens, dials) as (_, accepted):
        peers.require_peer(accepted, frozenset({0}))


@WAYS
@pytest.mark.parametrize("end", ["close", "reset", "shut down and close"])
def test_a_socket_that_was_closed_is_nobodys_and_not_roots(
    way: Callable[[pytest.MonkeyPatch], None], end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel shows these, and TIME_WAIT, as uid 0's; what was sent before is there to be read."""
    way(monkeypatch)
    with connected() as (client, accepted):
        client.sendall(b"words")
        if end == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
        elif end == "shut down and close":
            client.shutdown(socket.SHUT_WR)
        client.close()
        with pytest.raises(AccessDenied, match=r"nobody's|has ended"):
            peers.require_peer(accepted, frozenset({0}))


def test_a_peer_that_has_said_all_it_has_to_say_is_known_still() -> None:
    with connected() as (client, accepted):
        client.shutdown(socket.SHUT_WR)
        peers.require_peer(accepted, frozenset({0}))


def test_one_who_dials_from_the_same_port_after_the_first_was_reset_is_not_taken_for_the_first() -> None:
    """What the first one sent waits to be read: a user's words would be root's."""
    with listening_at("127.0.0.1") as listening:
        where = listening.getsockname()
        first = socket.create_connection(where)
        port = first.getsockname()[1]
        first.sendall(b"a user's words")
        first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
        first.close()
        with closing(socket.create_connection(where, source_address=("127.0.0.1", port))):
            accepted, peer = listening.accept()
            with accepted:
                assert peer[1] == port
                with pytest.raises(AccessDenied, match="ended"):
                    peers.require_peer(accepted, frozenset({0}))


def test_where_nothing_tells_whose_a_socket_is_nobody_gets_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise FileNotFoundError

    as_proc_says(monkeypatch)
    monkeypatch.setattr(peers, "open", refuse, raising=False)
    with connected() as (_, accepted), pytest.raises(AccessDenied, match=r"cannot be seen here.*--allow-uid any"):
        peers.require_peer(accepted, frozenset({0}))


def test_a_user_whom_the_user_namespace_does_not_know_is_not_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        listening_at("127.0.0.1") as listening,
        another_user(BOB, DIALS, "127.0.0.1", str(listening.getsockname()[1])) as bob,
    ):
        assert said(bob) == "connected"
        accepted, _ = listening.accept()
        with accepted:
            peers.require_peer(accepted, frozenset({BOB}))
            monkeypatch.setattr(peers, "_sees_all_users", lambda: False)
            with pytest.raises(AccessDenied, match="does not know"):
                peers.require_peer(accepted, frozenset({BOB}))


@WAYS
@HOSTS
@pytest.mark.parametrize("accepts", [False, True])
def test_who_listens_is_known_before_and_after_it_accepts(
    way: Callable[[pytest.MonkeyPatch], None],
    listens: str,
    dials: str,
    accepts: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    way(monkeypatch)
    with another_user(ALICE, LISTENS, listens, "0", str(int(family_of(listens)))) as alice:
        port = int(said(alice))
        with socket.socket(family_of(dials)) as client:
            client.connect((dials, port))
            if accepts:
                assert said(alice, "accept") == "accepted"
            peers.require_listener(client, frozenset({ALICE}))
            with pytest.raises(AccessDenied, match="belongs to uid 12345"):
                peers.require_listener(client, frozenset({0}))


def test_one_who_listens_anew_is_not_taken_for_who_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The attacker accepts and listens no more, between the two questions; then the right one listens there."""
    asked = []
    look_up = peers._look_up
    with (
        another_user(ALICE, LISTENS, "127.0.0.1", "0", str(int(socket.AF_INET))) as alice,
        socket.create_connection(("127.0.0.1", int(said(alice)))) as client,
    ):

        def attacked(query: Any) -> Any:
            asked.append(query)
            if len(asked) == 2:
                assert said(alice, "accept") == "accepted"
                found = look_up(query)
                assert found is not None
                return found._replace(uid=0)  # the right one's
            return look_up(query)

        monkeypatch.setattr(peers, "_look_up", attacked)
        with pytest.raises(AccessDenied, match="belongs to uid 12345"):
            peers.require_listener(client, frozenset({0}))
    assert len(asked) > 2


def test_any_is_every_user() -> None:
    assert peers.allowed((ALICE, "any"), 1) is None
    assert peers.allowed((ALICE,), 1) == frozenset({0, 1, ALICE})


# The file server


def test_another_user_reads_no_share_through_a_vms_port(tmp_path: Path) -> None:
    device = Device(security_model="none", listen=["tcp:127.0.0.1:0"])
    try:
        port = device.server.addresses[0].rpartition(":")[2]
        with another_user(ALICE, DIALS, "127.0.0.1", port) as alice:
            assert said(alice) == "connected"
            assert said(alice, "read") == "0", "nothing is said to them but the end"
        (tmp_path / "file").write_text("root's own")
        name = device.share(tmp_path)
        with NinePClient.connect(device.server.addresses[0], name, timeout=DEADLINE) as guest:
            assert guest.read_file("file") == b"root's own"
    finally:
        device.close()


def test_another_user_who_is_allowed_connects_and_others_do_not() -> None:
    device = Device(security_model="none", listen=["tcp:127.0.0.1:0"], allow_uids=[ALICE])
    try:
        port = device.server.addresses[0].rpartition(":")[2]
        with another_user(BOB, DIALS, "127.0.0.1", port) as bob:
            assert said(bob) == "connected"
            assert said(bob, "read") == "0"
        with another_user(ALICE, DIALS, "127.0.0.1", port) as alice:
            assert said(alice) == "connected"
            await_answer(lambda: device.run(device.server.status()).half_open, 1)
    finally:
        device.close()


def test_a_listener_off_loopback_asks_nobody() -> None:
    listener = Listener(address.parse("tcp:0.0.0.0:0"), allow_remote=True, users=frozenset({BOB}))
    try:
        with closing(socket.create_connection(("127.0.0.1", listener.address.port))):
            accepted = listener.accept()
            assert accepted is not None
            accepted[0].close()
    finally:
        listener.close()


# The agent


def test_another_user_does_not_pose_as_an_agent_that_dials(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        acceptor = await Acceptor.start(address.parse("tcp:127.0.0.1:0"), frozenset({0}))
        with another_user(ALICE, DIALS, "127.0.0.1", str(acceptor.port)) as alice:
            assert await asyncio.to_thread(said, alice) == "connected"
            assert await asyncio.to_thread(said, alice, "read") == "0"
            reader, writer = await asyncio.open_connection("127.0.0.1", acceptor.port)
            _, taken = await acceptor.next()
            assert taken.get_extra_info("peername") == writer.get_extra_info("sockname")
            taken.close()
            writer.close()
            del reader
        await acceptor.aclose()

    asyncio.run(run())
    assert "refused" in caplog.text
    assert "uid 12345" in caplog.text


def test_another_user_who_dials_again_and_again_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        acceptor = await Acceptor.start(address.parse("tcp:127.0.0.1:0"), frozenset({ALICE}))
        for _ in range(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", acceptor.port)
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
        await acceptor.aclose()

    asyncio.run(run())
    assert len(caplog.records) == 1


def test_with_a_token_another_user_may_dial_and_displaces_nobody() -> None:
    async def run() -> None:
        acceptor = await Acceptor.start(address.parse("tcp:127.0.0.1:0"), frozenset({0}), has_token=True)
        _, agent = await asyncio.open_connection("127.0.0.1", acceptor.port)
        with another_user(ALICE, DIALS, "127.0.0.1", str(acceptor.port)) as alice:
            assert await asyncio.to_thread(said, alice) == "connected"
            assert await asyncio.to_thread(said, alice, "read") == "0"
            _, taken = await acceptor.next()
            assert taken.get_extra_info("peername") == agent.get_extra_info("sockname")
            taken.close()
            agent.close()
        with another_user(ALICE, DIALS, "127.0.0.1", str(acceptor.port)) as alice:
            _, taken = await acceptor.next()
            taken.write(b"x")
            assert await asyncio.to_thread(said, alice) == "connected"
            assert await asyncio.to_thread(said, alice, "read") == "1"
            taken.close()
        await acceptor.aclose()

    asyncio.run(run())


@pytest.mark.parametrize("kind", ["tcp", "unix", "firecracker"])
def test_another_user_does_not_pose_as_an_agent_that_listens(kind: str) -> None:
    path = f"/tmp/uvmshare-posing-{os.getpid()}"
    program = LISTENS
    arguments = ("127.0.0.1", "0", str(int(socket.AF_INET)))
    if kind != "tcp":
        program = LISTENS.replace("(sys.argv[1], int(sys.argv[2]))", "sys.argv[1]").replace(
            "listening.getsockname()[1]", "0"
        )
        arguments = (path, "", str(int(socket.AF_UNIX)))
    try:
        with another_user(ALICE, program, *arguments) as alice:
            port = int(said(alice))
            where = {"tcp": f"tcp:127.0.0.1:{port}", "unix": f"unix:{path}", "firecracker": f"firecracker:{path}:1"}
            dialler = Dialler(address.parse(where[kind]), frozenset({0, BOB}))
            with pytest.raises(PermissionError, match="belongs to uid 12345"):
                asyncio.run(dialler.next())
    finally:
        with suppress(FileNotFoundError):
            os.unlink(path)
