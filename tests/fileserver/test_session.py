"""Sessions, fids and walks: version(5), attach(5), walk(5), clunk(5), flush(5)."""

from __future__ import annotations

import errno
import os
import socket
import sys
import threading
from collections import deque
from typing import TYPE_CHECKING

import pytest
from tests.fileserver.harness import IN_AND_OUT, one_of
from tests.processes import DEADLINE

from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import NOFID, NONUNAME, NOTAG, VERSION, OpenFlag, QidType
from uvmshare.ninep.types import Qid

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fileserver.harness import Host, Refused

    from uvmshare.testing.client import NinePClient

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

from uvmshare.fileserver.export import Export
from uvmshare.fileserver.limits import Limits
from uvmshare.fileserver.mount.outbox import Outbox
from uvmshare.fileserver.mount.serving import Serving
from uvmshare.hcs.schema import Plan9Share

model = one_of(*IN_AND_OUT)


NEW = 7000
"""A fid that the client never gives out itself."""


# Version


@pytest.mark.parametrize(("offered", "agreed"), [(4096, 4096), (65536, 65536), (1 << 20, 1 << 20)])
def test_msize_is_what_the_client_offers_when_the_server_can(host: Host, offered: int, agreed: int) -> None:
    assert host.guest(msize=offered).msize == agreed


def test_msize_is_negotiated_down_not_echoed(host: Host) -> None:
    client = host.dial()
    reply = client.ask(m.Tversion(0xFFFFFFFF, VERSION), m.Rversion)
    assert reply.version == VERSION
    assert 1 << 20 <= reply.msize < 0xFFFFFFFF


def test_an_msize_that_no_guest_can_work_with_is_refused(host: Host, refused: Refused) -> None:
    with refused(errno.EINVAL):
        host.dial().rpc(m.Tversion(4095, VERSION))


@pytest.mark.parametrize("version", [b"9P2000", b"9P2000.u", b"9P2001.L", b"", b"9P2000.Lx"])
def test_another_version_is_answered_unknown_and_the_right_one_may_follow(host: Host, version: bytes) -> None:
    name, client = host.share(), host.dial()
    assert client.ask(m.Tversion(8192, version), m.Rversion).version == b"unknown"
    client.version(8192)
    client.attach(name)


def test_version_in_the_middle_of_a_session_ends_its_fids(host: Host, refused: Refused) -> None:
    name = host.share()
    guest = host.connect(name)
    (host.root / "f").write_bytes(b"12345")
    old = guest.open("f")
    root = guest.root
    assert guest.version(8192) == 8192
    for fid in (old, root):
        with refused(errno.EBADF):
            guest.rpc(m.Tgetattr(fid, 0x7FF))
    guest.root = guest.attach(name)  # the numbers are free again
    assert guest.read_file("f") == b"12345"
    assert guest.msize == 8192


def test_another_version_in_the_middle_of_a_session_is_unknown(guest: NinePClient) -> None:
    assert guest.ask(m.Tversion(8192, b"9P2000"), m.Rversion).version == b"unknown"


# Attach


@pytest.mark.parametrize(
    "aname", ["", "/", ".", "..", "nothing", "{name}/", "{name}/d", "/{name}", "../{name}", "{path}"]
)
def test_only_the_very_name_of_a_share_attaches(host: Host, refused: Refused, aname: str) -> None:
    (host.root / "d").mkdir()
    name = host.share()
    client = host.dial()
    client.version()
    with refused(errno.ENOENT):
        client.attach(aname.format(name=name, path=host.root))
    client.root = client.attach(name)  # and the connection is still good for the right one
    assert client.listdir() == [b"d"]


def test_the_root_is_a_directory(host: Host) -> None:
    client = host.dial()
    client.version()
    reply = client.ask(m.Tattach(3, NOFID, b"root", host.share().encode(), NONUNAME), m.Rattach)
    assert reply.qid.type == QidType.DIR
    assert client.getattr(3).qid == reply.qid


def test_later_attaches_of_the_same_share_are_more_roots(host: Host) -> None:
    name = host.share()
    guest = host.connect(name)
    (host.root / "f").write_bytes(b"x")
    for uid in (0, 1000, NONUNAME):
        other = guest.attach(name, n_uname=uid)
        assert guest.getattr(other).qid == guest.getattr(guest.root).qid
        guest.clunk(guest.walk("f", start=other))


