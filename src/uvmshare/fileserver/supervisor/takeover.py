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
from functools import partial
from typing import TYPE_CHECKING

from uvmshare.errors import ComputeSystemError, FileServerError, HostPathHangs, UvmshareError
from uvmshare.fileserver import control
from uvmshare.fileserver.export import Export
from uvmshare.fileserver.mounttable import may_hang
from uvmshare.fileserver.rundir.sharetable import ShareTable
from uvmshare.fileserver.supervisor.opening import Opened, Wanted
from uvmshare.linux.boot import boot_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from uvmshare.fileserver.rundir.directory import Found, RunDirectory
    from uvmshare.fileserver.rundir.sharetable import TakenShare
    from uvmshare.fileserver.supervisor.opening import Opener

__all__ = ["Inheritance", "inherit"]


@dataclass(slots=True)
class Inheritance:
    """What there was: shares with their roots, which these are, and their mounts; and those that are lost, and why."""

    shares: list[tuple[TakenShare, Export, str, list[Found]]] = field(default_factory=list)
    lost: list[control.LostShare] = field(default_factory=list)
    left: list[Found] = field(default_factory=list)
    """Mount processes that were killed and do not end."""
    last_serial: int = 0
    last_connection: int = 0
    found: bool = False

    def close(self) -> None:
        """Let go of it: it stays as it was, for the next."""
        for _, export, _, mounts in self.shares:
            export.close()
            for mount in mounts:
                os.close(mount.pidfd)
        for mount in self.left:
            os.close(mount.pidfd)


def inherit(run_dir: RunDirectory, configuration: control.Configuration, opener: Opener) -> Inheritance:
    """Find what a dead supervisor left; end what it was about to end, and what nobody can go on with.

    Raises `FileServerError` when its table cannot be read, when its shares have another security model or no fence
    although there is to be one, or when a mount process cannot be identified.
    """
    security_model, links = configuration.security_model, configuration.links
    table = ShareTable.read(run_dir.table)
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
        if table.entries and table.boot == boot_id() and configuration.fenced and not table.configuration.fenced:
            msg = f"the mounts in run directory {run_dir.path!r} look at no fence: end that server first"
            raise FileServerError(msg)
    mounts: dict[int, list[Found]] = {}
    for found in run_dir.find_mounts():
        mounts.setdefault(found.serial, []).append(found)
        inheritance.last_connection = max(inheritance.last_connection, found.connection)
    try:
        entries = table.entries if table is not None else ()
        if table is not None and table.boot != boot_id():
            found_again: list[Opened | UvmshareError] = [_rebooted()] * len(entries)
        else:
            found_again = _open_all(opener, entries, security_model, links, mounts)
        for entry, opened in zip(entries, found_again, strict=True):
            if isinstance(opened, UvmshareError):
                lost = control.LostShare(entry.document.access_name, entry.document.path, str(opened))
                inheritance.lost.append(lost)
                continue
            export = Export.of(entry.document, security_model, opened.root, links=links, beside=entry.beside)
            inheritance.shares.append((entry, export, opened.directory, mounts.pop(entry.serial, [])))
        inheritance.left = run_dir.end_mounts([mount for left in mounts.values() for mount in left])
    except BaseException:
        inheritance.close()
        raise
    return inheritance


def _rebooted() -> FileServerError:
    return FileServerError("the host was started anew since it was added")


def _open_all(
    opener: Opener, entries: Sequence[TakenShare], security_model: str, links: str, mounts: dict[int, list[Found]]
) -> list[Opened | UvmshareError]:
    """Open each share's directory again: the same one, by its path or through a mount process that has it open.

    Returns the reason where it cannot be had.
    """
    paths = [entry.document.path for entry in entries]
    found = opener.open_all(
        [
            Wanted(path, partial(_open, entry, security_model, links), may_hang(path))
            for path, entry in zip(paths, entries, strict=True)
        ]
    )
    missing = [
        number
        for number, (entry, opened) in enumerate(zip(entries, found, strict=True))
        if isinstance(opened, UvmshareError) and not isinstance(opened, HostPathHangs) and mounts.get(entry.serial)
    ]
    # What a mount process has open may be on any file system, whatever its path leads to now.
    again = opener.open_all(
        [
            Wanted(
                paths[number],
                partial(_open_by_mount, entries[number], security_model, links, mounts[entries[number].serial]),
                hangs=True,
            )
            for number in missing
        ]
    )
    for number, opened in zip(missing, again, strict=True):
        if not isinstance(opened, UvmshareError) or isinstance(opened, HostPathHangs):
            found[number] = opened
    return found


def _open(entry: TakenShare, security_model: str, links: str) -> Opened:
    """Open a share's directory by its path. Raises `UvmshareError` when it cannot be had, or is another one."""
    export = Export.open(entry.document, security_model, links=links, beside=entry.beside)
    try:
        if export.has_root(entry.root):
            return Opened(export.root, export.known_root_id(entry.root))
    except OSError as error:
        export.close()
        msg = f"share {entry.document.access_name}: cannot look at {entry.document.path!r}: {error.strerror}"
        raise FileServerError(msg) from error
    export.close()
    msg = f"share {entry.document.access_name}: {entry.document.path!r} is another directory now"
    raise FileServerError(msg)


def _open_by_mount(entry: TakenShare, security_model: str, links: str, mounts: list[Found]) -> Opened:
    """Open a share's directory through a mount process. Raises `UvmshareError` when none has it."""
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
            return Opened(export.root, export.known_root_id(entry.root))
        export.close()
    msg = f"share {entry.document.access_name}: no mount process has its directory"
    raise FileServerError(msg)
