"""What `uvmshare demo` sees of the shares' states: every modify call as it passes, and the picture at the end.

What lives here: a VM that counts what passes through it, and the drawing of what it saw. What must not:
a table of transitions; there is one, in `uvmshare.share.state`, and this asks it.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from uvmshare.cli.pictures import cell
from uvmshare.errors import ComputeSystemGone, OutcomeUnknown, ShareNotFound
from uvmshare.hcs.schema import RequestType
from uvmshare.share.state import TRANSITIONS, ShareState, ShareTrigger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from uvmshare import Manager
    from uvmshare.share.interfaces import NamedShare, VMPlan9
    from uvmshare.share.state import ShareLife

__all__ = ["RecordingVM", "ShareHistory", "draw"]

_TRIGGERS = {
    RequestType.ADD: (
        ShareTrigger.ADD_BEGUN,
        ShareTrigger.ADD_SUCCEEDED,
        ShareTrigger.ADD_FAILED,
        ShareTrigger.ADD_UNKNOWN,
    ),
    RequestType.REMOVE: (
        ShareTrigger.REMOVE_BEGUN,
        ShareTrigger.REMOVE_SUCCEEDED,
        ShareTrigger.REMOVE_FAILED,
        ShareTrigger.REMOVE_UNKNOWN,
    ),
}
_COLOURS = {
    ShareState.PENDING: "yellow",
    ShareState.ADDED: "green",
    ShareState.INVALID: "red",
    ShareState.REMOVED: "blue",
}


@dataclass(slots=True)
class ShareHistory:
    """The states that one share went through, each with the seconds since the start when it got there."""

    path: str
    life: ShareLife = TRANSITIONS.initial
    visits: list[tuple[ShareState, float]] = field(default_factory=list)


class RecordingVM:
    """Passes calls for shares on to another VM, and keeps what passed.

    `calls` has a (request type, share name) for every call, in order; `histories` a `ShareHistory` by share name.
    """

    def __init__(self, behind: VMPlan9) -> None:
        self._behind = behind
        self._started = time.monotonic()
        self.calls: list[tuple[RequestType, str]] = []
        self.histories: dict[str, ShareHistory] = {}

    def clock(self) -> float:
        """Return the seconds since this was made."""
        return time.monotonic() - self._started

    async def add_plan9(self, share: NamedShare) -> str | None:
        """Add the share and keep how that ended. Raises what the VM behind raises."""
        with self._kept(RequestType.ADD, share):
            return await self._behind.add_plan9(share)

    async def remove_plan9(self, share: NamedShare) -> None:
        """Remove the share and keep how that ended. Raises what the VM behind raises."""
        with self._kept(RequestType.REMOVE, share):
            await self._behind.remove_plan9(share)

    @contextmanager
    def _kept(self, kind: RequestType, share: NamedShare) -> Iterator[None]:
        name = share.name
        self.calls.append((kind, name))
        begun, succeeded, failed, unknown = _TRIGGERS[kind]
        if name not in self.histories:
            self.histories[name] = ShareHistory(share.options.host_path)
            self.histories[name].visits.append((TRANSITIONS.initial.state, self.clock()))
        trigger = unknown
        try:
            yield
            trigger = succeeded
        except (ShareNotFound, ComputeSystemGone):
            trigger = succeeded if kind is RequestType.REMOVE else failed
            raise
        except (OutcomeUnknown, TimeoutError, ConnectionError, EOFError):
            raise
        except Exception:
            trigger = failed
            raise
        finally:
            history = self.histories[name]
            history.life = TRANSITIONS.following(TRANSITIONS.following(history.life, begun), trigger)
            history.visits.append((history.life.state, self.clock()))

    def disagreements(self, manager: Manager) -> list[str]:
        """Return in words where the Manager's states differ from those that the calls led to."""
        listed = {share.name: share.state for share in manager.shares()}
        seen = {name: history.visits[-1][0] for name, history in self.histories.items()}
        return [
            f"share {name} is {state}, by its calls {seen.get(name)}"
            for name, state in listed.items()
            if seen.get(name) is not state
        ] + [
            f"share {name} is added, and the Manager does not list it"
            for name, state in seen.items()
            if state is ShareState.ADDED and name not in listed
        ]


def draw(histories: dict[str, ShareHistory]) -> Table:
    """Return the picture: a row a share, a column a state, the seconds when it got there, arrows in between."""
    table = Table(title="Every share and the states it went through, in seconds", title_justify="left")
    table.add_column("share", no_wrap=True)
    table.add_column("directory", no_wrap=True)
    states = list(ShareState)
    for state in states:
        table.add_column(state.value, no_wrap=True)
    for name, history in histories.items():
        when = dict(history.visits)
        first = min(states.index(state) for state in when)
        last = max(states.index(state) for state in when)
        cells = []
        for index, state in enumerate(states):
            if state in when:
                arrow = " ──▶" if index < last else ""
                cells.append(Text.assemble((f"● {when[state]:4.1f}", _COLOURS[state]), arrow))
            else:
                cells.append(Text("──────────" if first < index < last else ""))
        table.add_row(name, cell(os.path.basename(history.path)), *cells)
    return table
