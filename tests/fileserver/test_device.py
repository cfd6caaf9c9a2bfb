"""The file server as a compute system: shares come and go, processes end, and no descriptor is left."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import signal
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from uvmshare.errors import (
    ComputeSystemError,
    ComputeSystemGone,
    FileServerError,
    InvalidAddress,
    InvalidDocument,
    OutcomeUnknown,
    ShareExists,
    ShareNotFound,
)
from uvmshare.fileserver.device import FileServer
from uvmshare.fileserver.limits import Limits
from uvmshare.hcs.schema import (
    PLAN9_SHARES,
    GuestRequest,
    MappedDirectory,
    ModifySettingRequest,
    Plan9Share,
    Plan9ShareFlags,
    RequestType,
)
from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import NOFID, NONUNAME, NOTAG, VERSION
from uvmshare.ninep.constants import OpenFlag as O
from uvmshare.testing.client import Client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.fileserver.conftest import Device, Refused

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)


@pytest.fixture(scope="module")
def device(start_device: Callable[..., Device]) -> Device:
    return start_device(security_model="none")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    directory = (tmp_path / "root").resolve()
    directory.mkdir()
    (directory / "file").write_bytes(b"content")
    return directory


def process_exists(pid: int) -> bool:
    """Whether there is such a process, a zombie included."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# Adding


def test_a_share_is_served_when_the_add_returns(device: Device, root: Path) -> None:
    name = device.share(root)
    with device.connect(name) as guest:
        assert guest.read_file("file") == b"content"
    device.unshare(name)


def test_a_share_can_be_added_while_guests_work_on_another(device: Device, root: Path, tmp_path: Path) -> None:
    first = device.share(root)
    with device.connect(first) as guest:
        fid = guest.open("file")
        second = device.share(tmp_path.resolve())
        with device.connect(second) as other:
            assert other.listdir() == [b"root"]
        device.unshare(second)
        assert guest.read(fid, 0, 10) == b"content"
    device.unshare(first)


def test_the_same_directory_can_be_shared_twice(device: Device, root: Path) -> None:
    one, two = device.share(root), device.share(root, read_only=True)
    device.unshare(one)
    with device.connect(two) as guest:
        assert guest.listdir() == [b"file"]
    device.unshare(two)


def test_a_name_that_is_taken(device: Device, root: Path) -> None:
    name = device.share(root)
    taken = Plan9Share(name=name, access_name=name, path=str(root), port=564)
    with pytest.raises(ShareExists, match=name):
        device.modify(request_of(taken))
    with device.connect(name) as guest:
        assert guest.listdir() == [b"file"]
    device.unshare(name)


def request_of(settings: Plan9Share | None, request_type: RequestType | None = RequestType.ADD) -> ModifySettingRequest:
    return ModifySettingRequest(resource_path=PLAN9_SHARES, request_type=request_type, settings=settings)


def share_of(path: str, **fields: Any) -> Plan9Share:
    return msgspec.structs.replace(Plan9Share(name="x", access_name="x", path=path, port=564), **fields)


def allowing(name: str) -> Callable[[str], Plan9Share]:
    flag = int(Plan9ShareFlags.RESTRICT_FILE_ACCESS)
    return lambda path: share_of(path, flags=flag, allowed_files=("file", name))


BAD_SETTINGS: dict[str, Callable[[str], Plan9Share]] = {
    "no name": lambda path: share_of(path, name="", access_name=""),
    "no path": lambda _: share_of(""),
    "a relative path": lambda _: share_of("root"),
    "a path with NUL": lambda path: share_of(path + "\0x"),
    "a path that is not there": lambda path: share_of(path + "/nothing"),
    "a path to a file": lambda path: share_of(path + "/file"),
    "an unknown flag": lambda path: share_of(path, flags=0x2),
    "a flag of far away": lambda path: share_of(path, flags=1 << 31),
    "names without the flag": lambda path: share_of(path, allowed_files=("file",)),
    "the flag without names": lambda path: share_of(path, flags=int(Plan9ShareFlags.RESTRICT_FILE_ACCESS)),
    **{f"the allowed name {name!r}": allowing(name) for name in ("", ".", "..", "a/b", "/", "a\0b")},
}


