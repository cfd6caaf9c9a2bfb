"""Changes that are sent again until it is known what became of them.

What lives here: `Sent`, which remembers that one has an outcome that nobody knows. What must not: the change itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from uvmshare.errors import OutcomeUnknown, StoreError, StoreOutcomeUnknown

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Sent"]


class Sent:
    """A block that sends a change, reads what came of it, and sends it again; or sends several.

    It notes down in `unknown` that a change got no answer. When etcd cannot be read any more either, that error is
    raised, where the error of the reading would say that nothing was changed. The same holds when one change was made,
    which is noted down in `made`, and what belongs to it fails.
    """

    def __init__(self) -> None:
        self.unknown: StoreOutcomeUnknown | None = None
        self.made = ""
        """What was changed, in words; empty for nothing yet."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not isinstance(error, StoreError) or isinstance(error, OutcomeUnknown):
            return
        if self.unknown is not None:
            raise self.unknown from error
        if self.made:
            msg = f"{self.made}: a part of it was done, and etcd does not say what came of the rest: {error}"
            raise StoreOutcomeUnknown(msg) from error
