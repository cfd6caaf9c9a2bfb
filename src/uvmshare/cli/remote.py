"""What every command that speaks to the daemon has in common.

What lives here: --host and --json, the connection, completion of ids and names. What must not: what a command asks for,
or how it is shown (`output`).
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
from click.shell_completion import CompletionItem

from uvmshare.cli.durations import seconds_of
from uvmshare.cli.output import note, say
from uvmshare.cli.progress import waiting
from uvmshare.errors import (
    ComputeSystemError,
    DaemonError,
    FileServerError,
    InvalidState,
    NotHeld,
    NotThere,
    UvmshareError,
)
from uvmshare.printable import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import msgspec

    from uvmshare.daemon.client import Client
    from uvmshare.daemon.documents import Reference, Released, Vm

__all__ = [
    "SHARING_NAMES",
    "connected",
    "each_in_turn",
    "follower",
    "host_option",
    "json_option",
    "lease_option",
    "no_table_option",
    "of_vms",
    "own_daemon",
    "owner_option",
    "print_release",
    "require_gate",
    "require_request",
    "share_argument",
    "vm_argument",
]

F = TypeVar("F", bound="Callable[..., Any]")
T = TypeVar("T")

host_option = click.option(
    "--host",
    "-H",
    envvar="UVMSHARE_HOST",
    metavar="unix:PATH",
    help="The daemon's socket; or a fleet's gate, https://NAME:PORT, several with commas. [default: $UVMSHARE_HOST, or "
    "your own daemon's, or unix:/run/uvmshare/uvmshare.sock]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
no_table_option = click.option("--json", is_flag=True, expose_value=False, hidden=True)
"""For commands that print JSON anyway: a user who asks for it gets it."""
SHARING_NAMES: Final = {
    "path": "SHARE",
    "only": "SHARE",
    "hide": "--hide",
    "map_owner": "--map-owner",
    "owner": "--owner",
    "lease": "--lease",
}
"""How the fields of a share are given on a command line."""
owner_option = click.option(
    "--owner",
    default="default",
    show_default=True,
    help="The owner who holds the share or mount. Each owner holds it once. Every user has owners of their own.",
)


def lease_option(words: str = "How long the owner holds it without renewing.") -> Callable[[F], F]:
    """Give a command the option --lease, with these words in its help."""
    return click.option("--lease", type=seconds_of, metavar="TIME", help=f"{words} Seconds, or 90s, 5m, 1h30m, 2d.")


@contextmanager
def connected(host: str | None, words: str = "waiting for the daemon") -> Iterator[Client]:
    """Connect to the daemon for the length of a block. Raises `DaemonError`.

    While the block takes longer than a second, a terminal says so, with these words; without any where it is to last.
    """
    from uvmshare.daemon.client import Client  # noqa: PLC0415  it takes a while to load, and --help needs none of it

    with waiting(words) if words else nullcontext(), Client(host) as client:
        yield client


def of_vms(
    client: Client,
    vms: Sequence[str],
    ask: Callable[[str], Iterable[T]],
    listed: Iterable[Vm] | None = None,
    *,
    tell: Callable[[str], None] = note,
) -> list[T]:
    """Return what `ask` gives for each of the VMs, or for all of the daemon's when none is named.

    Of these, one that cannot be asked now costs nothing of the others: `tell` gets a line, which goes to standard
    error unless a command shows it elsewhere. `listed` are all of the daemon's, where they are known already.
    """
    if vms:
        return [each for vm in vms for each in ask(vm)]
    found: list[T] = []
    for vm in client.vms() if listed is None else listed:
        try:
            if vm.state == "finding":
                raise InvalidState(vm.error or vm.state)
            found += ask(vm.id)
        except (ComputeSystemError, InvalidState, FileServerError, NotThere) as error:
            tell(f"VM {vm.id}: {error}")
    return found


def each_in_turn(things: Iterable[str], work: Callable[[str], None]) -> None:
    """Do `work` with each of several things, also behind one that fails; then fail with what each of these raised."""
    failures: list[UvmshareError] = []
    for each in things:
        try:
            work(each)
        except UvmshareError as error:
            failures.append(error)
    for failure in failures[:-1]:
        note(f"uvmshare: error: {failure}")
    if failures:
        raise failures[-1]


def print_release(client: Client, thing: str, released: Released, *, owner: str, uid: int | None, force: bool) -> None:
    """Print what was released, and on standard error who still holds it.

    Raises `NotHeld` when that owner held nothing of it, unless it was forced: then nobody did, as was asked for.
    """
    if not released.released and not force:
        raise NotHeld(_not_held(client, thing, released, owner, uid))
    held = [f"owner {each.owner}" for each in released.references] + [f"mount {path}" for path in released.mounts]
    if released.held_by_others:
        held.append("another user")
    by = ", ".join(held)
    say(thing)
    if not released.ended:
        note(f"{thing}: released; the guest still reaches it, since it is held by {by}")
    if released.guest is not None:
        note(f"{thing}: nothing reaches it any more; {released.guest}")
    for each in released.left_behind:
        note(f"left behind, {each}")


def require_request(kind: type[msgspec.Struct], fields: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """See that the daemon's API takes a request. Raises `click.BadParameter` for a field that it does not take.

    `names` says which field was given as which option or argument.
    """
    from uvmshare.daemon.requests import Unfit, as_document  # noqa: PLC0415  --help need not load it

    try:
        as_document(kind, fields)
    except Unfit as error:
        shown = f"{error.shown}: " if error.is_scalar and error.shown else ""
        hint = f"; {error.hint}" if error.hint else ""
        msg = f"{shown}{error.words}{hint}"
        raise click.BadParameter(msg, param_hint=f"'{names.get(error.field, error.field)}'") from None


def require_gate(client: Client, what: str) -> None:
    """See that a client speaks to a fleet's gate, which alone knows hosts. Raises `DaemonError`."""
    if not client.host.startswith("https:"):
        msg = f"{what} needs a gate of a fleet, and {client.host} is one host's daemon: name a gate, --host https://NAME:PORT"
        raise DaemonError(msg)


