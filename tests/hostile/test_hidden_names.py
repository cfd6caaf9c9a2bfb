"""A share that hides names: whatever a guest sends, they stay as they are, and nothing of them is told.

Every message is sent about the root, a shown file and a shown directory, in each place of a fid and with names that are
hidden and others. The table is made of the messages themselves, so that a new one is tried without a word here.
"""

from __future__ import annotations

import itertools
import os
import sys
from typing import TYPE_CHECKING, Any, Final

import pytest
from tests.hostile.shapes import FID_FIELDS, REQUESTS, answered, forget, kind_of

from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import AT_REMOVEDIR, OpenFlag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.hostile.conftest import Target

    from uvmshare.testing.client import NinePClient

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

SECRET: Final = b"of the host's hidden files"
HIDE: Final = ("secret*", "/directory/vault", "hushed/")

ROOT, FILE, DIRECTORY = 0, 101, 102
WAYS: Final[dict[int, tuple[bytes, ...]]] = {ROOT: (), FILE: (b"file",), DIRECTORY: (b"directory",)}
SENT: Final = (201, 202)
NEW: Final = 300

_PLAIN: Final[dict[str, Any]] = {"int": 1, "bytes": b"new", "tuple": (b"directory",), "data": b"new"}
_VALUES: Final[dict[str, tuple[Any, ...]]] = {
    "int": (0, 2, 0o100644, 0o040755),
    "bytes": (
        *(b"secret", b"secrets", b"secret2", b"vault", b"hushed", b"file", b"directory", b"elsewhere"),
        *(b".", b"..", b"", b"secret/", b"user.x"),
    ),
    "tuple": (
        *((b"secret",), (b"secrets", b"inner"), (b"directory", b"vault"), (b"vault",), (b"hushed", b"inner")),
        *((b"..", b"secret"), (b"directory", b"..", b"secret"), (b"directory", b".", b"vault"), (b"directory", b"")),
    ),
    "data": (b"new",),
}
_OTHERS: Final[dict[str, tuple[Any, ...]]] = {
    "flags": (OpenFlag.RDWR, OpenFlag.CREATE | OpenFlag.RDWR, OpenFlag.RDWR | OpenFlag.TRUNC, AT_REMOVEDIR),
}


def messages(cls: type[m.Message]) -> Iterator[tuple[tuple[int, ...], m.Message]]:
    """Each message of a type, and what its fids stand for: names together with each other, other fields one by one."""
    fields = [name for name in cls.__struct_fields__ if name in FID_FIELDS and name != "newfid"]
    names = [name for name in cls.__struct_fields__ if name not in FID_FIELDS]
    texts = [name for name in names if kind_of(cls, name) in ("bytes", "tuple")]
    for meant in itertools.product(WAYS, repeat=len(fields)):
        plain = dict(zip(fields, SENT, strict=False)) | {name: _PLAIN[kind_of(cls, name)] for name in names}
        if "newfid" in cls.__struct_fields__:
            plain["newfid"] = NEW
        for values in itertools.product(*(_VALUES[kind_of(cls, name)] for name in texts)):
            yield meant, cls(**plain | dict(zip(texts, values, strict=True)))
        for name in set(names) - set(texts):
            for value in _OTHERS.get(name, ()) + _VALUES[kind_of(cls, name)]:
                for text in (b"secret", b"vault") if texts else (b"",):
                    others = {each: text for each in texts if kind_of(cls, each) == "bytes"}
                    yield meant, cls(**plain | others | {name: value})


def hidden(target: Target) -> object:
    """All that is hidden: what it is, where, and what it holds."""
    found = {}
    for path in ("secret", "secrets", "secrets/inner", "directory/vault", "directory/vault/inner", "hushed/inner"):
        there = (target.root / path).lstat()
        content = (
            (target.root / path).read_bytes() if (target.root / path).is_file() else os.listdir(target.root / path)
        )
        found[path] = (there.st_ino, there.st_mode, there.st_uid, there.st_nlink, there.st_mtime_ns, content)
    return found


@pytest.mark.parametrize(
    "model", ["passthrough", *(pytest.param(each, marks=pytest.mark.long) for each in ("mapped-xattr", "none"))]
)
def test_no_message_reaches_what_is_hidden(
    attack: Callable[..., Target], model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = attack(model)
    for path in ("secret", "secrets/inner", "directory/vault/inner", "hushed/inner", "file"):
        made = target.root / path
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_bytes(SECRET if path != "file" else b"content")
    inodes = {made.lstat().st_ino for made in target.root.rglob("*") if made.name in ("secret", "secrets", "vault")}
    before = hidden(target)
    client: NinePClient = target.connect(target.device.share(target.root, hide=HIDE))
    told: list[bytes] = []
    qids: set[int] = set()
    recv = client.recv

    def noted() -> tuple[int, m.Message]:
        tag, reply = recv()
        told.append(reply.encode(tag))
        for qid in (*getattr(reply, "qids", ()), *filter(None, [getattr(reply, "qid", None)])):
            qids.add(qid.path)
        return tag, reply

    monkeypatch.setattr(client, "recv", noted)
    for cls in REQUESTS.values():
        if cls in (m.Tversion, m.Tattach, m.Tauth, m.Tflush):
            continue  # of sessions; test_every_message has them
        for meant, message in messages(cls):
            for path in ("file",):
                (target.root / path).write_bytes(b"content")
            (target.root / "directory").chmod(0o755)
            for fid, stands_for in zip(SENT, meant, strict=False):
                client.rpc(m.Twalk(ROOT, fid, WAYS[stands_for]))
                if cls in (m.Tlock, m.Tgetlock, m.Treaddir, m.Tfsync, m.Tread, m.Twrite):
                    answered(client, m.Tlopen(fid, OpenFlag.RDONLY if stands_for != FILE else OpenFlag.RDWR))
            answered(client, message)
            if cls is m.Txattrcreate:
                answered(client, m.Twrite(SENT[0], 0, b"x"))
            forget(client, *SENT, NEW)
        assert hidden(target) == before, cls.__name__
    assert not [frame for frame in told if SECRET in frame]
    assert not qids & inodes
    with client.walked() as fid:
        client.rpc(m.Tlopen(fid, OpenFlag.DIRECTORY))
        assert not [entry for entry in client.readdir(fid) if entry.name.startswith((b"secret", b"hushed"))]
    target.require_unharmed()
