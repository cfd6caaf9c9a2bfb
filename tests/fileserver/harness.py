"""File servers for tests, in processes of their own or in threads of the test; and the directories that are shared.

What lives here: starting servers, sharing directories, connecting clients, what several folders of tests need of that.
What must not: fixtures (`conftest`), but for the one that modules make of `one_of`.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import shutil
import signal
import socket
import stat
import sys
import tempfile
import threading
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import pytest
from tests.processes import DEADLINE

from uvmshare.fileserver.handshake import Handshake
from uvmshare.fileserver.limits import Limits
from uvmshare.hcs.schema import PLAN9_SHARES, Beside, ModifySettingRequest, Plan9Share, Plan9ShareFlags, RequestType
from uvmshare.ninep.constants import NONUNAME
from uvmshare.ninep.messages import Rlerror
from uvmshare.share.interfaces import NamedShare
from uvmshare.share.options import AddOptions
from uvmshare.testing.client import NinePClient
from uvmshare.testing.connection import dial

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator
    from contextlib import AbstractContextManager

    from uvmshare.fileserver.device import FileServer
    from uvmshare.fileserver.export import Export

MODELS: Final = ("mapped-xattr", "passthrough", "none", "in-process")
"""The security models, each in processes of its own, and one of them in this process."""

WITHOUT_FANOTIFY: Final = "passthrough without fanotify"
"""In the place of a security model: a server to which the host refuses fanotify, so that events come by inotify."""

IN_AND_OUT: Final = ("passthrough", "in-process")
"""For what no security model has a say in: once in a confined process, once by the server's own checks alone.
``model = one_of(*IN_AND_OUT)`` in a module takes them."""

LIMITS: Final = Limits(lock_wait_seconds=600.0)
"""Of the servers that tests share: a lock that is waited for is granted, however slow the machine is."""

CANARY: Final = b"the host's own, never a guest's"


def one_of(*models: Any) -> Any:
    """A fixture `model` for a module whose tests take these security models alone: ``model = one_of("none")``."""

    @pytest.fixture(params=models)
    def model(request: pytest.FixtureRequest) -> str:
        value: str = request.param
        return value

    return model


def add_document(
    name: str, path: str, *, read_only: bool = False, allowed: tuple[str, ...] = ()
) -> ModifySettingRequest:
    flags = Plan9ShareFlags.LINUX_METADATA
    if read_only:
        flags |= Plan9ShareFlags.READ_ONLY
    if allowed:
        flags |= Plan9ShareFlags.RESTRICT_FILE_ACCESS
    return ModifySettingRequest(
        resource_path=PLAN9_SHARES,
        request_type=RequestType.ADD,
        settings=Plan9Share(name=name, access_name=name, path=path, port=564, flags=int(flags), allowed_files=allowed),
    )


def remove_document(name: str) -> ModifySettingRequest:
    return ModifySettingRequest(
        resource_path=PLAN9_SHARES,
        request_type=RequestType.REMOVE,
        settings=Plan9Share(name=name, access_name=name, port=564),
    )


class Device:
    """A file server in processes of its own, called from tests that are not asynchronous."""

    def __init__(self, **settings: Any) -> None:
        from uvmshare.fileserver.device import FileServer

        self._names = itertools.count()
        self.directory = tempfile.mkdtemp(prefix="9p-")  # short: a unix socket's path has 107 bytes
        self.address = f"unix:{self.directory}/s"
        self._runner = asyncio.Runner()
        settings.setdefault("listen", [self.address])
        if "run_as" in settings and sys.platform != "win32":
            os.chown(self.directory, *settings["run_as"][:2])
        try:
            self.server: FileServer = self.run(FileServer(**settings).start())
        except BaseException:
            self._runner.close()
            shutil.rmtree(self.directory)
            raise

    def run(self, call: Coroutine[Any, Any, Any]) -> Any:
        async def bounded() -> Any:
            async with asyncio.timeout(DEADLINE):
                return await call

        return self._runner.run(bounded())

    def modify(self, document: ModifySettingRequest) -> None:
        self.run(self.server._modify(document))

    def share(
        self,
        path: Path | str,
        *,
        read_only: bool = False,
        allowed: tuple[str, ...] = (),
        hide: tuple[str, ...] = (),
        map_owner: str | None = None,
    ) -> str:
        name = str(next(self._names))
        options = AddOptions.recalled(
            str(path), read_only=read_only, allowed_names=allowed, hide=hide, map_owner=map_owner
        )
        self.run(self.server.add_plan9(NamedShare(name, options)))
        return name

    def unshare(self, name: str) -> None:
        self.modify(remove_document(name))

    def dial(self) -> NinePClient:
        """A connection without a handshake."""
        return NinePClient(dial(self.address, timeout=DEADLINE), timeout=DEADLINE)

    def connect(self, name: str, *, n_uname: int = NONUNAME, msize: int = 1 << 20) -> NinePClient:
        return NinePClient.connect(self.address, name, n_uname=n_uname, msize=msize, timeout=DEADLINE)

    def pid(self) -> int:
        """The supervisor's process."""
        return int(self.run(self.server.status()).pid)

    def mounts(self, name: str) -> list[int]:
        """The mount processes of a share."""
        return [
            mount.pid for share in self.run(self.server.status()).shares if share.name == name for mount in share.mounts
        ]

    def close(self) -> None:
        try:
            self.run(self.server.aclose())
        finally:
            self._runner.close()
            shutil.rmtree(self.directory, ignore_errors=True)


