"""The daemon's log: one line of JSON, or of logfmt, for each thing that happened, on standard error.

What lives here: how lines are written. What must not: which there are; VM, share and owner are given where a line
is made.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import TYPE_CHECKING, Any, Final, Literal

import structlog

from uvmshare.printable import json_escaped, json_text, printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import Processor

__all__ = ["FORMATS", "Fairness", "configure"]

USER_LINES: Final = 600
"""Lines about one user and their VMs, root aside, in each `_MINUTE`; an add and a release are three."""
_MINUTE: Final = 60.0
_USERS: Final = 10_000
"""Users that are remembered for a minute; beyond it, all begin anew."""

_LONGEST: Final = 65_536
"""Characters of one value; a traceback is the longest."""

_TRACEBACKS: Final = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
)
"""Without the values of local variables, which may be anybody's secrets."""

Format = Literal["json", "logfmt"]
FORMATS: tuple[Format, ...] = ("json", "logfmt")


def configure(form: Format, level: str = "INFO") -> None:
    """Have every line of the daemon, and of the libraries it runs on, written in this form."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        Fairness(),
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _TRACEBACKS if form == "json" else structlog.processors.format_exc_info,
        _without_nothing,
    ]
    renderer: Processor = (
        structlog.processors.JSONRenderer(_as_json)
        if form == "json"
        else _Logfmt(["timestamp", "level", "event", "vm", "share", "owner"])
    )
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)


class Fairness:
    """Drops what one user has written beyond their share of the log, and says how much with their next line."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, most: int = USER_LINES) -> None:
        self._clock = clock
        self._most = most
        self._lines: dict[str, tuple[float, int]] = {}
        """By user: when their minute began, and the lines since then."""

    def __call__(self, logger: Any, name: str, event: Any) -> Any:
        """Return the line, or raise `structlog.DropEvent`."""
        del logger, name
        user = str(event.get("user") or str(event.get("vm") or "0").partition(":")[0])
        if user == "0":
            return event
        now = self._clock()
        began, lines = self._lines.get(user, (now, 0))
        dropped = 0
        if now - began >= _MINUTE:
            dropped, began, lines = max(0, lines - self._most), now, 0
        if len(self._lines) >= _USERS and user not in self._lines:
            self._lines.clear()
        self._lines[user] = (began, lines + 1)
        if lines >= self._most:
            raise structlog.DropEvent
        if dropped:
            event["dropped"] = dropped
        return event


def _as_json(event: Any, **_: Any) -> str:
    try:
        return json_text(event)
    except TypeError:  # what is no document is told as it shows itself
        return json_escaped(json.dumps(event, default=repr))


class _Logfmt:
    """structlog's renderer, on one line whatever is in it: a traceback's lines too are parts of one value."""

    def __init__(self, first: list[str]) -> None:
        self._render = structlog.processors.LogfmtRenderer(key_order=first)

    def __call__(self, logger: Any, name: str, event: Any) -> str:
        # A key that holds a space is refused by the renderer, and none of ours comes from elsewhere.
        shown = {key: printable(value, _LONGEST) if isinstance(value, str) else value for key, value in event.items()}
        return printable(self._render(logger, name, shown), 2 * _LONGEST)


def _without_nothing(_: Any, __: str, event: Any) -> Any:
    """Leave out what is not known."""
    return {key: value for key, value in event.items() if value is not None}
