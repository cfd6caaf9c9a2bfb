"""What each public class says in its `__repr__`, and that nothing anywhere shows a secret."""

from __future__ import annotations

import asyncio
import logging
import sys
from datetime import UTC, datetime
from io import StringIO
from typing import TYPE_CHECKING, Any, Final

import pytest
from tests.hostile_text import HOSTILE, assert_safe

if sys.platform == "win32":
    pytest.skip("the file server and the daemon run on Linux", allow_module_level=True)

import structlog
from rich.pretty import pretty_repr

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
    RecoveryReport,
    ServedVM,
    ShareInfo,
    ShareState,
    SqliteJournal,
    UtilityVM,
    errors,
)
from uvmshare.cli.main import run
from uvmshare.daemon import client_calls, documents, logs
from uvmshare.daemon.documents import NewVm
from uvmshare.daemon.identity import Identity
from uvmshare.daemon.problems import problem_of
from uvmshare.daemon.store import VmRecord
from uvmshare.dashboard.door import Door
from uvmshare.hcs.compute_system import ComputeSystem
from uvmshare.hcs.computecore import ComputeCore
from uvmshare.testing.fakes import FakeAgent, FakeVM

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SECRET: Final = "the-agents-own-secret"
HOST: Final = "unix:/nowhere/s"
AT: Final = datetime(2026, 1, 1, tzinfo=UTC)
MOUNT: Final = (
    "MountOptions(share='0', mount_path='/mnt/x', read_only=False, cache='auto', msize=None, suid=False, "
    "dev=False, posixacl=False, events=False)"
)
INFO: Final = (
    "ShareInfo(name='0', options=AddOptions('/', read_only=True), state=<ShareState.ADDED: 'added'>, references=1, "
    f"owners=('a',), since={AT!r}, busy=None, orphan=False, last_error=None)"
)


class _NoCore(ComputeCore):
    """Nothing is asked of it."""

    def __init__(self) -> None:
        """Load nothing."""


class _Vm(FakeVM):
    def __repr__(self) -> str:
        return "<a VM>"


class _Agent(FakeAgent):
    def __repr__(self) -> str:
        return "<an agent>"


def _served() -> ServedVM:
    vm = ServedVM.__new__(ServedVM)
    vm._server, vm._agent = FileServer(["unix:/x"]), AgentClient("unix:/y", token=SECRET)
    return vm


def _closed() -> SqliteJournal:
    journal = SqliteJournal("/nowhere/journal")
    journal.close()
    return journal


SHOWN: Final[dict[type, tuple[Callable[[], object], str]]] = {
    ServedVM: (_served, "<ServedVM of <FileServer at unix:/x: not started>, <AgentClient at unix:/y: not connected>>"),
    AddOptions: (
        lambda: AddOptions("/", read_only=True, hide=["*.key"]),
        "AddOptions('/', read_only=True, hide=('*.key',))",
    ),
    Manager: (lambda: Manager(_Vm()), "<Manager of <a VM>: 0 shares>"),
    UtilityVM: (
        lambda: UtilityVM(ComputeSystem(_NoCore(), "vm-1", 1, 1)),
        "<UtilityVM of <ComputeSystem 'vm-1': closed>>",
    ),
    FileServer: (lambda: FileServer(["unix:/x"], run_dir="/r"), "<FileServer at unix:/x in '/r': not started>"),
    MountManager: (lambda: MountManager(_Agent()), "<MountManager of <an agent>: 0 mounts>"),
    AgentClient: (lambda: AgentClient("unix:/x", token=SECRET), "<AgentClient at unix:/x: not connected>"),
    MountOptions: (
        lambda: MountOptions("0", "/mnt//x/"),
        MOUNT,
    ),
    Client: (lambda: Client(HOST), f"<Client of the daemon at {HOST}>"),
    AsyncClient: (lambda: AsyncClient(HOST), f"<AsyncClient of the daemon at {HOST}>"),
    ComputeSystem: (lambda: ComputeSystem(_NoCore(), "vm-1", 1, 1), "<ComputeSystem 'vm-1': closed>"),
    SqliteJournal: (_closed, "<SqliteJournal in '/nowhere/journal': closed>"),
    RecoveryReport: (
        lambda: RecoveryReport(shares=(), asked=True),
        "RecoveryReport(shares=(), asked=True, listing_error=None)",
    ),
    ShareState: (lambda: ShareState.ADDED, "<ShareState.ADDED: 'added'>"),
    ShareInfo: (
        lambda: ShareInfo("0", AddOptions("/", read_only=True), ShareState.ADDED, 1, ("a",), AT, None, False, None),
        INFO,
    ),
}
"""Each public class: how one is made, and what it shows."""

PUBLIC: Final = [each for each in map(uvmshare.__getattr__, uvmshare.__all__) if isinstance(each, type)]


ERRORS: Final = [each for each in PUBLIC if issubclass(each, Exception)]


def test_every_public_class_is_in_the_table() -> None:
    made = {each for each in PUBLIC if not issubclass(each, Exception) and not getattr(each, "_is_protocol", False)}
    assert made == set(SHOWN)