class InProcess:
    """Sessions in threads of this process, without a supervisor and its confinement.

    What holds here holds by the server's own checks, and a debugger sees it. It takes the model
    mapped-xattr, because passthrough would change this process's own identity. The handlers serve alone (`host`):
    tests put system calls of their own in the place of those that the handlers make.
    """

    def __init__(self) -> None:
        self.limits = LIMITS
        self.log: list[str] = []
        self._names = itertools.count()
        self._exports: dict[str, Export] = {}
        self._threads: list[tuple[str, threading.Thread]] = []

    def share(
        self,
        path: Path | str,
        *,
        read_only: bool = False,
        allowed: tuple[str, ...] = (),
        hide: tuple[str, ...] = (),
        map_owner: str | None = None,
    ) -> str:
        name = str(next(self._names))
        from uvmshare.fileserver.export import Export

        settings = add_document(name, str(path), read_only=read_only, allowed=allowed).settings
        assert settings is not None
        self._exports[name] = Export.open(settings, "mapped-xattr", beside=Beside(hide=hide, map_owner=map_owner))
        return name

    def unshare(self, name: str) -> None:
        """Close a share whose clients have hung up."""
        for thread in [thread for share, thread in self._threads if share == name]:
            thread.join(DEADLINE)
            assert not thread.is_alive(), "a session goes on although its client is gone"
        self._threads = [(share, thread) for share, thread in self._threads if share != name]
        self._exports.pop(name).close()

    def dial(self) -> NinePClient:
        ours, theirs = socket.socketpair()
        thread = threading.Thread(target=self._serve, args=(theirs,), daemon=True)
        thread.start()
        return NinePClient(ours, timeout=DEADLINE)

    def connect(self, name: str, *, n_uname: int = NONUNAME, msize: int = 1 << 20) -> NinePClient:
        client = self.dial()
        return NinePClient.connect(client.socket, name, n_uname=n_uname, msize=msize, timeout=DEADLINE)

    def _serve(self, connection: socket.socket) -> None:
        """Do what the supervisor does up to the attach, and then what a mount process does."""
        from uvmshare.fileserver.mount.serving import Serving

        handshake = Handshake(self.limits.msize)
        with connection:
            while data := connection.recv(65536):
                while True:
                    replies, attach = handshake.feed(data)
                    if attach is None:
                        connection.sendall(replies)
                        break
                    name = attach.message.aname.decode(errors="replace")
                    if name in self._exports:
                        connection.sendall(replies)
                        self._threads.append((name, threading.current_thread()))
                        session = Serving(connection, self._exports[name], self.limits, self.log.append)
                        session.run((attach.tag, attach.message), attach.msize, attach.rest)
                        return
                    connection.sendall(replies + Rlerror(errno.ENOENT).encode(attach.tag))
                    data = attach.rest

    def mounts(self, name: str) -> list[int]:
        """The process in which its sessions are."""
        assert name in self._exports
        return [os.getpid()]

    def close(self) -> None:
        """Nothing is left to close: every test took its shares away."""
        assert not self._exports


