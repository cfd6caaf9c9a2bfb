"""Who owns what a guest makes, and what it sees of it: the three security models.

What lives here: one class a model, with QEMU's names and QEMU's stored format, so that a tree written
under one server is read by the other. What must not: walks (`tree`), messages (`handlers`).

================  ============================================================================
``none``          files belong to the server's user; a change of owner is forgotten, and so are setuid and
                  setgid of a file, which would mean that user
``passthrough``   the guest's uid, gid and modes are the host's; needs root
``mapped-xattr``  what the guest means is kept in ``user.virtfs.uid``, ``.gid``, ``.mode`` (32-bit) and
                  ``.rdev`` (64-bit, all little endian). What is absent falls back to the host file's.
                  Symbolic links, devices, FIFOs and sockets are regular files whose ``.mode`` has the
                  type; a link's target is the file's content. Links are real ones where that is asked for
================  ============================================================================

A share's owner map (`uvmshare.owner_map`) stands between the host's numbers and the guest's: what the host's file says
of its owner is shown by it, and the owner of what is made, or given away, is the host's by it. What is kept in
attributes is the guest's, and is not mapped.

Permission is checked by the guest's kernel, which knows its users' groups; 9P tells a server only a
uid. What bounds a guest here is its share.
"""

# ruff: noqa: D102  the base class says what each method does
from __future__ import annotations

import errno
import os
import stat
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from uvmshare.errors import FileServerError
from uvmshare.fileserver import syscalls
from uvmshare.fileserver.models import MAPPED
from uvmshare.fileserver.mount.files import virtfs
from uvmshare.linux.fsuid import set_fs_identity

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvmshare.fileserver.mount.files.node import Node
    from uvmshare.fileserver.mount.files.tree import Tree
    from uvmshare.owner_map import OwnerMap

__all__ = ["Attributes", "FileOwner", "Known", "Mapped", "Ownership", "Passthrough", "choose", "is_settled"]

Attributes = tuple[int, int, int, int]
"""mode with the file type, uid, gid and rdev, as the guest sees them."""

Created = tuple[int, os.stat_result]
"""A descriptor, and what fstat(2) said of it."""


class FileOwner(NamedTuple):
    """Whom a new file is to belong to, as the guest numbers them."""

    uid: int
    gid: int


_MOST_KNOWN: Final = 2048
"""Files of which what the guest sees is kept, at some 600 bytes each."""

_CLOCK_TICK_NS: Final = 20_000_000
"""Linux ticks every 1 to 10 ms."""

_SECOND_NS: Final = 1_000_000_000
_COARSE_NS: Final = 3 * _SECOND_NS
"""File systems that keep no part of a second (ext4 with inodes of 128 bytes) tick with it, FAT every other one."""


def is_settled(now: int, *times: int) -> bool:
    """Say whether another change of a file would give it other times than these; all in nanoseconds.

    It may change again within a clock tick and keep them (git calls it racily clean): what is known of a younger
    one must not be kept.
    """
    return all(now - time > (_CLOCK_TICK_NS if time % _SECOND_NS else _COARSE_NS) for time in times)


class Known:
    """What a guest sees of a file as long as the file is what it was.

    `stat` has mode, inode, device, links, owner, group and size; `qid` is its qid as numbers; `made` is
    the body of an Rgetattr, with the atime and blocks that it was made with, which change without ctime. The three
    change together, since threads beside the loop (`foreign`) ask too.
    """

    __slots__ = ("attributes", "ctime", "made", "mtime", "qid", "stat")

    def __init__(self, found: os.stat_result, attributes: Attributes, qid: tuple[int, int, int]) -> None:
        self.stat = found[:7]
        self.ctime = found.st_ctime_ns
        self.mtime = found.st_mtime_ns
        self.attributes = attributes
        self.qid = qid
        self.made: tuple[int, int, bytes] = (0, 0, b"")


_CREATE: Final = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY
_MADE_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CAP_DAC_OVERRIDE: Final = 1
_CAP_MKNOD: Final = 27
_PERMISSIONS: Final = 0o777
_ALL_BITS: Final = 0o7777
_OURS: Final = MAPPED.encode()
_USERS: Final = b"user."
_ACLS: Final = frozenset((b"system.posix_acl_access", b"system.posix_acl_default"))
_SET_ID: Final = stat.S_ISUID | stat.S_ISGID


