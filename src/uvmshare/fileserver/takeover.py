"""Taking over what a supervisor that died has left in its run directory.

What lives here: `inherit`, which looks at all of it, and what becomes of each share. What must not: the
loop of the new supervisor, or anything without a run directory.

The order is what makes it safe to be killed in the middle, by whatever: first the lock, then what was
decided already (mounts of shares that were removed end), then the new sockets, and last the new table in
the place of the old one. Until then the old one stands, and the next supervisor does the same again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from uvmshare.errors import ComputeSystemError, FileServerError, UvmshareError
from uvmshare.fileserver import control
from uvmshare.fileserver.export import Export
from uvmshare.fileserver.ledger import Ledger, boot_id

if TYPE_CHECKING:
    from uvmshare.fileserver.ledger import Entry
    from uvmshare.fileserver.rundir import Found, RunDirectory

__all__ = ["Inheritance", "inherit"]


@dataclass(slots=True)
class Inheritance:
    """What there was: shares with their roots and mounts, and those that are lost, with the reason."""

    shares: list[tuple[Entry, Export, list[Found]]] = field(default_factory=list)
    lost: list[control.Lost] = field(default_factory=list)
    left: list[Found] = field(default_factory=list)
    """Mount processes that were killed and do not end."""
    last_serial: int = 0
    last_connection: int = 0
    found: bool = False

    def close(self) -> None:
        """Let go of it: it stays as it was, for the next."""
        for _, export, mounts in self.shares:
            export.close()
            for mount in mounts:
                os.close(mount.pidfd)
        for mount in self.left:
            os.close(mount.pidfd)


def inherit(run_dir: RunDirectory, security_model: str, links: str) -> Inheritance:
    """Find what a dead supervisor left; end what it was about to end, and what nobody can go on with.

    Raises `FileServerError` when its table cannot be read, when its shares have another security model,
    or when a mount process cannot be identified.
    """
    table = Ledger.read(run_dir.table)
    inheritance = Inheritance(found=table is not None)
    if table is not None:
        inheritance.last_serial = table.last_serial
        if table.entries and table.boot == boot_id() and table.configuration.security_model != security_model:
            msg = (
                f"the shares in run directory {run_dir.path!r} have the security model "
                f"{table.configuration.security_model}, not {security_model}: end that server first, or start it again "
                "with the same model"
            )
            raise FileServerError(msg)
    mounts: dict[int, list[Found]] = {}
    for found in run_dir.find_mounts():
        mounts.setdefault(found.serial, []).append(found)
        inheritance.last_connection = max(inheritance.last_connection, found.connection)
    try:
        for entry in table.entries if table is not None else ():
            own = mounts.get(entry.serial, [])
            if table is not None and table.boot != boot_id():
                reason = "the host was started anew since it was added"
            else:
                opened = _open(entry, security_model, links, own)
                if isinstance(opened, Export):
                    inheritance.shares.append((entry, opened, mounts.pop(entry.serial, [])))
                    continue
                reason = opened
            inheritance.lost.append(control.Lost(entry.document.access_name, entry.document.path, reason))
        inheritance.left = run_dir.end_mounts([mount for left in mounts.values() for mount in left])
    except BaseException:
        inheritance.close()
        raise
    return inheritance


def _open(entry: Entry, security_model: str, links: str, mounts: list[Found]) -> Export | str:
    """Open a share's directory again: the same one, by its path or through a mount process that has it open.

    Returns the reason when it cannot be had.
    """
    try:
        export = Export.open(entry.document, security_model, links=links, beside=entry.beside)
    except UvmshareError as error:
        reason = str(error)
    else:
        if export.has_root(entry.root):
            return export
        export.close()
        reason = f"share {entry.document.access_name}: {entry.document.path!r} is another directory now"
    for mount in mounts:
        try:
            root = mount.open_root()
        except OSError:
            continue
        try:
            export = Export.open(entry.document, security_model, links=links, root=root, beside=entry.beside)
        except ComputeSystemError:
            continue
        if export.has_root(entry.root, in_mount=True):
            return export
        export.close()
    return reason