@pytest.mark.parametrize("kind", SHOWN, ids=lambda kind: kind.__name__)
def test_a_public_object_shows_what_it_is(kind: type) -> None:
    async def shown() -> str:
        made = SHOWN[kind][0]()
        assert isinstance(made, kind)
        return repr(made)

    assert asyncio.run(shown()) == SHOWN[kind][1]


@pytest.mark.parametrize(
    "kind", [each for each in PUBLIC if issubclass(each, Exception)], ids=lambda kind: kind.__name__
)
def test_a_public_error_shows_its_words(kind: type[Exception]) -> None:
    if kind is errors.SharesLeft:
        assert "share 7: why" in str(errors.SharesLeft({"7": OSError("why")}))
    else:
        assert repr(kind("the words")) == f"{kind.__name__}('the words')"


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_an_error_with_somebodys_text_in_it_is_one_line_that_shows_itself(kind: type[Exception]) -> None:
    for hostile in HOSTILE:
        said = f"the agent said {hostile}"
        words = str(errors.SharesLeft({"7": OSError(said)}) if kind is errors.SharesLeft else kind(said))
        assert_safe(words)
        assert "\n" not in words or kind is errors.GuestFailed  # which goes on with what the guest wrote
        assert "the agent said " in words


@pytest.mark.parametrize("group", ["vms", "shares", "mounts", "owners", "operations"])
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_group_of_methods_shows_whose_they_are(kind: type[Client | AsyncClient], group: str) -> None:
    client = kind(HOST)
    shown = repr(getattr(client, group))
    assert group in shown.lower()
    assert repr(client) in shown


# Secrets


def new_vm() -> NewVm:
    return NewVm(id="build", listen=("unix:/x",), agent="unix:/y", agent_token=SECRET)


HOLDERS: Final[dict[str, Callable[[], object]]] = {
    "document": new_vm,
    "record": lambda: VmRecord(Identity(0, 0), new_vm()),
    "call": lambda: client_calls.add_vm("build", listen=["unix:/x"], agent="unix:/y", agent_token=SECRET),
    "agent client": lambda: AgentClient("unix:/y", token=SECRET),
    "served": _served,
    "problem": lambda: problem_of(ValueError(new_vm()), "add VM build"),
}
"""What has a secret in it."""


@pytest.mark.parametrize("what", HOLDERS)
def test_no_object_shows_the_secret_that_it_has(what: str) -> None:
    async def shown() -> str:
        holder = HOLDERS[what]()
        return f"{holder!r} {holder} {pretty_repr(holder)}"

    assert SECRET not in asyncio.run(shown())


def test_a_document_says_that_there_is_a_secret_and_shows_all_else() -> None:
    assert "agent_token='(secret)'" in repr(new_vm())
    assert "agent_token=None" in repr(NewVm(id="build"))
    assert all(f"{name}=" in repr(new_vm()) for name in NewVm.__struct_fields__)
    secrets = {name for kind in documents.REQUESTS for name in kind.__struct_fields__ if "token" in name}
    assert secrets == documents.SECRETS


def test_the_door_of_the_dashboard_shows_neither_its_link_nor_its_cookie() -> None:
    door = Door(1)
    assert door.link.partition("token=")[2] not in repr(door)


@pytest.mark.parametrize("token", [SECRET * 20, f"{SECRET}\ud800"], ids=["too long", "no Unicode"])
def test_an_error_about_a_secret_does_not_tell_it(token: str) -> None:
    of_another_type: Any = [token]
    for make in (
        lambda: client_calls.add_vm("build", listen=["unix:/x"], agent="unix:/y", agent_token=token),
        lambda: AgentClient("unix:/y", token=f"{token}\ud800"),
        lambda: uvmshare.serve(["unix:/x"], agent="unix:/y", agent_token=of_another_type),
    ):
        with pytest.raises(errors.InvalidOptions) as raised:
            make()
        assert SECRET not in str(raised.value)


def test_the_command_line_does_not_tell_a_token_that_is_too_long(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "token").write_text(SECRET * 20)
    assert run(["vm", "add", "build", "unix:/x", "--agent-token-file", str(tmp_path / "token"), "--host", HOST]) == 2
    told = capfd.readouterr()
    assert "--agent-token-file" in told.err
    assert SECRET not in told.out + told.err


@pytest.mark.parametrize("form", logs.FORMATS)
def test_a_log_of_a_defect_has_no_values_of_variables(form: logs.Format, monkeypatch: pytest.MonkeyPatch) -> None:
    written = StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    before, root = structlog.get_config(), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        logs.configure(form)
        try:
            token = SECRET
            int(token[:0] + "x")
        except ValueError as error:
            structlog.get_logger().error("defect", exc_info=error)
    finally:
        structlog.configure(**before)
        root.handlers[:] = handlers
        root.setLevel(level)
    assert "defect" in written.getvalue()
    assert "ValueError" in written.getvalue()
    assert SECRET not in written.getvalue()
