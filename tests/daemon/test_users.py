"""Other users of the host: what is not theirs is not there, and nobody shares what he could not read himself.

Each is a thread of its own that becomes that user, so that the kernel tells the daemon who he is. Forking beside the
daemon's threads would now and then hang: a child has the locks that they held just then, and nobody to give them back.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import select
import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from tests.daemon.harness import supervisor_of
from tests.processes import kill
from tests.root import needs_root

from uvmshare import errors
from uvmshare.daemon import connections, identity, quotas
from uvmshare.daemon.client import Client
from uvmshare.fileserver.device import FileServer
from uvmshare.testing.client import NinePClient as Guest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.daemon.harness import Home, Running

    from uvmshare.daemon.documents import Operation

T = TypeVar("T")

pytestmark = needs_root

_SETRESUID, _SETRESGID = {"x86_64": (117, 119)}.get(os.uname().machine, (147, 149))

ALICE, BOB = 12345, 65534
GROUP = 23456


def _become(uid: int, groups: tuple[int, ...]) -> None:
    """Make this thread alone that user: raw system calls, since the C library's would change every thread."""
    _call(identity._SETGROUPS, len(groups), (ctypes.c_uint32 * len(groups))(*groups))
    _call(_SETRESGID, uid, uid, uid)
    _call(_SETRESUID, uid, uid, uid)


def _call(number: int | None, *args: Any) -> None:
    assert number is not None
    if identity._libc.syscall(number, *args) < 0:
        raise OSError(ctypes.get_errno(), "cannot become another user")


def as_user(uid: int, work: Callable[[], T], *, groups: tuple[int, ...] = ()) -> T:
    """Return or raise what `work` does in a thread that is that user, and ends with it."""

    def run() -> T:
        _become(uid, groups)
        return work()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(run).result()


class User:
    """One user of the host at the daemon's socket."""

    def __init__(self, daemon: Running, uid: int, *, groups: tuple[int, ...] = ()) -> None:
        self.daemon = daemon
        self.uid = uid
        self.groups = groups
        self.folder = daemon.home.directory(f"home-{uid}", 0o700)
        os.chown(self.folder, uid, uid)

    def do(self, work: Callable[[Client], T]) -> T:
        def connected() -> T:
            with Client(self.daemon.home.host) as client:
                return work(client)

        return as_user(self.uid, connected, groups=self.groups)

    def add_vm(self, id_: str = "vm", **more: Any) -> str:
        self.daemon.home.had_vms = True
        listen = f"unix:{self.folder}/{id_}.9p"
        return self.do(lambda client: client.vms.add(id_, listen=(listen,), **more).addresses[0])

    def add_share(self, path: str, **more: Any) -> str:
        return self.do(lambda client: client.shares.add("vm", path, **more).name)


@pytest.fixture
def alice(daemon: Running) -> User:
    return User(daemon, ALICE)


@pytest.fixture
def bob(daemon: Running) -> User:
    return User(daemon, BOB)


def test_the_daemon_knows_who_asks(alice: User) -> None:
    assert alice.do(lambda client: client.info().you) == ALICE


def test_one_user_does_not_use_up_the_connections_of_all(daemon: Running, alice: User, bob: User) -> None:
    theirs, ours = socket.socketpair()

    def open_many() -> None:
        with contextlib.ExitStack() as stack:
            many = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(connections.USER_CONNECTIONS + 1)]
            for connection in many:
                connection.connect(daemon.home.host.removeprefix("unix:"))
            # They are taken in the order in which they came: when the last one is cut, all others are held.
            with contextlib.suppress(ConnectionResetError):
                assert many.pop().recv(1) == b""
            assert not select.select(many, [], [], 0)[0]
            theirs.send(b"held")
            theirs.recv(1)

    with theirs, ours, ThreadPoolExecutor() as pool:
        holding = pool.submit(as_user, ALICE, open_many)
        try:
            assert ours.recv(4) == b"held"
            assert bob.do(lambda client: client.info().you) == BOB
        finally:
            ours.send(b".")
        holding.result()
    assert alice.do(lambda client: client.info().you) == ALICE