def test_an_attach_to_a_fid_in_use_is_refused(host: Host, refused: Refused) -> None:
    name = host.share()
    guest = host.connect(name)
    with refused():
        guest.rpc(m.Tattach(guest.root, NOFID, b"", name.encode(), NONUNAME))
    assert guest.listdir() == []


def test_an_attach_with_an_authentication_fid_is_refused(host: Host, refused: Refused) -> None:
    name = host.share()
    guest = host.connect(name)
    with refused():
        guest.rpc(m.Tattach(NEW, guest.root, b"", name.encode(), NONUNAME))


def test_authentication_is_refused_before_and_after_the_attach(host: Host, refused: Refused) -> None:
    name, client = host.share(), host.dial()
    client.version()
    with refused():
        client.rpc(m.Tauth(1, b"root", name.encode(), 0))
    client.root = client.attach(name)
    with refused():
        client.rpc(m.Tauth(NEW, b"root", name.encode(), 0))
    assert client.listdir() == []


# Walks


def test_a_walk_gives_a_qid_for_each_name(host: Host, guest: NinePClient) -> None:
    (host.root / "a" / "b").mkdir(parents=True)
    (host.root / "a" / "b" / "f").write_bytes(b"")
    qids = guest.ask(m.Twalk(guest.root, NEW, (b"a", b"b", b"f")), m.Rwalk).qids
    assert [qid.type for qid in qids] == [QidType.DIR, QidType.DIR, QidType.FILE]
    assert qids == tuple(guest.stat(path).qid for path in ("a", "a/b", "a/b/f"))
    assert guest.getattr(NEW).qid == qids[-1]


def test_a_walk_of_sixteen_names(host: Host, guest: NinePClient) -> None:
    path = "/".join("abcdefghijklmnop")
    (host.root / path).mkdir(parents=True)
    assert len(guest.ask(m.Twalk(guest.root, NEW, tuple(path.encode().split(b"/"))), m.Rwalk).qids) == 16


@pytest.mark.parametrize("depth", [17, 40])
def test_files_deeper_than_one_walk_reaches(host: Host, guest: NinePClient, depth: int) -> None:
    path = "/".join(["d"] * depth)
    (host.root / path).mkdir(parents=True)
    guest.write_file(path + "/f", b"deep")
    assert (host.root / path / "f").read_bytes() == b"deep"


def test_a_walk_without_names_clones(host: Host, guest: NinePClient, refused: Refused) -> None:
    (host.root / "f").write_bytes(b"")
    first = guest.walk("f")
    assert guest.ask(m.Twalk(first, NEW), m.Rwalk).qids == ()
    assert guest.getattr(NEW) == guest.getattr(first)
    guest.clunk(first)
    guest.getattr(NEW)
    guest.ask(m.Tclunk(NEW), m.Rclunk)
    with refused(errno.EBADF):
        guest.rpc(m.Tgetattr(NEW, 0x7FF))


def test_a_walk_onto_the_fid_itself_moves_it(host: Host, guest: NinePClient) -> None:
    (host.root / "a").mkdir()
    (host.root / "a" / "f").write_bytes(b"")
    fid = guest.walk()
    qids = guest.ask(m.Twalk(fid, fid, (b"a",)), m.Rwalk).qids
    assert guest.getattr(fid).qid == qids[0]
    assert guest.ask(m.Twalk(fid, fid), m.Rwalk).qids == ()
    guest.ask(m.Twalk(fid, fid, (b"f",)), m.Rwalk)
    assert guest.getattr(fid).qid == guest.stat("a/f").qid


def test_a_partial_walk_onto_the_fid_itself_leaves_it_where_it_was(host: Host, guest: NinePClient) -> None:
    (host.root / "a").mkdir()
    fid = guest.walk()
    before = guest.getattr(fid).qid
    assert len(guest.ask(m.Twalk(fid, fid, (b"a", b"nothing")), m.Rwalk).qids) == 1
    assert guest.getattr(fid).qid == before


