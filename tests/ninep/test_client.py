"""The 9P client against a peer that follows a script, since what it must notice no good server does."""

from __future__ import annotations

import errno
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from tests.processes import DEADLINE

from uvmshare.errors import ConnectionClosed, InvalidAddress, RemoteProtocolError
from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import NOTAG, VERSION
from uvmshare.ninep.types import Qid
from uvmshare.testing.client import NinePClient
from uvmshare.testing.connection import dial

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

QID = Qid(0, 0, 1)


class Peer:
    """The server's end. Replies are written before they are asked for; the client cannot tell."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        connected.settimeout(DEADLINE)

    def reply(self, *replies: tuple[int, m.Message]) -> None:
        self.socket.sendall(b"".join(message.encode(tag) for tag, message in replies))

    def request(self) -> tuple[int, m.Message]:
        head = self.socket.recv(4, socket.MSG_WAITALL)
        return m.decode(head + self.socket.recv(int.from_bytes(head, "little") - 4, socket.MSG_WAITALL))


@pytest.fixture
def pair() -> Iterator[tuple[NinePClient, Peer]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield NinePClient(ours, timeout=DEADLINE), Peer(theirs)


def test_the_handshake(pair: tuple[NinePClient, Peer]) -> None:
    client, peer = pair
    peer.reply((NOTAG, m.Rversion(8192, VERSION)), (0, m.Rattach(QID)))
    connected = NinePClient.connect(client.socket, "7", msize=16384, n_uname=1000, timeout=DEADLINE)
    assert (connected.msize, connected.root) == (8192, 0)
    assert peer.request() == (NOTAG, m.Tversion(16384, b"9P2000.L"))
    assert peer.request() == (0, m.Tattach(0, 0xFFFFFFFF, b"root", b"7", 1000))


@pytest.mark.parametrize("reply", [m.Rversion(16385, VERSION), m.Rversion(8192, b"unknown"), m.Rversion(1, b"9P2000")])
def test_a_handshake_that_was_not_offered_is_refused_and_closes(
    pair: tuple[NinePClient, Peer], reply: m.Message
) -> None:
    client, peer = pair
    peer.reply((NOTAG, reply))
    with pytest.raises(RemoteProtocolError, match="offered"):
        NinePClient.connect(client.socket, "7", msize=16384, timeout=DEADLINE)
    assert client.socket.fileno() == -1


def test_an_errno_is_raised_with_the_request_it_is_for(pair: tuple[NinePClient, Peer]) -> None:
    client, peer = pair
    peer.reply((0, m.Rlerror(errno.EROFS)))
    with pytest.raises(OSError, match="Treadlink") as caught:
        client.rpc(m.Treadlink(3))
    assert caught.value.errno == errno.EROFS


def test_replies_in_any_order_find_their_requests(pair: tuple[NinePClient, Peer]) -> None:
    client, peer = pair
    tags = [client.send(m.Tread(1, 0, count)) for count in (1, 2, 3)]
    assert len(set(tags)) == 3
    peer.reply(*((tag, m.Rread(bytes([tag]))) for tag in (tags[2], tags[0], tags[1])))
    assert [client.wait(tag) for tag in tags] == [m.Rread(bytes([tag])) for tag in tags]


def test_a_tag_is_free_again_only_when_its_reply_was_taken(pair: tuple[NinePClient, Peer]) -> None:
    client, peer = pair
    client._last_tag = NOTAG - 2
    first, second, third = (client.send(m.Tclunk(n)) for n in range(3))
    assert (first, second, third) == (NOTAG - 1, 0, 1)  # NOTAG is never given
    peer.reply((first, m.Rclunk()), (second, m.Rclunk()))
    client.wait(second)
    client._last_tag = NOTAG - 2
    assert client.send(m.Tclunk(4)) == 0  # the first one's reply is there, and nobody took it yet


@pytest.mark.parametrize(
    ("tag", "reply", "match"),
    [
        (5, m.Rclunk(), "which no request has"),
        (0, m.Rread(b""), "Rread came for a Tclunk"),
        (0, m.Tclunk(1), "Tclunk came for a Tclunk"),
    ],
)
def test_a_reply_that_nobody_asked_for(pair: tuple[NinePClient, Peer], tag: int, reply: m.Message, match: str) -> None:
    client, peer = pair
    peer.reply((tag, reply))
    with pytest.raises(RemoteProtocolError, match=match):
        client.rpc(m.Tclunk(1))


def test_a_reply_larger_than_msize_is_refused(pair: tuple[NinePClient, Peer]) -> None:
    client, peer = pair
    client.limit_replies(4096)
    peer.reply((0, m.Rread(bytes(4096))))
    with pytest.raises(RemoteProtocolError, match="at most 4096"):
        client.rpc(m.Tread(1, 0, 5000))


@pytest.mark.parametrize(
    ("call", "reply"),
    [
        (lambda client: client.read(0, 0, 3), m.Rread(b"four")),
        (lambda client: client.readdir_some(0, 0, 3), m.Rreaddir(b"four")),
        (lambda client: client.write(0, 0, b"abc"), m.Rwrite(4)),
        (lambda client: client.write(0, 0, b"abc"), m.Rwrite(0)),
        (lambda client: client.walk("a"), m.Rwalk((QID, QID))),
    ],
)
def test_what_would_break_a_kernel_is_refused(pair: tuple[NinePClient, Peer], call: object, reply: m.Message) -> None:
    client, peer = pair
    peer.reply((0, reply))
    assert callable(call)
    with pytest.raises(RemoteProtocolError):
        call(client)


def test_waiting_for_what_was_not_sent_is_an_error_at_once(pair: tuple[NinePClient, Peer]) -> None:
    client, _ = pair
    with pytest.raises(ValueError, match="tag 9"):
        client.wait(9)


def test_a_closed_connection_says_what_was_not_answered(pair: tuple[NinePClient, Peer]) -> None:
    client, peer = pair
    client.send(m.Tfsync(1, 0))
    peer.socket.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionClosed, match="no answer to Tfsync"):
        client.rpc(m.Tclunk(1))
    assert issubclass(ConnectionClosed, EOFError)


def test_a_connection_closed_on_this_side(pair: tuple[NinePClient, Peer]) -> None:
    client, _ = pair
    client.close()
    client.close()
    with pytest.raises(ConnectionClosed):
        client.send(m.Tclunk(1))
    with pytest.raises(ConnectionClosed):
        client.recv()


def test_a_silent_server_ends_in_a_time_out(pair: tuple[NinePClient, Peer]) -> None:
    client, _ = pair
    client.socket.settimeout(0.001)
    with pytest.raises(TimeoutError):
        client.rpc(m.Tclunk(1))


def test_drain_gives_what_came_before_the_end(pair: tuple[NinePClient, Peer]) -> None:
    client, peer = pair
    peer.reply((0, m.Rlerror(5)), (1, m.Rclunk()))
    peer.socket.close()
    assert client.drain() == [m.Rlerror(5), m.Rclunk()]


def test_a_flush_says_whether_the_reply_came_first(pair: tuple[NinePClient, Peer]) -> None:
    client, peer = pair
    read = client.send(m.Tread(1, 0, 1))
    peer.reply((read, m.Rread(b"x")), (read + 1, m.Rflush()))
    assert client.flush(read)
    assert client.wait(read) == m.Rread(b"x")
    other = client.send(m.Tread(1, 0, 1))
    peer.reply((other + 1, m.Rflush()))
    assert not client.flush(other)
    with pytest.raises(ValueError, match=f"tag {other}"):
        client.wait(other)


def test_a_walk_of_more_than_sixteen_names_goes_in_parts(pair: tuple[NinePClient, Peer]) -> None:
    client, peer = pair
    peer.reply((0, m.Rwalk((QID,) * 16)), (1, m.Rwalk((QID,))))
    fid = client.walk("/".join(f"d{n}" for n in range(17)), start=50)
    assert peer.request() == (0, m.Twalk(50, fid, tuple(b"d%d" % n for n in range(16))))
    assert peer.request() == (1, m.Twalk(fid, fid, (b"d16",)))


@pytest.mark.parametrize("second", [m.Rlerror(errno.ENOENT), m.Rwalk(())])
def test_a_walk_that_breaks_off_leaves_no_fid(pair: tuple[NinePClient, Peer], second: m.Message) -> None:
    client, peer = pair
    peer.reply((0, m.Rwalk((QID,) * 16)), (1, second), (2, m.Rclunk()))
    with pytest.raises(FileNotFoundError):
        client.walk("/".join("abcdefghijklmnopq"), start=50)
    peer.request()
    peer.request()
    assert peer.request() == (2, m.Tclunk(0))
    assert client.new_fid() == 0


def test_a_partial_walk_made_no_fid_and_none_is_clunked(pair: tuple[NinePClient, Peer]) -> None:
    client, peer = pair
    peer.reply((0, m.Rwalk((QID,))))
    with pytest.raises(FileNotFoundError):
        client.walk("a/b", start=50)
    assert client.new_fid() == 0


def test_a_write_goes_on_after_a_short_one(pair: tuple[NinePClient, Peer]) -> None:
    client, peer = pair
    client.limit_replies(4096)
    peer.reply((0, m.Rwrite(4072)), (1, m.Rwrite(1)), (2, m.Rwrite(927)))
    assert client.write(7, 10, b"x" * 5000) == 5000
    sent = [peer.request()[1] for _ in range(3)]
    assert [(message.offset, len(message.data)) for message in sent if isinstance(message, m.Twrite)] == [
        (10, 4072),
        (4082, 928),
        (4083, 927),
    ]


def test_only_what_is_given_is_set(pair: tuple[NinePClient, Peer]) -> None:
    client, peer = pair
    peer.reply((0, m.Rsetattr()))
    client.setattr(7, mode=0o600, atime_ns=1_500_000_000_000_000_001)
    assert peer.request()[1] == m.Tsetattr(7, 0x91, mode=0o600, atime_sec=1_500_000_000, atime_nsec=1)


def test_only_a_guest_dials_vsock() -> None:
    with pytest.raises(InvalidAddress, match="only the guest"):
        dial("vsock:3")


def test_the_socket_of_a_port_of_hybrid_vsock(tmp_path_factory: pytest.TempPathFactory) -> None:
    if sys.platform == "win32":
        pytest.skip("Python has no unix sockets on Windows")
    path = tmp_path_factory.mktemp("v") / "v.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{path}_7")
        listening.listen(1)
        dial(f"firecracker:{path}:7").close()
        dial(f"unix:{path}_7").close()
        with pytest.raises(FileNotFoundError):
            dial(f"cloud-hypervisor:{path}")  # port 5640


def test_tcp() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        dial(f"tcp:127.0.0.1:{listening.getsockname()[1]}").close()


def test_dialling_waits_for_room_and_not_for_ever(tmp_path: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("Python has no unix sockets on Windows")
    with socket.socket(socket.AF_UNIX) as listening, ExitStack() as waiting:
        listening.bind(str(tmp_path / "s"))
        listening.listen(0)
        waiting.enter_context(dial(f"unix:{tmp_path}/s"))
        with pytest.raises(TimeoutError, match="no more connections"):
            dial(f"unix:{tmp_path}/s", timeout=0.01)
        with ThreadPoolExecutor(1) as thread:
            third = thread.submit(dial, f"unix:{tmp_path}/s")
            for _ in range(2):
                waiting.enter_context(listening.accept()[0])
            waiting.enter_context(third.result(DEADLINE))