def test_a_user_has_only_so_many_vms_and_root_any_number(home: Home) -> None:
    home.settings.user_vms = 2
    with home.running() as daemon, home.client() as client:
        alice = User(daemon, ALICE)
        for id_ in ("a", "b", "b"):  # the same again is not another
            alice.add_vm(id_)
        with pytest.raises(errors.LimitReached, match=rf"uid {ALICE} has 2 VM.*may have 2.*vm rm.*--user-vms"):
            alice.add_vm("c")
        assert os.listdir(f"{home.settings.run_dir}/vms/{ALICE}") == ["a", "b"] or not os.path.exists(
            f"{home.settings.run_dir}/vms/{ALICE}/c"
        )
        User(daemon, BOB).add_vm("c")
        for id_ in ("a", "b", "c"):
            client.vms.add(**home.new_vm(id_))
        alice.do(lambda client: client.vms.remove("a"))
        alice.add_vm("c")


def test_a_user_holds_only_so_many_shares_also_when_they_are_asked_for_at_once(home: Home) -> None:
    home.settings.user_shares = 2
    with home.running() as daemon, home.client() as root:
        alice = User(daemon, ALICE)
        alice.add_vm()
        root.shares.add(f"{ALICE}:vm", alice.folder, read_only=True)  # counts for root, who has no limit
        for number in range(3):
            root.shares.add(f"{ALICE}:vm", alice.folder, owner=f"root-{number}", read_only=True)
        assert daemon.daemon is not None
        manager = daemon.daemon.service.machines[ALICE, "vm"].require()
        add, may_add, adding = manager.add, asyncio.Event(), asyncio.Queue[None]()

        async def add_late(*args: Any, **more: Any) -> str:
            adding.put_nowait(None)
            await may_add.wait()
            return await add(*args, **more)

        manager.add = add_late  # type: ignore[method-assign]  # so that all are under way at once
        begun = []
        for owner in ("a", "b", "c"):
            begun.append(alice.do(partial(_begin_add, alice.folder, owner)))
            if owner != "c":  # a thread looks at the path first: without waiting, the third may be the first
                daemon.call(adding.get)
        refused = alice.do(lambda client: client.operations.get(begun[2], wait=True)).problem
        assert refused is not None
        assert (refused.error, refused.status) == ("LimitReached", 429)
        assert "--user-shares" in refused.reason

        async def let_add() -> None:
            may_add.set()

        daemon.call(let_add)
        ended = [alice.do(partial(_end_of, id_)).state for id_ in begun]
        assert ended == ["succeeded", "succeeded", "failed"]
        alice.add_share(alice.folder, owner="b")  # which he holds
        with pytest.raises(errors.LimitReached, match="share rm"):
            alice.add_share(alice.folder, owner="c")
        with pytest.raises(errors.NotThere):
            alice.do(lambda client: client.owners.renew("c").leases)
        alice.do(lambda client: client.owners.release("a"))
        alice.add_share(alice.folder, owner="c")


def test_what_another_user_holds_is_not_counted_to_one_who_may_not_see_it(
    daemon: Running, alice: User, client: Client
) -> None:
    alice.add_vm()
    name, seen = f"{ALICE}:vm", alice.folder
    secret = daemon.home.directory("roots")
    for owner in ("a", "b"):
        client.shares.add(name, secret, read_only=True, owner=owner)
    (vm,) = alice.do(lambda client: client.vms())
    assert (vm.shares, vm.mounts) == (0, 0)
    with pytest.raises(errors.StillInUse, match="another user holds something") as refused:
        alice.do(lambda client: client.vms.remove("vm"))
    assert not any(figure in str(refused.value) for figure in "0123456789")
    alice.add_share(seen)
    with pytest.raises(errors.StillInUse, match=r"has 1 share\(s\) and 0 mount\(s\)"):
        alice.do(lambda client: client.vms.remove("vm"))
    with pytest.raises(errors.StillInUse, match=r"has 2 share\(s\)"):
        client.vms.remove(name)
    assert len(alice.do(lambda client: client.vms.stats("vm"))) == len(client.vms.stats(name)) - 1 == 1


