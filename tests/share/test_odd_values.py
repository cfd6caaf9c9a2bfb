"""Whatever text or number a program gives to the library, in whatever place, is taken or refused in words."""

from __future__ import annotations

import asyncio
import errno
import inspect
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from tests.hostile_text import ODD

from uvmshare import AddOptions, Manager, SqliteJournal, address, blocking
from uvmshare.errors import InvalidAddress, InvalidOptions, InvalidSavedState, UvmshareError
from uvmshare.mounts.options import MountOptions
from uvmshare.testing.fakes import FakeVM

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

assert sys.platform == "linux", "the file server runs on Linux"

from uvmshare import FileServer  # noqa: E402  Linux alone has it
from uvmshare.fileserver import control  # noqa: E402  as above
from uvmshare.fileserver.host import examine  # noqa: E402  as above
from uvmshare.fileserver.limits import Limits  # noqa: E402  as above
from uvmshare.fileserver.link import Link  # noqa: E402  as above
from uvmshare.hostfiles import make_directories  # noqa: E402  as above

SERVER = "unix:/nowhere/x"
TEXTS: dict[str, Any] = ODD
OTHERS: dict[str, Any] = {
    "bytes": b"x",
    "a number": 5,
    "a negative number": -1,
    "a great number": 10**400,
    "no number": float("nan"),
    "infinity": float("inf"),
    "a list": ["x"],
    "None": None,
    "another object": object(),
}


async def _start(**settings: Any) -> None:
    async with FileServer(**{"listen": [SERVER], **settings}):
        pass


async def _connect(run_dir: Any, **settings: Any) -> None:
    async with FileServer.connect(run_dir, **settings):
        pass


async def _do(work: Callable[[], object]) -> None:
    work()


async def _journalled(folder: str, vm: Any) -> None:
    with SqliteJournal(f"{folder}/journal.db") as journal:
        manager = Manager(FakeVM(), journal=journal.for_vm(vm))
        await manager.add(AddOptions(folder), owner="me")
        await manager.aclose()


async def _forgotten(folder: str, vm: Any) -> None:
    with SqliteJournal(f"{folder}/journal.db") as journal:
        await journal.forget_vm(vm)


async def _journal_at(path: Any) -> None:
    with SqliteJournal(path) as journal:
        await journal.vms()


async def _owned(folder: str, owner: Any) -> None:
    manager = Manager(FakeVM())
    name = await manager.add(AddOptions(folder), owner=owner)
    manager.shares(name=name, owner=owner)
    await Manager.restore(manager.save(), FakeVM())
    await manager.release_owner(owner)


async def _owned_and_written(folder: str, owner: Any) -> None:
    with SqliteJournal(f"{folder}/journal.db") as journal:
        manager = Manager(FakeVM(), journal=journal.for_vm("vm"))
        await manager.add(AddOptions(folder), owner=owner)
        await manager.release_owner(owner)
        await manager.aclose()


async def _blocking(folder: str, owner: Any) -> None:
    with blocking.Manager(FakeVM()) as manager:
        manager.remove(manager.add(AddOptions(folder), owner=owner), owner=owner)


