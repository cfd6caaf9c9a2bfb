"""Extended attributes: protocol.md's xattrwalk and xattrcreate, and what the security models keep where."""

from __future__ import annotations

import errno
import os
import struct
import sys
from typing import TYPE_CHECKING

import pytest

from uvmshare.fileserver.limits import Limits
from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import OpenFlag as O

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.fileserver.harness import Device, Host, Refused

    from uvmshare.testing.client import NinePClient

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

NEW = 7000
CREATE, REPLACE = os.XATTR_CREATE, os.XATTR_REPLACE

mapped = pytest.mark.parametrize("model", ["mapped-xattr"])
passthrough = pytest.mark.parametrize("model", ["passthrough"])
none = pytest.mark.parametrize("model", ["none"])


def get(guest: NinePClient, path: str, name: bytes) -> bytes:
    """Read an attribute, or the list of names, as Linux's client does."""
    with guest.walked(path) as fid:
        attribute = guest.new_fid()
        try:
            size = guest.ask(m.Txattrwalk(fid, attribute, name), m.Rxattrwalk).size
        except OSError:
            guest.free_fid(attribute)
            raise
        value = b""
        while data := guest.read(attribute, len(value), guest.msize - 24):
            value += data
        assert len(value) == size
        guest.clunk(attribute)
        return value


def put(guest: NinePClient, path: str, name: bytes, value: bytes, flags: int = 0) -> None:
    """Set an attribute, as Linux's client does; the clunk tells whether it worked."""
    fid = guest.walk(path)
    try:
        guest.ask(m.Txattrcreate(fid, name, len(value), flags), m.Rxattrcreate)
    except OSError:
        guest.clunk(fid)
        raise
    if value:
        guest.write(fid, 0, value)
    guest.clunk(fid)


def names(guest: NinePClient, path: str) -> set[bytes]:
    return set(get(guest, path, b"").split(b"\0")) - {b""}


@pytest.fixture
def file(host: Host) -> Path:
    path = host.root / "f"
    path.write_bytes(b"content")
    return path


@pytest.mark.parametrize("path", ["f", "d", ""])
@pytest.mark.parametrize("value", [b"value", b"", b"\0\xff", b"x" * 3000])
def test_set_get_list_remove(*, host: Host, guest: NinePClient, file: Path, path: str, value: bytes) -> None:
    (host.root / "d").mkdir()
    put(guest, path, b"user.a", value)
    put(guest, path, b"user.b", b"other")
    assert os.getxattr(host.root / path, "user.a") == value
    assert get(guest, path, b"user.a") == value
    assert names(guest, path) == {b"user.a", b"user.b"}
    put(guest, path, b"user.a", b"", REPLACE)  # removexattr(2), as Linux's client says it
    assert names(guest, path) == {b"user.b"}
    assert "user.a" not in os.listxattr(host.root / path)
    assert file.read_bytes() == b"content"


def test_what_is_not_there(guest: NinePClient, file: Path, refused: Refused) -> None:
    assert names(guest, "f") == set()
    with refused(errno.ENODATA):
        get(guest, "f", b"user.nothing")
    with refused(errno.EBADF):
        guest.rpc(m.Tgetattr(NEW, 0))


def test_the_flags(guest: NinePClient, file: Path, refused: Refused) -> None:
    with refused(errno.ENODATA):
        put(guest, "f", b"user.a", b"1", REPLACE)
    put(guest, "f", b"user.a", b"1", CREATE)
    with refused(errno.EEXIST):
        put(guest, "f", b"user.a", b"2", CREATE)
    put(guest, "f", b"user.a", b"3", REPLACE)
    assert get(guest, "f", b"user.a") == b"3"
    with refused(errno.ENODATA):
        put(guest, "f", b"user.nothing", b"", REPLACE)
    with refused(errno.EINVAL):
        put(guest, "f", b"user.a", b"4", 4)
    assert get(guest, "f", b"user.a") == b"3"


