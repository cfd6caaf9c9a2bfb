"""Who owns what a guest makes: the three security models, with QEMU's names and formats."""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
from typing import TYPE_CHECKING

import pytest

from uvmshare.errors import InvalidDocument
from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import OpenFlag as O

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.fileserver.harness import Device, Host, Refused

    from uvmshare.testing.client import NinePClient

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

UID, GID = 1000, 2000

mapped = pytest.mark.parametrize("model", ["mapped-xattr"])
passthrough = pytest.mark.parametrize("model", ["passthrough"])
none = pytest.mark.parametrize("model", ["none"])


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def stored(path: Path) -> dict[str, bytes]:
    """The server's own attributes of a host file."""
    return {
        name.removeprefix("user.virtfs."): os.getxattr(path, name, follow_symlinks=False)
        for name in os.listxattr(path, follow_symlinks=False)
        if name.startswith("user.virtfs.")
    }


def store(path: Path, **values: bytes) -> None:
    for name, value in values.items():
        os.setxattr(path, "user.virtfs." + name, value)


def made_by(guest: NinePClient) -> dict[str, int]:
    """Make one of each kind as the user of the attach and the group GID; the names and their modes."""
    guest.clunk(guest.create("file", O.RDWR, 0o640, gid=GID))
    guest.mkdir("directory", 0o750, gid=GID)
    guest.symlink("target", "link", gid=GID)
    guest.mknod("fifo", stat.S_IFIFO | 0o620, gid=GID)
    guest.mknod("socket", stat.S_IFSOCK | 0o600, gid=GID)
    return {
        "file": stat.S_IFREG | 0o640,
        "directory": stat.S_IFDIR | 0o750,
        "link": stat.S_IFLNK | 0o777,
        "fifo": stat.S_IFIFO | 0o620,
        "socket": stat.S_IFSOCK | 0o600,
    }


# mapped-xattr


@mapped
def test_mapped_what_a_guest_makes_is_the_guests_to_it_and_the_servers_on_the_host(host: Host) -> None:
    guest = host.guest(n_uname=UID)
    for name, mode in made_by(guest).items():
        seen, path = guest.stat(name), host.root / name
        assert (seen.mode, seen.uid, seen.gid) == (mode, UID, GID), name
        found = path.lstat()
        assert (found.st_uid, found.st_gid) == (os.geteuid(), os.getegid()), name
        attributes = stored(path)
        assert (attributes["uid"], attributes["gid"]) == (u32(UID), u32(GID)), name
        # an absent mode is the host file's own
        assert attributes.get("mode", u32(found.st_mode)) == u32(mode), name


@mapped
def test_mapped_links_and_nodes_are_regular_files_on_the_host(host: Host, guest: NinePClient) -> None:
    made_by(guest)
    guest.mknod("device", stat.S_IFCHR | 0o666, 1, 3)
    guest.mknod("disk", stat.S_IFBLK | 0o660, 7, 300)
    for name in ("link", "fifo", "socket", "device", "disk"):
        assert stat.S_ISREG((host.root / name).lstat().st_mode), name
    assert (host.root / "link").read_bytes() == b"target"
    assert stored(host.root / "link")["mode"] == u32(stat.S_IFLNK | 0o777)
    for name, kind, number in (
        ("device", stat.S_IFCHR | 0o666, os.makedev(1, 3)),
        ("disk", stat.S_IFBLK | 0o660, os.makedev(7, 300)),
    ):
        assert stored(host.root / name)["mode"] == u32(kind)
        assert stored(host.root / name)["rdev"] == u64(number)
        assert guest.stat(name).rdev == number


@mapped
@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o1777, 0o6711, 0o7777, 0o644])
def test_mapped_host_files_have_no_setuid_setgid_or_sticky(host: Host, mode: int) -> None:
    guest = host.guest(n_uname=UID)
    guest.create("made", O.RDWR, mode)
    guest.mkdir("directory", mode)
    guest.write_file("changed", b"")
    with guest.walked("changed") as fid:
        guest.setattr(fid, mode=mode)
    for name in ("made", "directory", "changed"):
        assert stat.S_IMODE(guest.stat(name).mode) == mode
        on_host = stat.S_IMODE((host.root / name).stat().st_mode)
        assert on_host == mode & 0o777, f"{name} has {on_host:o} on the host"


