"""A daemon in a thread of its own, behind its real socket; its leases run on a clock that the test sets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
import threading
from typing import TYPE_CHECKING, Any

import httpx
import structlog
from tests.processes import DEADLINE

from uvmshare.daemon.client import Client
from uvmshare.daemon.server import Settings, serve
from uvmshare.errors import NotThere

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from uvmshare.daemon.documents import Share, Vm
    from uvmshare.daemon.server import Daemon
    from uvmshare.daemon.service import Service

assert sys.platform == "linux", "the daemon runs on Linux"

# Lines go nowhere: several daemons of one process would write to whatever stderr the test runner has just then.
structlog.configure(logger_factory=structlog.ReturnLoggerFactory())


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Home:
    """Where one test's daemons live, one after the other, and a way to start them."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.clock = Clock()
        self.had_vms = False
        self.settings = Settings(run_dir=f"{folder}/run", state_dir=f"{folder}/state", socket_mode=0o666)

    @classmethod
    @contextlib.contextmanager
    def made(cls) -> Iterator[Home]:
        """Make a home, and take it away with the file servers that outlived their daemons."""
        folder = tempfile.mkdtemp(prefix="uvmd-")  # a unix socket's path is short, and pytest's are not
        os.chmod(folder, 0o755)  # other users must be able to reach it
        with cls.in_folder(folder) as home:
            yield home

    @classmethod
    @contextlib.contextmanager
    def in_folder(cls, folder: str) -> Iterator[Home]:
        """As `made`, in a folder that is there; it goes away too."""
        home = cls(folder)
        try:
            yield home
        finally:
            if home.had_vms:
                with home.running() as running:
                    running.remove_vms()
            shutil.rmtree(folder)

    @property
    def host(self) -> str:
        return f"unix:{self.settings.socket_path}"

    def client(self) -> Client:
        return Client(self.host)

    def http(self) -> httpx.Client:
        # Reading certificates, for which a unix socket has no use, takes longer than most requests.
        transport = httpx.HTTPTransport(uds=self.settings.socket_path, verify=False)
        return httpx.Client(transport=transport, base_url="http://daemon", timeout=DEADLINE)  # its own are five seconds

    def directory(self, name: str, mode: int = 0o755) -> str:
        path = f"{self.folder}/{name}"
        os.makedirs(path, exist_ok=True)
        os.chmod(path, mode)
        return path

    def new_vm(self, id_: str = "vm", **more: Any) -> dict[str, Any]:
        return {"id": id_, "listen": [f"unix:{self.folder}/{id_}.9p"], **more}

    @contextlib.contextmanager
    def running(self, *, found: bool = True) -> Iterator[Running]:
        """Run a daemon to the end of the block; with `found`, when it has looked for each VM of the one before it."""
        started = threading.Event()
        running = Running(self)
        failures: list[BaseException] = []

        def ready(daemon: Daemon) -> None:
            running.daemon = daemon
            running.loop = asyncio.get_running_loop()
            started.set()

        def run() -> None:
            try:
                asyncio.run(serve(self.settings, ready=ready, clock=self.clock))
            except BaseException as error:  # noqa: BLE001  the test raises it
                failures.append(error)
            finally:
                started.set()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            assert started.wait(DEADLINE)
            if failures:
                raise failures[0]
            if found:
                running.call(running.all_found)
            yield running
        finally:
            if running.daemon is not None:
                running.daemon.stop()
            thread.join(DEADLINE)
        assert not thread.is_alive()
        if failures:
            raise failures[0]


def supervisor_of(home: Home, uid: int, vm: str = "vm") -> int:
    """Return the process that listens for the guests of a user's VM."""
    with open(f"{home.settings.run_dir}/vms/{uid}/{vm}/lock", encoding="ascii") as lock:
        return int(lock.read())


class Running:
    """A daemon that answers."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.daemon: Daemon | None = None
        self.loop: asyncio.AbstractEventLoop | None = None

    @property
    def service(self) -> Service:
        """What it does, without its HTTP; to be used in its loop."""
        assert self.daemon is not None
        return self.daemon.service

    def call(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Run something in the daemon's own loop."""
        assert self.loop is not None
        return asyncio.run_coroutine_threadsafe(work(), self.loop).result(DEADLINE)

    async def all_found(self) -> None:
        for machine in self.service.machines.values():
            await machine.tried.wait()

    def pass_time(self, seconds: float) -> None:
        """Let time pass, and the daemon see to the leases that are over."""
        assert self.daemon is not None
        self.home.clock.now += seconds
        self.call(self.daemon.service.leases.expire)

    def add_vm(self, id_: str = "vm", **more: Any) -> Vm:
        self.home.had_vms = True
        with self.home.client() as client:
            return client.vms.add(**self.home.new_vm(id_, **more))

    def remove_vms(self) -> None:
        """Remove all VMs, of whomever they are."""
        with self.home.client() as client:
            for vm in client.vms():
                with contextlib.suppress(NotThere):  # it was being removed
                    client.vms.remove(vm.id, force=True)
        self.home.had_vms = False

    def add_share(self, path: str, vm: str = "vm", **more: Any) -> Share:
        with self.home.client() as client:
            return client.shares.add(vm, path, **more)
