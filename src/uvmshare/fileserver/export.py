"""A share as the host opened it: from a Plan 9 share document to a descriptor of its root.

What lives here: `Export`, and what can be wrong with the document of one share. What must not: what a
guest may do in it (`mount`), or which exports there are (`supervisor`).
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from uvmshare import directory
from uvmshare.errors import AccessDenied, FileServerError, InvalidDocument
from uvmshare.fileserver.casefold import folds
from uvmshare.fileserver.models import MAPPED
from uvmshare.hcs.schema import Beside, Plan9ShareFlags
from uvmshare.hiding import canonical
from uvmshare.owner_map import OwnerMap

if TYPE_CHECKING:
    from uvmshare.hcs.schema import Plan9Share

__all__ = ["Export"]

_KNOWN_FLAGS: Final = (
    Plan9ShareFlags.READ_ONLY
    | Plan9ShareFlags.LINUX_METADATA
    | Plan9ShareFlags.CASE_SENSITIVE  # Linux's file systems are
    | Plan9ShareFlags.RESTRICT_FILE_ACCESS
    | Plan9ShareFlags.UNLIMITED_CONNECTIONS  # the limits of the file server hold
)


_SEPARATORS_BEFORE_IDENTITIES: Final = 2
"""In what tables of 0.1 have for a root: device, inode and handle."""


@dataclass(frozen=True, slots=True)
class Export:
    """One share. `root` is an O_PATH descriptor of its directory, which the owner closes.

    The root is opened once, when the share is added: what is later put in its path's place is not
    shared. `only` is None, or the names of the root directory that exist for the guest; `hide` are patterns
    of what does not; `map_owner` says whose files are whose there.
    """

    name: str
    path: str
    root: int
    read_only: bool
    only: frozenset[bytes] | None
    security_model: str
    links: str = "mapped"
    hide: tuple[str, ...] = ()
    map_owner: OwnerMap | None = None

    @classmethod
    def open(
        cls,
        share: Plan9Share,
        security_model: str,
        *,
        links: str = "mapped",
        root: int | None = None,
        beside: Beside | None = None,
    ) -> Export:
        """Check the document and open its directory, unless that is open already as `root`, which is taken over.

        Raises `InvalidDocument`, `AccessDenied`, or `FileServerError` when the host has nothing left to open
        it with; leaves nothing open then.
        """
        try:
            export = cls.of(share, security_model, -1, links=links, beside=beside)
            if root is None:
                root = _open_root(share)
            if export.hide:
                _require_exact_names(share, root)
            if export.security_model == "mapped-xattr" and not export.read_only:
                _require_xattrs(share, root)
        except BaseException:
            if root is not None:
                os.close(root)
            raise
        return replace(export, root=root)

    @classmethod
    def of(
        cls, share: Plan9Share, security_model: str, root: int, *, links: str = "mapped", beside: Beside | None = None
    ) -> Export:
        """Check the document alone. Its directory is open as `root`, and not looked at. Raises `InvalidDocument`."""
        flags = _checked_flags(share)
        hide, owners = _checked_beside(share, beside or Beside())
        if security_model == "mapped-xattr" and not flags & Plan9ShareFlags.LINUX_METADATA:
            security_model = "none"
        return cls(
            name=share.access_name,
            path=share.path,
            root=root,
            read_only=bool(flags & Plan9ShareFlags.READ_ONLY),
            only=frozenset(map(os.fsencode, share.allowed_files)) if share.allowed_files else None,
            security_model=security_model,
            links=links,
            hide=hide,
            map_owner=owners,
        )

    def root_id(self) -> str:
        """Say which directory the root is (`uvmshare.directory`). Raises `OSError`."""
        return directory.of_descriptor(self.root) or self._short_root_id()

    def has_root(self, written: str, *, in_mount: bool = False) -> bool:
        """Tell whether this root is what `root_id` said, here or in an earlier uvmshare. Raises `OSError`.

        `in_mount`: it was opened through a mount process, which has it in a mount of its own.
        """
        if in_mount:
            written = (
                directory.without_mount(written) if written.count(":") > _SEPARATORS_BEFORE_IDENTITIES else written
            )
        if written.count(":") == _SEPARATORS_BEFORE_IDENTITIES:
            return written == self._short_root_id()
        return directory.may_be_same(written, self.root_id())

    def known_root_id(self, written: str) -> str:
        """Return what a table says of this root, as `root_id` says it in this version. Raises `OSError`."""
        return self.root_id() if written.count(":") == _SEPARATORS_BEFORE_IDENTITIES else written

    def _short_root_id(self) -> str:
        found = os.fstat(self.root)
        return f"{found.st_dev:x}:{found.st_ino:x}:{directory.file_handle(self.root).hex()}"

    def close(self) -> None:
        """Close the root."""
        os.close(self.root)


def _checked_flags(share: Plan9Share) -> Plan9ShareFlags:
    if not share.access_name:
        msg = "Plan9Share: AccessName is empty, and it is what a guest attaches to"
        raise InvalidDocument(msg)
    if not os.path.isabs(share.path) or "\0" in share.path:
        msg = f"share {share.access_name}: Path {share.path!r} is not an absolute path"
        raise InvalidDocument(msg)
    unknown = share.flags & ~int(_KNOWN_FLAGS)
    if unknown:
        msg = f"share {share.access_name}: Flags {unknown:#x} are not supported on Linux; {int(_KNOWN_FLAGS):#x} are"
        raise InvalidDocument(msg)
    flags = Plan9ShareFlags(share.flags)
    if bool(flags & Plan9ShareFlags.RESTRICT_FILE_ACCESS) != bool(share.allowed_files):
        msg = f"share {share.access_name}: RestrictFileAccess and AllowedFiles go together, and one of them is missing"
        raise InvalidDocument(msg)
    for name in share.allowed_files:
        if not name or "/" in name or "\0" in name or name in (".", ".."):
            msg = f"share {share.access_name}: AllowedFiles has {name!r}, which is no name in a directory"
            raise InvalidDocument(msg)
    return flags


def _checked_beside(share: Plan9Share, beside: Beside) -> tuple[tuple[str, ...], OwnerMap | None]:
    try:
        return canonical(beside.hide), None if beside.map_owner is None else OwnerMap.parse(beside.map_owner)
    except ValueError as error:
        msg = f"share {share.access_name}: {error}"
        raise InvalidDocument(msg) from error


def _require_exact_names(share: Plan9Share, root: int) -> None:
    """Refuse to hide names in a directory where a file has others besides those that are listed."""
    try:
        may_fold = folds(root)
    except OSError as error:
        raise _cannot(share, "list", error) from error
    if may_fold:
        msg = (
            f"share {share.access_name}: in {share.path!r} one file has several names (upper and lower case are one, "
            "or there are short names), so nothing can be hidden by name there: share it without, or from another "
            "file system"
        )
        raise InvalidDocument(msg)


def _cannot(share: Plan9Share, do: str, error: OSError) -> AccessDenied | FileServerError | InvalidDocument:
    """Say what stands in the way of a share, and what to do about it."""
    text = f"share {share.access_name}: cannot {do} {share.path!r}: {error.strerror}; "
    if error.errno in (errno.EACCES, errno.EPERM):
        return AccessDenied(text + "the file server's user needs to reach and list it")
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        return FileServerError(text + "end some of the guest's mounts, or allow the file server more (ulimit -n)")
    return InvalidDocument(text + "a share is a directory")


def _open_root(share: Plan9Share) -> int:
    try:
        root = os.open(share.path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise _cannot(share, "open", error) from error
    try:
        # A symbolic link anywhere in the path would have been resolved when the options were made: if
        # there is one now, somebody put it there in between.
        reached = os.readlink(f"/proc/self/fd/{root}")
        if reached != os.path.normpath(share.path):
            msg = f"share {share.access_name}: Path {share.path!r} leads to {reached!r}; give the real path"
            raise InvalidDocument(msg)
        os.close(os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root))
    except OSError as error:
        os.close(root)
        raise _cannot(share, "list", error) from error
    except BaseException:
        os.close(root)
        raise
    return root


def _require_xattrs(share: Plan9Share, root: int) -> None:
    try:
        os.getxattr(f"/proc/self/fd/{root}", MAPPED + "uid")
    except OSError as error:
        if error.errno == errno.ENODATA:
            return
        msg = (
            f"share {share.access_name}: the file system of {share.path!r} keeps no user extended attributes "
            f"({error.strerror}), which the security model mapped-xattr writes; share it read-only, or choose "
            "another security model (none, passthrough)"
        )
        raise InvalidDocument(msg) from error
