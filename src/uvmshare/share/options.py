"""What a caller asks to share, in one canonical form: two spellings of the same share are equal.

What lives here: `AddOptions` and every check that can be made before a VM is touched.
What must not: whether a share exists, and what a VM makes of the options.
"""

from __future__ import annotations

import os
import stat
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self, TypeAlias, TypedDict

from uvmshare import arguments
from uvmshare import directory as directories
from uvmshare.errors import InvalidOptions
from uvmshare.hiding import canonical
from uvmshare.hostpath import require_path, text_of
from uvmshare.owner_map import OwnerMap

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["AddOptions", "HostPath", "ShareKeywords", "options_of"]

HostPath: TypeAlias = "str | os.PathLike[str]"


class ShareKeywords(TypedDict, total=False):
    """The keywords that may follow the path of a share: those of `AddOptions`."""

    read_only: bool
    allowed_names: Iterable[str] | None
    hide: Iterable[str]
    map_owner: str | None


def options_of(share: AddOptions | HostPath, keywords: ShareKeywords) -> AddOptions:
    """Return the options of a share, from `AddOptions` or from a path and keywords.

    Raises `InvalidOptions` as `AddOptions` does, and when there are both options and keywords.
    """
    arguments.only_known("a share", keywords, ShareKeywords.__annotations__)
    if not isinstance(share, AddOptions):
        return AddOptions(share, **keywords)
    if keywords:
        msg = f"{', '.join(keywords)}: pass it to AddOptions, which say all of a share, or pass a path in their place"
        raise InvalidOptions(msg)
    return share


_WINDOWS = os.name == "nt"

_SEPARATORS = "/\\:" if _WINDOWS else "/"
"""What no name in a directory contains. On Windows a colon would name a stream of another file."""

_NAME_MAX = 255
"""Bytes in a file's name: NAME_MAX of Linux, and the most that its 9P client walks to."""


@dataclass(frozen=True, slots=True, init=False, repr=False)
class AddOptions:
    """A directory or file of the host, and what the guest may do with it.

    The options are made canonical when they are built, so that two spellings of one share are equal
    and have the same hash: the path is absolute, without symlinks, and case-folded on Windows; allowed
    names are sorted, unique, and case-folded on Windows. A regular file becomes its directory with
    its own name as the only allowed one, as hcsshim shares a single file.

    - `host_path`: the directory (or regular file) of the host.
    - `read_only`: the guest cannot change anything, whoever it is there.
    - `allowed_names`: the only names of the directory that exist for the guest. None means all; built options then have
      an empty one. They are names in the directory itself, not paths, and need not exist yet.
    - `hide`: patterns as in gitignore(5) (`uvmshare.hiding`). What they match does not exist for the guest.
    - `map_owner`: ``HOST:GUEST`` (`uvmshare.owner_map`): an owner of files on the host, and their owner in the guest.
      None: files keep their owners. HCS can neither hide names nor map owners, and refuses both.
    - `directory`: the identity of the directory that the path led to when these were built (`uvmshare.directory`). None
      where the host does not tell, as on Windows. Options of a directory and of its replacement are not equal.

    Raises `InvalidOptions` when the path does not exist, is neither directory nor regular file, or is not UTF-8 and so
    cannot be written in a JSON document; when `allowed_names` are empty, which would share nothing; and when a name, a
    pattern or an owner map is invalid. Raises `WrongType` for a value of a wrong type.
    """

    host_path: str
    read_only: bool = False
    allowed_names: tuple[str, ...] = ()
    hide: tuple[str, ...] = ()
    map_owner: str | None = None
    directory: str | None = field(default=None, init=False)

    def __init__(
        self,
        host_path: str | os.PathLike[str],
        *,
        read_only: bool = False,
        allowed_names: Iterable[str] | None = None,
        hide: Iterable[str] = (),
        map_owner: str | None = None,
    ) -> None:
        arguments.flag("read_only", read_only)
        names = () if allowed_names is None else _canonical_names(allowed_names)
        if allowed_names is not None and not names:
            msg = "allowed_names is empty, which would share nothing: name what the guest may see, or leave it out"
            raise InvalidOptions(msg)
        patterns = _canonical_patterns(hide)
        owners = _canonical_map(map_owner)

        path, mode, directory = _canonical_path(host_path)
        if stat.S_ISREG(mode):
            path, leaf = os.path.split(path)
            if names and names != (leaf,):
                msg = (
                    f"{host_path!s} is a file, which is shared alone, but allowed_names are {', '.join(names)}: "
                    f"share its directory {path} to choose names in it"
                )
                raise InvalidOptions(msg)
            names = (leaf,)

        # The class is frozen: this is how a frozen dataclass sets its own fields.
        object.__setattr__(self, "host_path", path)
        object.__setattr__(self, "read_only", read_only)
        object.__setattr__(self, "allowed_names", names)
        object.__setattr__(self, "hide", patterns)
        object.__setattr__(self, "map_owner", owners)
        object.__setattr__(self, "directory", directory)

    def __repr__(self) -> str:
        said = {"read_only": self.read_only, "allowed_names": self.allowed_names, "hide": self.hide}
        said["map_owner"] = self.map_owner
        more = "".join(f", {name}={value!r}" for name, value in said.items() if value)
        return f"AddOptions({self.host_path!r}{more})"

    @classmethod
    def recalled(
        cls,
        host_path: str,
        *,
        read_only: bool,
        allowed_names: tuple[str, ...] = (),
        hide: tuple[str, ...] = (),
        map_owner: str | None = None,
        directory: str | None = None,
    ) -> AddOptions:
        """Return options that were built and checked before, and then written down.

        The file system is not asked: the path may be gone while the share still exists. After another boot of the host,
        `directory` says nothing any more and is None.
        """
        options = cls.__new__(cls)
        object.__setattr__(options, "host_path", host_path)
        object.__setattr__(options, "read_only", read_only)
        object.__setattr__(options, "allowed_names", allowed_names)
        object.__setattr__(options, "hide", hide)
        object.__setattr__(options, "map_owner", map_owner)
        object.__setattr__(options, "directory", directories.recalled(directory))
        return options

    def of_directory(self, directory: str | None) -> Self:
        """Return the same options with that `directory`."""
        options = copy(self)
        object.__setattr__(options, "directory", directory)
        return options

    def weaker(self) -> Iterator[Self]:
        """Yield these options as an earlier process may have known them, with less knowledge of the directory."""
        return map(self.of_directory, directories.weaker(self.directory))

    def may_be(self, other: AddOptions) -> bool:
        """Tell whether both may be of the same share: everything is equal, as far as the directories are known."""
        return directories.may_be_same(self.directory, other.directory) and self == other.of_directory(self.directory)