@mapped
def test_mapped_changes_of_owner_are_stored_and_change_no_host_owner(host: Host, guest: NinePClient) -> None:
    path = host.root / "f"
    path.write_bytes(b"")
    before = path.stat()
    with guest.walked("f") as fid:
        guest.setattr(fid, uid=UID)
        assert (guest.getattr(fid).uid, guest.getattr(fid).gid) == (UID, before.st_gid)
        guest.setattr(fid, gid=GID)
        assert (guest.getattr(fid).uid, guest.getattr(fid).gid) == (UID, GID)
        assert (stored(path)["uid"], stored(path)["gid"]) == (u32(UID), u32(GID))
        guest.setattr(fid, mode=0o4700)
        assert (guest.getattr(fid).mode, guest.getattr(fid).uid) == (stat.S_IFREG | 0o4700, UID)
        guest.setattr(fid, uid=before.st_uid, gid=before.st_gid)
        assert (guest.getattr(fid).uid, guest.getattr(fid).gid) == (before.st_uid, before.st_gid)
    after = path.stat()
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)


@mapped
@pytest.mark.parametrize("uid", [0, 1, 65534, 65536, 0xFFFFFFFE])
def test_mapped_any_number_of_a_user(guest: NinePClient, uid: int) -> None:
    guest.write_file("f", b"")
    with guest.walked("f") as fid:
        guest.setattr(fid, uid=uid, gid=uid)
        assert (guest.getattr(fid).uid, guest.getattr(fid).gid) == (uid, uid)


@mapped
def test_mapped_a_tree_that_qemu_wrote_is_read(host: Host, guest: NinePClient) -> None:
    owner = {"uid": u32(UID), "gid": u32(GID)}
    for name, content in (("file", b"data"), ("link", b"../some/where"), ("fifo", b""), ("disk", b"")):
        (host.root / name).write_bytes(content)
        os.chmod(host.root / name, 0o600)
    (host.root / "directory").mkdir(mode=0o700)
    store(host.root / "file", **owner, mode=u32(stat.S_IFREG | 0o4755))
    store(host.root / "link", **owner, mode=u32(stat.S_IFLNK | 0o777))
    store(host.root / "fifo", **owner, mode=u32(stat.S_IFIFO | 0o666))
    store(host.root / "disk", **owner, mode=u32(stat.S_IFBLK | 0o660), rdev=u64(os.makedev(8, 1)))
    store(host.root / "directory", **owner, mode=u32(stat.S_IFDIR | 0o1777))
    expected = {
        "file": stat.S_IFREG | 0o4755,
        "link": stat.S_IFLNK | 0o777,
        "fifo": stat.S_IFIFO | 0o666,
        "disk": stat.S_IFBLK | 0o660,
        "directory": stat.S_IFDIR | 0o1777,
    }
    for name, mode in expected.items():
        seen = guest.stat(name)
        assert (seen.mode, seen.uid, seen.gid) == (mode, UID, GID), name
    assert guest.readlink("link") == b"../some/where"
    assert guest.stat("link").size == len("../some/where")
    assert guest.stat("disk").rdev == os.makedev(8, 1)
    assert guest.read_file("file") == b"data"
    for name in ("link", "fifo", "disk"):
        with guest.walked(name) as fid:
            guest.send(m.Tlopen(fid, O.RDWR))
            assert isinstance(guest.recv()[1], m.Rlerror), f"{name} stands for no file and was opened"