def test_a_value_in_several_writes(guest: NinePClient, file: Path) -> None:
    fid = guest.walk("f")
    guest.ask(m.Txattrcreate(fid, b"user.a", 9, 0), m.Rxattrcreate)
    for offset, part in ((0, b"one"), (3, b"two"), (6, b"six")):
        assert guest.write(fid, offset, part) == 3
    assert names(guest, "f") == set()  # it is set when the fid is clunked
    guest.clunk(fid)
    assert get(guest, "f", b"user.a") == b"onetwosix"


@pytest.mark.parametrize("written", [b"", b"short"])
def test_a_value_that_is_not_whole_is_not_set(guest: NinePClient, file: Path, refused: Refused, written: bytes) -> None:
    put(guest, "f", b"user.a", b"old")
    fid = guest.walk("f")
    guest.ask(m.Txattrcreate(fid, b"user.a", 9, 0), m.Rxattrcreate)
    if written:
        guest.write(fid, 0, written)
    with refused(errno.EINVAL):
        guest.clunk(fid)
    with refused(errno.EBADF):
        guest.rpc(m.Tgetattr(fid, 0))
    assert get(guest, "f", b"user.a") == b"old"


@pytest.mark.parametrize(("offset", "data"), [(1, b"x"), (0, b"0123456789"), (1 << 40, b"x"), ((1 << 64) - 1, b"x")])
def test_writes_past_the_value_are_refused(
    guest: NinePClient, file: Path, refused: Refused, offset: int, data: bytes
) -> None:
    fid = guest.walk("f")
    guest.ask(m.Txattrcreate(fid, b"user.a", 9, 0), m.Rxattrcreate)
    with refused():
        guest.rpc(m.Twrite(fid, offset, data))
    guest.write(fid, 0, b"123456789")
    guest.clunk(fid)
    assert get(guest, "f", b"user.a") == b"123456789"


def test_a_value_is_read_in_parts(guest: NinePClient, file: Path) -> None:
    put(guest, "f", b"user.a", b"0123456789")
    with guest.walked("f") as fid:
        assert guest.ask(m.Txattrwalk(fid, NEW, b"user.a"), m.Rxattrwalk).size == 10
    assert guest.read(NEW, 0, 4) == b"0123"
    assert guest.read(NEW, 4, 100) == b"456789"
    for offset in (10, 11, 1 << 40, (1 << 64) - 1):
        assert guest.read(NEW, offset, 100) == b""
    put(guest, "f", b"user.a", b"new")
    assert guest.read(NEW, 0, 100) == b"0123456789"  # what was there when it was walked to
    guest.ask(m.Tclunk(NEW), m.Rclunk)


def test_an_attributes_fid_is_no_files(guest: NinePClient, file: Path, refused: Refused) -> None:
    put(guest, "f", b"user.a", b"1")
    with guest.walked("f") as fid:
        guest.ask(m.Txattrwalk(fid, NEW, b"user.a"), m.Rxattrwalk)
    for message in (m.Tlopen(NEW, O.RDWR), m.Twrite(NEW, 0, b"x"), m.Treaddir(NEW, 0, 4096), m.Tfsync(NEW, 0)):
        with refused():
            guest.rpc(message)
    writing = guest.walk("f")
    guest.ask(m.Txattrcreate(writing, b"user.b", 1, 0), m.Rxattrcreate)
    others: list[m.Message] = [
        m.Tlopen(writing, O.RDWR),
        m.Tread(writing, 0, 1),
        m.Txattrcreate(writing, b"user.c", 1, 0),
    ]
    for other in others:
        with refused():
            guest.rpc(other)
    assert file.read_bytes() == b"content"


def test_an_open_fid_is_not_turned_into_an_attribute(guest: NinePClient, file: Path, refused: Refused) -> None:
    fid = guest.open("f", O.RDWR)
    with refused():
        guest.rpc(m.Txattrcreate(fid, b"user.a", 1, 0))
    with refused():
        guest.rpc(m.Txattrwalk(fid, fid, b""))
    assert guest.ask(m.Txattrwalk(fid, NEW, b""), m.Rxattrwalk).size == 0  # beside it, it may stay open
    assert guest.read(fid, 0, 100) == b"content"