def _not_ours(name: bytes) -> bytes:
    """Refuse the server's own attributes, which a guest must neither see nor set: EPERM."""
    if name.startswith(_OURS):
        raise OSError(errno.EPERM, "an attribute of the server's own")
    return name


class Ownership:
    """The model ``none``, and what the models have in common: the guest's wishes go to the host's files."""

    name = "none"
    _bits = _ALL_BITS & ~_SET_ID
    """The bits that a file of the host may get from a guest."""
    _attributes: frozenset[bytes] = frozenset()
    """Extended attributes of the host that are a guest's too, beside those of users."""
    looks_further_before_write = False
    """Whether `before_write` has anything to do, for users other than root, where the host's file has no such bits."""

    def __init__(self, tree: Tree, owners: OwnerMap | None = None) -> None:
        self._tree = tree
        self._owners = owners
        self._is_root = os.geteuid() == 0
        self.known_files: dict[int, Known] = {}
        """By inode: what `known` has kept, of files that may have changed since."""

    def known(self, node: Node, found: os.stat_result) -> Known:
        """Return what the guest sees of a node whose fstat(2) is `found`, read again only when the file has changed.

        Every change of what is kept changes ctime (inode(7)); all else that was asked for anyway is compared for
        file systems that are not exact about it, as sshfs, which knows no ctime. Kept, all of it takes 0.3 us;
        reading extended attributes 3, numbers 0.6.
        """
        known = self.known_files.get(found.st_ino)
        if (
            known is not None
            and known.ctime == found.st_ctime_ns
            and known.mtime == found.st_mtime_ns
            and known.stat == found[:7]
        ):
            return known
        attributes = self.seen(node, found)
        known = Known(found, attributes, self._tree.qid_numbers(self._tree.told(node, found), attributes[0]))
        if is_settled(time.time_ns(), known.ctime):
            if len(self.known_files) >= _MOST_KNOWN:
                self.known_files.clear()
            self.known_files[found.st_ino] = known
        return known

    def seen(self, node: Node, found: os.stat_result) -> Attributes:
        """Return what the guest sees of a node whose fstat(2) is `found`."""
        del node
        return (found.st_mode, *self._shown(found), found.st_rdev)

    def _shown(self, found: os.stat_result) -> FileOwner:
        """Return the owner of a file of the host as the guest is to know it."""
        if self._owners is None:
            return FileOwner(found.st_uid, found.st_gid)
        return FileOwner(*self._owners.shown(found.st_uid, found.st_gid))

    @property
    def _is_squashed(self) -> bool:
        """Whether every file has the same owner for the guest, which so cannot say who another one is."""
        return self._owners is not None and self._owners.host is None

    def regular_type(self) -> Callable[[bytes], int] | None:
        """Return what tells the d_type that a regular file of the host has for the guest, by its path.

        None where that is a regular file always, so that nobody has to look.
        """
        return None

    # Making files. All raise OSError, and leave nothing behind then.

    def create(self, directory: Node, name: bytes, flags: int, mode: int, owner: FileOwner) -> Created:
        """Create a regular file that is not there yet and open it with `flags`; return the descriptor and its stat."""
        del owner
        descriptor = os.open(name, flags | _CREATE, mode & self._bits, dir_fd=directory.fd)
        return descriptor, os.fstat(descriptor)

    def mkdir(self, directory: Node, name: bytes, mode: int, owner: FileOwner) -> None:
        """Make a directory."""
        del owner
        os.mkdir(name, mode & _ALL_BITS, dir_fd=directory.fd)
        if mode & ~_PERMISSIONS & _ALL_BITS:
            # mkdir(2) keeps the sticky bit alone; the guest may have asked for setgid too. Not chmod(2) by
            # name: another mount may have put a symbolic link there, and Landlock does not know chmod.
            made = os.open(name, _MADE_DIRECTORY, dir_fd=directory.fd)
            try:
                os.chmod(f"/proc/self/fd/{made}", mode & _ALL_BITS)
            finally:
                os.close(made)

    def symlink(self, directory: Node, name: bytes, target: bytes, owner: FileOwner) -> None:
        """Make a symbolic link."""
        del owner
        os.symlink(target, name, dir_fd=directory.fd)

    def mknod(self, directory: Node, name: bytes, mode: int, rdev: int, owner: FileOwner) -> None:
        """Make a node of the type in `mode`; a device needs a model that says whose it is (EPERM)."""
        del owner
        if stat.S_IFMT(mode) in (stat.S_IFCHR, stat.S_IFBLK):
            raise OSError(errno.EPERM, "a device would be the host's")
        os.mknod(name, stat.S_IFMT(mode) | mode & self._bits, rdev, dir_fd=directory.fd)

    # Changing and reading files. All raise OSError.

    def chmod(self, node: Node, mode: int) -> None:
        """Set the permission bits."""
        bits = _ALL_BITS if stat.S_ISDIR(os.fstat(node.fd).st_mode) else self._bits
        os.chmod(self._tree.path_of(node), mode & bits)

    def before_write(self, node: Node, target: int | str, uid: int) -> None:
        """Take setuid and setgid off a regular file that a user of the guest is about to change, as write(2) does.

        The server writes as its own user, and when that is root, the host does not do it. `target` is the node's
        file, open or as a path. It is looked at each time: another mount, or the host, may have set the bits since the
        last one. Where that falls between the look and the write, the write is the earlier one.

        Here no content of a guest's has these bits, whoever has set them: they would mean the server's user. Where
        that is not root, the host takes off what the guest's root writes to.
        """
        mode = os.stat(target).st_mode
        if mode & _SET_ID and (uid or self._is_root):
            os.chmod(self._tree.path_of(node), stat.S_IMODE(mode) & ~_SET_ID)

    def chown(self, node: Node, uid: int, gid: int) -> None:
        """Set owner and group; -1 leaves one as it is. Here it only gets a new ctime: it is the server's user's."""
        del uid, gid
        with suppress(PermissionError):
            virtfs.touch(self._tree.path_of(node))

    def readlink(self, node: Node) -> bytes:
        """Return the target of a symbolic link: EINVAL for anything else."""
        try:
            return os.readlink(b"", dir_fd=node.fd)
        except FileNotFoundError as error:  # what readlinkat(2) says of an empty path to anything but a link
            raise OSError(errno.EINVAL, "not a symbolic link") from error

    # Extended attributes: which names a guest may use, and what the host calls them.

    def xattr_name(self, name: bytes) -> bytes:
        """Return the host's name of a guest's attribute.

        Raises `OSError`: EOPNOTSUPP for what this model does not keep, EPERM for the server's own names.
        """
        if not name.startswith(_USERS) and name not in self._attributes:
            raise OSError(errno.EOPNOTSUPP, "no attribute that this security model keeps")
        return _not_ours(name)

    def xattr_seen(self, name: bytes) -> bytes | None:
        """Return the guest's name of a host's attribute, or None when it does not exist for the guest."""
        if name.startswith(_USERS):
            return None if name.startswith(_OURS) else name
        return name if name in self._attributes else None