def test_a_partial_walk_says_how_far_it_came_and_makes_no_fid(host: Host, guest: NinePClient, refused: Refused) -> None:
    (host.root / "a" / "b").mkdir(parents=True)
    (host.root / "a" / "f").write_bytes(b"")
    for names, came in (((b"a", b"b", b"nothing"), 2), ((b"a", b"f", b"x"), 2), ((b"a", b"nothing", b"b"), 1)):
        assert len(guest.ask(m.Twalk(guest.root, NEW, names), m.Rwalk).qids) == came
        with refused(errno.EBADF):
            guest.rpc(m.Tgetattr(NEW, 0x7FF))
        with refused(errno.EBADF):
            guest.rpc(m.Tclunk(NEW))


def test_a_walk_whose_first_name_is_missing_is_an_error(guest: NinePClient, refused: Refused) -> None:
    with refused(errno.ENOENT):
        guest.rpc(m.Twalk(guest.root, NEW, (b"nothing", b"more")))


def test_a_walk_from_a_file_is_an_error(host: Host, guest: NinePClient, refused: Refused) -> None:
    (host.root / "f").write_bytes(b"")
    with guest.walked("f") as fid, refused(errno.ENOTDIR, errno.ENOENT):
        guest.rpc(m.Twalk(fid, NEW, (b"x",)))


def test_a_walk_to_a_fid_in_use_is_an_error_and_leaves_it(host: Host, guest: NinePClient, refused: Refused) -> None:
    (host.root / "a").mkdir()
    (host.root / "f").write_bytes(b"")
    used = guest.walk("f")
    before = guest.getattr(used).qid
    for names in ((), (b"a",)):
        with refused():
            guest.rpc(m.Twalk(guest.root, used, names))
    assert guest.getattr(used).qid == before


def test_the_number_that_means_no_fid_is_none(guest: NinePClient, refused: Refused) -> None:
    with refused():
        guest.rpc(m.Twalk(guest.root, NOFID))
    with refused(errno.EBADF):
        guest.rpc(m.Tgetattr(NOFID, 0x7FF))


def test_walks_go_on_from_open_fids(host: Host, guest: NinePClient) -> None:
    # Linux's client walks, unlinks and so on from a directory that it has open.
    (host.root / "d").mkdir()
    (host.root / "d" / "f").write_bytes(b"old")
    directory = guest.open("d", OpenFlag.DIRECTORY)
    guest.clunk(guest.walk("f", start=directory))
    clone = guest.walk(start=directory)
    guest.ask(m.Tlopen(clone, OpenFlag.DIRECTORY), m.Rlopen)  # a clone of an open fid is not open
    file = guest.open("d/f")
    clone = guest.walk(start=file)
    guest.ask(m.Tlopen(clone, OpenFlag.RDWR), m.Rlopen)
    guest.ask(m.Tunlinkat(directory, b"f", 0), m.Runlinkat)
    assert not (host.root / "d" / "f").exists()


# Fids


NEEDS_A_FID = [
    m.Tstatfs(NEW),
    m.Tlopen(NEW, 0),
    m.Tlcreate(NEW, b"x", OpenFlag.RDWR, 0o644, 0),
    m.Tsymlink(NEW, b"x", b"y", 0),
    m.Tmknod(NEW, b"x", 0o10644, 0, 0, 0),
    m.Trename(NEW, 0, b"x"),
    m.Treadlink(NEW),
    m.Tgetattr(NEW, 0x7FF),
    m.Tsetattr(NEW, 1),
    m.Txattrwalk(NEW, NEW + 1, b""),
    m.Txattrcreate(NEW, b"user.x", 1, 0),
    m.Treaddir(NEW, 0, 8192),
    m.Tfsync(NEW, 0),
    m.Tlock(NEW, 0, 0, 0, 0, 1, b""),
    m.Tgetlock(NEW, 0, 0, 0, 1, b""),
    m.Tlink(NEW, 0, b"x"),
    m.Tmkdir(NEW, b"x", 0o755, 0),
    m.Trenameat(NEW, b"x", NEW, b"y"),
    m.Tunlinkat(NEW, b"x", 0),
    m.Twalk(NEW, NEW + 1),
    m.Twalk(NEW, NEW),
    m.Tread(NEW, 0, 1),
    m.Twrite(NEW, 0, b"x"),
    m.Tclunk(NEW),
    m.Tremove(NEW),
]