def test_a_new_fid_in_use_is_refused(guest: NinePClient, file: Path, refused: Refused) -> None:
    with guest.walked("f") as fid, refused():
        guest.rpc(m.Txattrwalk(fid, guest.root, b""))
    assert guest.listdir() == [b"f"]


@pytest.mark.parametrize("name", [b"", b"user." + b"x" * 251, b"user." + b"x" * 60000])
def test_names_that_are_none(guest: NinePClient, file: Path, refused: Refused, name: bytes) -> None:
    with refused(errno.ERANGE, errno.EINVAL, errno.EOPNOTSUPP):
        put(guest, "f", name, b"1")
    if name:
        with refused(errno.ERANGE, errno.ENODATA, errno.EOPNOTSUPP):
            get(guest, "f", name)
    assert names(guest, "f") == set()


@pytest.mark.parametrize("size", [65537, 1 << 31, (1 << 64) - 1])
def test_values_that_are_too_large(guest: NinePClient, file: Path, refused: Refused, size: int) -> None:
    with guest.walked("f") as fid, refused(errno.E2BIG, errno.ENOSPC):
        guest.rpc(m.Txattrcreate(fid, b"user.a", size, 0))


def test_a_value_that_the_file_system_has_no_room_for(guest: NinePClient, file: Path) -> None:
    # 64 KiB is the protocol's; ext4 without large values takes less than a block.
    value = b"x" * 65536
    fid = guest.walk("f")
    guest.ask(m.Txattrcreate(fid, b"user.a", len(value), 0), m.Rxattrcreate)
    guest.write(fid, 0, value)
    guest.send(m.Tclunk(fid))
    reply = guest.recv()[1]
    assert reply in (m.Rclunk(), m.Rlerror(errno.ENOSPC), m.Rlerror(errno.E2BIG))
    assert (names(guest, "f") == {b"user.a"}) == (reply == m.Rclunk())


def test_a_file_that_was_unlinked(guest: NinePClient, file: Path) -> None:
    with guest.walked("f") as fid:
        writing = guest.walk(start=fid)
        guest.unlink("f")
        guest.ask(m.Txattrcreate(writing, b"user.a", 1, 0), m.Rxattrcreate)
        guest.write(writing, 0, b"1")
        guest.clunk(writing)
        assert guest.ask(m.Txattrwalk(fid, NEW, b"user.a"), m.Rxattrwalk).size == 1


def test_a_link_does_not_lead_to_its_targets_attributes(host: Host, guest: NinePClient, file: Path) -> None:
    os.setxattr(file, "user.a", b"of the target")
    os.symlink("f", host.root / "l")
    os.symlink(host.outside / "canary", host.root / "out")
    for link in ("l", "out"):
        with guest.walked(link) as fid:
            for message in (m.Txattrwalk(fid, NEW, b"user.a"), m.Txattrwalk(fid, NEW, b"")):
                guest.send(message)
                reply = guest.recv()[1]
                if reply == m.Rxattrwalk(0):
                    guest.ask(m.Tclunk(NEW), m.Rclunk)
                else:
                    assert isinstance(reply, m.Rlerror)
        fid = guest.walk(link)
        guest.send(m.Txattrcreate(fid, b"user.b", 0, 0))
        guest.recv()
        guest.send(m.Tclunk(fid))
        guest.recv()
    assert os.listxattr(file) == ["user.a"]
    assert os.listxattr(host.outside / "canary") == []


def test_what_was_moved_out_is_neither_read_nor_changed(
    host: Host, guest: NinePClient, file: Path, refused: Refused
) -> None:
    os.setxattr(file, "user.a", b"1")
    fid, writing = guest.walk("f"), guest.walk("f")
    guest.ask(m.Txattrcreate(writing, b"user.b", 1, 0), m.Rxattrcreate)
    guest.write(writing, 0, b"x")
    file.rename(host.outside / "f")
    with refused():
        guest.rpc(m.Txattrwalk(fid, NEW, b"user.a"))
    with refused():
        guest.rpc(m.Txattrcreate(fid, b"user.b", 1, 0))
    with refused():
        guest.clunk(writing)
    assert os.listxattr(host.outside / "f") == ["user.a"]


