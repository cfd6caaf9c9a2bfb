"""Who may what in etcd, row by row: on a real etcd with TLS and roles, with the certificates that a fleet has."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import pytest
from tests.etcd.member import start_single
from tests.processes import DEADLINE

from uvmshare.errors import StoreDenied, StoreError, StoreUnavailable
from uvmshare.etcd.administration import Administration
from uvmshare.etcd.client import EtcdStore
from uvmshare.etcd.endpoints import Certificates, Endpoints
from uvmshare.etcd.protocol import Compare, Delete, Get, Put
from uvmshare.fleet.certificates import Authority

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

H1: Final = "/F/host/h1/"
H2: Final = "/F/host/h2/"


class Secured:
    """An etcd that asks for certificates, and has the users of a fleet."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(str(folder), "ca")
        self.other = Authority(str(folder), "callers")
        served = self.authority.sign_files(str(folder), "etcd", "etcd", ["127.0.0.1"])
        self.member, self.url = start_single(
            folder / "data",
            f"--cert-file={served.certificate}",
            f"--key-file={served.key}",
            f"--trusted-ca-file={self.authority.files.certificate}",
            "--client-cert-auth",
            scheme="https",
        )
        asyncio.run(self._begin())

    async def _begin(self) -> None:
        root = self.store("root")
        administration = Administration(root)
        for _ in range(2):  # it may be done again
            await administration.add_user("root", "root")
            await administration.add_role("gate", "/F/")
            await administration.add_user("gate", "gate")
            for host, prefix in (("h1", H1), ("h2", H2)):
                await administration.add_role(host, prefix)
                await administration.add_user(host, host)
            await administration.enable_roles()
        lease = await root.grant(3600)
        self.foreign_lease = lease.id
        await root.txn([], [Put(f"{H1}vm", b"1"), Put(f"{H2}vm", b"2"), Put(f"{H2}alive", b"", lease.id)])
        self.revision = (await root.get("/F/")).revision
        await root.close()

    def store(self, user: str, authority: Authority | None = None) -> EtcdStore:
        certificate, key = (authority or self.authority).sign(user)
        certificates = Certificates(self.authority.pem, certificate, key)
        return EtcdStore(Endpoints((self.url,), certificates, timeout=DEADLINE), progress=0.2)

    def tried(self, user: str, attempt: Callable[[EtcdStore], Awaitable[object]]) -> object:
        """Return what an attempt of a user's comes to, an error too."""

        async def whole() -> object:
            store = self.store(user)
            try:
                return await attempt(store)
            except StoreError as error:
                return error
            finally:
                await store.close()

        return asyncio.run(asyncio.wait_for(whole(), DEADLINE))


@pytest.fixture(name="secured", scope="module")
def _secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    made = Secured(tmp_path_factory.mktemp("secured"))
    yield made
    made.member.kill()


async def watching(store: EtcdStore, prefix: str) -> object:
    async with store.watch(prefix, 1) as changes:
        return await anext(changes)


REFUSED: Final[dict[str, Callable[[EtcdStore, int], Awaitable[object]]]] = {
    "reading another host's keys": lambda store, _: store.list(H2),
    "reading one key of another host": lambda store, _: store.get(f"{H2}vm"),
    "reading beyond its prefix": lambda store, _: store.list("/F/host/"),
    "reading everything": lambda store, _: store.list(""),
    "reading names": lambda store, _: store.list("/F/vm/"),
    "writing a key of another host": lambda store, _: store.txn([], [Put(f"{H2}vm", b"x")]),
    "writing a key beside hosts": lambda store, _: store.txn([], [Put("/F/vm/acme/build", b"x")]),
    "deleting another host's keys": lambda store, _: store.txn([], [Delete(H2, prefix=True)]),
    "deleting everything of all hosts": lambda store, _: store.txn([], [Delete("/F/", prefix=True)]),
    "comparing a key of another host": lambda store, _: store.txn(
        [Compare(f"{H2}vm", "value", b"2")], [Put(f"{H1}x", b"")]
    ),
    "reading another host in a transaction": lambda store, _: store.txn([], [Get(f"{H2}vm")]),
    "another host in the branch that is not taken": lambda store, _: store.txn(
        [Compare(f"{H1}vm", "mod", 0, "greater")], [Get(f"{H1}vm")], [Put(f"{H2}vm", b"x")]
    ),
    "watching another host": lambda store, _: watching(store, H2),
    "watching all hosts": lambda store, _: watching(store, "/F/host/"),
    "revoking a lease with keys of others": lambda store, lease: store.revoke(lease),
    "adding a user": lambda store, _: Administration(store).add_user("h3"),
    "adding a role": lambda store, _: Administration(store).add_role("h1", "/F/"),
    "giving itself the gate's role": lambda store, _: Administration(store).add_user("h1", "gate"),
    "removing a user": lambda store, _: Administration(store).remove_user("h2"),
}