TEXT_PLACES: dict[str, Callable[[str, str], Awaitable[object]]] = {
    "path": lambda folder, text: _do(lambda: AddOptions(f"{folder}/{text}")),
    "allowed name": lambda folder, text: _do(lambda: AddOptions(folder, allowed_names=[text])),
    "unix socket": lambda folder, text: _start(listen=[f"unix:{folder}/{text}/none"]),
    "hybrid socket": lambda folder, text: _start(listen=[f"firecracker:{folder}/nowhere/{text}"]),
    "host": lambda _, text: _do(lambda: address.parse(f"tcp:{text}:0")),
    "port": lambda _, text: _start(listen=[f"tcp:127.0.0.1:{text}"]),
    "scheme": lambda _, text: _start(listen=[text]),
    "CID": lambda _, text: _start(listen=[f"vsock:{text}:{text}"]),
    "run directory": lambda folder, text: _start(run_dir=f"{folder}/nowhere/{text}/run"),
    "log": lambda folder, text: _start(log=f"{folder}/nowhere/{text}"),
    "connected run directory": lambda folder, text: _connect(f"{folder}/{text}"),
    "log of a connected one": lambda folder, text: _connect(folder, log=f"{folder}/{text}"),
    "path of a journal": lambda folder, text: _journal_at(f"{folder}/{text}"),
    "guest path": lambda _, text: _do(lambda: MountOptions("0", f"/{text}")),
    "looked at": lambda folder, text: _do(lambda: examine([f"{folder}/{text}"])),
}
PLACES: dict[str, Callable[[str, Any], Awaitable[object]]] = {
    "whole path": lambda _, value: _do(lambda: AddOptions(value)),
    "allowed names": lambda folder, value: _do(lambda: AddOptions(folder, allowed_names=value)),
    "options": lambda _, value: Manager(FakeVM()).add(value),
    "share of a mount": lambda _, value: _do(lambda: MountOptions(value, "/mnt")),
    "whole guest path": lambda _, value: _do(lambda: MountOptions("0", value)),
    "cache": lambda _, value: _do(lambda: MountOptions("0", "/mnt", cache=value)),
    "msize": lambda _, value: _do(lambda: MountOptions("0", "/mnt", msize=value)),
    "owner": _owned,
    "owner in a journal": _owned_and_written,
    "owner of a thread": _blocking,
    "removed name": lambda _, value: Manager(FakeVM()).remove(value),
    "id in a journal": _journalled,
    "forgotten id": _forgotten,
    "whole path of a journal": lambda _, value: _do(lambda: SqliteJournal(value)),
    "saved state": lambda _, value: Manager.restore(value, FakeVM()),
    "addresses": lambda _, value: _start(listen=value),
    "address": lambda _, value: _do(lambda: address.parse(value)),
    "security model": lambda _, value: _start(security_model=value),
    "remote": lambda _, value: _start(allow_remote=value),
    "uid": lambda _, value: _start(allow_uids=[value]),
    "socket mode": lambda _, value: _start(socket_mode=value),
    "limits": lambda _, value: _start(limits=value),
    "time-out": lambda _, value: _start(modify_timeout=value),
    "user": lambda _, value: _start(run_as=value),
    "user's number": lambda _, value: _start(run_as=(value, 0, ())),
    "group": lambda _, value: _start(run_as=(0, 0, (value,))),
    "whole run directory": lambda _, value: _start(run_dir=value, listen=["unix:"]),
    "whole log": lambda _, value: _start(log=value, listen=["unix:"]),
    "whole connected run directory": lambda _, value: _connect(value, take_over=False),
    "limits by name": lambda _, value: _do(lambda: Limits.of(value)),
    "limit": lambda _, value: _do(lambda: Limits.of({value: 1} if isinstance(value, str) else {"mounts": value})),
    "seconds of a limit": lambda _, value: _do(lambda: Limits.of({"handshake_seconds": value})),
    "number of a limit": lambda _, value: _do(lambda: Limits(mounts=value).checked()),
}


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no process started for a file server, but see that what it would be sent can be read there."""
    start = Link.start.__func__  # type: ignore[attr-defined]

    async def readable(cls: type[Link], configuration: control.Configuration, *more: Any) -> Link:
        (body,) = control.split(bytearray(control.encode(configuration)))
        assert control.decode_request(body) == configuration
        started: Link = await start(cls, configuration, *more)
        return started

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, "no process is started here")

    monkeypatch.setattr(Link, "start", classmethod(readable))
    monkeypatch.setattr(subprocess, "Popen", refuse)


@pytest.mark.usefixtures("no_process")
@pytest.mark.parametrize("place", [*TEXT_PLACES, *PLACES])
def test_the_library_takes_an_odd_value_or_says_what_is_wrong_with_it(place: str, tmp_path: Path) -> None:
    _assert_words(place, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("place", [*TEXT_PLACES, *PLACES])
def test_a_real_file_server_takes_an_odd_value_or_says_what_is_wrong_with_it(place: str, tmp_path: Path) -> None:
    _assert_words(place, tmp_path)


def _assert_words(place: str, tmp_path: Path) -> None:
    work: Callable[[str, Any], Awaitable[object]] = TEXT_PLACES.get(place) or PLACES[place]
    for number, (what, value) in enumerate((TEXTS if place in TEXT_PLACES else TEXTS | OTHERS).items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            asyncio.run(_awaited(work, str(folder), value))
        except UvmshareError as error:
            reason = str(error)
            # The names of Python's exceptions are no words, and neither is that a process ended of one.
            if not reason or "Error" in reason or "control channel" in reason:
                pytest.fail(f"{what}: {reason}")
        except TypeError:
            assert place in PLACES, what  # where the text is the whole value, and another type is wanted
        except Exception as error:
            error.add_note(f"{place}: {what}")
            raise


async def _awaited(work: Callable[[str, Any], Awaitable[object]], folder: str, value: Any) -> None:
    await work(folder, value)


@pytest.mark.parametrize("state", [b"[" * 100_000, b'{"uvmshare_shares":1,"x":' + b"[" * 100_000, b'"\xff"', "\ud800"])
def test_a_saved_state_that_is_no_json_is_refused(state: bytes | str) -> None:
    with pytest.raises(InvalidSavedState, match=r"not what Manager\.save"):
        asyncio.run(Manager.restore(state, FakeVM()))


def test_a_host_that_no_look_up_takes_is_no_address() -> None:
    for host in ("x\udcff", "Übung", "x" * 64, "a..b", "x y"):
        with pytest.raises(InvalidAddress, match="the host"):
            address.parse(f"tcp:{host}:1")


def test_a_directory_whose_name_is_not_utf_8_can_be_shared_through_one_that_is(tmp_path: Path) -> None:
    inside = os.fsencode(tmp_path) + b"/\xff"
    os.mkdir(inside)
    with pytest.raises(InvalidOptions, match=r"not UTF-8.*rename it, or mount it"):
        AddOptions(os.fsdecode(inside))
    AddOptions(tmp_path)  # the names in it are the guest's to see, whatever they are


def test_a_directory_deeper_than_calls_may_nest_is_made(tmp_path: Path) -> None:
    deep = f"{tmp_path}/{'x/' * 200}x"
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 100)
    try:
        make_directories(deep, 0o700)
        make_directories(deep)
    finally:
        sys.setrecursionlimit(limit)
    assert os.stat(deep).st_mode & 0o777 == 0o700
