"""The codec against a second one: every message from the lines of its manual page, written here once more."""

from __future__ import annotations

import inspect
import random
import re
from typing import Any, Final

import msgspec
import pytest

from uvmshare.errors import LocalProtocolError, RemoteProtocolError
from uvmshare.ninep import messages as m
from uvmshare.ninep.types import Qid

# Examples are the same in every run; a message of its own needs few, any bytes need many.
FEW: Final = 50
MANY: Final = 2000

# number, name, fields: as intro(5) and diod's protocol.md print them, size[4] and tag[2] left out.
# s is a string, qid thirteen bytes, data what a count[4] stands before.
PROTOCOL: Final = """
7 Rlerror ecode[4]
8 Tstatfs fid[4]
9 Rstatfs type[4] bsize[4] blocks[8] bfree[8] bavail[8] files[8] ffree[8] fsid[8] namelen[4]
12 Tlopen fid[4] flags[4]
13 Rlopen qid[13] iounit[4]
14 Tlcreate fid[4] name[s] flags[4] mode[4] gid[4]
15 Rlcreate qid[13] iounit[4]
16 Tsymlink fid[4] name[s] symtgt[s] gid[4]
17 Rsymlink qid[13]
18 Tmknod dfid[4] name[s] mode[4] major[4] minor[4] gid[4]
19 Rmknod qid[13]
20 Trename fid[4] dfid[4] name[s]
21 Rrename
22 Treadlink fid[4]
23 Rreadlink target[s]
24 Tgetattr fid[4] request_mask[8]
25 Rgetattr valid[8] qid[13] mode[4] uid[4] gid[4] nlink[8] rdev[8] size[8] blksize[8] blocks[8] atime_sec[8]
 atime_nsec[8] mtime_sec[8] mtime_nsec[8] ctime_sec[8] ctime_nsec[8] btime_sec[8] btime_nsec[8] gen[8] data_version[8]
26 Tsetattr fid[4] valid[4] mode[4] uid[4] gid[4] size[8] atime_sec[8] atime_nsec[8] mtime_sec[8] mtime_nsec[8]
27 Rsetattr
30 Txattrwalk fid[4] newfid[4] name[s]
31 Rxattrwalk size[8]
32 Txattrcreate fid[4] name[s] attr_size[8] flags[4]
33 Rxattrcreate
40 Treaddir fid[4] offset[8] count[4]
41 Rreaddir data[data]
50 Tfsync fid[4] datasync[4]
51 Rfsync
52 Tlock fid[4] type[1] flags[4] start[8] length[8] proc_id[4] client_id[s]
53 Rlock status[1]
54 Tgetlock fid[4] type[1] start[8] length[8] proc_id[4] client_id[s]
55 Rgetlock type[1] start[8] length[8] proc_id[4] client_id[s]
70 Tlink dfid[4] fid[4] name[s]
71 Rlink
72 Tmkdir dfid[4] name[s] mode[4] gid[4]
73 Rmkdir qid[13]
74 Trenameat olddirfid[4] oldname[s] newdirfid[4] newname[s]
75 Rrenameat
76 Tunlinkat dirfd[4] name[s] flags[4]
77 Runlinkat
100 Tversion msize[4] version[s]
101 Rversion msize[4] version[s]
102 Tauth afid[4] uname[s] aname[s] n_uname[4]
103 Rauth aqid[13]
104 Tattach fid[4] afid[4] uname[s] aname[s] n_uname[4]
105 Rattach qid[13]
108 Tflush oldtag[2]
109 Rflush
110 Twalk fid[4] newfid[4] wname[s*]
111 Rwalk wqid[13*]
116 Tread fid[4] offset[8] count[4]
117 Rread data[data]
118 Twrite fid[4] offset[8] data[data]
119 Rwrite count[4]
120 Tclunk fid[4]
121 Rclunk
122 Tremove fid[4]
123 Rremove
"""

FORMS: Final = {
    int(number): (name, re.findall(r"\[(.*?)\]", fields))
    for number, name, fields in re.findall(r"^(\d+) (\w+)(.*)$", PROTOCOL.replace("\n ", " "), re.MULTILINE)
}
ALL: Final = sorted(FORMS)


