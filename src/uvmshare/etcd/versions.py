"""Which versions of etcd are refused, and which are warned of, because they lose data or let leases of the living end.

What lives here: the table, and what it says of a version. What must not: how a version is found out.

| Version | What |
| --- | --- |
| before 3.4 | no progress of a watch can be asked for: refused |
| 3.5.0 to 3.5.2 | a member that is killed may have other data than the rest afterwards (etcd#13766): refused |
| 3.4 before 3.4.31, 3.5 before 3.5.13 | a leader that stands still ends leases of the living (etcd#15247): warned of |

The last row's may also tell of a watch's progress before they tell the events (etcd#15220, #17557).
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from uvmshare.errors import StoreUnsuitable

__all__ = ["Judgement", "judge"]

_REMEDY: Final = "run 3.5.13 or later, or 3.6"


class Judgement(msgspec.Struct, frozen=True):
    """What is to be said of a version that is used."""

    warning: str = ""
    progress: bool = True
    """Whether the progress that a watch tells can be believed."""


def judge(version: str, where: str) -> Judgement:
    """Return what is to be said of the version of the member at `where`. Raises `StoreUnsuitable`."""
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    if found is None:
        msg = f"{where} says that its version is {version!r}, which is none of etcd's: {_REMEDY}"
        raise StoreUnsuitable(msg)
    number = tuple(map(int, found.groups()))
    if number < (3, 4, 0):
        msg = f"etcd {version} at {where} is too old to tell that a watch is alive: {_REMEDY}"
        raise StoreUnsuitable(msg)
    if (3, 5, 0) <= number <= (3, 5, 2):
        msg = f"etcd {version} at {where} can lose data when it is killed (etcd issue 13766): {_REMEDY}"
        raise StoreUnsuitable(msg)
    if number < (3, 4, 31) or (3, 5, 0) <= number < (3, 5, 13):
        warning = (
            f"etcd {version} at {where} can end leases of clients that renew them, when its leader stands still "
            f"(etcd issue 15247): {_REMEDY}"
        )
        return Judgement(warning, progress=False)
    return Judgement()