class Passthrough(Ownership):
    """The model ``passthrough``: new files are made as the guest's user, and nobody else's rights are used up."""

    name = "passthrough"
    _bits = _ALL_BITS
    _attributes = _ACLS

    def __init__(self, tree: Tree, owners: OwnerMap | None) -> None:
        """Drop the supplementary groups. Raises `PermissionError` when the server is not root."""
        super().__init__(tree, owners)
        syscalls.drop_supplementary_groups()

    class _As:
        """Be the guest's user for one call.

        Able to enter any directory, and to make device nodes, when the guest's kernel has allowed it.
        """

        def __init__(self, owner: FileOwner) -> None:
            self._owner = owner

        def __enter__(self) -> None:
            try:
                set_fs_identity(self._owner.uid, self._owner.gid)
                if self._owner.uid:
                    syscalls.keep_capabilities(_CAP_DAC_OVERRIDE, _CAP_MKNOD)
            except BaseException:
                set_fs_identity(0, 0)
                raise

        def __exit__(self, *_: object) -> None:
            set_fs_identity(0, 0)

    def _on_host(self, directory: Node, owner: FileOwner) -> FileOwner:
        """Return whose a new file is on the host: where all are one owner's, its directory's owner's."""
        if self._owners is None:
            return owner
        if self._is_squashed:
            found = os.fstat(directory.fd)
            return FileOwner(found.st_uid, found.st_gid)
        return FileOwner(*self._owners.meant(*owner))

    def create(self, directory: Node, name: bytes, flags: int, mode: int, owner: FileOwner) -> Created:
        with self._As(self._on_host(directory, owner)):
            return super().create(directory, name, flags, mode, owner)

    def mkdir(self, directory: Node, name: bytes, mode: int, owner: FileOwner) -> None:
        with self._As(self._on_host(directory, owner)):
            super().mkdir(directory, name, mode, owner)

    def symlink(self, directory: Node, name: bytes, target: bytes, owner: FileOwner) -> None:
        with self._As(self._on_host(directory, owner)):
            super().symlink(directory, name, target, owner)

    def mknod(self, directory: Node, name: bytes, mode: int, rdev: int, owner: FileOwner) -> None:
        with self._As(self._on_host(directory, owner)):
            os.mknod(name, mode, rdev, dir_fd=directory.fd)

    def before_write(self, node: Node, target: int | str, uid: int) -> None:
        if uid:
            mode = os.stat(target).st_mode
            if mode & (off := _taken_off(mode)):
                self.chmod(node, mode & ~off)

    def chown(self, node: Node, uid: int, gid: int) -> None:
        if self._is_squashed:
            super().chown(node, uid, gid)
            return
        if self._owners is not None:
            uid, gid = self._owners.meant(uid, gid)
        os.chown(self._tree.path_of(node), uid, gid)