def test_the_table_of_messages_with_a_fid_has_them_all() -> None:
    without = {m.Tversion, m.Tauth, m.Tattach, m.Tflush}
    requests = {cls for cls in m.BY_TYPE.values() if cls.__name__.startswith("T")}
    assert {type(message) for message in NEEDS_A_FID} == requests - without


@pytest.mark.parametrize("message", NEEDS_A_FID, ids=lambda message: type(message).__name__)
def test_a_fid_that_is_not_there(guest: NinePClient, refused: Refused, message: m.Message) -> None:
    with refused(errno.EBADF):
        guest.rpc(message)
    assert guest.listdir() == []


@pytest.mark.parametrize(
    "message",
    [m.Trename(NEW + 1, NEW, b"x"), m.Tlink(0, NEW, b"x"), m.Trenameat(0, b"f", NEW, b"x")],
    ids=lambda message: type(message).__name__,
)
def test_a_second_fid_that_is_not_there(host: Host, guest: NinePClient, refused: Refused, message: m.Message) -> None:
    (host.root / "f").write_bytes(b"")
    assert guest.root == 0
    guest.ask(m.Twalk(0, NEW + 1, (b"f",)), m.Rwalk)
    with refused(errno.EBADF):
        guest.rpc(message)
    assert guest.listdir() == [b"f"]


def test_clunk_frees_the_number(host: Host, guest: NinePClient, refused: Refused) -> None:
    for _ in range(3):
        guest.ask(m.Twalk(guest.root, NEW), m.Rwalk)
        guest.ask(m.Tclunk(NEW), m.Rclunk)
        with refused(errno.EBADF):
            guest.rpc(m.Tclunk(NEW))


def test_remove_frees_the_fid_when_it_fails(host: Host, guest: NinePClient, refused: Refused) -> None:
    (host.root / "d" / "e").mkdir(parents=True)
    guest.ask(m.Twalk(guest.root, NEW, (b"d",)), m.Rwalk)
    with refused(errno.ENOTEMPTY):
        guest.rpc(m.Tremove(NEW))
    with refused(errno.EBADF):
        guest.rpc(m.Tgetattr(NEW, 0x7FF))
    assert (host.root / "d" / "e").is_dir()


@pytest.mark.parametrize("kind", ["file", "directory", "symlink"])
def test_remove(host: Host, guest: NinePClient, refused: Refused, kind: str) -> None:
    if kind == "file":
        guest.write_file("x", b"")
    elif kind == "directory":
        guest.mkdir("x")
    else:
        guest.symlink("y", "x")
    guest.ask(m.Twalk(guest.root, NEW, (b"x",)), m.Rwalk)
    guest.ask(m.Tremove(NEW), m.Rremove)
    assert not os.path.lexists(host.root / "x")
    with refused(errno.EBADF):
        guest.rpc(m.Tclunk(NEW))


def test_the_root_is_not_removed(host: Host, guest: NinePClient, refused: Refused) -> None:
    with refused():
        guest.rpc(m.Tremove(guest.walk()))
    assert host.root.is_dir()
    assert guest.listdir() == []


def test_remove_takes_the_file_of_the_fid_and_not_one_that_took_its_name(host: Host, guest: NinePClient) -> None:
    (host.root / "x").write_bytes(b"first")
    guest.ask(m.Twalk(guest.root, NEW, (b"x",)), m.Rwalk)
    (host.root / "x").rename(host.root / "y")
    (host.root / "x").write_bytes(b"second")
    client_sees = guest.send(m.Tremove(NEW))
    try:
        guest.wait(client_sees)
    except OSError:
        assert (host.root / "y").read_bytes() == b"first"
    assert (host.root / "x").read_bytes() == b"second"


def test_ten_thousand_fids(host: Host, guest: NinePClient) -> None:
    (host.root / "f").write_bytes(b"x")
    for number in range(NEW, NEW + 10_000, 500):
        tags = [guest.send(m.Twalk(guest.root, fid, (b"f",))) for fid in range(number, number + 500)]
        assert {len(m.expect(guest.wait(tag), m.Rwalk).qids) for tag in tags} == {1}
    assert guest.getattr(NEW + 9_999).size == 1


# Tags