@mapped
def test_mapped_what_is_absent_is_the_host_files(host: Host, guest: NinePClient) -> None:
    path = host.root / "f"
    path.write_bytes(b"")
    os.chmod(path, 0o604)
    found = path.stat()
    store(path, uid=u32(UID))
    seen = guest.stat("f")
    assert (seen.mode, seen.uid, seen.gid) == (found.st_mode, UID, found.st_gid)
    os.chmod(path, 0o640)
    assert guest.stat("f").mode == stat.S_IFREG | 0o640
    os.removexattr(path, "user.virtfs.uid")
    store(path, gid=u32(GID))
    seen = guest.stat("f")
    assert (seen.uid, seen.gid) == (found.st_uid, GID)


@mapped
@pytest.mark.parametrize(
    ("name", "value"),
    [("uid", b""), ("uid", b"\1"), ("gid", b"12345678"), ("mode", b"100644"), ("mode", b""), ("rdev", b"1234")],
)
def test_mapped_what_is_no_number_is_as_if_absent(host: Host, guest: NinePClient, name: str, value: bytes) -> None:
    path = host.root / "f"
    path.write_bytes(b"")
    store(path, **{name: value})
    seen, found = guest.stat("f"), path.stat()
    assert (seen.mode, seen.uid, seen.gid) == (found.st_mode, found.st_uid, found.st_gid)


@mapped
@pytest.mark.parametrize("kind", [stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, 0, 0o170000])
def test_mapped_a_stored_type_never_makes_a_directory_of_a_file_or_the_reverse(
    host: Host, guest: NinePClient, kind: int
) -> None:
    (host.root / "file").write_bytes(b"x")
    (host.root / "directory").mkdir()
    for name in ("file", "directory"):
        store(host.root / name, mode=u32(kind | 0o700))
    assert not stat.S_ISDIR(guest.stat("file").mode)
    assert stat.S_ISDIR(guest.stat("directory").mode)
    assert guest.listdir("directory") == []


@mapped
def test_mapped_what_the_host_changes_in_the_attributes_is_seen(host: Host, guest: NinePClient) -> None:
    guest.write_file("f", b"")
    for uid in (5, 6, 7, 5):  # in quick succession: what was read before must not be kept too long
        store(host.root / "f", uid=u32(uid))
        assert guest.stat("f").uid == uid


@mapped
@pytest.mark.parametrize("name", ["uid", "gid", "mode", "rdev", "other"])
def test_mapped_a_guest_does_not_set_or_read_the_servers_attributes(
    host: Host, guest: NinePClient, refused: Refused, name: str
) -> None:
    guest.write_file("f", b"")
    store(host.root / "f", uid=u32(UID))
    with guest.walked("f") as fid:
        with refused():
            guest.rpc(m.Txattrcreate(fid, b"user.virtfs." + name.encode(), 4, 0))
        with refused():
            guest.rpc(m.Txattrwalk(fid, 7000, b"user.virtfs." + name.encode()))
    assert stored(host.root / "f").keys() == {"uid"}


@mapped
def test_mapped_one_guest_user_works_on_anothers_files(host: Host) -> None:
    # Permissions are checked by the guest's kernel; the server has only its own user.
    name = host.share()
    one, two = host.connect(name, n_uname=UID), host.connect(name, n_uname=UID + 1)
    one.write_file("f", b"one")
    two.write_file("f", b"two")
    assert (one.stat("f").uid, one.read_file("f")) == (UID, b"two")


@mapped
def test_mapped_a_hard_link_shares_its_owner(guest: NinePClient) -> None:
    guest.write_file("f", b"")
    guest.link("f", "g")
    with guest.walked("g") as fid:
        guest.setattr(fid, uid=UID, mode=0o4700)
    assert (guest.stat("f").uid, guest.stat("f").mode) == (UID, stat.S_IFREG | 0o4700)