def test_a_read_only_share_tells_and_keeps_them(host: Host, file: Path, refused: Refused) -> None:
    os.setxattr(file, "user.a", b"1")
    guest = host.guest(read_only=True)
    assert get(guest, "f", b"user.a") == b"1"
    assert names(guest, "f") == {b"user.a"}
    for flags in (0, CREATE, REPLACE):
        with refused(errno.EROFS):
            put(guest, "f", b"user.a", b"", flags)
    assert os.getxattr(file, "user.a") == b"1"


# What is the server's own


@pytest.mark.parametrize("name", [b"uid", b"gid", b"mode", b"rdev", b"other", b"", b"security.x", b"virtfs.uid"])
def test_the_servers_own_are_neither_seen_nor_set(
    *, host: Host, guest: NinePClient, file: Path, refused: Refused, name: bytes
) -> None:
    own = b"user.virtfs." + name
    if name:
        os.setxattr(file, own, b"\1\0\0\0")
    os.setxattr(file, "user.seen", b"1")
    before = {attribute: os.getxattr(file, attribute) for attribute in os.listxattr(file)}
    assert own not in names(guest, "f")
    assert b"user.seen" in names(guest, "f")
    with refused():
        get(guest, "f", own)
    for value, flags in ((b"\2\0\0\0", 0), (b"\2\0\0\0", CREATE), (b"\2\0\0\0", REPLACE), (b"", REPLACE)):
        with refused():
            put(guest, "f", own, value, flags)
    assert {attribute: os.getxattr(file, attribute) for attribute in os.listxattr(file)} == before


KERNELS = [b"security.capability", b"security.x", b"trusted.x", b"system.posix_acl_access", b"system.posix_acl_default"]


@mapped
@pytest.mark.parametrize("name", KERNELS)
def test_mapped_what_a_kernel_acts_on_is_kept_where_the_hosts_does_not(
    host: Host, guest: NinePClient, file: Path, name: bytes
) -> None:
    put(guest, "f", name, b"guest's")
    assert get(guest, "f", name) == b"guest's"
    assert names(guest, "f") == {name}
    assert os.listxattr(file) == ["user.virtfs." + name.decode()]
    put(guest, "f", name, b"", REPLACE)
    assert names(guest, "f") == set()
    assert os.listxattr(file) == []


@mapped
def test_mapped_what_the_hosts_kernel_acts_on_is_not_the_guests(host: Host, guest: NinePClient, file: Path) -> None:
    try:
        os.setxattr(file, "trusted.host", b"1")
    except PermissionError:
        pytest.skip("trusted attributes need root")
    assert names(guest, "f") == set()
    put(guest, "f", b"trusted.host", b"guest's")
    assert os.getxattr(file, "trusted.host") == b"1"
    assert get(guest, "f", b"trusted.host") == b"guest's"


ACL = struct.pack("<IHHIHHIHHI", 2, 1, 6, 0xFFFFFFFF, 4, 4, 0xFFFFFFFF, 0x20, 4, 0xFFFFFFFF)
"""A POSIX ACL: owner rw-, group and others r-- (acl(5))."""


@passthrough
@pytest.mark.parametrize("name", [b"security.capability", b"security.selinux", b"security.x", b"trusted.x"])
def test_passthrough_what_is_a_right_on_the_host_is_neither_set_nor_told(
    *, host: Host, guest: NinePClient, file: Path, refused: Refused, name: bytes
) -> None:
    capability = struct.pack("<IIIII", 0x02000000, 1 << 10, 0, 0, 0)
    for value, flags in ((capability, 0), (capability, CREATE), (b"", REPLACE)):
        with refused(errno.EOPNOTSUPP):
            put(guest, "f", name, value, flags)
    assert os.listxattr(file) == []
    if name != b"security.selinux":
        os.setxattr(file, name, capability)
        with refused(errno.EOPNOTSUPP):
            put(guest, "f", name, b"", REPLACE)
        assert os.listxattr(file) == [name.decode()]
    with refused(errno.EOPNOTSUPP):
        get(guest, "f", name)
    with guest.walked("f") as fid:
        assert guest.ask(m.Txattrwalk(fid, NEW, b""), m.Rxattrwalk).size == 0
    assert guest.read(NEW, 0, 100) == b""


