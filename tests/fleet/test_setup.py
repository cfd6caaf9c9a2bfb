"""Setting a fleet up, as its administrator types it, on a real etcd with TLS: who may what afterwards."""

from __future__ import annotations

import asyncio
import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.etcd.member import free_port, start_single
from tests.processes import DEADLINE

from uvmshare.cli.main import run
from uvmshare.errors import DaemonError, InvalidOptions, StoreDenied
from uvmshare.etcd.client import EtcdStore
from uvmshare.etcd.endpoints import Certificates, Endpoints
from uvmshare.etcd.protocol import Put
from uvmshare.fleet.documents import Tenant, decode
from uvmshare.fleet.keys import Keys
from uvmshare.fleet.setup import FleetFolder, Settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

KEYS = Keys("uvmshare")


class SetUp:
    """A fleet in a folder, whose etcd is one member."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "fleet"
        port = free_port()
        self.url = f"https://127.0.0.1:{port}"
        self.init = ["fleet", "init", "--etcd", self.url, "--gate", "127.0.0.1", "--folder", str(self.folder)]
        assert run(self.init) == 0
        mine = self.folder / "etcd" / "127.0.0.1"
        self.member, _ = start_single(
            folder / "data",
            f"--cert-file={mine / 'member.pem'}",
            f"--key-file={mine / 'member.key'}",
            f"--trusted-ca-file={mine / 'ca.pem'}",
            "--client-cert-auth",
            scheme="https",
            port=port,
        )
        assert run(self.init) == 0

    def type(self, *words: str) -> int:
        return run(["fleet", *words, "--folder", str(self.folder)])

    def asked(self, folder: Path, name: str, ask: Callable[[EtcdStore], Awaitable[object]]) -> object:
        """Return what etcd answers to whoever has the files of a folder."""

        async def whole() -> object:
            files = [(folder / each).read_bytes() for each in ("ca.pem", f"{name}.pem", f"{name}.key")]
            store = EtcdStore(Endpoints((self.url,), Certificates(*files), DEADLINE))
            try:
                return await ask(store)
            except StoreDenied as error:
                return error
            finally:
                await store.close()

        return asyncio.run(whole())


@pytest.fixture(name="made", scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SetUp]:
    made = SetUp(tmp_path_factory.mktemp("setup"))
    yield made
    made.member.kill()


def test_a_host_gets_its_own_prefix_and_a_file_that_says_so(made: SetUp, capsys: pytest.CaptureFixture[str]) -> None:
    for host in ("h1", "h2", "h1"):  # and once more: it is there
        assert made.type("add-host", host) == 0
    folder = Path(capsys.readouterr().out.splitlines()[0])
    said = tomllib.loads((folder / "host.toml").read_text())
    assert said == {
        "fleet": "uvmshare",
        "endpoints": [made.url],
        "ca": "ca.pem",
        "certificate": "host.pem",
        "key": "host.key",
        "host": "h1",
    }
    assert made.asked(folder, "host", lambda store: store.txn([], [Put(KEYS.alive("h1"), b"{}")]))
    assert made.asked(folder, "host", lambda store: store.cluster_id())
    for other in (KEYS.host("h2"), KEYS.names(), KEYS.top):
        found = made.asked(folder, "host", lambda store, prefix=other: store.list(prefix))  # type: ignore[misc]
        assert isinstance(found, StoreDenied)


def test_a_gate_has_the_fleet(made: SetUp) -> None:
    gate = made.folder / "gate"
    said = tomllib.loads((gate / "gate.toml").read_text())
    assert said["callers"] == "callers.pem"
    assert not isinstance(made.asked(gate, "gate", lambda store: store.list(KEYS.top)), StoreDenied)
    assert isinstance(made.asked(gate, "gate", lambda store: store.list("/other/")), StoreDenied)


def test_a_tenants_certificate_is_none_of_etcds(made: SetUp, capsys: pytest.CaptureFixture[str]) -> None:
    assert made.type("add-tenant", "acme", "--user", "root", "--user", "ann") == 0
    bundle, _ = capsys.readouterr().out.splitlines()

    pem = Path(bundle).read_bytes()

    async def ask() -> None:
        store = EtcdStore(Endpoints((made.url,), Certificates((made.folder / "ca.pem").read_bytes(), pem, pem), 1))
        try:
            with pytest.raises(Exception, match="cannot be reached"):
                await store.list("")
        finally:
            await store.close()

    asyncio.run(ask())


def test_what_a_tenant_may_have_is_changed_and_the_rest_stays(made: SetUp) -> None:
    def tenant() -> Tenant:
        reading = made.asked(made.folder / "gate", "gate", lambda store: store.get(KEYS.tenant("other")))
        return decode(Tenant, reading.found.value, "key")  # type: ignore[attr-defined]

    assert made.type("add-tenant", "other", "--vms", "3") == 0
    assert tenant() == Tenant(vms=3)
    assert made.type("add-tenant", "other", "--holdings", "9") == 0
    assert made.type("add-tenant", "other") == 0
    assert tenant() == Tenant(vms=3, holdings=9)
    assert made.type("add-tenant", "other", "--own", "ann", "--hold", "ci", "--hold", "eve") == 0
    assert tenant() == Tenant(vms=3, holdings=9, own=("ann",), hold=("ci", "eve"))
    assert made.type("add-tenant", "other", "--read", "bob", "--hold", "*") == 0
    assert tenant() == Tenant(vms=3, holdings=9, own=("ann",), hold=("*",), read=("bob",))


def test_the_status_names_members_and_hosts(made: SetUp, capsys: pytest.CaptureFixture[str]) -> None:
    assert made.type("add-host", "h3") == 0
    capsys.readouterr()
    assert made.type("status", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert [each["state"] for each in said["etcd"]] == ["leader"]
    assert said["hosts"]["h3"] is False
    assert made.type("status") == 0
    assert "h3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("add-host", "a/b"), "a/b"),
        (("add-host", "h" * 63), "at most 64"),
        (("add-tenant", "Acme"), "Acme"),
        (("add-tenant", "acme", "--user", "../ann"), "without a slash"),
    ],
)
def test_names_that_cannot_be_are_refused(
    made: SetUp, words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert made.type(*words) == 1
    assert says in capsys.readouterr().err


def test_a_folder_is_of_one_fleet(made: SetUp, tmp_path: Path) -> None:
    with pytest.raises(InvalidOptions, match="another fleet"):
        FleetFolder(str(made.folder)).begin(Settings("uvmshare", ("https://elsewhere:2379",)), ["gate"])
    with pytest.raises(DaemonError, match="uvmshare fleet init"):
        FleetFolder(str(tmp_path)).settings()
    with pytest.raises(InvalidOptions, match="https"):
        FleetFolder(str(tmp_path)).begin(Settings("uvmshare", ("http://elsewhere:2379",)), ["gate"])


def test_an_etcd_that_does_not_answer_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = FleetFolder(str(tmp_path / "fleet"))
    folder.begin(Settings("uvmshare", (f"https://127.0.0.1:{free_port()}",)), ["gate"])
    assert run(["fleet", "status", "--folder", folder.path]) == 1
    assert "cannot be reached" in capsys.readouterr().out
