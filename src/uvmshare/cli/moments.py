"""Points of time for people.

What lives here: how a moment is written, and since when something is out of reach. What must not: lengths of time
(`durations`).
"""

from __future__ import annotations

from datetime import UTC, datetime

__all__ = ["moment", "with_reach"]


def moment(then: datetime) -> str:
    """Return a time for people, by this host's clock and zone; today's without the date."""
    local = then.astimezone()
    is_today = local.date() == datetime.now(UTC).astimezone().date()
    return f"{local:%H:%M:%S}" if is_today else f"{local:%Y-%m-%d %H:%M:%S}"


def with_reach(state: str, unreachable_since: datetime | None) -> str:
    """Return the state of what a guest has; as it was known, when the guest's agent is out of reach."""
    return state if unreachable_since is None else f"{state}, unreachable since {moment(unreachable_since)}"
