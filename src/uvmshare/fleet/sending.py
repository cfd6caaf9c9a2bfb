"""Changes that are sent again until it is known what became of them.

What lives here: `Sent`, which remembers that one has an outcome that nobody knows. What must not: the change itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from uvmshare.errors import OutcomeUnknown, StoreError

if TYPE_CHECKING:
    from types import TracebackType

    from uvmshare.errors import StoreOutcomeUnknown

__all__ = ["Sent"]


class Sent:
    """A block that sends a change, reads what came of it, and sends it again.

    It notes down in `unknown` that a change got no answer. When etcd cannot be read any more either, that error is
    raised, where the error of the reading would say that nothing was changed.
    """

    def __init__(self) -> None:
        self.unknown: StoreOutcomeUnknown | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        is_certain = isinstance(error, StoreError) and not isinstance(error, OutcomeUnknown)
        if is_certain and self.unknown is not None:
            raise self.unknown from error