@dataclass
class Host:
    """A test's directories on the host, and the share of `root`."""

    device: Device | InProcess
    model: str
    root: Path
    outside: Path
    _open: ExitStack = field(default_factory=ExitStack)
    _names: list[str] = field(default_factory=list)

    def share(
        self,
        path: Path | None = None,
        *,
        read_only: bool = False,
        allowed: tuple[str, ...] = (),
        hide: tuple[str, ...] = (),
        map_owner: str | None = None,
    ) -> str:
        """Share a directory for as long as the test runs, `root` unless another is given."""
        name = self.device.share(
            path or self.root, read_only=read_only, allowed=allowed, hide=hide, map_owner=map_owner
        )
        self._names.append(name)
        return name

    def connect(self, name: str, *, n_uname: int = NONUNAME, msize: int = 1 << 20) -> NinePClient:
        return self._open.enter_context(self.device.connect(name, n_uname=n_uname, msize=msize))

    def dial(self) -> NinePClient:
        return self._open.enter_context(self.device.dial())

    def guest(self, *, n_uname: int = NONUNAME, msize: int = 1 << 20, read_only: bool = False) -> NinePClient:
        """A client of a new share of `root`."""
        return self.connect(self.share(read_only=read_only), n_uname=n_uname, msize=msize)

    def flags(self, path: Path) -> list[int]:
        """The flags of each descriptor that a mount process of this host's shares has of a file."""
        if sys.platform == "win32":
            pytest.skip("the file server runs on Linux")
        found = []
        for pid in {pid for name in self._names for pid in self.device.mounts(name)}:
            for descriptor in os.listdir(f"/proc/{pid}/fd"):
                with suppress(FileNotFoundError):  # listed, and closed since
                    if os.path.samestat(os.stat(f"/proc/{pid}/fd/{descriptor}"), path.stat()):
                        about = Path(f"/proc/{pid}/fdinfo/{descriptor}").read_text()
                        found.append(int(about.partition("flags:")[2].split()[0], 8))
        return found

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Have the mount processes see all at once of what is done meanwhile: they are stopped for so long.

        Else they see the first half of what takes two system calls, when this process has to wait between them.
        """
        assert isinstance(self.device, Device), "its mounts are processes"
        mounts = {pid for name in self._names for pid in self.device.mounts(name)}
        try:
            for pid in mounts:
                with suppress(ProcessLookupError):  # its guest has hung up
                    os.kill(pid, signal.SIGSTOP)
            yield
        finally:
            for pid in mounts:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def close(self) -> None:
        self._open.close()
        for name in self._names:
            self.device.unshare(name)


def remove_tree(top: Path) -> None:
    """Remove a tree in which a guest may have taken every permission away."""
    for directory, names, _ in os.walk(top):
        for name in names:
            path = os.path.join(directory, name)
            with suppress(OSError):
                if stat.S_ISDIR(os.lstat(path).st_mode):
                    os.chmod(path, 0o700)
    shutil.rmtree(top)


class Refused(Protocol):
    def __call__(self, *numbers: int) -> AbstractContextManager[None]: ...


@contextmanager
def directory_with_xattrs() -> Iterator[Path]:
    """Make a directory whose file system keeps user extended attributes."""
    if sys.platform == "win32":
        pytest.skip("the file server runs on Linux")
    for base in (Path(tempfile.gettempdir()), Path(__file__).parent):
        made = Path(tempfile.mkdtemp(prefix="shared-", dir=base)).resolve()
        try:
            os.setxattr(made, "user.probe", b"1")
        except OSError:
            made.rmdir()
            continue
        yield made
        remove_tree(made)
        return
    pytest.skip("no file system with user extended attributes; set TMPDIR to one (ext4, xfs, btrfs)")