@contextmanager
def follower(host: str | None) -> Iterator[Client]:
    """Connect to this host's daemon, to ask how it follows its fleet. Raises `DaemonError` if it follows none."""
    with connected(host) as client:
        if client.host.startswith("https:"):
            msg = f"{client.host} is a gate, which follows nothing: name the daemon of the host, --host unix:PATH"
            raise DaemonError(msg)
        try:
            yield client
        except NotThere:
            msg = f"the daemon at {client.host} follows no fleet: start it with --fleet FILE (docs/fleet.md)"
            raise DaemonError(msg) from None


def own_daemon() -> str:
    """Return this host's daemon: the user's own if there is one, else the system's."""
    from uvmshare.daemon.client_calls import local_daemon  # noqa: PLC0415  --help need not load it

    return local_daemon()


def _not_held(client: Client, thing: str, released: Released, owner: str, uid: int | None) -> str:
    """Say who holds the thing that was to be released, and how to name them."""
    you = client.info().you

    def option(each: Reference) -> str:
        return f"--owner {each.owner}" + ("" if each.uid == you else f" --uid {each.uid}")

    whom = repr(owner) if uid is None else f"{owner!r} of uid {uid}"
    held = [f"{each.owner}: {option(each)}" for each in released.holders]
    held += [f"the mount at {path}: uvmshare unmap" for path in released.mounts if path != thing]
    if released.held_by_others:
        held.append("another user: root can take it from them (--force)")
    by = "held by " + "; ".join(held) if held else "held by nobody any more"
    dead = f"; {released.guest}" if released.guest is not None else ""
    return f"{thing}: not held by {whom}; {by}{dead}"


def _complete(ask: Callable[[Client, click.Context], Iterable[tuple[str, str]]]) -> Callable[..., list[CompletionItem]]:
    """Complete from what the daemon has. Without a daemon there is nothing to offer, and nothing to say."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        del param
        try:
            with connected(ctx.params.get("host")) as client:
                found = list(ask(client, ctx))
        except (UvmshareError, ModuleNotFoundError):
            return []
        # A shell takes them as lines; what could not be typed is not offered.
        return [
            CompletionItem(value, help=printable(words))
            for value, words in found
            if value.startswith(incomplete) and printable(value) == value
        ]

    return complete


def _vms(client: Client, ctx: click.Context) -> Iterable[tuple[str, str]]:
    del ctx
    return ((vm.id, " ".join(vm.addresses)) for vm in client.vms())


def _shares(client: Client, ctx: click.Context) -> Iterable[tuple[str, str]]:
    vm = ctx.params.get("vm")
    return ((share.name, share.path) for share in client.shares(vm)) if isinstance(vm, str) else ()


def vm_argument(*, many: bool = False) -> Callable[[F], F]:
    """Give a command the argument VM, completed from the daemon's."""
    if many:
        return click.argument("vms", metavar="VM...", nargs=-1, required=True, shell_complete=_complete(_vms))
    return click.argument("vm", metavar="VM", shell_complete=_complete(_vms))


def share_argument(*, many: bool = False) -> Callable[[F], F]:
    """Give a command the argument SHARE, completed from the VM's."""
    if many:
        return click.argument("shares", metavar="SHARE...", nargs=-1, required=True, shell_complete=_complete(_shares))
    return click.argument("share", metavar="SHARE", shell_complete=_complete(_shares))