def test_what_was_missed_of_another_users_is_not_missed(
    daemon: Running, alice: User, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the events of a user's VM, those about root's holding are not theirs."""
    alice.add_vm()
    assert daemon.daemon is not None
    (kept,) = daemon.daemon.service.events._of_user.values()
    monkeypatch.setattr(kept, "_most", 2)
    since = alice.do(lambda client: [each for each in client.events("0", follow=False) if each is not None][-1].id)
    for owner in ("a", "b", "c", "d"):
        client.shares.add(f"{ALICE}:vm", daemon.home.directory("roots"), read_only=True, owner=owner)
    assert alice.do(lambda client: list(client.events(since, follow=False))) == []
    assert next(client.events(since, follow=False)) is None, "root has missed some"


def _begin_add(path: str, owner: str, client: Client) -> str:
    return client.shares.begin_add("vm", path, owner=owner).id


def _end_of(operation: str, client: Client) -> Operation:
    return client.operations.get(operation, wait=True)


def test_a_user_has_only_so_many_operations_under_way(alice: User, bob: User, monkeypatch: pytest.MonkeyPatch) -> None:
    alice.add_vm()
    bob.add_vm()
    monkeypatch.setattr(quotas, "USER_OPERATIONS", 0)
    with pytest.raises(errors.LimitReached, match=r"operation.*under way.*wait"):
        alice.add_share(alice.folder)
    monkeypatch.setattr(quotas, "USER_OPERATIONS", 1)
    assert alice.add_share(alice.folder) == bob.add_share(bob.folder) == "0"


def test_what_is_another_users_is_not_there(alice: User, bob: User) -> None:
    address = alice.add_vm()
    name = alice.add_share(alice.folder)
    assert bob.do(lambda client: client.vms()) == []
    for vm in ("vm", f"{ALICE}:vm"):
        for attempt in (
            lambda client, vm=vm: client.vms.get(vm),
            lambda client, vm=vm: client.shares(vm),
            lambda client, vm=vm: client.shares.get(vm, name),
            lambda client, vm=vm: client.shares.add(vm, "/tmp"),
            lambda client, vm=vm: client.shares.release(vm, name),
            lambda client, vm=vm: client.shares.release(vm, name, uid=ALICE),
            lambda client, vm=vm: client.vms.remove(vm, force=True),
            lambda client, vm=vm: client.owners.renew("default", vm=vm, share=name).leases,
        ):
            with pytest.raises(errors.NotThere, match="no VM"):
                bob.do(attempt)
    with Guest.connect(address, name) as guest:
        assert guest.listdir("") is not None
    assert alice.do(lambda client: [share.name for share in client.shares("vm")]) == [name]


def test_one_user_neither_sees_nor_ends_what_another_asked_for(alice: User, bob: User) -> None:
    alice.add_vm()
    operation = alice.do(lambda client: client.shares.begin_add("vm", alice.folder).id)
    assert alice.do(lambda client: client.operations.get(operation, wait=True).state) == "succeeded"
    with pytest.raises(errors.NotThere, match="operation"):
        bob.do(lambda client: client.operations.get(operation))
    assert bob.do(lambda client: list(client.events("x", follow=False))) == [None]
    kinds = alice.do(lambda client: [event.kind for event in client.events("x", follow=False) if event])
    assert kinds == ["vm.added", "share.held"]


def test_users_names_are_kept_apart(alice: User, bob: User) -> None:
    addresses = {alice.add_vm(), bob.add_vm()}
    assert len(addresses) == 2
    name = alice.add_share(alice.folder, owner="job", lease=60)
    with pytest.raises(errors.NotThere):
        bob.do(lambda client: client.owners.renew("job").leases)
    bob.do(lambda client: client.owners.release("job"))
    assert alice.do(lambda client: client.shares.get("vm", name).references[0].owner) == "job"
    assert alice.do(lambda client: client.owners.renew("job").leases) == 1


def test_root_sees_all_and_may_all(alice: User, client: Client) -> None:
    alice.add_vm()
    name = alice.add_share(alice.folder)
    (vm,) = client.vms()
    assert (vm.id, vm.uid) == (f"{ALICE}:vm", ALICE)
    assert [share.name for share in client.shares(vm.id)] == [name]
    client.shares.release(vm.id, name, uid=ALICE)
    assert client.shares(vm.id) == []
    client.vms.remove(vm.id)
    assert alice.do(lambda client: client.vms()) == []


def test_what_root_holds_in_a_users_vm_is_not_the_users(alice: User, client: Client) -> None:
    alice.add_vm()
    share = client.shares.add(f"{ALICE}:vm", alice.folder, read_only=True)
    assert alice.do(lambda client: client.shares("vm")) == []
    with pytest.raises(errors.NotThere):
        alice.do(lambda client: client.shares.release("vm", share.name))
    assert alice.add_share(alice.folder, read_only=True) == share.name
    with pytest.raises(errors.OperationDenied, match="only root"):
        alice.do(lambda client: client.shares.release("vm", share.name, uid=0))
    alice.do(lambda client: client.shares.release("vm", share.name))
    (left,) = client.shares(f"{ALICE}:vm")
    assert [reference.uid for reference in left.references] == [0]
    kinds = alice.do(lambda client: [event.kind for event in client.events("x", follow=False) if event])
    assert kinds == ["vm.added", "share.held", "share.released"]


def test_force_takes_a_share_from_all_whom_the_user_may_release_and_from_everybody_for_root(
    alice: User, client: Client
) -> None:
    alice.add_vm()
    name = alice.add_share(alice.folder, read_only=True, owner="one")
    assert alice.add_share(alice.folder, read_only=True, owner="two") == name
    assert client.shares.add(f"{ALICE}:vm", alice.folder, read_only=True).name == name
    with pytest.raises(errors.StillInUse, match=r"another user.*root can take it from everybody"):
        alice.do(lambda mine: mine.shares.release("vm", name, force=True))
    (left,) = client.shares(f"{ALICE}:vm")
    assert [reference.uid for reference in left.references] == [0]
    assert alice.add_share(alice.folder, read_only=True, owner="one") == name
    assert client.shares.release(f"{ALICE}:vm", name, force=True).ended
    assert client.shares(f"{ALICE}:vm") == []


def test_the_figures_of_what_root_holds_in_a_users_vm_are_not_the_users(
    daemon: Running, alice: User, client: Client
) -> None:
    address = alice.add_vm()
    share = client.shares.add(f"{ALICE}:vm", alice.folder, read_only=True)

    def figures() -> str:
        with daemon.home.http() as http:
            return http.get("/metrics").text

    with Guest.connect(address, share.name):
        assert f'share="{share.name}",vm="{ALICE}:vm"' in figures()
        theirs = as_user(ALICE, figures)
    assert f'uvmshare_references{{vm="{ALICE}:vm"}} 0.0' in theirs
    assert "share=" not in theirs
    assert 'state="added"' not in theirs


def test_nobody_shares_what_he_may_not_read(alice: User, daemon: Running) -> None:
    alice.add_vm()
    secret = daemon.home.directory("secret", 0o700)
    os.mkdir(f"{secret}/inside")
    for path in (secret, f"{secret}/inside", f"{secret}/not-there"):
        with pytest.raises(errors.UvmshareError) as refused:
            alice.add_share(path, read_only=True)
        assert isinstance(refused.value, errors.OperationDenied | errors.InvalidOptions)
        assert "ermission denied" in str(refused.value), "and nothing of what is there"


def test_nobody_shares_writable_what_he_may_only_read(alice: User, daemon: Running) -> None:
    alice.add_vm()
    path = daemon.home.directory("readable")
    with pytest.raises(errors.OperationDenied, match="read and write"):
        alice.add_share(path)
    assert alice.add_share(path, read_only=True) == "0"
    with open(f"{path}/file", "w") as file:
        file.write("x")
    with pytest.raises(errors.OperationDenied, match="read and write"):
        alice.add_share(f"{path}/file")


def test_groups_count_as_they_do_everywhere(daemon: Running) -> None:
    path = daemon.home.directory("grouped", 0o770)
    os.chown(path, 0, GROUP)
    member = User(daemon, ALICE, groups=(GROUP,))
    member.add_vm()
    assert member.add_share(path) == "0"
    stranger = User(daemon, BOB)
    stranger.add_vm()
    with pytest.raises(errors.OperationDenied):
        stranger.add_share(path)


def test_the_file_server_has_its_users_rights_and_no_others(alice: User, daemon: Running) -> None:
    """The check at the door could be raced: what holds is who opens the path in the end."""
    address = alice.add_vm()
    with open(f"/proc/{supervisor_of(daemon.home, ALICE)}/status") as file:
        status = dict(line.split(":", 1) for line in file)
    assert set(status["Uid"].split()) == {str(ALICE)}
    assert set(status["Gid"].split()) == {str(ALICE)}
    assert status["Groups"].split() == []
    assert int(status["CapEff"], 16) == 0
    assert stat.S_ISSOCK(os.stat(address.removeprefix("unix:")).st_mode)
    assert os.stat(address.removeprefix("unix:")).st_uid == ALICE


def test_a_path_that_leads_elsewhere_after_the_check_is_opened_with_the_users_rights(
    alice: User, daemon: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = daemon.home.directory("secret", 0o700)
    with open(f"{secret}/key", "w") as file:
        file.write("secret")
    inner = f"{alice.folder}/inner"
    os.mkdir(inner)
    os.chown(inner, ALICE, ALICE)
    check = identity.checked_options

    async def swapped(*args: Any, **more: Any) -> Any:
        options = await check(*args, **more)
        os.rmdir(inner)
        os.symlink(secret, inner)
        return options

    address = alice.add_vm()
    monkeypatch.setattr("uvmshare.daemon.shares.checked_options", swapped)
    with pytest.raises(errors.UvmshareError):
        alice.add_share(inner, read_only=True)
    with pytest.raises(OSError, match=r"."):
        Guest.connect(address, "0")


def test_a_user_cannot_have_the_daemon_listen_where_he_may_not(alice: User, daemon: Running) -> None:
    closed = daemon.home.directory("closed", 0o755)
    with pytest.raises(errors.FileServerError, match="closed"):
        alice.do(lambda client: client.vms.add("x", listen=(f"unix:{closed}/9p",)))
    assert os.listdir(closed) == []
    with pytest.raises(errors.FileServerError, match="root"):
        alice.add_vm("y", security_model="passthrough")
    assert alice.do(lambda client: client.vms()) == []


def test_the_files_of_one_users_file_server_are_out_of_anothers_reach(alice: User, bob: User, daemon: Running) -> None:
    alice.add_vm()
    run_dir = f"{daemon.home.settings.run_dir}/vms/{ALICE}/vm"
    assert stat.S_IMODE(os.stat(run_dir).st_mode) == 0o700
    assert os.stat(run_dir).st_uid == ALICE
    assert os.stat(os.path.dirname(run_dir)).st_uid == 0
    with pytest.raises(PermissionError):
        as_user(BOB, lambda: os.listdir(run_dir))
    with pytest.raises(PermissionError):
        as_user(ALICE, lambda: os.rename(run_dir, f"{run_dir}.elsewhere"))
    with pytest.raises(PermissionError):
        as_user(ALICE, lambda: os.listdir(f"{daemon.home.settings.run_dir}/log"))
    with pytest.raises(PermissionError):
        as_user(ALICE, lambda: os.listdir(daemon.home.settings.state_dir))


def test_the_sockets_permissions_decide_who_may_ask_at_all(daemon: Running, bob: User) -> None:
    os.chmod(daemon.home.settings.socket_path, 0o600)
    with pytest.raises(errors.DaemonError, match="may not connect"):
        bob.do(lambda client: client.info())


def test_a_daemon_that_is_not_roots_serves_its_own_user(daemon: Running) -> None:
    from uvmshare.daemon.identity import Identity

    assert daemon.daemon is not None
    service = daemon.daemon.service
    service._identity = Identity(ALICE, ALICE)
    service.admit(Identity(ALICE, ALICE))
    service.admit(Identity(0, 0))
    with pytest.raises(errors.OperationDenied, match="no other user"):
        service.admit(Identity(BOB, BOB))


@pytest.mark.parametrize("address", ["tcp:127.0.0.1:80", "vsock:3:1023"])
def test_ports_that_are_roots_stay_roots(alice: User, address: str) -> None:
    with pytest.raises(errors.OperationDenied, match="below 1024"):
        alice.add_vm(agent=address, agent_dials=True)


def test_waiting_for_an_agent_takes_no_socket_from_anybody(alice: User, daemon: Running) -> None:
    path = daemon.home.directory("roots") + "/service.sock"
    with socket.socket(socket.AF_UNIX) as service:
        service.bind(path)
        os.chmod(path, 0o666)
        for _ in range(2):  # one that is listened on, then one that is not
            before = os.lstat(path)
            with pytest.raises(errors.FileServerError, match="cannot listen"):
                alice.add_vm(agent=f"unix:{path}", agent_dials=True)
            assert os.path.samestat(os.lstat(path), before)
            service.close()
    assert alice.do(lambda client: client.vms()) == []


def test_waiting_for_an_agent_makes_and_removes_only_what_the_user_could(alice: User, daemon: Running) -> None:
    folder = f"{alice.folder}/agent"
    as_user(ALICE, lambda: os.mkdir(folder))
    alice.add_vm(agent=f"unix:{folder}/here", agent_dials=True, socket_mode="660")
    made = os.lstat(f"{folder}/here")
    assert (made.st_uid, stat.S_IMODE(made.st_mode)) == (ALICE, 0o660)
    roots = daemon.home.directory("roots")
    with open(f"{roots}/here", "w"):
        pass
    as_user(ALICE, lambda: os.rename(folder, f"{folder}.old"))
    as_user(ALICE, lambda: os.symlink(roots, folder))
    alice.do(lambda client: client.vms.remove("vm"))
    assert os.path.exists(f"{roots}/here")


def test_an_agents_socket_goes_with_its_vm(alice: User) -> None:
    path = f"{alice.folder}/agent"
    alice.add_vm(agent=f"unix:{path}", agent_dials=True)
    alice.do(lambda client: client.vms.remove("vm"))
    assert not os.path.exists(path)


@pytest.mark.parametrize("what", ["fifo", "link", "device"])
def test_what_a_user_puts_into_his_run_directory_holds_up_nobody(home: Home, what: str) -> None:
    with home.running() as daemon, home.client() as client:
        User(daemon, ALICE).add_vm()
        client.vms.add(**home.new_vm("roots"))
    directory, supervisor = f"{home.settings.run_dir}/vms/{ALICE}/vm", supervisor_of(home, ALICE)

    def swap() -> None:
        kill(supervisor)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{directory}/shares")
        if what == "fifo":
            os.mkfifo(f"{directory}/shares")
        else:
            os.symlink("/dev/zero" if what == "device" else "/etc/shadow", f"{directory}/shares")

    as_user(ALICE, swap)
    with home.running(), home.client() as client:
        assert client.vms.get("roots").state == "running"
        vm = client.vms.get(f"{ALICE}:vm")
        assert "root:" not in (vm.error or "")
        client.vms.remove(vm.id, force=True)


def test_a_users_process_that_talks_nonsense_does_not_keep_the_daemon_from_starting(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    with home.running() as daemon, home.client() as client:
        User(daemon, ALICE).add_vm()
        client.vms.add(**home.new_vm("roots"))
    start = FileServer.start

    async def nonsense(server: FileServer) -> FileServer:
        if f"/{ALICE}/" in repr(server):
            raise IndexError(repr(server))
        return await start(server)

    monkeypatch.setattr(FileServer, "start", nonsense)
    with home.running(), home.client() as client:
        assert client.vms.get("roots").state == "running"
        alices = client.vms.get(f"{ALICE}:vm")
        assert (alices.state, "cannot be understood" in (alices.error or "")) == ("failed", True)
