"""What a Manager writes down, so that nothing is lost when its process dies.

    manager = Manager(vm, journal=SqliteJournal("/var/lib/vms/journal.db").for_vm("vm1"))

What lives here: the `Journal` protocol, the records that are appended to one, and what they amount to
(`JournalState`). What must not: I/O of any kind (`uvmshare.sqlite_journal` keeps one on a disk), or a decision
about a share.

Each record says how something is from now on, never by how much it changes. So a record that is applied twice has
the effect of one, and a Manager whose append failed in a way that leaves it in doubt simply appends again.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import msgspec

# At run time: the records are msgspec structs, which look at their fields' types.
from uvmshare.share.options import AddOptions  # noqa: TC001
from uvmshare.share.state import ShareLife  # noqa: TC001

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "AnonymousReferences",
    "Begun",
    "Changed",
    "Forgotten",
    "Journal",
    "JournalState",
    "JournalledShare",
    "NamesReserved",
    "Record",
    "Referred",
    "Unreferred",
]


class _Record(msgspec.Struct, frozen=True, tag=True):
    pass


class NamesReserved(_Record, frozen=True):
    """Names below this number may have been told to somebody and are not given to another share."""

    below: int


class Begun(_Record, frozen=True):
    """There is such a share, in this state: it has a name, the VM is about to be asked to add it, or it is not ours."""

    name: str
    life: ShareLife
    options: AddOptions


class Changed(_Record, frozen=True):
    """The share is in this state: a call for it is about to be made, or has ended."""

    name: str
    life: ShareLife
    directory: str | None = None
    """Which directory it turned out to be, where the options did not say; None otherwise."""


class Forgotten(_Record, frozen=True):
    """The VM does not have the share, and nobody holds it."""

    name: str


class Referred(_Record, frozen=True):
    """The owner holds the share."""

    name: str
    owner: str


class Unreferred(_Record, frozen=True):
    """The owner does not hold the share."""

    name: str
    owner: str


class AnonymousReferences(_Record, frozen=True):
    """So many hold the share without saying who they are."""

    name: str
    count: int


Record = NamesReserved | Begun | Changed | Forgotten | Referred | Unreferred | AnonymousReferences


@dataclass(frozen=True, slots=True)
class JournalledShare:
    """One share by what was written down of it."""

    name: str
    options: AddOptions
    life: ShareLife
    owners: tuple[str, ...] = ()
    """In the order in which they came."""
    anonymous: int = 0
    """How many hold it without saying who they are."""


@dataclass(slots=True)
class JournalState:
    """What the records of one VM amount to."""

    next_name: int = 0
    """The lowest number that was never a name."""
    shares: dict[str, JournalledShare] = field(default_factory=dict)
    """By name, oldest first."""

    def apply(self, record: Record) -> None:
        """Take one more record into account.

        One about a share that is not there, or not any more, changes nothing: its share was forgotten.
        """
        match record:
            case NamesReserved(below):
                # Going back is for a Manager that ends in order and told nobody of the rest.
                self.next_name = max([below, *(int(name) + 1 for name in self.shares)])
            case Begun(name, life, options):
                self.next_name = max(self.next_name, int(name) + 1)
                known = self.shares.get(name, JournalledShare(name, options, life))
                self.shares[name] = replace(_of_directory(known, options.directory), life=life)
            case Forgotten(name):
                self.shares.pop(name, None)
            case _ if record.name in self.shares:
                self.shares[record.name] = _changed(self.shares[record.name], record)


def _of_directory(share: JournalledShare, directory: str | None) -> JournalledShare:
    """Return the share with its directory, unless that is not known: what is known stays so."""
    return share if directory is None else replace(share, options=share.options.of_directory(directory))


def _changed(share: JournalledShare, record: Record) -> JournalledShare:
    match record:
        case Changed(life=life, directory=directory):
            return replace(_of_directory(share, directory), life=life)
        case Referred(owner=owner):
            return share if owner in share.owners else replace(share, owners=(*share.owners, owner))
        case Unreferred(owner=owner):
            return replace(share, owners=tuple(other for other in share.owners if other != owner))
        case AnonymousReferences(count=count):
            return replace(share, anonymous=count)
        case _:
            msg = f"no record about one share: {record!r}"
            raise TypeError(msg)


class Journal(Protocol):
    """Where a Manager writes down what it does for one VM. One Manager at a time may use it.

    Both calls raise `JournalError` (or a child, which says more) when they fail, and are safe to call again.
    """

    async def load(self) -> JournalState:
        """Return what the records that were ever appended amount to, in a state of the caller's own."""

    async def append(self, records: Sequence[Record]) -> None:
        """Write the records down, all or none, after those of every earlier call; return when a crash cannot undo it.

        When it raises, or is cancelled, they may have been written down or not.
        """
