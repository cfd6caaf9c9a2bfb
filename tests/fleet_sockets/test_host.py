"""A real daemon that follows a fleet, over a fake etcd: a gate asks, and a file server serves."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import subprocess
import sys
from typing import TYPE_CHECKING

import msgspec
import pytest
import structlog
from tests.etcd.member import start_single

from uvmshare.daemon.client import AsyncClient
from uvmshare.daemon.documents import NewShare
from uvmshare.daemon.fleet_documents import NewMove, NewServed, PlacedVm
from uvmshare.daemon.server import Settings, serve
from uvmshare.daemon.store import DaemonStore
from uvmshare.errors import DaemonError, FileServerError, InvalidOptions, InvalidState, NotThere, OperationDenied
from uvmshare.etcd.client import EtcdStore
from uvmshare.etcd.endpoints import Endpoints
from uvmshare.etcd.protocol import Put
from uvmshare.fleet.callers import Caller
from uvmshare.fleet.documents import Tenant, encode
from uvmshare.fleet.gate import Gate
from uvmshare.fleet.host import FleetSide
from uvmshare.fleet.hostfile import read_host_file
from uvmshare.fleet.keys import Keys
from uvmshare.testing.client import NinePClient
from uvmshare.testing.etcd import FakeEtcd

if TYPE_CHECKING:
    import pathlib
    from collections.abc import AsyncIterator

    from uvmshare.daemon.documents import Share
    from uvmshare.daemon.server import Daemon
    from uvmshare.etcd.protocol import Store

assert sys.platform == "linux", "the daemon runs on Linux"

structlog.configure(logger_factory=structlog.ReturnLoggerFactory())

ANN = Caller("acme", "ann")


class HostOfFleet:
    """One host with a real daemon, and a gate, in one event loop."""

    def __init__(
        self,
        folder: pathlib.Path,
        url: str | None = None,
        *,
        name: str = "h1",
        etcd: FakeEtcd | None = None,
        below: pathlib.Path | None = None,
    ) -> None:
        self.folder = folder
        self.url = url
        self.etcd = etcd or FakeEtcd()
        self.keys = Keys()
        self.below = below or folder / "srv"
        self.below.mkdir(exist_ok=True)
        self.file = folder / "host.toml"
        user = pwd.getpwuid(os.geteuid()).pw_name
        self.file.write_text(
            f'host = "{name}"\nendpoints = ["{url or "http://unused:1"}"]\n[tenants.acme]\n'
            f'user = "{user}"\nbelow = ["{self.below}"]\n',
            encoding="utf-8",
        )
        self.settings = Settings(run_dir=f"{folder}/run", state_dir=f"{folder}/state")
        self.store: Store = self.etcd.connect() if url is None else EtcdStore(Endpoints((url,)))
        self.gate = Gate(self.store, self.keys)

    @contextlib.asynccontextmanager
    async def connect(self) -> AsyncIterator[Store]:
        store = self.etcd.connect()
        try:
            yield store
        finally:
            await store.close()

    @contextlib.asynccontextmanager
    async def daemon(self) -> AsyncIterator[AsyncClient]:
        ready: asyncio.Queue[Daemon] = asyncio.Queue()
        side = FleetSide(str(self.file), self.connect if self.url is None else None)
        serving = asyncio.ensure_future(serve(self.settings, ready=ready.put_nowait, beside=side))
        getting = asyncio.ensure_future(ready.get())
        await asyncio.wait({serving, getting}, return_when=asyncio.FIRST_COMPLETED)
        if not getting.done():
            await serving
        daemon = await getting
        try:
            async with AsyncClient(f"unix:{self.settings.socket_path}") as client:
                yield client
        finally:
            daemon.stop()
            await serving

    def placed(self) -> PlacedVm:
        return PlacedVm(id="build", on="h1", listen=(f"unix:{self.folder}/b.9p",))

    async def add_share(self, path: object, owner: str = "job") -> Share:
        asked = await self.gate.want_share(ANN, "build", NewShare(path=str(path), owner=owner))
        return await self.gate.add_share(ANN, asked)


async def _one_host(folder: pathlib.Path, url: str | None = None) -> None:
    host = HostOfFleet(folder, url)
    await host.store.txn([], [Put(host.keys.tenant("acme"), encode(Tenant())), Put(host.keys.registered("h1"), b"{}")])
    inside, outside = host.below / "x", folder / "outside"
    inside.mkdir()
    outside.mkdir()
    (host.below / "link").symlink_to(outside)
    (host.below / "fine").symlink_to(inside)
    async with host.daemon() as local:
        while (await local.following()).error is not None:
            pass
        vm = await host.gate.add_vm(ANN, *await host.gate.want_vm(ANN, host.placed()))
        assert (vm.id, vm.host, vm.state) == ("build", "h1", "running")
        wanted = PlacedVm(id="none", on="h1", listen=(f"unix:{folder}/n.9p",), agent_token_file=f"{folder}/none")
        asked = await host.gate.want_vm(ANN, wanted)
        with pytest.raises(InvalidOptions, match="agent_token_file"):
            await host.gate.add_vm(ANN, *asked)
        (folder / "token").write_text("secret\n", encoding="utf-8")
        agent = f"unix:{folder}/agent"
        secret = PlacedVm(
            id="s", on="h1", listen=(f"unix:{folder}/s.9p",), agent=agent, agent_token_file=f"{folder}/token"
        )
        assert (await host.gate.add_vm(ANN, *await host.gate.want_vm(ANN, secret))).agent == agent
        assert b"secret" not in b"".join(each.value for each in (await host.store.list("")).found)
        (folder / "token").unlink()
        await host.gate.remove_vm(await host.gate.want_no_vm(ANN, "s", force=False))
        share = await host.add_share(inside)
        assert (share.path, share.name) == (str(inside), "0")
        assert (await host.add_share(host.below / "fine", "other")).name == "0", "it leads to the same directory"
        for refused in (outside, host.below / "link", "/etc", host.below / "x" / ".." / ".." / "outside"):
            with pytest.raises(OperationDenied, match="not below what this host lets the fleet share"):
                await host.add_share(refused)
        with pytest.raises(InvalidOptions, match="No such file"):
            await host.add_share(host.below / "none")
        # The daemon's own clients see one more client's VM, and their names are not its.
        assert [each.id for each in await local.vms()] == ["acme:build"]
        (seen,) = await local.shares("acme:build")
        assert [each.owner for each in seen.references] == ["acme:job", "acme:other"]
        with pytest.raises(InvalidOptions):
            await local.vms.add("acme:mine", listen=[f"unix:{folder}/m.9p"])
        await local.vms.add("build", listen=[f"unix:{folder}/own.9p"])
        following = await local.following()
        assert (following.host, following.tenants, following.error, following.held_back) == (
            "h1",
            ("acme",),
            None,
            False,
        )
        with pytest.raises(InvalidState, match="nothing waits"):
            await local.accept_fleet()
    async with host.daemon() as local:
        # What the fleet wants is there still, by the same name, and what is not the fleet's was left alone.
        assert (await host.add_share(inside)).name == "0"
        assert sorted([each.id for each in await local.vms()]) == ["acme:build", "build"]
        ended = await host.gate.end_share(ANN, "build", "0", "job", force=True)
        assert (await host.gate.release_share(ANN, "0", ended, force=True)).ended
        assert await local.shares("acme:build") == []
        await host.gate.remove_vm(await host.gate.want_no_vm(ANN, "build", force=False))
        assert [each.id for each in await local.vms()] == ["build"]
        await local.vms.remove("build")
    await host.store.close()


def test_a_real_daemon_follows_and_shares_nothing_that_its_fleet_file_does_not_let(tmp_path: pathlib.Path) -> None:
    asyncio.run(_one_host(tmp_path))


def test_the_same_through_a_real_etcd(tmp_path: pathlib.Path) -> None:
    member, url = start_single(tmp_path / "etcd")
    try:
        asyncio.run(_one_host(tmp_path, url))
    finally:
        member.kill()


async def _joined(folder: pathlib.Path) -> None:
    host = HostOfFleet(folder)
    await host.store.txn([], [Put(host.keys.tenant("acme"), encode(Tenant())), Put(host.keys.registered("h1"), b"{}")])
    inside, outside = host.below / "x", folder / "outside"
    inside.mkdir()
    outside.mkdir()
    (inside / "file").write_text("here", encoding="utf-8")
    listen = f"unix:{folder}/own.9p"
    async with host.daemon() as local:
        while (await local.following()).error is not None:
            pass
        await local.vms.add("build", listen=[listen])
        name = (await local.shares.add("build", inside, owner="job", lease=600)).name
        refused = (await local.shares.add("build", outside, owner="job")).name
        with pytest.raises(OperationDenied, match="not below what this host lets the fleet share"):
            await local.offer_vm("build", "acme")
        await local.shares.release("build", refused, owner="job")
        with pytest.raises(OperationDenied, match="serves no tenant 'other'"):
            await local.offer_vm("build", "other")
        offered = await local.offer_vm("build", "acme")
        assert [(each.kind, each.share, each.owner, each.lease) for each in offered.kept] == [
            ("share", name, "job", 600)
        ]
        with NinePClient.connect(listen, name) as guest:
            await host.gate.add_vm(ANN, *await host.gate.want_joined(ANN, offered))
            (share,) = await host.gate.shares(ANN, "build")
            assert (share.name, [(each.owner, each.lease) for each in share.references]) == (name, [("job", 600)])
            assert guest.read_file("file") == b"here"
            (seen,) = await local.shares("build")
            assert [(each.owner, each.lease) for each in seen.references] == [("acme:job", None)]
            assert (await host.add_share(inside, "late")).name == name
            mine = (await local.shares.add("build", inside, owner="mine")).name
            assert mine == name
            (share,) = await host.gate.shares(ANN, "build")
            assert [each.owner for each in share.references] == ["job", "late"], "the host's own are not the fleet's"
            again = await local.offer_vm("build", "acme")
            assert {(each.share, each.owner) for each in again.kept} == {(name, "job"), (name, "late")}, (
                "as it is there"
            )
            assert guest.read_file("file") == b"here"
    async with host.daemon() as local:
        # The daemon was started again meanwhile, and the VM is the fleet's still.
        await host.gate.remove_vm(await host.gate.want_left(ANN, "build"))
        (seen,) = await local.shares("build")
        assert {each.owner: each.lease for each in seen.references} == {"job": 600, "late": None, "mine": None}
        assert [each.id for each in await local.vms()] == ["build"]
        with NinePClient.connect(listen, name) as guest:
            assert guest.read_file("file") == b"here"
        await local.vms.remove("build", force=True)
    await host.store.close()


def test_a_hosts_own_vm_joins_and_leaves_and_its_guest_notices_nothing(tmp_path: pathlib.Path) -> None:
    asyncio.run(_joined(tmp_path))


async def _moved(folder: pathlib.Path) -> None:
    host = HostOfFleet(folder)
    inside, outside = host.below / "x", host.below / "y"
    for each in (inside, outside):
        each.mkdir()
        (each / "file").write_text(each.name, encoding="utf-8")
    (folder / "two").mkdir()
    other = HostOfFleet(folder / "two", name="h2", etcd=host.etcd, below=inside)
    puts = [Put(host.keys.tenant("acme"), encode(Tenant()))]
    await host.store.txn([], [*puts, *(Put(host.keys.registered(name), b"{}") for name in ("h1", "h2"))])
    async with host.daemon() as first:
        async with other.daemon() as second:
            for local in (first, second):
                while (await local.following()).error is not None:
                    pass
            wanted = PlacedVm(id="taken", on="h1", listen=(f"unix:{folder}/taken.9p",))
            await host.gate.add_vm(ANN, *await host.gate.want_vm(ANN, wanted))
            for step in ("prepare", "all"):
                with pytest.raises(FileServerError, match=r"taken\.9p: a file server has it already"):
                    await host.gate.move(ANN, "taken", NewMove(to="h2", step=step))
            assert [each.id for each in await first.vms()] == ["acme:taken"], "it stays where it was"
            await host.gate.remove_vm(await host.gate.want_no_vm(ANN, "taken", force=True))
            wanted = PlacedVm(id="build", on="h1", listen=("tcp:127.0.0.1:0",))
            (listen,) = (await host.gate.add_vm(ANN, *await host.gate.want_vm(ANN, wanted))).addresses
            assert [(await host.add_share(each)).name for each in (outside, inside)] == ["0", "1"]
            with pytest.raises(OperationDenied, match="not below what this host lets the fleet share"):
                await host.gate.move(ANN, "build", NewMove(to="h2"))
            with NinePClient.connect(listen, "0") as guest:
                assert guest.read_file("file") == b"y", "it stays where it was"
            ended = await host.gate.end_share(ANN, "build", "0", "job", force=False)
            await host.gate.release_share(ANN, "0", ended, force=False)
            moved = await host.gate.move(ANN, "build", NewMove(to="h2"))
            assert (moved.host, moved.epoch, moved.state) == ("h2", 2, "running")
            assert await first.vms() == []
            assert [(each.id, each.epoch) for each in await second.vms()] == [("acme:build", 2)]
            assert [(each.share, each.epoch) for each in await second.vms.stats("acme:build")] == [("1", 2)]
            (seen,) = await second.shares("acme:build")
            assert (seen.name, [each.owner for each in seen.references]) == ("1", ["acme:job"])
            (inside / "z").mkdir()
            assert (await host.add_share(inside / "z")).name == "2"
        # As if this daemon had ended while the VM came: the next one begins again, and the names stay.
        with DaemonStore(f"{other.settings.state_dir}/daemon.sqlite") as store:
            (record,) = store.vms()
            store.put_vm(msgspec.structs.replace(record, arriving=True))
        async with other.daemon() as second:
            found: dict[str, str] = {}
            while found != {"1": "added", "2": "added"}:
                with contextlib.suppress(NotThere):  # it is added anew
                    found = {each.name: each.state for each in await second.shares("acme:build")}
            ((listen,),) = [each.addresses for each in await second.vms()]
            with NinePClient.connect(listen, "1") as guest:
                assert guest.read_file("file") == b"x"
            await host.gate.remove_vm(await host.gate.want_no_vm(ANN, "build", force=True))
            assert await second.vms() == []


def test_a_vm_moves_between_real_daemons_with_its_shares_under_their_names(tmp_path: pathlib.Path) -> None:
    asyncio.run(_moved(tmp_path))


async def _restored(folder: pathlib.Path) -> None:
    host = HostOfFleet(folder)
    store = host.etcd.connect()
    await store.txn([], [Put(host.keys.tenant("acme"), encode(Tenant())), Put(host.keys.registered("h1"), b"{}")])
    before = host.etcd.backup()
    async with host.daemon():
        await host.gate.add_vm(ANN, *await host.gate.want_vm(ANN, host.placed()))
    host.etcd.restore(before)
    async with host.daemon() as local:
        while not (following := await local.following()).held_back:
            pass
        assert following.error is not None
        assert "backup" in following.error
        assert [each.id for each in await local.vms()] == ["acme:build"], "nothing is changed by an older state"
        await local.accept_fleet()
        while await local.vms():
            pass


async def _written_back(folder: pathlib.Path) -> None:
    host = HostOfFleet(folder)
    puts = [Put(host.keys.tenant("acme"), encode(Tenant())), Put(host.keys.registered("h1"), b"{}")]
    await host.store.txn([], puts)
    before = host.etcd.backup()
    inside = host.below / "x"
    inside.mkdir()
    async with host.daemon() as local:
        await host.gate.add_vm(ANN, *await host.gate.want_vm(ANN, host.placed()))
        asked = await host.gate.want_share(ANN, "build", NewShare(path=str(inside), owner="leased", lease=600))
        await host.gate.add_share(ANN, asked)
        await host.add_share(inside, "stays")
        host.etcd.restore(before)
        while not (await local.following()).held_back:
            pass
        gate = Gate(host.etcd.connect(), host.keys)
        with pytest.raises(OperationDenied, match="no administrator"):
            await gate.write_back(ANN, "h1", NewServed(vms=()))
        served = NewServed(vms=tuple(await local.served()))
        for _ in range(2):
            written = await gate.write_back(Caller("", "root"), "h1", served)
            assert (written.vms, written.elsewhere) == (("acme:build",), ())
        await local.accept_fleet()
        while (await local.following()).error is not None:
            pass
        (share,) = await gate.shares(ANN, "build")
        assert share.name == "0"
        assert {each.owner: each.lease for each in share.references} == {"leased": 600, "stays": None}
        assert [each.id for each in await local.vms()] == ["acme:build"]
        asked = await gate.want_share(ANN, "build", NewShare(path=str(host.below), owner="new"))
        assert (await gate.add_share(ANN, asked)).name == "1"
        assert await gate.renew(ANN, "leased") == 1
        await gate.remove_vm(await gate.want_no_vm(ANN, "build", force=True))
        assert await local.vms() == []


def test_what_a_host_serves_is_written_into_an_etcd_that_has_forgotten_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uvmshare.fleet.follower._RECONNECT_LONGEST", 0.1)
    asyncio.run(_written_back(tmp_path))


def test_a_host_changes_nothing_for_a_restored_etcd_until_somebody_accepts_it(tmp_path: pathlib.Path) -> None:
    asyncio.run(_restored(tmp_path))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "endpoints"),
        ('host = "h 1"\nendpoints = ["x"]', "host name"),
        ('host = "h"\nendpoints = []', "endpoints"),
        ('host = "h"\nendpoints = ["x"]\nwhat = 1', "there is no field what"),
        ('host = "h"\nendpoints = ["x"]\nca = "ca.pem"', "belong together"),
        ('host = "h"\nendpoints = ["x"]\n[tenants.acme]\nuser = "nobody-is-called-so"', "has no user"),
        ('host = "h"\nendpoints = ["x"]\n[tenants.Acme]\nuser = "root"', "lower-case"),
        ('host = "h"\nendpoints = ["x"]\n[tenants.acme]\nuser = "root"\nbelow = ["srv"]', "not absolute"),
        ("host = ", "docs/fleet.md"),
    ],
)
def test_a_fleet_file_that_cannot_be_used_says_why(tmp_path: pathlib.Path, text: str, words: str) -> None:
    path = tmp_path / "host.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DaemonError, match=words):
        read_host_file(str(path))


def test_a_daemon_without_a_fleet_loads_nothing_of_one() -> None:
    code = (
        "import sys, uvmshare.daemon.server, uvmshare.daemon.client, uvmshare.cli.daemon, uvmshare.cli.vm\n"
        "print([name for name in sys.modules if name.split('.')[:2] in (['uvmshare', 'fleet'], ['uvmshare', 'etcd'])"
        " or name.split('.')[0] == 'grpc'])"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout.strip() == b"[]"


def test_a_daemon_that_follows_no_fleet_has_no_such_path(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        ready: asyncio.Queue[Daemon] = asyncio.Queue()
        settings = Settings(run_dir=f"{tmp_path}/run", state_dir=f"{tmp_path}/state")
        serving = asyncio.ensure_future(serve(settings, ready=ready.put_nowait))
        daemon = await ready.get()
        async with AsyncClient(f"unix:{settings.socket_path}") as client:
            with pytest.raises(NotThere):
                await client.following()
            with pytest.raises(InvalidOptions, match="a fence is for VMs of a fleet"):
                await client.vms.add("own", listen=[f"unix:{tmp_path}/own.9p"], fence=10)
        daemon.stop()
        await serving

    asyncio.run(main())
