"""Write the seed corpus: one message of each type, and conversations that reach every handler.

    python fuzz/seeds.py

What lives here: the hand-written inputs. What must not: inputs that fuzzing has found; they are files of
the corpus alone, and stay when this is run again.
"""

# ruff: noqa: INP001  a folder of scripts, not a package
from __future__ import annotations

import pathlib
from typing import Any, Final

import targets

from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import NOFID, NONUNAME, NOTAG, VERSION, OpenFlag
from uvmshare.ninep.types import Qid

CORPUS: Final = pathlib.Path(__file__).parent / "corpus"

_VALUES: Final[dict[str, Any]] = {
    "int": 1,
    "bytes": b"name",
    "bytes | memoryview": b"data",
    "Qid": Qid(0x80, 1, 2),
    "tuple[bytes, ...]": (b"a", b".."),
    "tuple[Qid, ...]": (Qid(0, 1, 2),),
}

CONVERSATIONS: Final = {
    "walk": (m.Twalk(0, 1, (b"directory", b"below", b"..", b"file")), m.Tgetattr(1, 0x3FFF), m.Tclunk(1)),
    "escape": (m.Twalk(0, 1, (b"..", b"..", b"link", b"canary")), m.Twalk(0, 1, (b"link",)), m.Treadlink(1)),
    "read": (m.Twalk(0, 1, (b"file",)), m.Tlopen(1, 0), m.Tread(1, 0, 100), m.Tread(1, 1 << 63, 1), m.Tfsync(1, 0)),
    "write": (
        *(m.Tlcreate(0, b"made", OpenFlag.RDWR, 0o644, 0), m.Twrite(0, 0, b"data"), m.Twrite(0, 1 << 40, b"data")),
        *(m.Tsetattr(0, 0x1FF, 0o7777, 1, 1, 2, 3, 4, 5, 6), m.Tfsync(0, 1), m.Tread(0, 0, 65536)),
    ),
    "append": (m.Twalk(0, 1, (b"file",)), m.Tlopen(1, OpenFlag.RDWR | OpenFlag.APPEND), m.Twrite(1, 9, b"x")),
    "sync": (m.Twalk(0, 1, (b"file",)), m.Tlopen(1, OpenFlag.RDWR | OpenFlag.SYNC), m.Twrite(1, 9, b"x"), m.Tflush(2)),
    "list": (m.Twalk(0, 1), m.Tlopen(1, OpenFlag.DIRECTORY), m.Treaddir(1, 0, 4096), m.Treaddir(1, 1, 40)),
    "make": (
        *(m.Tmkdir(0, b"new", 0o7777, 0), m.Tsymlink(0, b"to", b"../outside/canary", 0)),
        *(m.Tmknod(0, b"node", 0o020666, 1, 3, 0), m.Tmknod(0, b"pipe", 0o010666, 0, 0, 0)),
        *(m.Twalk(0, 1, (b"to",)), m.Treadlink(1), m.Tlopen(1, 0), m.Twalk(0, 2, (b"node",)), m.Tlopen(2, 0)),
    ),
    "names": (
        *(m.Twalk(0, 1, (b"file",)), m.Twalk(0, 2, (b"directory",)), m.Tlink(2, 1, b"hard")),
        *(m.Trenameat(0, b"file", 2, b"other"), m.Trename(1, 0, b"back"), m.Tunlinkat(2, b"below", 0x200)),
        *(m.Tunlinkat(0, b"..", 0), m.Tremove(1), m.Tremove(2), m.Tremove(0)),
    ),
    "into-itself": (
        *(m.Twalk(0, 1, (b"directory",)), m.Twalk(1, 2, (b"below",)), m.Trenameat(1, b"below", 0, b"above")),
        *(m.Trename(1, 2, b"cycle"), m.Twalk(1, 3, (b"..",) * 16), m.Tgetattr(3, 0x7FF)),
    ),
    "attributes": (
        *(m.Twalk(0, 1, (b"file",)), m.Twalk(1, 2), m.Txattrcreate(2, b"user.name", 5, 0), m.Twrite(2, 0, b"value")),
        *(m.Tclunk(2), m.Txattrwalk(1, 3, b""), m.Tread(3, 0, 100), m.Txattrwalk(1, 4, b"user.name"), m.Tread(4, 0, 9)),
        *(m.Twalk(1, 5), m.Txattrcreate(5, b"user.virtfs.mode", 4, 0), m.Txattrcreate(5, b"user.name", 0, 2)),
        *(m.Tclunk(5), m.Txattrcreate(1, b"security.capability", 70000, 0)),
    ),
    "locks": (
        *(m.Twalk(0, 1, (b"file",)), m.Tlopen(1, OpenFlag.RDWR), m.Tlock(1, 1, 0, 0, 10, 1, b"a")),
        *(
            m.Tlock(1, 1, 1, 5, 10, 2, b"b"),
            m.Tgetlock(1, 1, 0, 0, 2, b"b"),
            m.Tflush(3),
            m.Tlock(1, 0, 1, 0, 0, 3, b""),
        ),
        *(m.Tlock(1, 2, 0, 3, 2, 1, b"a"), m.Tclunk(1)),
    ),
    "again": (
        *(m.Tversion(8192, VERSION), m.Tattach(0, NOFID, b"", b"0", 1), m.Tattach(0, NOFID, b"7", b"0", NONUNAME)),
        *(m.Tauth(1, b"", b"0", 0), m.Tattach(1, NOFID, b"9" * 300, b"0", NONUNAME), m.Tstatfs(1), m.Tversion(1, b"x")),
    ),
}