@mapped
def test_mapped_several_users_on_one_connection(host: Host) -> None:
    name = host.share()
    guest = host.connect(name, n_uname=UID)
    other = guest.attach(name, n_uname=UID + 1)
    guest.ask(m.Tmkdir(guest.root, b"one", 0o755, 0), m.Rmkdir)
    guest.ask(m.Tmkdir(other, b"two", 0o755, 0), m.Rmkdir)
    below = guest.walk("one", start=other)  # a walked fid keeps its user
    guest.ask(m.Tmkdir(below, b"three", 0o755, 0), m.Rmkdir)
    assert [guest.stat(path).uid for path in ("one", "two", "one/three")] == [UID, UID + 1, UID + 1]


def test_mapped_a_file_system_without_user_attributes_is_refused_with_the_remedy(
    devices: Callable[[str], Device],
) -> None:
    with pytest.raises(OSError, match="not supported"):  # the premise: procfs keeps none
        os.getxattr("/proc", "user.probe")
    device = devices("mapped-xattr")
    with pytest.raises(InvalidDocument, match=r"extended attributes.*read-only|another security model"):
        device.share("/proc")
    device.unshare(device.share("/proc", read_only=True))


# passthrough


@passthrough
def test_passthrough_what_a_guest_makes_belongs_to_its_user_on_the_host(host: Host) -> None:
    guest = host.guest(n_uname=UID)
    for name, mode in made_by(guest).items():
        found, seen = (host.root / name).lstat(), guest.stat(name)
        assert (found.st_mode, found.st_uid, found.st_gid) == (mode, UID, GID), name
        assert (seen.mode, seen.uid, seen.gid) == (mode, UID, GID), name
        assert stored(host.root / name) == {}, name


@passthrough
def test_passthrough_the_identity_does_not_stick(host: Host) -> None:
    name = host.share()
    guest = host.connect(name, n_uname=UID)
    root = guest.attach(name, n_uname=0)
    guest.mkdir("one")
    guest.ask(m.Tmkdir(root, b"two", 0o755, 0), m.Rmkdir)
    guest.mkdir("three")
    assert [(host.root / path).stat().st_uid for path in ("one", "two", "three")] == [UID, 0, UID]


@passthrough
def test_passthrough_a_failure_does_not_make_the_identity_stick(host: Host, refused: Refused) -> None:
    name = host.share()
    guest = host.connect(name, n_uname=UID)
    root = guest.attach(name, n_uname=0)
    guest.mkdir("there")
    with refused(errno.EEXIST):
        guest.mkdir("there")
    guest.ask(m.Tmkdir(root, b"two", 0o755, 0), m.Rmkdir)
    assert (host.root / "two").stat().st_uid == 0


@passthrough
def test_passthrough_owners_and_modes_are_the_hosts(host: Host, guest: NinePClient) -> None:
    guest.write_file("f", b"")
    with guest.walked("f") as fid:
        guest.setattr(fid, uid=UID, gid=GID)
        guest.setattr(fid, mode=0o4750)
    found = (host.root / "f").stat()
    assert (found.st_mode, found.st_uid, found.st_gid) == (stat.S_IFREG | 0o4750, UID, GID)


@passthrough
def test_passthrough_nodes_are_nodes(host: Host) -> None:
    guest = host.guest(n_uname=0)
    guest.mknod("device", stat.S_IFCHR | 0o666, 1, 3)
    found = (host.root / "device").lstat()
    assert (found.st_mode, found.st_rdev) == (stat.S_IFCHR | 0o666, os.makedev(1, 3))


@passthrough
def test_passthrough_attributes_of_the_other_model_are_not_read(host: Host, guest: NinePClient) -> None:
    (host.root / "f").write_bytes(b"")
    store(host.root / "f", uid=u32(UID), mode=u32(stat.S_IFLNK | 0o777))
    seen = guest.stat("f")
    assert (seen.mode, seen.uid) == ((host.root / "f").stat().st_mode, 0)


@passthrough
def test_passthrough_a_users_write_takes_the_setuid_bit_off(host: Host) -> None:
    guest = host.guest(n_uname=UID)
    guest.create("f", O.RDWR, 0o755)
    os.chmod(host.root / "f", 0o4755)
    guest.write(guest.open("f", O.WRONLY), 0, b"x")
    assert stat.S_IMODE((host.root / "f").stat().st_mode) == 0o755


