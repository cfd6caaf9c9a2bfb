"""Every parameter of every public callable is given something that it cannot be: one line, and nothing was started."""

from __future__ import annotations

import asyncio
import inspect
import math
import os
import pathlib
import sys
import threading
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Final

import pytest
from tests.for_people import assert_for_people
from tests.hostile_text import assert_safe

if sys.platform == "win32":
    pytest.skip("the file server and the daemon run on Linux", allow_module_level=True)

import uvmshare
from uvmshare import (
    AddOptions,
    AgentClient,
    AsyncClient,
    Client,
    FileServer,
    Manager,
    MountManager,
    MountOptions,
    blocking,
)
from uvmshare.errors import ComputeSystemGone, InvalidAddress, InvalidOptions, UvmshareError
from uvmshare.hcs.compute_system import ComputeSystem
from uvmshare.hcs.utility_vm import UtilityVM
from uvmshare.mounts.interfaces import GuestMount
from uvmshare.mounts.options import MapKeywords
from uvmshare.share.options import ShareKeywords
from uvmshare.sqlite_journal import SqliteJournal
from uvmshare.testing.fakes import FakeAgent, FakeVM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOWHERE: Final = "unix:/nowhere/uvmshare.sock"
GROUPS: Final = ("vms", "shares", "mounts", "owners", "operations")


class NoComputeSystem:
    """A compute system that was never asked for anything."""

    async def modify(self, request: object) -> None:
        raise AssertionError(request)


def managers() -> tuple[Manager, MountManager]:
    manager = Manager(FakeVM())
    return manager, MountManager(FakeAgent(), shares=manager)


MAKERS: Final[dict[str, Callable[[], Any]]] = {
    "Manager": lambda: managers()[0],
    "MountManager": lambda: managers()[1],
    "FileServer": lambda: FileServer(["unix:/x"]),
    "AgentClient": lambda: AgentClient("unix:/x"),
    "SqliteJournal": lambda: SqliteJournal("/nowhere/journal"),
    "UtilityVM": lambda: UtilityVM(NoComputeSystem()),
    "Client": lambda: Client(NOWHERE),
    "AsyncClient": lambda: AsyncClient(NOWHERE),
}
"""What methods are called on."""

CALLABLES: Final[dict[str, Callable[..., Any]]] = {
    each.__name__: each
    for each in (
        uvmshare.serve,
        AddOptions,
        MountOptions,
        Manager,
        MountManager,
        FileServer,
        AgentClient,
        SqliteJournal,
        UtilityVM,
        Client,
        AsyncClient,
    )
} | {
    "blocking.Manager": blocking.Manager,
    "blocking.Manager.restore": blocking.Manager.restore,
    "Manager.restore": Manager.restore,
    "FileServer.connect": FileServer.connect,
    "ComputeSystem.open": ComputeSystem.open,
}

VALID: Final[dict[str, Any]] = {
    "tenant": "acme",
    "host": "host-2",
    "to": "host-2",
    "on": "host-2",
    "listen": ["unix:/x"],
    "address": "unix:/x",
    "agent": FakeAgent(),
    "host_path": "/",
    "share": "/",
    "path": "/",
    "mount_path": "/mnt/x",
    "guest_path": "/mnt/x",
    "compute_system": NoComputeSystem(),
    "run_dir": "/nowhere/run",
    "state": Manager(FakeVM()).save(),
    "name": "0",
    "owner": "job",
    "id": "build",
    "id_": "build",
    "operation": "1",
    "options": MountOptions("0", "/mnt/x"),
    "mount": GuestMount(
        share_name="0",
        mount_path="/mnt/x",
        read_only=False,
        cache="auto",
        msize=None,
        suid=False,
        dev=False,
        posixacl=False,
        events=False,
    ),
}
"""What the parameters that a call must have are given, where they are not the one that is tried."""

UNCHECKED: Final = {
    ("Client", "ask"): "what `uvmshare.daemon.client_calls` made",
    ("AsyncClient", "ask"): "as above",
    ("FileServer", "add_plan9"): "what the Manager made",
    ("FileServer", "remove_plan9"): "as above",
    ("UtilityVM", "add_plan9"): "as above",
    ("UtilityVM", "remove_plan9"): "as above",
    ("UtilityVM", "require_able"): "as above",
    ("ComputeSystem.open", "core"): "a test's own",
}
"""Methods and parameters that are between modules of the package."""

SAID: Final[dict[str, tuple[str, ...]]] = {
    "share": ("share", "host_path", "path"),
    "mount_path": ("guest path",),
    "run_dir": ("run_dir", "run directory"),
    "id_": ("id",),
}
"""What a parameter is called in words, where that is not its name."""


def _parameters(function: Callable[..., Any]) -> Iterator[str]:
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            yield from (MapKeywords if "MapKeywords" in str(parameter.annotation) else ShareKeywords).__annotations__
        elif parameter.kind is not parameter.VAR_POSITIONAL and name != "self":
            yield name