def wire_string(value: bytes) -> bytes:
    return len(value).to_bytes(2, "little") + value


def wire_qid(qid: Qid) -> bytes:
    return qid.type.to_bytes(1, "little") + qid.version.to_bytes(4, "little") + qid.path.to_bytes(8, "little")


def wire_field(form: str, value: Any) -> bytes:
    match form:
        case "s":
            return wire_string(value)
        case "s*":
            return len(value).to_bytes(2, "little") + b"".join(map(wire_string, value))
        case "13":
            return wire_qid(value)
        case "13*":
            return len(value).to_bytes(2, "little") + b"".join(map(wire_qid, value))
        case "data":
            return len(value).to_bytes(4, "little") + bytes(value)
        case width:
            number: int = value
            return number.to_bytes(int(width), "little")


def wire(message: m.Message, tag: int) -> bytes:
    """The message as the manual pages put it, without any of the project's codec."""
    _, forms = FORMS[message.type]
    values = msgspec.structs.astuple(message)
    body = b"".join(wire_field(form, value) for form, value in zip(forms, values, strict=True))
    return (7 + len(body)).to_bytes(4, "little") + bytes([message.type]) + tag.to_bytes(2, "little") + body


class Chance(random.Random):
    """Values of fields, and messages."""

    def uint(self, width: int) -> int:
        top = 256**width - 1
        return self.choice((0, 1, top >> 1, (top >> 1) + 1, top, self.randint(0, top), self.randint(0, top)))

    def string(self) -> bytes:
        return self.randbytes(self.randint(0, self.choice((0, 20, 300)))).replace(b"\0", b"/")

    def qid(self) -> Qid:
        return Qid(self.uint(1), self.uint(4), self.uint(8))

    def value_of(self, form: str) -> Any:
        match form:
            case "s":
                return self.string()
            case "s*":
                return tuple(self.string() for _ in range(self.randint(0, 16)))
            case "13":
                return self.qid()
            case "13*":
                return tuple(self.qid() for _ in range(self.randint(0, 16)))
            case "data":
                return self.randbytes(self.randint(0, self.choice((0, 20, 2000))))
            case width:
                return self.uint(int(width))

    def message(self, number: int | None = None) -> m.Message:
        number = self.choice(ALL) if number is None else number
        return m.BY_TYPE[number](*map(self.value_of, FORMS[number][1]))


def plain(message: m.Message) -> m.Message:
    """The same message with views turned into bytes, so that two can be compared."""
    return type(message)(
        *(bytes(value) if isinstance(value, memoryview) else value for value in msgspec.structs.astuple(message)),
    )


def test_exactly_the_messages_of_the_protocol_are_known() -> None:
    assert {number: cls.__name__ for number, cls in m.BY_TYPE.items()} == {
        number: name for number, (name, _) in FORMS.items()
    }


def test_every_message_class_of_the_module_is_entered() -> None:
    classes = {cls for _, cls in inspect.getmembers(m, inspect.isclass) if issubclass(cls, m.Message)} - {m.Message}
    assert classes == set(m.BY_TYPE.values())


@pytest.mark.parametrize("number", [number for number in ALL if FORMS[number][0][0] == "T"])
def test_the_answer_to_a_request_is_the_next_number(number: int) -> None:
    assert FORMS[number + 1][0] == "R" + FORMS[number][0][1:]


@pytest.mark.parametrize("number", ALL)
def test_names_for_the_log(number: int) -> None:
    assert m.name_of(number) == FORMS[number][0]


def test_a_number_without_a_message_is_named_by_itself() -> None:
    assert m.name_of(6) == "type 6"  # Tlerror is never sent


@pytest.mark.parametrize("number", ALL, ids=lambda number: FORMS[number][0])
def test_round_trip(number: int) -> None:
    chance = Chance(number)
    for _ in range(FEW):
        message, tag = chance.message(number), chance.uint(2)
        encoded = message.encode(tag)
        assert encoded == wire(message, tag)
        assert m.decode(encoded) == (tag, message)
        for buffer in (bytearray(encoded), memoryview(encoded)):
            read_tag, read = m.decode(buffer)
            assert (read_tag, plain(read)) == (tag, message)