# none


@none
def test_none_what_a_guest_makes_is_the_servers(host: Host) -> None:
    guest = host.guest(n_uname=UID)
    for name, mode in made_by(guest).items():
        seen, found = guest.stat(name), (host.root / name).lstat()
        assert (seen.mode, seen.uid, seen.gid) == (mode, found.st_uid, found.st_gid), name
        assert found.st_mode == mode, name
        assert stored(host.root / name) == {}, name


@none
def test_none_attributes_of_the_other_model_are_not_read(host: Host, guest: NinePClient) -> None:
    (host.root / "f").write_bytes(b"")
    store(host.root / "f", uid=u32(UID), mode=u32(stat.S_IFLNK | 0o777))
    seen, found = guest.stat("f"), (host.root / "f").stat()
    assert (seen.mode, seen.uid) == (found.st_mode, found.st_uid)


@none
def test_none_a_change_of_owner_is_accepted_and_changes_no_owner(host: Host, guest: NinePClient) -> None:
    (host.root / "f").write_bytes(b"")
    (host.root / "d").mkdir()
    os.symlink("f", host.root / "l")
    every = [host.root, *host.root.iterdir()]
    before = [(found.st_mode, found.st_uid, found.st_gid, found.st_mtime_ns) for found in map(os.lstat, every)]
    for path in ("f", "d", "l", ""):
        with guest.walked(path) as fid:
            for owner in ({"uid": UID}, {"gid": GID}, {"uid": UID, "gid": GID}, {"uid": 0, "gid": 0}):
                guest.setattr(fid, **owner)
    after = [(found.st_mode, found.st_uid, found.st_gid, found.st_mtime_ns) for found in map(os.lstat, every)]
    assert after == before


@none
@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o6711, 0o7777])
def test_none_files_get_no_setuid_and_setgid_for_these_would_mean_the_servers_user(host: Host, mode: int) -> None:
    guest = host.guest(n_uname=UID)
    guest.create("made", O.RDWR, mode)
    guest.mknod("node", stat.S_IFREG | mode)
    guest.mknod("fifo", stat.S_IFIFO | mode)
    guest.write_file("changed", b"")
    with guest.walked("changed") as fid:
        guest.setattr(fid, mode=mode)
    for name in ("made", "node", "fifo", "changed"):
        on_host = stat.S_IMODE((host.root / name).stat().st_mode)
        assert on_host == mode & 0o1777, f"{name} has {on_host:o} on the host"
    guest.mkdir("directory", 0o2775)  # there it says whose group files get, and is nobody's right
    assert stat.S_IMODE((host.root / "directory").stat().st_mode) == 0o2775


@none
@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK])
def test_none_no_device_is_made(host: Host, refused: Refused, kind: int) -> None:
    guest = host.guest(n_uname=0)
    with refused(errno.EPERM):
        guest.mknod("device", kind | 0o666, 1, 3)
    assert os.listdir(host.root) == []


@mapped
def test_mapped_what_has_nowhere_to_keep_an_owner_on_the_host_keeps_its_own(host: Host, guest: NinePClient) -> None:
    """`chown -R` of a tree with links in it goes on, also to the owner that they have."""
    (host.root / "target").write_bytes(b"")
    os.chown(host.root / "target", 7, 7)
    (host.root / "link").symlink_to("target")
    (host.root / "dangling").symlink_to("nowhere")
    os.mkfifo(host.root / "fifo")
    for name in ("link", "dangling", "fifo"):
        before = (host.root / name).lstat()
        with guest.walked(name) as fid:
            guest.setattr(fid, uid=before.st_uid, gid=before.st_gid)
            guest.setattr(fid, uid=UID, gid=GID)
        seen, after = guest.stat(name), (host.root / name).lstat()
        assert (seen.uid, seen.gid) == (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)
    assert (host.root / "target").stat().st_uid == 7
