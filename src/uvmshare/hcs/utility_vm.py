"""A utility VM of Hyper-V as the Manager sees it: two calls, turned into HCS's modify documents.

What lives here: `UtilityVM`, which knows the documents and the port, and the `TakesModifyDocuments` protocol it needs.
What must not: who carries a document out, and how (`uvmshare.hcs.compute_system`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from uvmshare import arguments
from uvmshare.errors import OperationDenied
from uvmshare.hcs import schema
from uvmshare.share.interfaces import TellsExit

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvmshare.errors import ComputeSystemGone
    from uvmshare.share.interfaces import NamedShare
    from uvmshare.share.options import AddOptions

__all__ = ["TakesModifyDocuments", "UtilityVM"]


class TakesModifyDocuments(Protocol):
    """Anything that takes modify documents: `uvmshare.hcs.compute_system.ComputeSystem`, or a recorder of them."""

    async def modify(self, request: schema.ModifySettingRequest) -> None:
        """Carry the request out.

        Raises `ComputeSystemError`; of its children `OutcomeUnknown` alone leaves open whether the
        request was carried out.
        """


class UtilityVM:
    """The Plan 9 shares of one compute system, as `uvmshare.share.interfaces.VMPlan9`.

    `port` is the port that the guest dials (564 on HCS).
    """

    def __init__(self, compute_system: TakesModifyDocuments, *, port: int = schema.DEFAULT_PORT) -> None:
        self._compute_system = arguments.with_methods(
            "compute_system", compute_system, ("modify",), "what ComputeSystem.open returned"
        )
        self._port = arguments.number("port", port, least=1, most=0xFFFF_FFFF)

    def __repr__(self) -> str:
        return f"<UtilityVM of {self._compute_system!r}>"

    async def add_plan9(self, share: NamedShare) -> None:
        """Send the Add document of the share. Raises what the compute system's `modify` raises."""
        options = share.options
        self.require_able(options)
        await self._compute_system.modify(
            schema.addition(
                share.name,
                options.host_path,
                port=self._port,
                read_only=options.read_only,
                allowed_names=options.allowed_names,
            )
        )

    async def remove_plan9(self, share: NamedShare) -> None:
        """Send the Remove document of the share. Raises what the compute system's `modify` raises."""
        await self._compute_system.modify(schema.removal(share.name, self._port))

    def require_able(self, options: AddOptions) -> None:
        """Refuse what HCS's documents cannot say. Raises `OperationDenied`."""
        asked = [name for name, value in (("hide", options.hide), ("map_owner", options.map_owner)) if value]
        if asked:
            msg = (
                f"{options.host_path}: a compute system of HCS can neither hide names nor map owners, and {asked[0]} "
                "asks for it: share it without, or from a directory that holds only what the guest may see"
            )
            raise OperationDenied(msg)

    def on_exit(self, callback: Callable[[ComputeSystemGone], None]) -> None:
        """Have `callback` called when the VM exits, if its compute system can tell. See `TellsExit`."""
        arguments.function("callback", callback)
        if isinstance(self._compute_system, TellsExit):
            self._compute_system.on_exit(callback)
