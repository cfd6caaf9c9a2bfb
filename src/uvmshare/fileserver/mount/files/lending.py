"""Permission bits that a server without root's rights gives itself for the length of one operation.

What lives here: `Lending`. What must not: which operation needs which file (its callers), what a guest sees of modes
(`ownership`).

The guest's kernel has allowed what comes here, often because its root asks, whom no mode stops. A server that is not
root is stopped by the host's kernel (EACCES) on files that it could open if it changed their mode first, because they
are its own user's: objects of git (0444), directories of Go's module cache (0555). So it does that, and changes it
back.

- Only after the host has refused, only on regular files and directories of the server's own user, only inside
  the share, and never on a share that is read-only.
- All that a user may give themselves is lent at once: u+rw to a file, u+rwx to a directory. So a mode that lacks one
  of these bits is one that nobody has lent anything to, and what is given back is always such a mode. Several lenders
  of one file, in this process or in others, then need no lock: one of them gives back while another still works,
  which is refused, and lends again. That the bits are there after a refusal says nothing of the moment of the call:
  one lender may have given back, and another lent since. So what is refused is tried a fixed number of times.
- Who changes the mode meanwhile wins: bits are given back only where the permissions are those that were lent. A change
  to just these, or one in the instant between the look and the giving back, is lost.
- A process that is asked to end gives back first (`give_all_back`). One that is killed in between leaves bits of
  the owner, which grant nobody else anything.
- A mount serves nothing else meanwhile that tells a mode, so that its guest never sees the lent bits. Another mount of
  the same files may, for these microseconds. Each loan gives the file a new ctime.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from uvmshare.fileserver.mount.files.node import Node

__all__ = ["Lending"]

T = TypeVar("T")

_FOR_FILES: Final = 0o600
_FOR_DIRECTORIES: Final = 0o700
_PERMISSIONS: Final = 0o777

_MOST_TRIES: Final = 16
"""How often others may give back what this one works with, and how often is tried what nothing lent can help."""


class _Loan:
    """What was lent to one file: `mode` is the one that it has meanwhile, `added` the bits that it had not."""

    __slots__ = ("added", "mode", "node")

    def __init__(self, node: Node, mode: int, added: int) -> None:
        self.node = node
        self.mode = mode
        self.added = added


class Lending:
    """The loans of one mount. `is_on`: this server may and need lend. `require_inside` is the boundary's."""

    def __init__(
        self, *, is_on: bool, require_inside: Callable[[Node], None], is_shared: Callable[[Node], bool]
    ) -> None:
        self.is_on = is_on
        self._require_inside = require_inside
        self._is_shared = is_shared
        self._user = os.geteuid()
        self._group = os.getegid()
        self._loans: list[_Loan] = []
        self.noted: Callable[[Node], AbstractContextManager[None]] = lambda _: nullcontext()
        """Around each change of a file's mode: where a ledger is kept, that is the mount's own doing (`listening`)."""

    def during(self, call: Callable[[], T], *nodes: Node) -> T:
        """Return what a call does; where the host refuses it, with bits lent to these files, as far as they can be.

        A call that is refused must leave nothing behind, because it is made again. Raises `OSError`:
        what the call does, and ENOENT for a file outside the share.
        """
        try:
            return call()
        except PermissionError as error:
            return self.after_refusal(error, call, *nodes)

    def after_refusal(self, refused: PermissionError, call: Callable[[], T], *nodes: Node) -> T:
        """Do what `during` does of a call that was refused already. Raises `OSError`."""
        if not self.is_on or refused.errno != errno.EACCES:
            raise refused
        for _ in range(_MOST_TRIES):
            loans: list[_Loan] = []
            own = False
            try:
                for node in nodes:
                    own |= self._lend(node, loans)
                if not own:
                    break
                return call()
            except PermissionError as error:
                refused = error
                if error.errno != errno.EACCES:
                    break
            finally:
                while loans:
                    self._give_back(loans.pop())
        raise refused

    def _lend(self, node: Node, loans: list[_Loan]) -> bool:
        """Lend what a file lacks, and add that to the loans. Return whether the file is one to lend to."""
        found = os.fstat(node.fd)
        kind = stat.S_IFMT(found.st_mode)
        if found.st_uid != self._user or kind not in (stat.S_IFREG, stat.S_IFDIR) or not self._is_shared(node):
            return False
        if found.st_mode & stat.S_ISGID and found.st_gid != self._group:
            return False  # chmod(2) takes the bit off where the user may not be in the group
        mode = stat.S_IMODE(found.st_mode)
        added = (_FOR_DIRECTORIES if kind == stat.S_IFDIR else _FOR_FILES) & ~mode
        if added:
            self._require_inside(node)  # no kernel keeps chmod(2) inside
            loan = _Loan(node, mode | added, added)
            loans.append(loan)
            self._loans.append(loan)
            try:
                with self.noted(node):
                    os.chmod(f"/proc/self/fd/{node.fd}", mode | added)
            except PermissionError:  # another user's all the same, who has no number in this namespace
                return False
        return True

    def _give_back(self, loan: _Loan) -> None:
        with suppress(OSError):
            mode = stat.S_IMODE(os.fstat(loan.node.fd).st_mode)
            # Not compared: setuid and setgid, which the host takes off what is truncated.
            if mode & _PERMISSIONS == loan.mode & _PERMISSIONS:
                with self.noted(loan.node):
                    os.chmod(f"/proc/self/fd/{loan.node.fd}", mode & ~loan.added)
        self._loans.remove(loan)

    def give_all_back(self) -> None:
        """Give everything back at once, because the process is about to end."""
        for loan in self._loans[::-1]:
            self._give_back(loan)
