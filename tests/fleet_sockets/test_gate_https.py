"""A gate behind real TLS: who gets in, and the daemon's own client and commands through it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import threading
from typing import TYPE_CHECKING, Any

import click.testing
import httpx
import pytest
from tests.fleet_model.harness import Fleet
from tests.fleet_sockets.certificates import Authority
from tests.processes import DEADLINE
from tests.wrong_requests import assert_all_refused

from uvmshare.cli.main import cli
from uvmshare.daemon.client import Client
from uvmshare.daemon.client_gates import CERTIFICATE
from uvmshare.errors import DaemonError, HostPathNotFound, InvalidAddress, InvalidDocument, NotSupported, NotThere
from uvmshare.fleet.callers import ADMINISTRATORS
from uvmshare.fleet.gatefile import GateFile
from uvmshare.fleet.hostfile import Ends
from uvmshare.fleet.server import serve_gate

if TYPE_CHECKING:
    import pathlib
    from collections.abc import AsyncIterator, Iterator

    from uvmshare.etcd.protocol import Store
    from uvmshare.fleet.server import RunningGate


class Https:
    """Gates of one fleet, in a thread of their own."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.authority = Authority(folder, "callers")
        self.gate_certificate = self.authority.sign("gate")
        self.ann = self.authority.sign("ann", organisation="acme")
        self.eve = self.authority.sign("eve", organisation="other")
        self.admin = self.authority.sign("root", organisation=ADMINISTRATORS)
        self.ports: list[int] = []
        self.fleet: Fleet | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._gates: list[RunningGate] = []
        self._end: asyncio.Event | None = None
        self._ready: asyncio.Queue[RunningGate]

    @property
    def urls(self) -> list[str]:
        return [f"https://127.0.0.1:{port}" for port in self.ports]

    def client(self, certificate: pathlib.Path | None = None) -> Client:
        return Client(",".join(self.urls), certificate=str(certificate or self.ann))

    def stop_gate(self, number: int) -> None:
        self._gates[number].stop()

    @contextlib.contextmanager
    def running(self, gates: int = 1) -> Iterator[Https]:
        ready = threading.Event()

        async def main() -> None:
            self._loop, self._end, self._ready = asyncio.get_running_loop(), asyncio.Event(), asyncio.Queue()
            self.fleet = Fleet("h1")
            await self.fleet.begin()
            serving = [asyncio.ensure_future(self._serve()) for _ in range(gates)]
            for _ in serving:
                getting = asyncio.ensure_future(self._ready.get())
                await asyncio.wait({getting, *serving}, return_when=asyncio.FIRST_COMPLETED)
                for each in serving:
                    if each.done():
                        each.result()
                self._gates.append(await getting)
            self.ports = [gate.port for gate in self._gates]
            ready.set()
            await self._end.wait()
            for gate in self._gates:
                gate.stop()
            await asyncio.gather(*serving)
            await self.fleet.end()

        failures: list[BaseException] = []

        def run() -> None:
            try:
                asyncio.run(main())
            except BaseException as error:  # noqa: BLE001  the test raises it
                failures.append(error)
            finally:
                ready.set()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            assert ready.wait(DEADLINE)
            if failures:
                raise failures[0]
            yield self
        finally:
            assert self._loop is not None
            assert self._end is not None
            if not failures:
                self._loop.call_soon_threadsafe(self._end.set)
            thread.join(DEADLINE)
            assert not thread.is_alive()

    async def _serve(self) -> None:
        certificate = str(self.gate_certificate)
        file = GateFile(
            "gate.toml", Ends("uvmshare", ("-",)), "127.0.0.1:0", certificate, certificate, str(self.authority.path)
        )
        fleet = self.fleet
        assert fleet is not None

        @contextlib.asynccontextmanager
        async def connect() -> AsyncIterator[Store]:
            store = fleet.etcd.connect()
            yield store
            await store.close()

        await serve_gate(file, connect, fleet.keys, ready=self._ready.put_nowait)


@pytest.fixture(scope="module")
def https(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Https]:
    with Https(tmp_path_factory.mktemp("tls")).running() as made:
        yield made