def test_many_requests_at_once_are_all_answered(host: Host, guest: NinePClient) -> None:
    for n in range(20):
        (host.root / str(n)).write_bytes(b"x" * n)
    fids = [guest.open(str(n)) for n in range(20)]
    reads = [guest.send(m.Tread(fid, 0, 100)) for fid in fids for _ in range(10)]
    data = [bytes(m.expect(guest.wait(tag), m.Rread).data) for tag in reversed(reads)][::-1]
    assert data == [b"x" * n for n in range(20) for _ in range(10)]


def test_a_message_in_pieces_of_one_byte(host: Host, guest: NinePClient) -> None:
    for byte in m.Tgetattr(guest.root, 0x7FF).encode(77):
        guest.send_raw(bytes([byte]))
    tag, reply = guest.recv()
    assert (tag, type(reply)) == (77, m.Rgetattr)


def test_two_messages_and_a_half_in_one_piece(host: Host, guest: NinePClient) -> None:
    third = m.Tgetattr(guest.root, 0x7FF).encode(3)
    guest.send_raw(m.Tstatfs(guest.root).encode(1) + m.Tgetattr(guest.root, 0x7FF).encode(2) + third[:9])
    assert {guest.recv()[0], guest.recv()[0]} == {1, 2}
    guest.send_raw(third[9:])
    assert guest.recv()[0] == 3


def test_the_same_tag_twice_at_once_does_not_break_the_session(guest: NinePClient) -> None:
    guest.send_raw(m.Tgetattr(guest.root, 0x7FF).encode(5) * 2)
    assert [guest.recv()[0] for _ in range(2)] == [5, 5]
    assert guest.listdir() == []


@pytest.mark.parametrize("oldtag", [0, 4321, NOTAG])
def test_flush_of_a_tag_that_nobody_uses_is_answered_at_once(guest: NinePClient, oldtag: int) -> None:
    guest.ask(m.Tflush(oldtag), m.Rflush)


def test_flush_of_its_own_tag(guest: NinePClient) -> None:
    guest.send_raw(m.Tflush(9).encode(9))
    assert guest.recv() == (9, m.Rflush())


def test_flush_comes_after_the_answer_or_in_its_place(host: Host, guest: NinePClient) -> None:
    (host.root / "f").write_bytes(bytes(1 << 20))
    fid = guest.open("f")
    for _ in range(20):
        read = guest.send(m.Tread(fid, 0, 1 << 19))
        answered = guest.flush(read)
        if answered:
            assert len(m.expect(guest.wait(read), m.Rread).data) == 1 << 19
        assert guest.getattr(fid).size == 1 << 20  # and nothing comes late under the old tag


def test_flush_in_a_batch(host: Host, guest: NinePClient) -> None:
    read, flush = 21, 22
    guest.send_raw(m.Tgetattr(guest.root, 0x7FF).encode(read) + m.Tflush(read).encode(flush))
    tag, reply = guest.recv()
    if tag == read:
        assert isinstance(reply, m.Rgetattr)
        tag, reply = guest.recv()
    assert (tag, reply) == (flush, m.Rflush())


# Qids


def test_qids_name_files(host: Host, guest: NinePClient) -> None:
    (host.root / "a").write_bytes(b"")
    (host.root / "b").write_bytes(b"")
    os.link(host.root / "a", host.root / "c")
    (host.root / "d").mkdir()
    a, b, c, d = (guest.stat(name).qid for name in "abcd")
    assert a == c
    assert len({a.path, b.path, d.path, guest.stat().qid.path}) == 4
    (host.root / "a").rename(host.root / "d" / "e")
    assert guest.stat("d/e").qid.path == a.path


def test_a_qid_has_another_version_when_the_data_changed(host: Host, guest: NinePClient) -> None:
    path = host.root / "f"
    path.write_bytes(b"1")
    os.utime(path, ns=(0, 1_000_000_000_000_000_001))
    before = guest.stat("f").qid
    assert guest.stat("f").qid == before
    path.write_bytes(b"2")
    os.utime(path, ns=(0, 1_000_000_000_000_000_002))
    after = guest.stat("f").qid
    assert after.version != before.version
    assert after.path == before.path


def test_the_type_of_a_qid(host: Host, guest: NinePClient) -> None:
    os.symlink("x", host.root / "link")
    os.mkfifo(host.root / "fifo")
    assert [guest.stat(name).qid.type for name in ("", "link", "fifo")] == [QidType.DIR, QidType.SYMLINK, 0]
    assert isinstance(guest.stat().qid, Qid)