def _canonical_path(host_path: str | os.PathLike[str]) -> tuple[str, int, str | None]:
    """Return the one spelling of the path, the `st_mode` of what it leads to, and which directory that is or is in."""
    path = text_of("host_path", host_path)
    require_path("host_path", path, InvalidOptions)
    try:
        given, path = path, os.path.realpath(path, strict=True)
        found = os.stat(path)
        mode = found.st_mode
        is_the_same = os.path.samestat(os.stat(given), found)
    except OSError as error:
        raise _unreachable(path, error) from error
    if not is_the_same:
        # A link of /proc to what a process has, which is elsewhere in a mount namespace, or was moved.
        msg = f"{given} is shown as {path}, and leads to another file: give the path of the directory itself"
        raise InvalidOptions(msg)
    # After the symlinks are gone: what is sent to the VM is the real path.
    _check_utf8("host_path", path)
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        msg = f"{path} is a {_kind(mode)}: only directories and regular files can be shared"
        raise InvalidOptions(msg)
    try:
        directory = directories.look(path if stat.S_ISDIR(mode) else os.path.dirname(path))
    except OSError as error:
        raise _unreachable(path, error) from error
    return os.path.normcase(path), mode, directory


def _unreachable(path: str, error: OSError) -> InvalidOptions:
    return InvalidOptions(f"{path}: {error.strerror}: share a directory or file that exists and that you may reach")


def _canonical_names(allowed_names: Iterable[str]) -> tuple[str, ...]:
    """Return the names checked, sorted and unique."""
    names = arguments.list_of("allowed_names", allowed_names, str, "a list of names in the directory")
    for name in names:
        _check_name(name)
    return tuple(sorted({name.casefold() if _WINDOWS else name for name in names}))


def _canonical_patterns(hide: Iterable[str]) -> tuple[str, ...]:
    """Return the patterns checked, and sorted where their order says nothing."""
    patterns = arguments.list_of("hide", hide, str, "a list of patterns, as in gitignore(5)")
    try:
        return canonical(patterns)
    except ValueError as error:
        msg = f"hide: {error}"
        raise InvalidOptions(msg) from error


def _canonical_map(map_owner: str | None) -> str | None:
    if map_owner is None:
        return None
    arguments.text("map_owner", map_owner, "a str such as '1000:0', HOST:GUEST")
    try:
        return str(OwnerMap.parse(map_owner))
    except ValueError as error:
        raise InvalidOptions(str(error)) from error


def _check_name(name: str) -> None:
    if not name:
        msg = "an allowed name is empty: give the names of files or directories"
        raise InvalidOptions(msg)
    for character in _SEPARATORS:
        if character in name:
            msg = f"allowed name {name!r} contains {character!r}: names are those in the directory itself, not paths"
            raise InvalidOptions(msg)
    if "\0" in name:
        msg = f"allowed name {name!r} contains a NUL, which no name does"
        raise InvalidOptions(msg)
    if name in (".", ".."):
        msg = f"allowed name {name!r} is no name of a file: give the names of files or directories"
        raise InvalidOptions(msg)
    if len(_check_utf8("allowed name", name)) > _NAME_MAX:
        msg = f"allowed name {name[:40]!r}... has more than {_NAME_MAX} bytes, which no file's name has"
        raise InvalidOptions(msg)


_REMEDIES = {
    "host_path": "rename it, or mount it at a path that is (mount --bind)",
    "allowed name": "rename it, or share the whole directory, whose names may be any",
}


def _check_utf8(what: str, text: str) -> bytes:
    """Return the text encoded. Documents for the VM are JSON, which has no other bytes."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        msg = f"{what} {text!r} is not UTF-8, and the VM's documents hold nothing else: {_REMEDIES[what]}"
        raise InvalidOptions(msg) from error


def _kind(mode: int) -> str:
    kinds = (
        (stat.S_ISFIFO, "FIFO"),
        (stat.S_ISSOCK, "socket"),
        (stat.S_ISCHR, "character device"),
        (stat.S_ISBLK, "block device"),
    )
    return next((kind for is_kind, kind in kinds if is_kind(mode)), "special file")
