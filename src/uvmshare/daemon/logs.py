"""The daemon's log: one line of JSON, or of logfmt, for each thing that happened, on standard error.

What lives here: how lines are written. What must not: which there are; VM, share and owner are given where a line
is made.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any, Literal

import structlog

if TYPE_CHECKING:
    from structlog.typing import Processor

__all__ = ["FORMATS", "configure"]

Format = Literal["json", "logfmt"]
FORMATS: tuple[Format, ...] = ("json", "logfmt")


def configure(form: Format, level: str = "INFO") -> None:
    """Have every line of the daemon, and of the libraries it runs on, written in this form."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.dict_tracebacks if form == "json" else structlog.processors.format_exc_info,
        _without_nothing,
    ]
    renderer: Processor = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event", "vm", "share", "owner"])
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


def _without_nothing(_: Any, __: str, event: Any) -> Any:
    """Leave out what is not known."""
    return {key: value for key, value in event.items() if value is not None}
