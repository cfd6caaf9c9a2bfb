"""What a Manager writes down, so that nothing is lost when its process dies.

    manager = Manager(vm, journal=SqliteJournal("/var/lib/vms/journal.db").for_vm("vm1"))

What lives here: the `Journal` protocol, the records that are appended to one, and what they amount to
(`JournalState`). What must not: I/O of any kind (`uvmshare.sqlite_journal` keeps one on a disk), or a decision
about a share.

Each record says how something is from now on, never by how much it changes. So a record that is applied twice has
the effect of one, and a Manager whose append failed in a way that leaves it in doubt simply appends again.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import msgspec

# At run time: the records are msgspec structs, which look at their fields' types.
from uvmshare.share.options import AddOptions  # noqa: TC001

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "FIRST_PHASES",
    "AddIntended",
    "Added",
    "Allocated",
    "AnonymousReferences",
    "Forgotten",
    "InDoubt",
    "Journal",
    "JournalState",
    "JournalledShare",
    "NamesReserved",
    "NotOurs",
    "Phase",
    "Record",
    "Referred",
    "RemoveIntended",
    "Unreferred",
]


class Phase(enum.Enum):
    """How far a share is, by what was written down of it."""

    PENDING = "pending"
    """It has a name. The VM was never asked for it."""
    ADDING = "adding"
    """The VM was asked to add it, or was about to be; no outcome was written down."""
    ADDED = "added"
    """The VM has it."""
    REMOVING = "removing"
    """The VM was asked to remove it, or was about to be; no outcome was written down."""
    IN_DOUBT = "in doubt"
    """The answer to a call was lost: the VM may have it or not, and it is being taken out."""
    NOT_OURS = "not ours"
    """The VM has it, and no Manager of this journal added it: it is left alone."""


class _Record(msgspec.Struct, frozen=True, tag=True):
    pass


class NamesReserved(_Record, frozen=True):
    """Names below this number may have been told to somebody and are not given to another share."""

    below: int


class Allocated(_Record, frozen=True):
    """The share has a name. Nothing was asked of the VM."""

    name: str
    options: AddOptions


class AddIntended(_Record, frozen=True):
    """The VM is going to be asked to add the share."""

    name: str
    options: AddOptions


class NotOurs(_Record, frozen=True):
    """The VM has a share of this name, which no Manager of this journal added."""

    name: str
    options: AddOptions


class Added(_Record, frozen=True):
    """The VM has the share: it was added, or removing it certainly failed."""

    name: str
    directory: str | None = None
    """Which directory it turned out to be, where the options did not say; None otherwise."""


class RemoveIntended(_Record, frozen=True):
    """The VM is going to be asked to remove the share."""

    name: str


class InDoubt(_Record, frozen=True):
    """The answer to a call was lost."""

    name: str


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


Record = (
    NamesReserved
    | Allocated
    | AddIntended
    | NotOurs
    | Added
    | RemoveIntended
    | InDoubt
    | Forgotten
    | Referred
    | Unreferred
    | AnonymousReferences
)


FIRST_PHASES = {Allocated: Phase.PENDING, AddIntended: Phase.ADDING, NotOurs: Phase.NOT_OURS}
"""The records that a share begins with, and how far it is then."""


@dataclass(frozen=True, slots=True)
class JournalledShare:
    """One share by what was written down of it."""

    name: str
    options: AddOptions
    phase: Phase
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
            case Allocated(name, options) | AddIntended(name, options) | NotOurs(name, options):
                phase = FIRST_PHASES[type(record)]
                self.next_name = max(self.next_name, int(name) + 1)
                known = self.shares.get(name, JournalledShare(name, options, phase))
                self.shares[name] = replace(_of_directory(known, options.directory), phase=phase)
            case Forgotten(name):
                self.shares.pop(name, None)
            case _ if record.name in self.shares:
                self.shares[record.name] = _changed(self.shares[record.name], record)


def _of_directory(share: JournalledShare, directory: str | None) -> JournalledShare:
    """Return the share with its directory, unless that is not known: what is known stays so."""
    return share if directory is None else replace(share, options=share.options.of_directory(directory))


def _changed(share: JournalledShare, record: Record) -> JournalledShare:
    match record:
        case Added(directory=directory):
            return replace(_of_directory(share, directory), phase=Phase.ADDED)
        case RemoveIntended():
            return replace(share, phase=Phase.REMOVING)
        case InDoubt():
            return replace(share, phase=Phase.IN_DOUBT)
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