def test_the_daemons_own_client_does_everything_through_a_gate(https: Https) -> None:
    with https.client() as client:
        assert client.vms.add("build", listen=["unix:/run/build.9p"], on="h1").host == "h1"
        assert [(vm.id, vm.state) for vm in client.vms()] == [("build", "running")]
        share = client.shares.add("build", "/srv/x", owner="job", lease=30)
        assert [(each.owner, each.lease) for each in share.references] == [("job", 30)]
        assert client.owners.renew("job").leases == 1
        assert client.shares.get("build", share.name).path == "/srv/x"
        with client.holding("build", "/srv/y") as held:
            assert held.document.path == "/srv/y"
        operation = client.shares.begin_add("build", "/srv/z", owner="job")
        ended = client.operations.get(operation.id, wait=True)
        assert (ended.state, ended.result["path"]) == ("succeeded", "/srv/z")
        mount = client.mounts.map("build", "/srv/x", "/mnt/x", owner="job")
        assert (mount.guest_path, mount.state) == ("/mnt/x", "mounted")
        assert client.mounts.unmap("build", "/mnt/x", owner="job").released
        assert client.owners.release("job").shares == 2
        kinds = [event.kind for event in client.events("0", follow=False) if event is not None]
        assert kinds == ["vm.added"]
        assert [(host.name, host.state, host.vms) for host in client.hosts()] == [("h1", "alive", 1)]
        assert client.health().vms == {"running": 1}
        with pytest.raises(NotSupported, match="on host h1"):
            client.vms.stats("build")
        assert https.fleet is not None
        https.fleet.hosts["h1"].refused["/srv/none"] = HostPathNotFound("/srv/none: there is none")
        with pytest.raises(HostPathNotFound, match="/srv/none: there is none"):
            client.shares.add("build", "/srv/none")
        with pytest.raises(InvalidDocument, match="on"):
            client.vms.add("other", listen=["unix:/run/other.9p"])
        client.vms.remove("build")
        assert client.vms() == []


def test_events_go_on_where_another_stream_ended(https: Https) -> None:
    with https.client() as client:
        client.vms.add("follow", listen=["unix:/run/follow.9p"], on="h1")
        first = [event for event in client.events("0", follow=False) if event is not None and event.vm == "follow"]
        share = client.shares.add("follow", "/srv/x", owner="job")
        client.shares.release("follow", share.name, owner="job")
        again = [event for event in client.events(first[-1].id, follow=False) if event is not None]
        assert [(event.kind, event.vm, event.owner) for event in again] == [
            ("share.held", "follow", "job"),
            ("share.released", "follow", "job"),
        ]
        later = [event for event in client.events(again[0].id, follow=False) if event is not None]
        assert [(event.id, event.kind) for event in later] == [(again[1].id, "share.released")]
        assert next(client.events("999999999", follow=False)) is None
    with https.client(https.eve) as other:
        assert {event.vm for event in other.events("1", follow=False) if event is not None} <= {""}, "hosts alone"
    with https.client() as client:
        client.vms.remove("follow")


