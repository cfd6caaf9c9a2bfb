"""A user's requests to a gate, noted down with their answers.

What lives here: `ask`. What must not: what may come of it (`tests.fleet.reference_history`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from tests.fleet.reference_history import Asked
from tests.fleet_model.harness import ANN

from uvmshare.daemon.documents import NewShare
from uvmshare.errors import InvalidState, NotThere, OutcomeUnknown, StoreError

if TYPE_CHECKING:
    from tests.fleet.reference_history import Reference

    from uvmshare.fleet.gate import Gate

__all__ = ["ask"]


async def ask(
    gate: Gate, reference: Reference, what: Any, name: str | None, lease: float | None
) -> tuple[Asked, str | None]:
    """Ask for one thing; return the record of it, and the share's name while it is held."""
    clock = asyncio.get_running_loop().time
    began, told = clock(), None
    outcome: Any = "made"
    try:
        if what == "add":
            wanted = NewShare(path=reference.path, owner=reference.owner, lease=lease)
            told = (await gate.add_share(ANN, await gate.want_share(ANN, reference.vm, wanted))).name
        else:
            assert name is not None, "what is released was told by name"
            ended = await gate.end_share(ANN, reference.vm, name, reference.owner, force=False)
            await gate.release_share(ANN, name, ended, force=False)
    except OutcomeUnknown:
        outcome, told = "unknown", name
    except NotThere:
        outcome = "absent"
    except (StoreError, InvalidState):
        outcome, told = "refused", name
    return Asked(reference, what, began, clock(), outcome, told if what == "add" else None), told