_WRITES: Final = (
    *(m.Twalk(0, 1, (b"file",)), m.Tlopen(1, OpenFlag.RDWR), m.Twrite(1, 3, bytes(300_032))),
    *(m.Twrite(1, 1 << 20, bytes(1_000_000)), m.Tread(1, 200_000, 100), m.Twrite(1, 0, b""), m.Tclunk(1)),
)

LARGE: Final = {
    "large": targets.large(*_WRITES),
    "large-cut-header": targets.large(*_WRITES, end=300_032 + 100),
    "large-cut-data": targets.large(*_WRITES, end=250_000),
    "large-pieces": targets.large(*_WRITES, pieces=(60, 22, 1, 5000, 65535)),
    "large-count-short": targets.large(*_WRITES, wrong=(-1, 0)),
    "large-count-long": targets.large(*_WRITES, wrong=(1, 0)),
    "large-size": targets.large(*_WRITES, wrong=(0, 1)),
    "large-msize": targets.large(*_WRITES[:2], m.Twrite(1, 0, bytes(1 << 20))),
    "large-user": targets.large(m.Tsetattr(0, 1, 0o777, 0, 0, 0, 0, 0, 0, 0), *_WRITES, bits=6),
    "large-nowhere": targets.large(
        *(m.Twalk(0, 1, (b"file",)), m.Tlopen(1, OpenFlag.RDONLY), m.Twalk(0, 2, (b"file",))),
        *(m.Twrite(fid, 0, bytes(300_032)) for fid in (0, 1, 2, 9)),
    ),
    "large-offset": targets.large(*_WRITES[:2], *(m.Twrite(1, (1 << 63) - at, bytes(300_032)) for at in (9, 200_000))),
    "large-append": targets.large(
        *(m.Twalk(0, 1, (b"file",)), m.Tlopen(1, OpenFlag.RDWR | OpenFlag.APPEND), m.Twrite(1, 0, bytes(300_032))),
        *(m.Twalk(0, 2, (b"file",)), m.Tlopen(2, OpenFlag.RDWR | OpenFlag.SYNC), m.Twrite(2, 0, bytes(300_032))),
    ),
    "large-created": targets.large(
        *(m.Twalk(0, 1), m.Tlcreate(1, b"made", OpenFlag.WRONLY, 0o6777, 0), m.Twalk(1, 2)),
        *(m.Twrite(1, 0, bytes(300_032)), m.Tunlinkat(0, b"made", 0), m.Twrite(1, 9, bytes(300_032)), m.Tclunk(1)),
    ),
}


_HELLO: Final = b'{"id":0,"op":"hello","version":1,"client":"c","nonce":"n","proof":""}\n'
_SETTINGS: Final = b'"Settings":{"MountPath":"/run/uvmshare/0","Port":5640,"ShareName":"0","ReadOnly":true}'
_ADD: Final = (
    b'{"id":1,"op":"modify","request":{"RequestType":"Add","ResourceType":"MappedDirectory",%s},'
    b'"options":{"cache":"mmap","msize":8192,"suid":true,"events":true},"timeout":30}\n' % _SETTINGS
)
_GREETING: Final = b'{"uvmshare":"agent","version":1,"agent":"a","boot":"b","nonce":"c","token":false,"allow":["/x"]}\n'
_LISTED: Final = b'{"mount_path":"/a","share_name":"0","port":1,"msize":8192,"state":"broken","last_gap":1.5}'
_PINS: Final = b'{"directories":1,"full":false,"ended":"","events":{"repeated":1,"failed":0,"ended":"why"}}'
_REPORT: Final = b'{"kernel":"6.1","time":1.5,"modules":{"9p":true},"allow":[{"path":"/","kind":"?","writable":true}]}'