@pytest.mark.parametrize("settings", BAD_SETTINGS.values(), ids=BAD_SETTINGS.keys())
def test_a_share_that_cannot_be(device: Device, root: Path, settings: Callable[[str], Plan9Share]) -> None:
    with pytest.raises(ComputeSystemError) as caught:
        device.modify(request_of(settings(str(root))))
    assert not isinstance(caught.value, OutcomeUnknown)
    assert str(caught.value)
    assert [share.name for share in device.run(device.server.status()).shares] == []


@pytest.mark.parametrize(
    "document",
    [
        request_of(None),
        request_of(share_of("/"), None),
        ModifySettingRequest(request_type=RequestType.ADD, settings=share_of("/")),
        ModifySettingRequest(
            resource_path="VirtualMachine/Devices/Scsi", request_type=RequestType.ADD, settings=share_of("/")
        ),
        ModifySettingRequest(
            resource_path=PLAN9_SHARES,
            request_type=RequestType.ADD,
            settings=share_of("/"),
            guest_request=GuestRequest(
                resource_type="MappedDirectory",
                request_type=RequestType.ADD,
                settings=MappedDirectory(mount_path="/mnt"),
            ),
        ),
        ModifySettingRequest(),
    ],
)
def test_a_document_that_is_none(device: Device, document: ModifySettingRequest) -> None:
    with pytest.raises(InvalidDocument):
        device.modify(document)


def test_a_path_that_vanished_names_itself(device: Device, root: Path) -> None:
    (root / "file").unlink()
    root.rmdir()
    with pytest.raises(ComputeSystemError, match=str(root)):
        device.share(root)


def test_a_path_that_became_a_link_is_refused(device: Device, root: Path) -> None:
    root.rename(root.with_name("moved"))
    root.symlink_to("moved")
    with pytest.raises(ComputeSystemError, match=str(root)):
        device.share(root)
    inner = root.with_name("moved") / "inner"
    inner.mkdir()
    with pytest.raises(ComputeSystemError):
        device.share(root / "inner")


def test_a_directory_put_in_the_place_of_a_shared_one_is_not_served(device: Device, root: Path) -> None:
    name = device.share(root)
    root.rename(root.with_name("moved"))
    root.mkdir()
    (root / "other").write_bytes(b"")
    with device.connect(name) as guest:
        assert guest.listdir() == [b"file"]
    device.unshare(name)


def test_a_shared_directory_that_is_deleted(device: Device, root: Path, refused: Refused) -> None:
    name = device.share(root)
    with device.connect(name) as guest:
        fid = guest.open("file")
        (root / "file").unlink()
        root.rmdir()
        assert guest.read(fid, 0, 10) == b"content"
        with refused():
            guest.write_file("new", b"")
    device.unshare(name)


def test_the_root_of_the_host_can_be_shared(device: Device, root: Path) -> None:
    name = device.share("/", read_only=True)
    with device.connect(name) as guest:
        assert guest.read_file(str(root / "file")) == b"content"
        assert {entry.name for entry in guest.entries(str(root))} == {b"file"}
    device.unshare(name)


# Removing


def test_a_removal_ends_and_reaps_its_processes_before_it_returns(device: Device, root: Path, refused: Refused) -> None:
    name, other = device.share(root), device.share(root)
    guests = [device.connect(name) for _ in range(5)]
    with device.connect(other) as witness:
        pids = device.mounts(name)
        assert len(pids) == 5
        device.unshare(name)
        assert [pid for pid in pids if process_exists(pid)] == []
        for guest in guests:
            assert guest.drain() == []
            guest.close()
        assert witness.read_file("file") == b"content"
        with refused(errno.ENOENT):
            device.connect(name)
    device.unshare(other)


def test_a_removal_of_what_is_not_there(device: Device) -> None:
    with pytest.raises(ShareNotFound, match="777"):
        device.unshare("777")


def test_a_name_is_free_again(device: Device, root: Path, tmp_path: Path) -> None:
    name = device.share(root)
    device.unshare(name)
    device.modify(request_of(Plan9Share(name=name, access_name=name, path=str(tmp_path.resolve()), port=564)))
    with device.connect(name) as guest:
        assert guest.listdir() == [b"root"]
    device.unshare(name)