def test_a_view_of_the_data_is_not_a_copy() -> None:
    buffer = bytearray(m.Twrite(1, 2, b"old").encode(1))
    _, read = m.decode(memoryview(buffer))
    assert isinstance(read, m.Twrite)
    buffer[-3:] = b"new"
    assert read.data == b"new"


@pytest.mark.parametrize("number", ALL, ids=lambda number: FORMS[number][0])
def test_a_message_cut_short_is_refused_wherever_it_is_cut(number: int) -> None:
    chance = Chance(number)
    for _ in range(FEW):
        encoded = chance.message(number).encode(1)
        cut = chance.randrange(len(encoded))
        with pytest.raises(RemoteProtocolError):  # it says more bytes than it has
            m.decode(encoded[:cut])
        if cut >= 7:
            with pytest.raises(RemoteProtocolError):  # it says what it has, and a field is missing
                m.decode(cut.to_bytes(4, "little") + encoded[4:cut])


def test_bytes_behind_the_last_field_are_refused() -> None:
    chance = Chance(1)
    for _ in range(MANY):
        encoded = chance.message().encode(1) + chance.randbytes(chance.randint(1, 20))
        with pytest.raises(RemoteProtocolError):
            m.decode(encoded)
        with pytest.raises(RemoteProtocolError):
            m.decode(len(encoded).to_bytes(4, "little") + encoded[4:])


def parse_or_refuse(data: bytes) -> None:
    """What holds for any bytes: they parse, and then mean themselves, or they are refused in the one way."""
    for buffer in (data, memoryview(data)):
        try:
            tag, message = m.decode(buffer)
        except RemoteProtocolError:
            continue
        assert plain(message).encode(tag) == data


def test_any_bytes_parse_or_are_refused() -> None:
    chance = Chance(2)
    for _ in range(MANY):
        parse_or_refuse(chance.randbytes(chance.randint(0, 200)))


@pytest.mark.parametrize("number", [*ALL, 0, 6, 99, 106, 107, 124, 255])
def test_any_body_behind_a_good_header_parses_or_is_refused(number: int) -> None:
    chance = Chance(number)
    for _ in range(FEW):
        body = chance.randbytes(chance.randint(0, chance.choice((20, 300))))
        header = (7 + len(body)).to_bytes(4, "little") + bytes([number]) + chance.uint(2).to_bytes(2, "little")
        parse_or_refuse(header + body)


def test_a_message_with_bytes_changed_parses_or_is_refused() -> None:
    chance = Chance(3)
    for _ in range(MANY):
        data = bytearray(chance.message().encode(3))
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        parse_or_refuse(bytes(data))


def test_a_message_with_a_piece_taken_out_or_doubled_parses_or_is_refused() -> None:
    chance = Chance(4)
    for _ in range(MANY):
        data = chance.message().encode(3)
        begin = chance.randrange(len(data))
        end = chance.randint(begin, len(data))
        for changed in (data[:begin] + data[end:], data[:end] + data[begin:]):
            parse_or_refuse(changed)
            if len(changed) >= 7:
                parse_or_refuse(len(changed).to_bytes(4, "little") + changed[4:])


# Limits


def test_sixteen_names_are_a_walk_and_seventeen_are_not() -> None:
    most = m.Twalk(0, 1, (b"n",) * 16)
    assert m.decode(most.encode(1)) == (1, most)
    with pytest.raises(LocalProtocolError, match="17 names"):
        m.Twalk(0, 1, (b"n",) * 17).encode(1)
    sent = bytearray(most.encode(1)) + wire_string(b"n")
    sent[0:4] = len(sent).to_bytes(4, "little")
    sent[15:17] = (17).to_bytes(2, "little")
    with pytest.raises(RemoteProtocolError, match="17 names"):
        m.decode(sent)


def test_seventeen_qids_are_not_the_answer_to_a_walk() -> None:
    qid = Qid(0, 0, 0)
    assert m.decode(m.Rwalk((qid,) * 16).encode(1)) == (1, m.Rwalk((qid,) * 16))
    with pytest.raises(LocalProtocolError, match="17 names or qids"):
        m.Rwalk((qid,) * 17).encode(1)
    body = (17).to_bytes(2, "little") + wire_qid(qid) * 17
    with pytest.raises(RemoteProtocolError, match="17 names or qids"):
        m.decode((7 + len(body)).to_bytes(4, "little") + bytes([111, 1, 0]) + body)