def test_who_has_no_certificate_of_the_fleets_gets_nothing(https: Https, tmp_path: pathlib.Path) -> None:
    foreign = Authority(tmp_path, "foreign")
    trusting = foreign.sign("ann", organisation="acme")
    trusting.write_bytes(trusting.read_bytes() + https.authority.pem)  # it takes the gate for what it is
    with https.client(trusting) as client, pytest.raises(DaemonError, match="gate"):
        client.vms()
    context = ssl.create_default_context(cafile=https.authority.path)
    with httpx.Client(verify=context, trust_env=False) as http, pytest.raises(httpx.TransportError):
        http.get(f"{https.urls[0]}/v1/vms")
    with socket.create_connection(("127.0.0.1", https.ports[0]), DEADLINE) as plain:
        plain.sendall(b"GET /v1/vms HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        with contextlib.suppress(ConnectionError):
            while data := plain.recv(4096):
                answer += data
        assert b"HTTP" not in answer


@pytest.mark.parametrize("organisation", [None, "Not A Tenant", "uvmshare", "unknown"])
def test_a_certificate_that_names_no_tenant_gets_nothing(https: Https, organisation: str | None) -> None:
    certificate = https.authority.sign("ann", organisation=organisation)
    with https.client(certificate) as client, pytest.raises((DaemonError, NotThere)):
        client.vms()


def test_headers_say_nothing_of_who_asks(https: Https) -> None:
    with https.client() as client:
        client.vms.add("mine", listen=["unix:/run/mine.9p"], on="h1")
    context = ssl.create_default_context(cafile=https.authority.path)
    context.load_cert_chain(https.eve)
    forged = {
        "X-Forwarded-For": "127.0.0.1",
        "X-Client-Cert": https.ann.read_text(encoding="ascii").replace("\n", " ").strip(),
        "X-SSL-Client-S-DN": "O=acme,CN=ann",
        "X-Forwarded-User": "ann",
        "Authorization": "Basic YW5uOmFubg==",
        "Forwarded": "for=127.0.0.1;proto=https",
    }
    with httpx.Client(verify=context, trust_env=False, headers=forged) as http:
        assert http.get(f"{https.urls[0]}/v1/vms").json() == []
        assert http.get(f"{https.urls[0]}/v1/vms/mine").status_code == 404
        assert http.get(f"{https.urls[0]}/v1/vms/acme:mine").status_code == 404
        assert http.post(f"{https.urls[0]}/v1/vms/mine/shares", json={"path": "/srv/x"}).status_code == 404
    with https.client() as client:
        client.vms.remove("mine")


def test_a_body_that_is_too_large_is_refused_over_tls_too(https: Https) -> None:
    context = ssl.create_default_context(cafile=https.authority.path)
    context.load_cert_chain(https.ann)
    with httpx.Client(verify=context, trust_env=False) as http:
        assert http.post(f"{https.urls[0]}/v1/vms", content=b"x" * (2 << 20), headers=JSON).status_code == 413


@pytest.mark.long
def test_every_route_of_a_gate_refuses_wrong_requests_in_words_and_changes_nothing(https: Https) -> None:
    context = ssl.create_default_context(cafile=https.authority.path)
    context.load_cert_chain(https.ann)
    parts = {"vm": "none", "share": "0", "owner": "nobody", "operation": "none", "host": "none"}
    bodies: dict[str, dict[str, Any]] = {  # none of it is there
        "PlacedVm": {"id": "x", "listen": ["unix:/x"], "on": "none"},
        "NewShare": {"path": "/srv/x"},
        "NewMount": {"path": "/srv/x", "guest_path": "/mnt/x"},
        "Renewal": {"lease": 60},
        "Joined": {"host": "none", "tenant": "acme", "vm": {"id": "x", "listen": ["unix:/x"]}},
        "NewMove": {"to": "none"},
        "NewClone": {"id": "x", "on": "none", "listen": ["unix:/x"]},
        "NewServed": {"vms": []},
    }
    with https.client() as client, httpx.Client(verify=context, trust_env=False) as http:
        before = [vm.id for vm in client.vms()]
        assert_all_refused(http, parts, bodies, https.urls[0])
        assert [vm.id for vm in client.vms()] == before


def test_the_commands_take_a_gate_for_a_daemon(https: Https, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UVMSHARE_HOST", https.urls[0])
    monkeypatch.setenv(CERTIFICATE, str(https.ann))
    runner = click.testing.CliRunner()

    def run(*words: str) -> str:
        result = runner.invoke(cli, list(words), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    assert run("vm", "add", "typed", "--on", "h1", "unix:/run/typed.9p") == "typed\n"
    assert run("share", "add", "typed", "/srv/x:ro", "--owner", "job-7", "--lease", "30").split()[0] == "0"
    assert json.loads(run("vm", "inspect", "typed"))["host"] == "h1"
    without = runner.invoke(cli, ["vm", "add", "fenced", "unix:/run/f.9p", "--fence", "10"])
    assert "--fence is for a VM of a fleet: give --on too" in without.output
    assert "h1" in run("host", "ls")
    assert "/srv/x" in run("share", "ls", "typed")
    run("share", "rm", "typed", "0", "--owner", "job-7")
    run("vm", "rm", "typed")


def test_another_gate_is_asked_when_one_is_gone(tmp_path: pathlib.Path) -> None:
    with Https(tmp_path).running(gates=2) as made, made.client() as client:
        client.vms.add("build", listen=["unix:/run/build.9p"], on="h1")
        made.stop_gate(0)
        share = client.shares.add("build", "/srv/x", owner="job", lease=60)
        assert client.owners.renew("job").leases == 1
        assert client.shares.release("build", share.name, owner="job").ended


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    "host", ["https://", "https://gate:8443/path", "https://a:1,http://b:2", "https://us er:8443", "https://gate:x"]
)
def test_what_is_no_gate_is_refused(host: str) -> None:
    with pytest.raises(InvalidAddress, match="https://NAME:PORT"):
        Client(host)


def test_without_a_certificate_the_variable_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.delenv(CERTIFICATE, raising=False)
    with pytest.raises(DaemonError, match=CERTIFICATE):
        Client("https://gate.example:8443")
    empty = tmp_path / "empty.pem"
    empty.write_bytes(b"")
    with pytest.raises(DaemonError, match=r"empty\.pem"):
        Client("https://gate.example:8443", certificate=str(empty))


def test_an_administrator_names_the_tenant(https: Https) -> None:
    with https.client(https.admin) as client, pytest.raises(NotThere, match="TENANT:NAME"):
        client.vms.get("build")
