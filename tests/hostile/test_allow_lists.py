"""A share with an allow-list: the directory itself stays the host's, whatever a guest sends about it.

Every message is sent about the root, an allowed file and an allowed directory, in each place of a fid and with names
on the list and off it. Afterwards the host's directory is what it was, and nothing in an answer told what else it has.
"""

from __future__ import annotations

import itertools
import os
import stat
import struct
import sys
from typing import TYPE_CHECKING, Any, Final

import pytest
from tests.hostile.shapes import FID_FIELDS, REQUESTS, answered, forget, kind_of
from tests.root import require_root

from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import AT_REMOVEDIR, OpenFlag, SetattrValid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.hostile.conftest import Target

    from uvmshare.testing.client import NinePClient

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

SECRET: Final = b"of the host's other files"
ACL: Final = struct.pack("<IHHIHHIHHI", 2, 1, 7, 0xFFFFFFFF, 4, 5, 0xFFFFFFFF, 0x20, 5, 0xFFFFFFFF)
"""A POSIX ACL: owner rwx, group r-x, others r-x (acl(5))."""

SERVERS: Final = {
    "mapped-xattr": ("mapped-xattr", {}),
    "passthrough": ("passthrough", {}),
    "none": ("none", {}),
    "mapped-xattr as a user": ("mapped-xattr", {"run_as": (12345, 12345, ())}),
}

ROOT, FILE, DIRECTORY = 0, 101, 102
WAYS: Final[dict[int, tuple[bytes, ...]]] = {ROOT: (), FILE: (b"allowed",), DIRECTORY: (b"directory",)}
SENT: Final = (201, 202)
"""The numbers of the fids in a message: each is walked to anew, since a message may use it up."""
NEW: Final = 300

_PLAIN: Final[dict[str, Any]] = {"int": 1, "bytes": b"new", "tuple": (b"allowed",), "data": SECRET}
_VALUES: Final[dict[str, tuple[Any, ...]]] = {
    "int": (0, 1, 2, 0o100644, 0o4777, stat.S_IFIFO | 0o600, 0xFFFFFFFF),
    "bytes": (
        *(b"allowed", b"ALLOWED", b"allowed ", b"allowed.", b"allowed/", b"absent", b"directory", b"hidden", b"new"),
        *(b".", b"..", b"", b"user.x", b"user.virtfs.mode", b"system.posix_acl_access", b"security.capability"),
    ),
    "tuple": ((), (b"..",), (b"hidden",), (b"..", b"hidden"), (b"directory", b"..", b"hidden"), (b"allowed", b"..")),
    "data": (SECRET,),
}
_OTHERS: Final[dict[str, tuple[Any, ...]]] = {
    "valid": (*(int(bit) for bit in SetattrValid), 0x1FF, 0xFFFFFFFF),
    "flags": (*(int(flag) for flag in OpenFlag), OpenFlag.RDWR | OpenFlag.TRUNC, AT_REMOVEDIR),
}
"""Values of fields by their names, where a number is more than a number."""


def messages(cls: type[m.Message]) -> Iterator[tuple[tuple[int, ...], m.Message]]:
    """Each message of a type, and what its fids stand for."""
    fields = [name for name in cls.__struct_fields__ if name in FID_FIELDS and name != "newfid"]
    names = [name for name in cls.__struct_fields__ if name not in FID_FIELDS]
    for meant in itertools.product(WAYS, repeat=len(fields)):
        plain = dict(zip(fields, SENT, strict=False)) | {name: _PLAIN[kind_of(cls, name)] for name in names}
        if "newfid" in cls.__struct_fields__:
            plain["newfid"] = NEW
        yield meant, cls(**plain)
        for name in names:
            for value in _OTHERS.get(name, ()) + _VALUES[kind_of(cls, name)]:
                yield meant, cls(**plain | {name: value})


@pytest.fixture
def share(attack: Callable[..., Target], server: str) -> Target:
    """A directory of which "allowed", "directory" and "absent" are shared."""
    model, settings = SERVERS[server]
    if settings:
        require_root("becoming another user needs root")
    target = attack(model, **settings)
    root = target.root
    for path in (root / "allowed", root / "hidden", root / "directory" / "inner", root / "secret" / "inner"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(SECRET if path.name == "hidden" else b"content")
    os.symlink("hidden", root / "directory" / "out")
    root.chmod(0o6751)
    os.setxattr(root, "user.secret", SECRET)
    os.setxattr(root, "user.virtfs.note", SECRET)
    os.setxattr(root, "system.posix_acl_access", ACL)
    os.setxattr(root, "system.posix_acl_default", ACL)
    for path in (root, *root.rglob("*")):
        os.chown(path, *target.user, follow_symlinks=False)
    root.chmod(0o3751)
    return target


def parent(target: Target) -> object:
    """All that a guest could change of the directory, and what it has beside the allowed names."""
    names = sorted(os.listdir(target.root))  # first: this host may note the access
    found = target.root.stat()
    every = [target.root, target.root / "hidden", target.root / "secret", target.root / "secret" / "inner"]
    return (
        names,
        {name: os.getxattr(target.root, name) for name in os.listxattr(target.root)},
        (found.st_nlink, found.st_size, found.st_atime_ns),
        [
            (there.st_mode, there.st_uid, there.st_gid, there.st_mtime_ns, there.st_ctime_ns)
            for there in map(os.stat, every)
        ],
        (target.root / "hidden").read_bytes(),
    )


def connect(target: Target, *, read_only: bool = False) -> NinePClient:
    client = target.connect(
        target.device.share(target.root, read_only=read_only, allowed=("absent", "allowed", "directory"))
    )
    assert client.root == ROOT
    return client


@pytest.mark.parametrize(("server", "read_only"), [*((server, False) for server in SERVERS), ("passthrough", True)])
def test_no_message_changes_the_directory_of_the_allowed_names(
    share: Target, monkeypatch: pytest.MonkeyPatch, *, read_only: bool
) -> None:
    client = connect(share, read_only=read_only)
    before = parent(share)
    told: list[bytes] = []
    recv = client.recv

    def noted() -> tuple[int, m.Message]:
        tag, reply = recv()
        told.append(reply.encode(tag))
        return tag, reply

    monkeypatch.setattr(client, "recv", noted)
    for cls in REQUESTS.values():
        if cls in (m.Tversion, m.Tattach, m.Tauth, m.Tflush):
            continue  # of sessions; test_every_message has them
        for meant, message in messages(cls):
            for fid, stands_for in zip(SENT, meant, strict=False):
                client.rpc(m.Twalk(ROOT, fid, WAYS[stands_for]))
                if cls in (m.Tlock, m.Tgetlock, m.Treaddir, m.Tfsync, m.Tread, m.Twrite):
                    answered(
                        client, m.Tlopen(fid, OpenFlag.RDONLY if read_only or stands_for != FILE else OpenFlag.RDWR)
                    )
            answered(client, message)
            if cls is m.Txattrcreate:
                answered(client, m.Twrite(SENT[0], 0, b"x"))
            forget(client, *SENT, NEW)
        assert parent(share) == before, cls.__name__
        if not read_only:
            (share.root / "allowed").write_bytes(b"content")  # it may have been removed of its content and bits
            (share.root / "allowed").chmod(0o644)
            (share.root / "directory").chmod(0o755)
    assert not [frame for frame in told if SECRET in frame or b"secret" in frame]
    share.require_unharmed()
