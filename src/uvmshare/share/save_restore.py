"""A Manager's table as a document, for another process or host: what it says, and how it becomes shares again.

What lives here: the document, its checks, and the restoring of all of it or nothing. What must not: I/O beyond the
look at the paths that `AddOptions` takes, or what then becomes of a share (`uvmshare.share.engine`).

The document has what somebody holds, and the names that were told:

- a share that is being added while it is saved is not in it, since nobody holds it yet; its name is not used again;
- one whose last holder has asked to remove it is not, whatever comes of that;
- nor is what is being removed because an answer was lost: it is not known to be on the VM;
- references of ``async with manager.share(...)`` blocks end with their process, and are not in it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

import msgspec

from uvmshare import arguments
from uvmshare.directory import may_be_same, recalled
from uvmshare.errors import (
    UNREADABLE,
    HostPathReplaced,
    InvalidOptions,
    InvalidSavedState,
    JournalError,
    OperationDenied,
    RestoreFailed,
    ShareExists,
)
from uvmshare.lifecycle.entry import BlockOwner
from uvmshare.share.interfaces import ListsShares
from uvmshare.share.ledger import check_owner
from uvmshare.share.options import AddOptions
from uvmshare.share.share import Share
from uvmshare.share.state import ShareLife, ShareState
from uvmshare.wording import reason_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Mapping, Sequence

    from uvmshare.share.engine import ShareEngine
    from uvmshare.share.ledger import Ledger

__all__ = ["VERSION", "decode", "encode", "restore_into"]

VERSION: Final = 3
"""Of the document. One that is higher was written by a later uvmshare, and is refused."""


class _SavedShare(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    name: str
    host_path: str
    read_only: bool = False
    allowed_names: tuple[str, ...] = ()
    owners: tuple[str, ...] = ()
    anonymous: int = 0
    directory: str | None = None
    """Since version 2: `AddOptions.directory`, which counts until the host is started anew."""
    hide: tuple[str, ...] = ()
    map_owner: str | None = None
    """Both since version 3."""

    @property
    def held(self) -> bool:
        return bool(self.owners or self.anonymous)


class Saved(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    uvmshare_shares: int
    """The version; by this field the document is told from any other."""
    next_name: int
    shares: tuple[_SavedShare, ...]


class _Version(msgspec.Struct, frozen=True):
    uvmshare_shares: int


def encode(engine: ShareEngine) -> bytes:
    """Return the table of a Manager. Raises TypeError or `InvalidOptions` for an owner that is no string."""
    shares = []
    for share in engine.table.values():
        owners = tuple(_written(share, owner) for owner in share.owners if not isinstance(owner, BlockOwner))
        held = share.state is ShareLife.ADDED and bool(owners or share.anonymous)
        if held or share.state.state is ShareState.PENDING:
            options = share.options
            shares.append(
                _SavedShare(
                    share.name,
                    options.host_path,
                    options.read_only,
                    options.allowed_names,
                    owners,
                    share.anonymous,
                    options.directory,
                    options.hide,
                    options.map_owner,
                )
            )
    return msgspec.json.encode(Saved(VERSION, engine.next_name, tuple(shares)))


def _written(share: Share, owner: Hashable) -> str:
    try:
        check_owner(owner)
    except TypeError as error:
        msg = f"share {share.name} cannot be saved: {error}"
        raise TypeError(msg) from error
    assert isinstance(owner, str)
    return owner


def decode(state: bytes | str) -> Saved:
    """Read a document. Raises `InvalidSavedState` when it is none, or not one that a Manager wrote."""
    if not isinstance(state, bytes | str):
        arguments.refuse_type("state", state, "what Manager.save() returned: bytes or a str")
    try:
        version = msgspec.json.decode(state, type=_Version).uvmshare_shares
        if version > VERSION:
            msg = f"a later uvmshare saved this (version {version}, this one knows {VERSION}): restore it with that"
            raise InvalidSavedState(msg)
        saved = msgspec.json.decode(state, type=Saved)
    except UNREADABLE as error:
        msg = f"this is not what Manager.save() wrote: {reason_of(error)}"
        raise InvalidSavedState(msg) from error
    seen: set[str] = set()
    for share in saved.shares:
        decimal = share.name.isascii() and share.name.isdecimal() and len(share.name) < 19
        if not decimal or str(int(share.name)) != share.name or int(share.name) >= saved.next_name:
            msg = f"this is not what Manager.save() wrote: share {share.name!r} has no name below {saved.next_name}"
            raise InvalidSavedState(msg)
        if share.name in seen or share.anonymous < 0:
            msg = f"this is not what Manager.save() wrote: share {share.name} is there twice, or negative"
            raise InvalidSavedState(msg)
        seen.add(share.name)
    return saved


async def restore_into(engine: ShareEngine, saved: Saved, admit: Callable[[AddOptions], None]) -> None:
    """Make the shares of the document those of a new Manager: all of them, or none.

    `admit` refuses what that Manager may not share.

    Raises `RestoreFailed`, and `JournalError` when the Manager's journal already has shares, or cannot be written.
    """
    shares, replaced = _checked(engine, saved, admit)
    next_name = saved.next_name
    if engine.ledger is not None:
        written = await engine.ledger.begin()
        if written.shares:
            msg = "the journal already has shares of this VM: restore into one that has none, or recover() from it"
            raise JournalError(msg)
        next_name = max(next_name, written.next_name)
        engine.ledger.allocated(next_name)
    engine.next_name = next_name
    there = await _there(engine, [shares[share.name] for share in saved.shares if share.held], replaced)
    try:
        await _add_all(engine, shares, there, saved)
    except BaseException as error:
        left = await _undo(engine, shares)
        if left:
            error.add_note(f"and these could not be removed again yet: {', '.join(left)}")
        raise
    for share in shares.values():
        share.believed = share.found = False


def _checked(
    engine: ShareEngine, saved: Saved, admit: Callable[[AddOptions], None]
) -> tuple[dict[str, Share], set[str]]:
    """Look at every path, here. Return the entries, and the names of those whose path leads to another directory now.

    Raises `RestoreFailed` with all that cannot be.
    """
    shares: dict[str, Share] = {}
    replaced: set[str] = set()
    errors: dict[str, BaseException] = {}
    for share in saved.shares:
        try:
            options = AddOptions(
                share.host_path,
                read_only=share.read_only,
                allowed_names=share.allowed_names or None,
                hide=share.hide,
                map_owner=share.map_owner,
            )
            admit(options)
        except (InvalidOptions, OperationDenied) as error:
            errors[share.name] = error
        else:
            was = recalled(share.directory)
            if not may_be_same(was, options.directory):
                options = options.of_directory(was)
                replaced.add(share.name)
            shares[share.name] = Share(share.name, options, engine.clock())
    if errors:
        raise RestoreFailed(errors)
    return shares, replaced


async def _there(engine: ShareEngine, held: Sequence[Share], replaced: set[str]) -> Mapping[str, AddOptions]:
    """Return those of the held shares that the VM has: it may be the one that they were saved of.

    A VM that cannot tell is believed later, when it says that it has a name. Raises `RestoreFailed` for names under
    which the VM has something else, and for those that were `replaced` and are not there any more; and what asking
    the VM raises.
    """
    can_tell = isinstance(engine.vm, ListsShares)
    listed = await engine.vm.list_plan9() if isinstance(engine.vm, ListsShares) else {}
    errors: dict[str, BaseException] = {}
    for share in held:
        share.believed = not can_tell
        on_vm = listed.get(share.name)
        if on_vm is not None and not on_vm.may_be(share.options):
            errors[share.name] = ShareExists(f"the VM has another {on_vm.host_path} under the name {share.name}")
        elif on_vm is None and share.name in replaced:
            errors[share.name] = HostPathReplaced(
                f"share {share.name}: {share.options.host_path} leads to another directory than when this was saved: "
                f"put that one back, or release the share before it is saved"
            )
    if errors:
        raise RestoreFailed(errors)
    return {share.name: listed[share.name] for share in held if share.name in listed}


async def _add_all(
    engine: ShareEngine, shares: dict[str, Share], there: Mapping[str, AddOptions], saved: Saved
) -> None:
    """Add what is held and not there, and give the references back when all of it is there."""
    for saved_share in saved.shares:
        share = shares[saved_share.name]
        if share.name in there:
            share = shares[share.name] = Share(share.name, share.options, engine.clock(), ShareLife.ADDED)
            share.found = True
        engine.table[share.name] = share
        engine.by_options.setdefault(share.options, share)
    held = [(shares[saved_share.name], saved_share) for saved_share in saved.shares if saved_share.held]
    operations = {}
    for share, _ in held:
        share.claims += 1  # so that it stays when the VM has it
        if share.found:
            engine.identify(share, there[share.name].directory)
        else:
            operations[share.name] = engine.bring(share)
    errors: dict[str, BaseException] = {}
    for name, operation in operations.items():
        await operation.wait()
        if operation.error is not None:
            errors[name] = operation.error
    if errors:
        raise RestoreFailed(errors)
    for share, saved_share in held:
        for owner in (*saved_share.owners, *(None,) * saved_share.anonymous):
            share.refer(owner)
    if engine.ledger is not None:
        await _write_down(engine.ledger, shares, operations.keys())
    for share, _ in held:
        share.claims -= 1


async def _write_down(ledger: Ledger, shares: Mapping[str, Share], added: Collection[str]) -> None:
    """Write down who holds what, and of those that were not added that they are there. Raises `JournalError`."""
    for name, share in shares.items():
        if name not in added:
            ledger.named(share)
        for owner in (*share.owners, *(None,) * bool(share.anonymous)):
            ledger.holds(share, owner)
    await ledger.flush()


async def _undo(engine: ShareEngine, shares: Mapping[str, Share]) -> list[str]:
    """Take out again what was added, and return the names of what could not be."""
    engine.closed = True
    with suppress(JournalError):  # what is left is recovered from the journal, or the next one that is made of it
        await engine.take_everything_away()
        await engine.end_ledger()
    return [name for name in shares if name in engine.table]