@pytest.mark.parametrize("row", REFUSED)
def test_a_host_is_refused(secured: Secured, row: str) -> None:
    found = secured.tried("h1", lambda store: REFUSED[row](store, secured.foreign_lease))
    assert isinstance(found, StoreDenied), found
    left = secured.tried("root", lambda store: store.list("/F/", revision=0))
    assert [each.key for each in getattr(left, "found", ())] == [f"{H1}vm", f"{H2}alive", f"{H2}vm"]


async def own_keys(store: EtcdStore) -> None:
    assert (await store.txn([Compare(f"{H1}vm", "value", b"1")], [Put(f"{H1}have", b"x")])).succeeded
    assert (await store.txn([], [Delete(f"{H1}have")])).deleted == 1


async def own_lease(store: EtcdStore) -> None:
    lease = await store.grant(60)
    await store.txn([], [Put(f"{H1}alive", b"", lease.id)])
    assert await store.keep_alive(lease.id) == 60
    await store.revoke(lease.id)


ALLOWED: Final[dict[str, Callable[[EtcdStore], Awaitable[object]]]] = {
    "reading its keys": lambda store: store.list(H1),
    "writing and deleting its keys": own_keys,
    "watching its prefix": lambda store: watching(store, H1),
    "a lease of its own": own_lease,
}


@pytest.mark.parametrize("row", ALLOWED)
def test_a_host_may(secured: Secured, row: str) -> None:
    found = secured.tried("h1", ALLOWED[row])
    assert not isinstance(found, Exception), found


def test_a_gate_has_the_whole_fleet_and_nothing_beside_it(secured: Secured) -> None:
    async def fleet(store: EtcdStore) -> bool:
        await store.list("/F/")
        await watching(store, "/F/")
        await store.txn([], [Put("/F/vm/acme/build", b""), Get(f"{H2}vm")])
        return (await store.txn([], [Delete("/F/vm/", prefix=True)])).deleted == 1

    assert secured.tried("gate", fleet) is True
    assert isinstance(secured.tried("gate", lambda store: store.list("/G/")), StoreDenied)
    assert isinstance(secured.tried("gate", lambda store: Administration(store).add_user("x")), StoreDenied)


def test_what_is_not_refused_is_known(secured: Secured) -> None:
    """A host can keep any lease alive, see the keys on it, and hang its own keys on it; they end with it."""

    async def hang(store: EtcdStore) -> bool:
        await store.txn([], [Put(f"{H1}x", b"", secured.foreign_lease)])
        return (await store.txn([], [Delete(f"{H1}x")])).deleted == 1

    assert secured.tried("h1", lambda store: store.keep_alive(secured.foreign_lease)) == 3600
    status = secured.tried("h1", lambda store: store.time_to_live(secured.foreign_lease))
    assert getattr(status, "keys", None) == (f"{H2}alive",)
    assert secured.tried("h1", hang) is True


@pytest.mark.parametrize("user", ["nobody", "etcd"])
def test_a_user_whom_etcd_does_not_know_is_refused(secured: Secured, user: str) -> None:
    for attempt in (lambda store: store.get(f"{H1}vm"), lambda store: store.txn([], [Put(f"{H1}x", b"")])):
        assert isinstance(secured.tried(user, attempt), StoreDenied)


@pytest.mark.parametrize("whose", ["another authority", "no certificate"])
def test_who_shows_no_certificate_of_the_fleets_authority_is_not_connected(secured: Secured, whose: str) -> None:
    async def attempt() -> None:
        certificate, key = secured.other.sign("root")
        shown = Certificates(secured.authority.pem, certificate, key)
        endpoints = Endpoints((secured.url,), shown, timeout=1)
        if whose == "no certificate":
            endpoints = Endpoints((secured.url.replace("https", "http"),), timeout=1)
        store = EtcdStore(endpoints)
        try:
            with pytest.raises(StoreUnavailable):
                await store.get(f"{H1}vm")
        finally:
            await store.close()

    asyncio.run(attempt())


def test_an_etcd_of_another_authority_is_not_believed(secured: Secured) -> None:
    async def attempt() -> None:
        certificate, key = secured.authority.sign("h1")
        store = EtcdStore(Endpoints((secured.url,), Certificates(secured.other.pem, certificate, key), timeout=1))
        try:
            with pytest.raises(StoreUnavailable):
                await store.txn([], [Put(f"{H1}x", b"")])
        finally:
            await store.close()

    asyncio.run(attempt())


def test_an_etcd_under_another_name_is_not_believed(secured: Secured) -> None:
    async def attempt() -> None:
        certificate, key = secured.authority.sign("h1")
        url = secured.url.replace("127.0.0.1", "localhost")
        store = EtcdStore(Endpoints((url,), Certificates(secured.authority.pem, certificate, key), timeout=1))
        try:
            with pytest.raises(StoreUnavailable):
                await store.get(f"{H1}vm")
        finally:
            await store.close()

    asyncio.run(attempt())
