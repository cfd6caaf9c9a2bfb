"""Which shares `uvmshare hcs add` has put on which VM: HCS has no query for that, so somebody must write it down.

What lives here: the record, one small file for each share. What must not: calls to HCS.

A file is there from before the share is added until after it was removed, so that a command that was
interrupted leaves a share that may be there visible, never one that is there unseen. Files are made and
removed whole, and none is written by two: no lock is needed.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from urllib.parse import quote

import msgspec

from uvmshare.errors import UNREADABLE, InvalidDocument
from uvmshare.wording import reason_of

__all__ = ["Recorded", "RecordedShares"]


class Recorded(msgspec.Struct, frozen=True, omit_defaults=True):
    """One share that a VM has or may have; `port` is the one that the guest dials."""

    share: str
    path: str
    read_only: bool
    port: int
    only: tuple[str, ...] = ()


_decoder = msgspec.json.Decoder(Recorded)


@dataclass(frozen=True, slots=True)
class RecordedShares:
    """The recorded shares of one VM, in files below `directory`."""

    directory: str
    vm: str

    @property
    def _home(self) -> str:
        return os.path.join(self.directory, "hcs", quote(self.vm, safe=""))

    def _file(self, name: str) -> str:
        return os.path.join(self._home, quote(name, safe="") + ".json")

    def shares(self) -> list[Recorded]:
        """Return what is recorded, oldest name first."""
        try:
            files = os.listdir(self._home)
        except FileNotFoundError:
            return []
        names = sorted((file.removesuffix(".json") for file in files if file.endswith(".json")), key=_as_number)
        return [share for share in map(self._read, names) if share is not None]

    def reserve(self, path: str, *, read_only: bool, port: int, only: tuple[str, ...]) -> Recorded:
        """Record a share under a name that no other has, before it is added.

        Names are the seconds since the epoch, or the next free number: none comes back (a guest may still have
        the old share mounted), and a Manager, which may serve the same VM and counts from 0, has none of them.
        """
        os.makedirs(self._home, exist_ok=True)
        number = max(int(time.time()), *(_as_number(share.share) for share in self.shares()), 0)
        while True:
            number += 1
            share = Recorded(str(number), path, read_only, port, only)
            if self._create(share):
                return share

    def forget(self, name: str) -> None:
        """Take a share out of the record. Without effect if it is not there."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._file(name))

    def _create(self, share: Recorded) -> bool:
        """Make the file of a share, whole. Returns False when somebody else has taken the name."""
        scratch = self._file(f".{share.share}.{os.getpid()}").removesuffix(".json")
        try:
            with open(scratch, "xb") as file:
                file.write(msgspec.json.encode(share))
            os.link(scratch, self._file(share.share))  # unlike a rename, fails when there is one
        except FileExistsError:
            return False
        finally:
            os.unlink(scratch)
        return True

    def _read(self, name: str) -> Recorded | None:
        try:
            with open(self._file(name), "rb") as file:
                return _decoder.decode(file.read())
        except FileNotFoundError:
            return None
        except UNREADABLE as error:
            msg = (
                f"{self._file(name)}: not a record of a share ({reason_of(error)}): delete it, and "
                f"remove share {name} by its name"
            )
            raise InvalidDocument(msg) from error


def _as_number(name: str) -> int:
    return int(name) if name.isdecimal() else 0