# Many requests at once


def test_more_requests_than_are_served_in_a_turn_are_all_answered(guest: NinePClient) -> None:
    count = 2000
    guest.send_raw(b"".join(m.Tgetattr(guest.root, 0x7FF).encode(tag) for tag in range(count)))
    answered = [guest.recv() for _ in range(count)]
    assert [tag for tag, _ in answered] == list(range(count))
    assert {type(reply) for _, reply in answered} == {m.Rgetattr}


def test_errors_among_many_requests_are_answered_in_their_place(guest: NinePClient) -> None:
    requests = [m.Tgetattr(guest.root if tag % 3 else NEW, 0x7FF) for tag in range(1500)]
    guest.send_raw(b"".join(request.encode(tag) for tag, request in enumerate(requests)))
    for tag in range(len(requests)):
        expected = m.Rgetattr if tag % 3 else m.Rlerror
        got, reply = guest.recv()
        assert (got, type(reply)) == (tag, expected)


def test_errors_among_requests_do_not_make_a_turn_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every error began the turn's count anew, and with long links between them 200 MB of replies waited."""
    (tmp_path / "l").symlink_to("a" * 4000)
    waiting: list[int] = []
    flush = Outbox.flush

    def noted(outbox: Outbox) -> None:
        waiting.append(len(outbox.replies))
        flush(outbox)

    monkeypatch.setattr(Outbox, "flush", noted)
    export = Export.open(Plan9Share(name="0", access_name="0", path=str(tmp_path.resolve())), "none")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        session = Serving(theirs, export, Limits(), lambda _: None)
        batch = [m.Twalk(0, 1, (b"l",)), *(m.Treadlink(NEW if tag % 2 else 1) for tag in range(3000))]
        rest = b"".join(message.encode(tag) for tag, message in enumerate(batch))
        guest = threading.Thread(target=lambda: deque(iter(lambda: ours.recv(1 << 20), b""), maxlen=0))
        guest.start()
        serving = threading.Thread(
            target=session.run, args=((0, m.Tattach(0, NOFID, b"", b"0", 0)), 1 << 20, rest), daemon=True
        )
        serving.start()
        ours.shutdown(socket.SHUT_WR)
        serving.join(DEADLINE)
        theirs.close()
        guest.join(DEADLINE)
    export.close()
    assert max(waiting) <= 1024


def test_requests_that_come_byte_by_byte_and_many_at_once_are_answered_alike(host: Host, guest: NinePClient) -> None:
    (host.root / "d").mkdir()
    (host.root / "d" / "f").write_bytes(b"content")
    conversation = [
        *(m.Twalk(guest.root, NEW, (b"d", b"f")), m.Tlopen(NEW, 0), m.Tread(NEW, 0, 100)),
        *(m.Tread(NEW, 3, 2), m.Tgetattr(guest.root, 0x7FF), m.Tclunk(NEW), m.Tclunk(NEW)),
    ]
    stream = b"".join(message.encode(tag) for tag, message in enumerate(conversation))
    guest.send_raw(stream)
    at_once = [guest.recv() for _ in conversation]
    for byte in stream:
        guest.send_raw(bytes([byte]))
    assert sorted(str(guest.recv()) for _ in conversation) == sorted(map(str, at_once))


def test_a_version_among_many_requests_ends_the_fids_for_those_behind_it(guest: NinePClient) -> None:
    root = guest.root
    guest.send_raw(
        m.Tgetattr(root, 0x7FF).encode(1)
        + m.Tversion(8192, VERSION).encode(NOTAG)
        + m.Tgetattr(root, 0x7FF).encode(2)
        + m.Tgetattr(root, 0x7FF).encode(3)
    )
    assert [type(guest.recv()[1]) for _ in range(4)] == [m.Rgetattr, m.Rversion, m.Rlerror, m.Rlerror]


def test_a_message_past_the_new_msize_is_refused_in_the_same_turn(host: Host, guest: NinePClient) -> None:
    guest.send_raw(m.Tversion(4096, VERSION).encode(NOTAG) + m.Twrite(guest.root, 0, bytes(5000)).encode(1))
    assert all(isinstance(reply, m.Rversion) for reply in guest.drain())  # no Rlerror, which a write would get
