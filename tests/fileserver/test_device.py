"""The file server as a compute system: shares come and go, and are gone when it says so."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from tests.forked import started
from tests.processes import process_exists

from uvmshare.errors import ComputeSystemError, InvalidDocument, OutcomeUnknown, ShareExists, ShareNotFound
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

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.fileserver.harness import Device, Refused

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

forked_supervisors = started()


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
        return await asyncio.gather(*(device.server._modify(removal) for _ in range(3)), return_exceptions=True)

    with device.connect(name) as guest:
        results = device.run(twice())
        assert guest.drain() == []
    assert [result for result in results if result is not None and not isinstance(result, ShareNotFound)] == []
    assert results[0] is None


def test_many_changes_at_once(device: Device, root: Path) -> None:
    async def add_and_remove(number: int) -> None:
        name = f"1{number:03}"
        await device.server._modify(request_of(Plan9Share(name=name, access_name=name, path=str(root), port=564)))
        await device.server._modify(request_of(Plan9Share(name=name, access_name=name, port=564), RequestType.REMOVE))

    async def all_at_once() -> None:
        await asyncio.gather(*(add_and_remove(number) for number in range(100)))

    device.run(all_at_once())
    assert device.run(device.server.status()).shares == ()


def test_a_modify_that_is_cancelled_leaves_the_channel_in_order(device: Device, root: Path) -> None:
    async def cancelled() -> None:
        task = asyncio.ensure_future(device.server._modify(request_of(share_of(str(root)))))
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