def _methods(made: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name in dir(type(made)):
        if name.startswith("_") or isinstance(inspect.getattr_static(made, name), staticmethod | classmethod):
            continue
        if callable(method := getattr(made, name)):
            yield name, method
    for group in GROUPS if isinstance(made, Client | AsyncClient) else ():
        for name in ("__call__", *(each for each in dir(getattr(made, group)) if not each.startswith("_"))):
            if name != "client" and callable(getattr(getattr(made, group), name, None)):
                yield f"{group}.{name}", getattr(getattr(made, group), name)


def _cases() -> Iterator[tuple[str, str, str]]:
    for name, function in CALLABLES.items():
        yield from ((name, "", parameter) for parameter in _parameters(function) if (name, parameter) not in UNCHECKED)

    async def of_methods() -> list[tuple[str, str, str]]:
        return [
            (of, name, parameter)
            for of, make in MAKERS.items()
            for name, method in _methods(make())
            if (of, name) not in UNCHECKED
            for parameter in _parameters(method)
        ]

    yield from asyncio.run(of_methods())


_watching: list[str] | None = None
_STARTED: Final = (
    "subprocess.Popen",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.exec",
    "socket.__new__",
    "os.mkdir",
)


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _watching is None:
        return
    writes = os.O_CREAT | os.O_WRONLY | os.O_RDWR
    if event in _STARTED or (event == "open" and isinstance(args[2], int) and args[2] & writes):
        _watching.append(f"{event} {args!r}")


sys.addaudithook(_audit)  # which stays to the end of the process, and hears nothing but in the block below


@contextmanager
def nothing_starts() -> Iterator[None]:
    """See that the block starts no process and no thread, makes no socket and writes no file."""
    global _watching  # noqa: PLW0603  an audit hook cannot be taken away again
    threads, tasks = set(threading.enumerate()), asyncio.all_tasks()
    _watching = []
    try:
        yield
    finally:
        started, _watching = _watching, None
    assert started == []
    assert set(threading.enumerate()) == threads
    assert asyncio.all_tasks() == tasks


@contextmanager
def nothing_written() -> Iterator[None]:
    """See that the block starts no process and writes no file, and so leaves nothing behind."""
    global _watching  # noqa: PLW0603  as above
    _watching = []
    try:
        yield
    finally:
        started, _watching = _watching, None
    assert [each for each in started if not each.startswith("socket.")] == []


ODD: Final[tuple[Any, ...]] = (
    None,
    True,
    -1,
    math.nan,
    1.5,
    10**400,
    "",
    "a b",
    "/a\0b",
    "/a\nb",
    "/a\udcffb",
    "/\x1b[31mx",
    "/" + "x" * 5000,
    b"/srv",
    b"\xff",
    pathlib.Path(),
    pathlib.Path("/nowhere"),
    [],
    [None],
    [b"a"],
    ["a\udcff"],
    {},
    {5: 5},
)
"""What a program might pass by mistake, or a user of it on purpose."""


def _called(of: str, method: str, parameter: str, value: object) -> tuple[Callable[..., Any], dict[str, Any]]:
    function: Any = CALLABLES.get(of)
    if method:
        function = MAKERS[of]()
        for name in method.split("."):
            function = getattr(function, name)
    given: dict[str, Any] = {}
    for name, each in inspect.signature(function).parameters.items():
        if each.default is each.empty and each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL):
            given[name] = _valid(name, of)
    return function, given | {parameter: value}


BEGUN: Final = ("serve", "SqliteJournal")
"""What starts or writes something when it is called; its parameters are those of `FileServer` and `AgentClient`."""


@pytest.mark.parametrize(("of", "method", "parameter"), [each for each in _cases() if each[0] not in BEGUN])
def test_an_odd_argument_is_taken_or_refused_in_words(of: str, method: str, parameter: str) -> None:
    async def call() -> None:
        for value in ODD:
            function, given = _called(of, method, parameter, value)
            try:
                await _carried_out(function(**given), is_made=not method and inspect.isclass(function))
            except UvmshareError as error:
                words = str(error)
                assert_safe(words)
                assert "\n" not in words
                assert_for_people(words.replace("None", ""))  # which a programmer wrote, and reads

    with nothing_written():
        asyncio.run(call())


@pytest.mark.parametrize(("of", "method", "parameter"), [*_cases()])
def test_a_wrong_argument_is_one_line_and_nothing_is_started(of: str, method: str, parameter: str) -> None:
    async def call() -> None:
        function, given = _called(of, method, parameter, [] if parameter == "owner" else object())
        with nothing_starts(), pytest.raises((InvalidOptions, InvalidAddress)) as raised:
            await _carried_out(function(**given), is_made=not method and inspect.isclass(function))
        words = str(raised.value)
        assert "\n" not in words
        assert any(said in words for said in SAID.get(parameter, (parameter, parameter.replace("_", " ")))), words
        assert ": " in words, "the remedy is behind the reason"

    asyncio.run(call())


def _valid(name: str, of: str) -> Any:
    if name == "vm":
        return "build" if of in ("Client", "AsyncClient") else FakeVM()
    if name == "path" and of == "SqliteJournal":
        return "/nowhere/journal"
    if name == "share" and of in ("Client", "AsyncClient", "MountOptions"):
        return "0"
    if name == "error":
        return ComputeSystemGone("gone")
    return VALID.get(name)


async def _carried_out(made: Any, *, is_made: bool) -> None:
    """Let what was called happen, which an object that was made does not need."""
    if is_made:
        return
    if inspect.isawaitable(made):
        await made
    elif isinstance(made, AbstractAsyncContextManager):
        async with made:
            pass
    elif isinstance(made, AbstractContextManager):
        with made:
            pass
    elif inspect.isasyncgen(made):
        await anext(made)
    elif inspect.isgenerator(made):
        next(made)