@passthrough
def test_passthrough_acls_are_the_hosts_own(host: Host, guest: NinePClient, file: Path, refused: Refused) -> None:
    os.setxattr(file, "trusted.x", b"1")
    file.chmod(0o600)
    put(guest, "f", b"system.posix_acl_access", ACL)
    guest.mkdir("d")
    put(guest, "d", b"system.posix_acl_default", ACL)
    for name in (b"system.posix_acl_accessory", b"system.nfs4_acl", b"system."):
        with refused(errno.EOPNOTSUPP):
            put(guest, "f", name, ACL)
    assert file.stat().st_mode & 0o777 == 0o644  # one that says no more than a mode becomes the mode
    assert os.getxattr(host.root / "d", "system.posix_acl_default") == ACL
    assert names(guest, "d") == {b"system.posix_acl_default"}
    assert get(guest, "d", b"system.posix_acl_default") == ACL


@mapped
def test_mapped_other_name_spaces_of_the_kernel_are_refused(guest: NinePClient, file: Path, refused: Refused) -> None:
    for name in (b"system.posix_acl_accessory", b"system.nfs4_acl", b"system.", b"other.x", b"x"):
        with refused(errno.EOPNOTSUPP):
            put(guest, "f", name, b"1")
    assert os.listxattr(file) == []


@none
@pytest.mark.parametrize("name", [*KERNELS, b"other.x", b"x"])
def test_none_keeps_those_of_users_alone(guest: NinePClient, file: Path, refused: Refused, name: bytes) -> None:
    with refused(errno.EOPNOTSUPP):
        put(guest, "f", name, b"1")
    with refused(errno.EOPNOTSUPP, errno.ENODATA):
        get(guest, "f", name)
    assert os.listxattr(file) == []


# Limits


def test_values_that_are_held_have_a_limit(
    start_device: Callable[..., Device], xattr_directory: Path, refused: Refused
) -> None:
    device = start_device(security_model="none", limits=Limits(xattr_bytes=100_000))
    root = xattr_directory / "limits"
    root.mkdir()
    (root / "f").write_bytes(b"")
    with device.connect(device.share(root)) as guest:
        first = guest.walk("f")
        guest.ask(m.Txattrcreate(first, b"user.a", 65536, 0), m.Rxattrcreate)
        second = guest.walk("f")
        with refused(errno.ENOMEM, errno.ENOSPC):
            guest.rpc(m.Txattrcreate(second, b"user.b", 65536, 0))
        with refused(errno.EINVAL):
            guest.clunk(first)
        guest.ask(m.Txattrcreate(second, b"user.b", 65536, 0), m.Rxattrcreate)


def test_what_is_refused_is_not_counted_as_held(guest: NinePClient, file: Path, refused: Refused) -> None:
    # More than the limit of 4 MiB in all, if any of them were.
    fid = guest.walk("f")
    for _ in range(100):
        for name, flags in ((b"user.virtfs.uid", 0), (b"user.x", 1 << 20), (b"", 0), (b"user." + b"x" * 300, 0)):
            with refused():
                guest.rpc(m.Txattrcreate(fid, name, 65536, flags))
        with refused():
            guest.rpc(m.Txattrwalk(fid, NEW, b"user.nothing"))
    put(guest, "f", b"user.a", b"1")
    assert get(guest, "f", b"user.a") == b"1"


def test_what_is_done_is_no_longer_held(guest: NinePClient, file: Path) -> None:
    value = b"x" * 3500
    put(guest, "f", b"user.a", value)
    for _ in range(1300):  # 4.5 MB in all, and 4 MiB are the limit
        with guest.walked("f") as fid:
            guest.ask(m.Txattrwalk(fid, NEW, b"user.a"), m.Rxattrwalk)
        guest.ask(m.Tclunk(NEW), m.Rclunk)