def test_a_string_has_at_most_65535_bytes() -> None:
    longest = m.Rreadlink(b"x" * 65535)
    assert m.decode(longest.encode(1)) == (1, longest)
    for message in (m.Rreadlink(b"x" * 65536), m.Twalk(0, 1, (b"x" * 65536,))):
        with pytest.raises(LocalProtocolError, match="65536 bytes"):
            message.encode(1)


@pytest.mark.parametrize("message", [m.Tmkdir(0, b"a\0b", 0, 0), m.Twalk(0, 1, (b"ok", b"\0"))])
def test_a_string_with_nul_is_not_sent(message: m.Message) -> None:
    with pytest.raises(LocalProtocolError, match="NUL"):
        message.encode(1)


@pytest.mark.parametrize("message", [m.Tmkdir(0, b"a!b", 0, 0), m.Twalk(0, 1, (b"ok", b"!")), m.Tversion(1, b"!")])
def test_a_string_with_nul_is_not_taken(message: m.Message) -> None:
    with pytest.raises(RemoteProtocolError, match="NUL"):
        m.decode(message.encode(1).replace(b"!", b"\0"))


@pytest.mark.parametrize("value", [b"a/b", b"..", b".", b"", b"\xff\xfe", b"\xc3"])
def test_a_string_may_be_any_other_bytes(value: bytes) -> None:
    assert m.decode(m.Twalk(0, 1, (value,)).encode(1)) == (1, m.Twalk(0, 1, (value,)))


@pytest.mark.parametrize("number", ALL, ids=lambda number: FORMS[number][0])
def test_a_number_that_does_not_fit_its_field_is_not_sent(number: int) -> None:
    _, forms = FORMS[number]
    smallest: dict[str, Any] = {"s": b"", "s*": (), "13": Qid(0, 0, 0), "13*": (), "data": b""}
    fine = [smallest.get(form, 0) for form in forms]
    m.BY_TYPE[number](*fine).encode(0)
    for at, form in enumerate(forms):
        wrong: list[object] = []
        if form == "13":
            wrong = [Qid(256, 0, 0), Qid(0, 1 << 32, 0), Qid(0, 0, 1 << 64), Qid(0, -1, 0)]
        elif form == "13*":
            wrong = [(Qid(0, 0, -1),)]
        elif form.isdecimal():
            wrong = [-1, 256 ** int(form)]
        for value in wrong:
            with pytest.raises(LocalProtocolError, match="does not fit"):
                m.BY_TYPE[number](*fine[:at], value, *fine[at + 1 :]).encode(0)


@pytest.mark.parametrize("tag", [-1, 65536])
def test_a_tag_that_does_not_fit_is_not_sent(tag: int) -> None:
    with pytest.raises(LocalProtocolError, match="does not fit"):
        m.Tclunk(1).encode(tag)


def test_other_numbers_are_no_message() -> None:
    for number in set(range(256)) - set(ALL):
        with pytest.raises(RemoteProtocolError, match=f"type {number} "):
            m.decode(bytes([7, 0, 0, 0, number, 0, 0]))


# Helpers of both ends


@pytest.mark.parametrize("number", ALL, ids=lambda number: FORMS[number][0])
def test_packing_at_speed_gives_the_same_bytes(number: int) -> None:
    cls = m.BY_TYPE[number]
    if {"s", "s*", "13*", "data"} & set(FORMS[number][1]):
        with pytest.raises(LocalProtocolError, match=cls.__name__):
            m.packer(cls)
        return
    chance = Chance(number)
    for _ in range(FEW):
        message, tag = chance.message(number), chance.uint(2)
        flat: list[int] = []
        for value in msgspec.structs.astuple(message):
            flat += (value.type, value.version, value.path) if isinstance(value, Qid) else (value,)
        assert m.packer(cls)(tag, *flat) == message.encode(tag)


def test_expect_gives_back_what_was_due_and_refuses_the_rest() -> None:
    reply = m.Rwrite(3)
    assert m.expect(reply, m.Rwrite) is reply
    with pytest.raises(RemoteProtocolError, match="Rwrite came where Rread was due"):
        m.expect(reply, m.Rread)