def test_what_a_guest_wrote_is_there_after_the_removal(device: Device, root: Path) -> None:
    name = device.share(root)
    with device.connect(name) as guest:
        guest.write(guest.create("new"), 0, b"x" * 100_000)
        device.unshare(name)
    assert (root / "new").read_bytes() == b"x" * 100_000


def test_a_guest_that_takes_no_replies_does_not_hold_up_a_removal(device: Device, root: Path) -> None:
    (root / "large").write_bytes(bytes(1 << 20))
    name = device.share(root)
    with device.connect(name) as guest, device.connect(name) as other:
        fid = guest.open("large")
        for _ in range(64):
            guest.send(m.Tread(fid, 0, 1 << 20))
        assert other.read_file("file") == b"content"
        pids = device.mounts(name)
        device.unshare(name)
        assert [pid for pid in pids if process_exists(pid)] == []


def test_a_stopped_mount_process_does_not_hold_up_a_removal(device: Device, root: Path) -> None:
    name = device.share(root)
    with device.connect(name) as guest:
        (pid,) = device.mounts(name)
        os.kill(pid, signal.SIGSTOP)
        guest.send(m.Tgetattr(guest.root, 0))
        device.unshare(name)
        assert not process_exists(pid)
        assert guest.drain() == []


def test_removals_of_one_share_at_once(device: Device, root: Path) -> None:
    name = device.share(root)
    removal = request_of(Plan9Share(name=name, access_name=name, port=564), RequestType.REMOVE)

    async def twice() -> list[BaseException | None]:
        return await asyncio.gather(*(device.server.modify(removal) for _ in range(3)), return_exceptions=True)

    with device.connect(name) as guest:
        results = device.run(twice())
        assert guest.drain() == []
    assert [result for result in results if result is not None and not isinstance(result, ShareNotFound)] == []
    assert results[0] is None


def test_many_changes_at_once(device: Device, root: Path) -> None:
    async def add_and_remove(number: int) -> None:
        name = f"1{number:03}"
        await device.server.modify(request_of(Plan9Share(name=name, access_name=name, path=str(root), port=564)))
        await device.server.modify(request_of(Plan9Share(name=name, access_name=name, port=564), RequestType.REMOVE))

    async def all_at_once() -> None:
        await asyncio.gather(*(add_and_remove(number) for number in range(100)))

    device.run(all_at_once())
    assert device.run(device.server.status()).shares == ()


def test_a_modify_that_is_cancelled_leaves_the_channel_in_order(device: Device, root: Path) -> None:
    async def cancelled() -> None:
        task = asyncio.ensure_future(device.server.modify(request_of(share_of(str(root)))))
        await asyncio.sleep(0)  # one turn of the loop: the request is on its way
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    device.run(cancelled())
    shares = [share.name for share in device.run(device.server.status()).shares]
    assert shares in ([], ["x"])  # it was cancelled, and may have been done
    if shares:
        device.unshare("x")


# Status


def test_the_status_tells_shares_and_mounts(device: Device, root: Path) -> None:
    name = device.share(root, read_only=True)
    with device.connect(name), device.connect(name):
        status = device.run(device.server.status())
        (share,) = status.shares
        assert (share.name, share.path, share.read_only) == (name, str(root), True)
        assert len({mount.pid for mount in share.mounts}) == 2
        assert status.addresses == device.server.addresses == (device.address,)
    device.unshare(name)


# Connections


def open_descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_descriptors_and_processes_do_not_grow_with_connections(
    device: Device, root: Path, ended: Callable[[int], None], refused: Refused
) -> None:
    name = device.share(root)
    supervisor = device.pid()
    before: int | None = None
    for turn in range(100):
        with device.connect(name) as guest:
            guest.stat("file")
            (pid,) = device.mounts(name)
        with device.dial() as half_open:
            half_open.version()
        with device.dial() as stranger:
            stranger.version()
            with refused(errno.ENOENT):
                stranger.attach("nothing")
        ended(pid)
        if turn == 0:
            before = settled(device, name, supervisor)
    assert settled(device, name, supervisor) == before
    device.unshare(name)


def settled(device: Device, name: str, supervisor: int) -> int:
    """The supervisor's descriptors once it has seen the end of every connection.

    It sees them in its own time, so it is asked again; each answer is a turn of its loop.
    """
    for _ in range(10_000):
        status = device.run(device.server.status())
        if status.half_open == 0 and not any(share.mounts for share in status.shares):
            return open_descriptors(supervisor)
    pytest.fail(f"connections of share {name} are left: {status}")