def _taken_off(mode: int) -> int:
    """Return the bits that a user's write takes off: setuid, and setgid of what the group may execute."""
    return mode & (stat.S_ISUID | (stat.S_ISGID if mode & stat.S_IXGRP else 0))


_PRIVATE: Final = 0o600
"""Host permissions of a file that stands for a link or node: its content is nobody's to change."""


_KEPT: Final = (b"security.", b"trusted.")
"""With those of `_ACLS`: what the host's kernel acts on. Mapped attributes of these name spaces are kept under the
server's own prefix, where it does not. The names are QEMU's."""


class Mapped(Ownership):
    """The model ``mapped-xattr``.

    Host files keep the guest's permission bits without setuid, setgid and sticky, so that the host's
    user can work with them, and always with the server's own access when it is not root. An attribute
    is written only where the host file would tell the guest something else.
    """

    name = "mapped-xattr"
    looks_further_before_write = True  # the guest's bits are in an attribute

    def __init__(self, tree: Tree, links: str, owners: OwnerMap | None) -> None:
        """Make links that are `links`: "mapped" or "real"."""
        super().__init__(tree, owners)
        self._has_real_links = links == "real"
        self._file_bits = 0 if self._is_root else 0o600
        self._directory_bits = 0 if self._is_root else 0o700
        self._lent: dict[tuple[int, int], tuple[int, Attributes]] = {}

    def seen(self, node: Node, found: os.stat_result) -> Attributes:
        mode = found.st_mode
        kind = stat.S_IFMT(mode)
        if kind not in virtfs.HAVE_ATTRIBUTES:
            return super().seen(node, found)  # these cannot have user attributes
        try:
            return self._read(self._tree.path_of(node), found)
        except PermissionError:
            return self._read_lent(node, found)

    def _read_lent(self, node: Node, found: os.stat_result) -> Attributes:
        """Read what the server's user must lend itself the right to read; what stays unreadable is as if absent.

        It is kept until the file changes, because reading it anew would give the file a new ctime each time.
        """
        number = found.st_dev, found.st_ino
        ctime, attributes = self._lent.get(number, (0, (0, 0, 0, 0)))
        if ctime == found.st_ctime_ns:
            return attributes
        path = self._tree.path_of(node)
        try:
            attributes = self._tree.lending.during(lambda: self._read(path, found), node)
        except PermissionError:
            return (found.st_mode, *self._shown(found), 0)
        if len(self._lent) >= _MOST_KNOWN:
            self._lent.clear()
        self._lent[number] = os.fstat(node.fd).st_ctime_ns, attributes
        return attributes

    def _mode_of(self, target: int | str) -> int:
        """Return the mode that the guest sees of a regular file, open or as a path. Raises `OSError`."""
        mode = os.stat(target).st_mode
        return virtfs.stored(target, virtfs.MODE, virtfs.U32, mode) if virtfs.MODE in virtfs.names_of(target) else mode

    def _read(self, path: str, found: os.stat_result) -> Attributes:
        mode, (uid, gid), rdev = found.st_mode, self._shown(found), 0
        names = virtfs.names_of(path)
        if virtfs.UID in names and not self._is_squashed:
            uid = virtfs.stored(path, virtfs.UID, virtfs.U32, uid)
        if virtfs.GID in names and not self._is_squashed:
            gid = virtfs.stored(path, virtfs.GID, virtfs.U32, gid)
        if virtfs.MODE in names:
            mode = virtfs.meant(virtfs.stored(path, virtfs.MODE, virtfs.U32, mode), mode)
        if virtfs.RDEV in names:
            rdev = virtfs.stored(path, virtfs.RDEV, virtfs.U64, rdev)
        return mode, uid, gid, rdev

    def regular_type(self) -> Callable[[bytes], int] | None:
        return virtfs.type_of

    def create(self, directory: Node, name: bytes, flags: int, mode: int, owner: FileOwner) -> Created:
        bits = mode & _PERMISSIONS | self._file_bits
        descriptor = os.open(name, flags | _CREATE, bits, dir_fd=directory.fd)
        try:
            found = os.fstat(descriptor)
            seen = stat.S_IFREG | mode & _ALL_BITS
            if self._owners is not None or (found.st_uid, found.st_gid, found.st_mode) != (*owner, seen):
                self._note(descriptor, found, seen, owner)
        except BaseException:
            os.close(descriptor)
            os.unlink(name, dir_fd=directory.fd)
            raise
        return descriptor, found

    def mkdir(self, directory: Node, name: bytes, mode: int, owner: FileOwner) -> None:
        os.mkdir(name, mode & _PERMISSIONS | self._directory_bits, dir_fd=directory.fd)
        try:
            made = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory.fd)
            try:
                self._note(made, os.fstat(made), stat.S_IFDIR | mode & _ALL_BITS, owner)
            finally:
                os.close(made)
        except BaseException:
            with suppress(OSError):
                os.rmdir(name, dir_fd=directory.fd)
            raise

    def symlink(self, directory: Node, name: bytes, target: bytes, owner: FileOwner) -> None:
        if self._has_real_links:
            super().symlink(directory, name, target, owner)
            return
        self._stand_in(directory, name, stat.S_IFLNK | _PERMISSIONS, owner, content=target)

    def mknod(self, directory: Node, name: bytes, mode: int, rdev: int, owner: FileOwner) -> None:
        kind = stat.S_IFMT(mode)
        if kind in (0, stat.S_IFREG):
            os.close(self.create(directory, name, os.O_WRONLY, mode, owner)[0])
        elif kind in (stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK):
            device = rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else None
            self._stand_in(directory, name, kind | mode & _ALL_BITS, owner, rdev=device)
        else:
            raise OSError(errno.EINVAL, "no node of that type")

    def _stand_in(
        self,
        directory: Node,
        name: bytes,
        mode: int,
        owner: FileOwner,
        *,
        content: bytes = b"",
        rdev: int | None = None,
    ) -> None:
        """Make the regular file that stands for a link or a node."""
        descriptor = os.open(name, os.O_WRONLY | _CREATE, _PRIVATE, dir_fd=directory.fd)
        try:
            written = os.pwrite(descriptor, content, 0) if content else 0
            if written != len(content):
                raise OSError(errno.ENOSPC, "the link's target was not written whole")
            self._note(descriptor, os.fstat(descriptor), mode, owner)
            if rdev is not None:
                os.setxattr(descriptor, virtfs.RDEV, virtfs.U64.pack(rdev))
        except BaseException:
            os.unlink(name, dir_fd=directory.fd)
            raise
        finally:
            os.close(descriptor)

    def _note(self, target: int | str, found: os.stat_result, mode: int, owner: FileOwner, *, new: bool = True) -> None:
        """Store what the host file does not tell by itself; of a file that is not new, forget what it does.

        Where all files are one owner's, none is stored, and what is stays.
        """
        wanted = [(virtfs.MODE, mode, found.st_mode)]
        if not self._is_squashed:
            shown = self._shown(found)
            wanted[:0] = (virtfs.UID, owner.uid, shown.uid), (virtfs.GID, owner.gid, shown.gid)
        for name, value, host in wanted:
            if value != host:
                os.setxattr(target, name, virtfs.U32.pack(value))
            elif not new:
                virtfs.forget(target, name)

    def chmod(self, node: Node, mode: int) -> None:
        path = self._tree.path_of(node)
        found = os.fstat(node.fd)
        seen_mode, uid, gid, _ = self.seen(node, found)
        kind = stat.S_IFMT(seen_mode)
        host = stat.S_IFMT(found.st_mode)
        if kind == host:
            bits = self._directory_bits if kind == stat.S_IFDIR else self._file_bits
            try:
                os.chmod(path, mode & _PERMISSIONS | bits)
            except PermissionError:
                if host not in virtfs.HAVE_ATTRIBUTES:
                    raise
                virtfs.touch(path)  # another user's, whose bits stay as they are
            found = os.fstat(node.fd)
        else:
            virtfs.touch(path)
        if host in virtfs.HAVE_ATTRIBUTES:
            self._keep(node, found, kind | mode & _ALL_BITS, FileOwner(uid, gid))

    def before_write(self, node: Node, target: int | str, uid: int) -> None:
        host = os.stat(target).st_mode & _SET_ID if self._is_root else 0
        if not uid and not host:
            return
        mode = self._tree.lending.during(lambda: self._mode_of(target), node)
        off = _taken_off(mode) if uid else 0
        if mode & off or host:  # set by the host: its file loses them, while the guest's root still sees them
            self.chmod(node, mode & ~off)

    def chown(self, node: Node, uid: int, gid: int) -> None:
        found = os.fstat(node.fd)
        mode, old_uid, old_gid, _ = self.seen(node, found)
        if self._is_squashed or stat.S_IFMT(found.st_mode) not in virtfs.HAVE_ATTRIBUTES:
            # A link, FIFO or device of the host has nowhere to keep an owner. That it stays harms nobody, and
            # `chown -R` of a tree with links in it goes on.
            super().chown(node, uid, gid)
            return
        owner = FileOwner(old_uid if uid == -1 else uid, old_gid if gid == -1 else gid)
        virtfs.touch(self._tree.path_of(node))
        self._keep(node, found, mode, owner)

    def _keep(self, node: Node, found: os.stat_result, mode: int, owner: FileOwner) -> None:
        """Store what a file that was there is to be for the guest. Raises `OSError`: EPERM where it may not be written.

        What is so already needs not be stored.
        """
        path = self._tree.path_of(node)
        try:
            self._tree.lending.during(lambda: self._note(path, found, mode, owner, new=False), node)
        except PermissionError as error:
            if self.seen(node, found)[:3] != (mode, *owner):
                raise OSError(errno.EPERM, "another user's file, which the server may not write") from error

    def xattr_name(self, name: bytes) -> bytes:
        return _OURS + name if _is_kept(name) else super().xattr_name(name)

    def xattr_seen(self, name: bytes) -> bytes | None:
        if not name.startswith(_OURS):
            return super().xattr_seen(name)
        kept = name.removeprefix(_OURS)
        return kept if _is_kept(kept) else None

    def readlink(self, node: Node) -> bytes:
        found = os.fstat(node.fd)
        if not stat.S_ISREG(found.st_mode):
            return super().readlink(node)
        if not stat.S_ISLNK(self.seen(node, found)[0]):
            raise OSError(errno.EINVAL, "not a symbolic link")
        descriptor = self._tree.reopen(node, os.O_RDONLY)
        try:
            return os.pread(descriptor, _MAX_TARGET, 0)
        finally:
            os.close(descriptor)


def _is_kept(name: bytes) -> bool:
    return name in _ACLS or name.startswith(_KEPT)


_MAX_TARGET: Final = 4096
"""``PATH_MAX``; Rreadlink has room for 8 KiB in Linux's client."""


def choose(model: str, tree: Tree, links: str, owners: OwnerMap | None = None) -> Ownership:
    """Return the security model by its name. Raises `FileServerError` when this user cannot have it."""
    if model == "passthrough":
        try:
            return Passthrough(tree, owners)
        except PermissionError as error:
            msg = "the security model passthrough needs root: run as root, or choose mapped-xattr"
            raise FileServerError(msg) from error
    return Mapped(tree, links, owners) if model == "mapped-xattr" else Ownership(tree, owners)