AGENT: Final = {
    # What agents say, and what the host then hears: before the first words (0), and as answers (2).
    "greeting": b"\0\xff" + _GREETING + b'{"id":0,"ok":true,"result":{"proof":""}}\n',
    "greeting-token": b"\0\xff" + _GREETING.replace(b"false", b"true"),
    "greeting-version": b"\0\xff" + _GREETING.replace(b"1", b"2"),
    "greeting-other": b"\0\xff" + b'{"uvmshare":"other"}\n',
    "greeting-refused": b"\4\xff" + _GREETING + b'{"id":0,"ok":false,"error":{"code":"refused","message":"no"}}\n',
    "greeting-surrogate": b"\0\xff" + _GREETING.replace(b'"c"', rb'"\ud800"'),
    "answers": b"\2\xff"
    + b"".join(
        (
            *(b'{"id":1,"ok":true,"result":[%s]}\n' % _LISTED, b'{"id":2,"ok":true,"result":[]}\n'),
            *(b'{"id":3,"ok":true,"result":%s}\n' % _REPORT, b'{"id":4,"ok":true,"result":{}}\n'),
        )
    ),
    "answers-events": b'\2\xff{"id":1,"ok":true,"result":[%s]}\n{"id":4,"ok":true,"result":{"no_events":"why"}}\n'
    % (_LISTED[:-1] + b',"events":true,"no_events":"why","pins":%s}' % _PINS),
    "answers-piecemeal": b'\2\0{"id":3,"ok":true,"result":%s}\n' % _REPORT,
    "answers-id-list": b'\2\xff{"id":[1],"ok":true}\n',
    "answers-id-object": b'\2\xff{"id":{"a":1},"ok":true}\n',
    "answers-error": b'\2\xff{"id":1,"ok":false,"error":{"code":["busy"],"message":7}}\n',
    "answers-error-text": b'\2\xff{"id":1,"ok":false,"error":"no"}\n',
    "answers-none": b'\2\xff{"id":1,"ok":false}\n',
    "answers-busy": b'\2\xff{"id":4,"ok":false,"error":{"code":"busy","message":"in use"}}\n',
    "answers-twice": b"\6\xff" + b'{"id":2,"ok":true,"result":[]}\n' * 2,
    "answers-unasked": b'\2\xff{"id":99,"ok":true}\n',
    "answers-ping": b'\2\xff{"id":-1,"ok":true,"result":{}}\n',
    "answers-deep": b"\2\xff" + b'{"id":1,"ok":true,"result":' + b"[" * 2000 + b"]" * 2000 + b"}\n",
    "answers-number": b"\2\xff" + b'{"id":1,"ok":true,"result":' + b"9" * 5000 + b"}\n",
    "answers-silence": b'\6\xff{"id":',
    # What hosts say, and what the agent in a guest then hears.
    "hello": b"\1\xff" + _HELLO + b'{"id":1,"op":"list"}\n' + _ADD + _ADD.replace(b"Add", b"Remove"),
    "hello-piecemeal": b"\1\0" + _HELLO + b'{"id":1,"op":"ping"}\n',
    "hello-surrogate": b"\1\xff" + _HELLO.replace(b'"n"', rb'"\ud800"').replace(b'"c"', rb'"\udfff"'),
    "hello-twice": b"\3\xff" + _HELLO * 2,
    "requests": b'\3\xff{"id":1,"op":"health","within":1e3}\n{"id":2,"op":"report"}\n' + _ADD,
    "requests-path": b"\3\xff" + _ADD.replace(b"/run", rb"\ud800"),
    "requests-number": b"\3\xff" + _ADD.replace(b"5640", b"9" * 5000),
    "requests-constant": b"\3\xff" + _ADD.replace(b"30}", b"NaN}"),
    "requests-deep": b"\3\xff" + b"[" * 2000 + b"\n",
    "requests-first": b'\1\xff{"id":1,"op":"ping"}\n',
}


def main() -> None:
    """Write the files."""
    for folder in ("codec", "session", "agent"):
        (CORPUS / folder).mkdir(parents=True, exist_ok=True)
    for cls in m.BY_TYPE.values():
        values = [_VALUES[str(cls.__annotations__[field])] for field in cls.__struct_fields__]
        (CORPUS / "codec" / cls.__name__).write_bytes(cls(*values).encode(NOTAG))
    for name, requests in CONVERSATIONS.items():
        (CORPUS / "session" / name).write_bytes(targets.packed(*requests))
        plain = b"".join(request.encode(tag) for tag, request in enumerate(requests))
        (CORPUS / "session" / f"{name}-plain").write_bytes(b"\2" + plain)
    for name, data in LARGE.items():
        (CORPUS / "session" / name).write_bytes(data)
    for name, data in AGENT.items():
        (CORPUS / "agent" / name).write_bytes(data)


if __name__ == "__main__":
    main()