def test_a_mount_process_holds_little_and_lets_go(device: Device, root: Path) -> None:
    name = device.share(root)
    with device.connect(name) as guest:
        (pid,) = device.mounts(name)
        before = open_descriptors(pid)
        assert before < 16
        fids = [guest.open("file") for _ in range(100)]
        assert open_descriptors(pid) > before
        for fid in fids:
            guest.clunk(fid)
        for _ in range(50):
            with contextlib.suppress(OSError):
                guest.create("nothing/here")
            with contextlib.suppress(OSError):
                guest.open("file", O.DIRECTORY)
            guest.clunk(guest.open("", O.DIRECTORY))
            guest.read_file("file")
        assert open_descriptors(pid) == before
        guest.version()
        assert open_descriptors(pid) <= before
    device.unshare(name)


def test_a_mount_process_that_is_killed_ends_its_connection_alone(
    device: Device, root: Path, ended: Callable[[int], None]
) -> None:
    name = device.share(root)
    with device.connect(name) as victim:
        (pid,) = device.mounts(name)
        with device.connect(name) as witness:
            os.kill(pid, signal.SIGKILL)
            assert victim.drain() == []
            ended(pid)
            assert witness.read_file("file") == b"content"
    device.unshare(name)


def test_fids_past_the_limit_are_refused(start_device: Callable[..., Device], root: Path, refused: Refused) -> None:
    device = start_device(security_model="none", limits=Limits(fids=100))
    with device.connect(device.share(root)) as guest:
        for fid in range(1000, 1099):  # the root is one
            guest.ask(m.Twalk(guest.root, fid), m.Rwalk)
        with refused(errno.EMFILE):
            guest.rpc(m.Twalk(guest.root, 1099))
        guest.ask(m.Tclunk(1000), m.Rclunk)
        guest.ask(m.Twalk(guest.root, 1099), m.Rwalk)


def test_mounts_past_the_limit_are_refused(
    start_device: Callable[..., Device], root: Path, refused: Refused, ended: Callable[[int], None]
) -> None:
    device = start_device(security_model="none", limits=Limits(mounts=2))
    name = device.share(root)
    with device.connect(name) as one:
        (first,) = device.mounts(name)
        with device.connect(name) as two:
            with refused(errno.EUSERS):
                device.connect(name)
            assert one.listdir() == two.listdir() == [b"file"]
            one.close()
            ended(first)
            settled_mounts = next(count for _ in range(10_000) if (count := len(device.mounts(name))) < 2)
            assert settled_mounts == 1
            with device.connect(name) as three:
                assert three.listdir() == [b"file"]


# Connections that say nothing


def test_silent_connections_do_not_keep_a_good_one_out(start_device: Callable[..., Device], root: Path) -> None:
    device = start_device(security_model="none", limits=Limits(half_open=8))
    name = device.share(root)
    silent = [device.dial() for _ in range(8)]
    device.pid()
    with device.connect(name) as guest:
        assert guest.listdir() == [b"file"]
        assert silent[0].drain() == []  # the oldest had to go
        more = [device.dial() for _ in range(20)]
        for half, version in zip(more, range(20), strict=True):
            if version % 2:
                with contextlib.suppress(EOFError):
                    half.send_raw(m.Tversion(8192, VERSION).encode(NOTAG)[:-1])
        with device.connect(name) as another:
            assert another.listdir() == [b"file"]
        assert guest.listdir() == [b"file"]
    for client in (*silent, *more):
        client.close()


def test_a_handshake_has_a_deadline(start_device: Callable[..., Device], root: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    device = start_device(security_model="none", log=log, limits=Limits(handshake_seconds=0.01))
    started = {
        "nothing": b"",
        "half a version": m.Tversion(8192, VERSION).encode(NOTAG)[:10],
        "a version": m.Tversion(8192, VERSION).encode(NOTAG),
        "an attach that is refused": m.Tversion(8192, VERSION).encode(NOTAG)
        + m.Tattach(0, NOFID, b"", b"nothing", NONUNAME).encode(1),
    }
    for data in started.values():
        with device.dial() as client:
            with contextlib.suppress(EOFError):
                client.send_raw(data)
            client.drain()
    device.pid()
    assert log.read_text().count("deadline") == len(started)


def test_a_session_has_no_deadline(start_device: Callable[..., Device], root: Path) -> None:
    device = start_device(security_model="none", limits=Limits(handshake_seconds=1.0))
    name = device.share(root)
    with device.connect(name) as guest, device.dial() as silent:
        assert silent.drain() == []  # later than the guest's own deadline would have been
        assert guest.listdir() == [b"file"]


# Addresses


def test_several_addresses_and_a_port_of_the_systems_choice(start_device: Callable[..., Device], root: Path) -> None:
    device = start_device(security_model="none", listen=["tcp:127.0.0.1:0", "tcp:localhost:0"])
    name = device.share(root)
    assert len(device.server.addresses) == 2
    for address in device.server.addresses:
        assert not address.endswith(":0")
        with Client.connect(address, name) as guest:
            assert guest.listdir() == [b"file"]


@pytest.mark.parametrize("kind", ["firecracker", "cloud-hypervisor"])
def test_hybrid_vsock_listens_where_the_monitor_connects(
    start_device: Callable[..., Device], root: Path, tmp_path_factory: pytest.TempPathFactory, kind: str
) -> None:
    path = tmp_path_factory.mktemp("h") / "v"
    device = start_device(security_model="none", listen=[f"{kind}:{path}", f"{kind}:{path}:77"])
    name = device.share(root)
    for socket_path in (f"{path}_5640", f"{path}_77"):
        assert stat.S_ISSOCK(os.stat(socket_path).st_mode)
        assert stat.S_IMODE(os.stat(socket_path).st_mode) == 0o600
        with Client.connect(f"unix:{socket_path}", name) as guest:
            assert guest.listdir() == [b"file"]


def test_the_mode_of_the_socket(start_device: Callable[..., Device]) -> None:
    device = start_device(security_model="none", socket_mode=0o660)
    assert stat.S_IMODE(os.stat(device.address.removeprefix("unix:")).st_mode) == 0o660


def start_and_fail(**settings: Any) -> None:
    async def start() -> None:
        async with await FileServer.start(**settings):
            pytest.fail("it started")

    asyncio.run(start())


@pytest.mark.parametrize(
    "address", ["", "unix:", "unix", "tcp:127.0.0.1", "tcp:0.0.0.0:0", "http://x", "vsock:x", "vsock:2:5640", "tcp::0"]
)
def test_addresses_that_cannot_be(address: str) -> None:
    with pytest.raises(InvalidAddress):
        start_and_fail(listen=[address])


@pytest.mark.parametrize(
    "settings",
    [
        {"listen": []},
        {"listen": ["unix:/nothing/here/s"]},
        {"listen": ["tcp:127.0.0.1:0"], "security_model": "mapped"},
        {"listen": ["unix:/etc/passwd"]},
    ],
)
def test_servers_that_cannot_start(settings: dict[str, Any]) -> None:
    with pytest.raises(FileServerError):
        start_and_fail(**settings)


def test_an_address_in_use_is_refused_and_the_other_server_goes_on(device: Device, root: Path) -> None:
    with pytest.raises(FileServerError, match="another server"):
        start_and_fail(listen=[device.address])
    name = device.share(root)
    with device.connect(name) as guest:
        assert guest.listdir() == [b"file"]
    device.unshare(name)


def test_a_socket_that_a_dead_server_left_is_taken_over(
    start_device: Callable[..., Device],
    root: Path,
    ended: Callable[[int], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    address = f"unix:{tmp_path_factory.mktemp('d')}/s"
    dead = start_device(security_model="none", listen=[address])
    pid = dead.pid()
    os.kill(pid, signal.SIGKILL)
    ended(pid)
    device = start_device(security_model="none", listen=[address])
    with Client.connect(address, device.share(root)) as guest:
        assert guest.listdir() == [b"file"]


# Ends


def test_closing_ends_everything_and_removes_the_socket(
    start_device: Callable[..., Device], root: Path, ended: Callable[[int], None]
) -> None:
    device = start_device(security_model="none")
    name = device.share(root)
    with device.connect(name) as guest, device.dial() as half_open:
        supervisor, mounts = device.pid(), device.mounts(name)
        device.run(device.server.aclose())
        assert [pid for pid in (supervisor, *mounts) if process_exists(pid)] == []
        assert guest.drain() == []
        assert half_open.drain() == []
    assert not os.path.lexists(device.address.removeprefix("unix:"))
    device.run(device.server.aclose())  # again changes nothing
    with pytest.raises(ComputeSystemGone):
        device.share(root)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_supervisor_that_is_told_to_end_ends_in_order(
    start_device: Callable[..., Device], root: Path, ended: Callable[[int], None], number: signal.Signals
) -> None:
    device = start_device(security_model="none")
    name = device.share(root)
    with device.connect(name) as guest:
        supervisor, mounts = device.pid(), device.mounts(name)
        os.kill(supervisor, number)
        ended(supervisor)
        assert [pid for pid in mounts if process_exists(pid)] == []
        assert guest.drain() == []
    with pytest.raises((ComputeSystemGone, OutcomeUnknown)):
        device.share(root)
    with pytest.raises(ComputeSystemGone):
        device.share(root)


def test_a_supervisor_that_is_killed_takes_its_mounts_along(
    start_device: Callable[..., Device], root: Path, ended: Callable[[int], None]
) -> None:
    device = start_device(security_model="none")
    name = device.share(root)
    guests = [device.connect(name, n_uname=1000) for _ in range(3)]
    supervisor, mounts = device.pid(), device.mounts(name)
    assert len(mounts) == 3
    os.kill(supervisor, signal.SIGKILL)
    for pid in (supervisor, *mounts):
        ended(pid)
    for guest in guests:
        assert guest.drain() == []
        guest.close()
    with pytest.raises((ComputeSystemGone, OutcomeUnknown)):
        device.share(root)
    with pytest.raises(ComputeSystemGone):
        device.share(root)


def test_a_request_under_way_when_the_supervisor_dies_has_an_unknown_outcome(
    start_device: Callable[..., Device], root: Path
) -> None:
    device = start_device(security_model="none")
    supervisor = device.pid()
    os.kill(supervisor, signal.SIGSTOP)  # it reads nothing any more

    async def ask_and_kill() -> None:
        task = asyncio.ensure_future(device.server.modify(request_of(share_of(str(root)))))
        await asyncio.sleep(0)  # one turn of the loop: the request is on its way
        os.kill(supervisor, signal.SIGKILL)
        await task

    with pytest.raises(OutcomeUnknown):
        device.run(ask_and_kill())


def test_a_supervisor_that_does_not_answer_has_an_unknown_outcome(
    start_device: Callable[..., Device], root: Path
) -> None:
    device = start_device(security_model="none", modify_timeout=0.05)
    supervisor = device.pid()
    os.kill(supervisor, signal.SIGSTOP)
    try:
        with pytest.raises(OutcomeUnknown):
            device.share(root)
    finally:
        os.kill(supervisor, signal.SIGCONT)


STARTER = """
import asyncio, json, os, sys, time
from uvmshare.fileserver.device import FileServer
from uvmshare.hcs.schema import PLAN9_SHARES, ModifySettingRequest, Plan9Share, RequestType

async def main():
    settings = json.loads(sys.argv[1])
    root = settings.pop("root")
    server = await FileServer.start(**settings)
    share = Plan9Share(name="0", access_name="0", path=root, port=564)
    await server.modify(
        ModifySettingRequest(resource_path=PLAN9_SHARES, request_type=RequestType.ADD, settings=share)
    )
    print((await server.status()).pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def start_elsewhere() -> Iterator[Callable[..., tuple[subprocess.Popen[str], int]]]:
    """Start a file server with share 0 from a process of its own; give that process and the supervisor's pid."""
    started: list[subprocess.Popen[str]] = []

    def start(**settings: Any) -> tuple[subprocess.Popen[str], int]:
        process = subprocess.Popen(
            [sys.executable, "-c", STARTER, json.dumps({"security_model": "none"} | settings)],
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        return process, int(process.stdout.readline())

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_a_server_ends_with_the_process_that_started_it(
    start_elsewhere: Callable[..., tuple[subprocess.Popen[str], int]],
    root: Path,
    ended: Callable[[int], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    address = f"unix:{tmp_path_factory.mktemp('e')}/s"
    starter, supervisor = start_elsewhere(listen=[address], root=str(root))
    with Client.connect(address, "0") as guest:
        assert guest.listdir() == [b"file"]
        starter.kill()
        ended(supervisor)
        assert guest.drain() == []
    assert not os.path.lexists(address.removeprefix("unix:"))


def test_a_server_with_a_run_directory_goes_on_and_is_adopted(
    start_elsewhere: Callable[..., tuple[subprocess.Popen[str], int]],
    root: Path,
    ended: Callable[[int], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    directory = tmp_path_factory.mktemp("a")
    address = f"unix:{directory}/s"
    starter, supervisor = start_elsewhere(listen=[address], root=str(root), run_dir=str(directory / "run"))
    with Client.connect(address, "0") as guest:
        starter.kill()
        starter.wait()
        assert guest.read_file("file") == b"content"

        async def adopt() -> None:
            async with await FileServer.connect(directory / "run") as server:
                assert server.addresses == (address,)
                status = await server.status()
                assert status.pid == supervisor
                assert [share.name for share in status.shares] == ["0"]
                assert guest.listdir() == [b"file"]
                removal = request_of(Plan9Share(name="0", access_name="0", port=564), RequestType.REMOVE)
                await server.modify(removal)
                assert guest.drain() == []

        asyncio.run(adopt())
    ended(supervisor)
    assert not os.path.lexists(address.removeprefix("unix:"))


def test_whoever_lets_go_leaves_the_server_running(
    start_elsewhere: Callable[..., tuple[subprocess.Popen[str], int]],
    root: Path,
    ended: Callable[[int], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    directory = tmp_path_factory.mktemp("b")
    address = f"unix:{directory}/s"
    _, supervisor = start_elsewhere(listen=[address], root=str(root), run_dir=str(directory / "run"))

    async def look_and_leave() -> None:
        server = await FileServer.connect(directory / "run")
        assert (await server.status()).pid == supervisor
        await server.detach()

    async def end() -> None:
        await (await FileServer.connect(directory / "run")).aclose()

    asyncio.run(look_and_leave())
    with Client.connect(address, "0") as guest:
        assert guest.listdir() == [b"file"]
    asyncio.run(end())
    ended(supervisor)


GARBAGE = [
    b"\xff\xff\xff\xff",
    (5).to_bytes(4, "big") + b"hello",
    (2).to_bytes(4, "big") + b"{}",
    (4).to_bytes(4, "big") + b"null",
    (0).to_bytes(4, "big"),
    (27).to_bytes(4, "big") + b'{"do":"nothing","id":1}    ',
    (20).to_bytes(4, "big") + b'{"do":"modify","id"',
]


@pytest.mark.parametrize("data", GARBAGE)
def test_a_peer_that_makes_no_sense_on_the_control_socket_ends_itself_alone(
    tmp_path_factory: pytest.TempPathFactory, root: Path, data: bytes
) -> None:
    directory = tmp_path_factory.mktemp("c")
    path = directory / "control.sock"

    async def speak_nonsense() -> None:
        async with await FileServer.start(
            listen=[f"unix:{directory}/s"], run_dir=directory, security_model="none"
        ) as server:
            await server.modify(request_of(share_of(str(root))))
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            reader, writer = await asyncio.open_unix_connection(str(path))
            writer.write(data)
            writer.write_eof()
            async with asyncio.timeout(60):
                assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()
            with Client.connect(f"unix:{directory}/s", "x") as guest:
                assert guest.listdir() == [b"file"]
            assert [share.name for share in (await server.status()).shares] == ["x"]

    asyncio.run(speak_nonsense())


def test_a_run_directory_without_a_server(tmp_path: Path) -> None:
    async def connect() -> None:
        await FileServer.connect(tmp_path)

    with pytest.raises(FileServerError, match=str(tmp_path)):
        asyncio.run(connect())


def test_two_servers_do_not_share_a_run_directory(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("r")

    async def twice() -> None:
        async with await FileServer.start(listen=["tcp:127.0.0.1:0"], run_dir=directory, security_model="none"):
            with pytest.raises(FileServerError):
                await FileServer.start(listen=["tcp:127.0.0.1:0"], run_dir=directory, security_model="none")

    asyncio.run(twice())
