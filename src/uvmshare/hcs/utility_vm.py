"""A utility VM as the Manager sees it: two calls, turned into modify documents.

What lives here: `UtilityVM`, which knows the documents and the port, and the `ComputeSystem`
protocol it needs. What must not: who carries a document out, and how (computecore.dll on Windows,
the file server on Linux).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from uvmshare.errors import OperationDenied
from uvmshare.hcs import schema
from uvmshare.share.interfaces import ListedShare, TellsExit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from uvmshare.errors import ComputeSystemGone
    from uvmshare.share.interfaces import Plan9Share
    from uvmshare.share.options import AddOptions

__all__ = ["ComputeSystem", "ListsPlan9Shares", "TakesMore", "UtilityVM", "removal"]


class ComputeSystem(Protocol):
    """Anything that takes modify documents: an HCS compute system, or the Linux file server."""

    async def modify(self, request: schema.ModifySettingRequest) -> None:
        """Carry the request out.

        Raises `ComputeSystemError`; of its children `OutcomeUnknown` alone leaves open whether the
        request was carried out.
        """


@runtime_checkable
class ListsPlan9Shares(Protocol):
    """A compute system that can be asked which shares it has. HCS cannot; the Linux file server can."""

    async def plan9_shares(self) -> Sequence[schema.Plan9Share]:
        """Return the document that each share was added with.

        Raises what `ComputeSystem.modify` raises.
        """


@runtime_checkable
class TakesMore(Protocol):
    """A compute system that takes, and tells, more of a share than its document says. The Linux file server does."""

    async def add_share(self, request: schema.ModifySettingRequest, beside: schema.Beside) -> str | None:
        """Carry out a document that adds a share, if its path leads to that directory; return which one it is.

        None stands for one that is not known. Raises what `ComputeSystem.modify` raises, and `HostPathReplaced`.
        """

    async def plan9_beside(self) -> Mapping[str, schema.Beside]:
        """Return the same of each share, by its name. Raises what `ComputeSystem.modify` raises."""


class UtilityVM:
    """The Plan 9 shares of one compute system, as `uvmshare.share.interfaces.VMPlan9`.

    `port` is the port that the guest dials (564 on HCS). Flags are as hcsshim passes them:
    LinuxMetadata always, ReadOnly and RestrictFileAccess as asked.
    """

    def __init__(self, compute_system: ComputeSystem, *, port: int = schema.DEFAULT_PORT) -> None:
        self._compute_system = compute_system
        self._port = port

    async def add_plan9(self, share: Plan9Share) -> str | None:
        """Send the Add document of the share. Raises what the compute system's `modify` raises.

        Where the compute system can tell, the path has to lead to the directory of the options, and is returned.
        """
        options = share.options
        self.require_able(options)
        flags = schema.Plan9ShareFlags.LINUX_METADATA
        if options.read_only:
            flags |= schema.Plan9ShareFlags.READ_ONLY
        if options.restrict:
            flags |= schema.Plan9ShareFlags.RESTRICT_FILE_ACCESS
        request = schema.ModifySettingRequest(
            resource_path=schema.PLAN9_SHARES,
            request_type=schema.RequestType.ADD,
            settings=schema.Plan9Share(
                name=share.name,
                access_name=share.name,
                path=options.host_path,
                port=self._port,
                flags=int(flags),
                allowed_files=options.allowed_names,
            ),
        )
        if isinstance(self._compute_system, TakesMore):
            beside = schema.Beside(directory=options.directory, hide=options.hide, map_owner=options.map_owner)
            return await self._compute_system.add_share(request, beside)
        await self._compute_system.modify(request)
        return None

    def require_able(self, options: AddOptions) -> None:
        """Refuse what HCS's documents cannot say, unless the compute system takes more. Raises `OperationDenied`."""
        asked = [name for name, value in (("hide", options.hide), ("map_owner", options.map_owner)) if value]
        if asked and not isinstance(self._compute_system, TakesMore):
            msg = (
                f"{options.host_path}: a compute system of HCS can neither hide names nor map owners, and {asked[0]} "
                "asks for it: share it without, or from a directory that holds only what the guest may see"
            )
            raise OperationDenied(msg)

    async def remove_plan9(self, share: Plan9Share) -> None:
        """Send the Remove document of the share. Raises what the compute system's `modify` raises."""
        await self._compute_system.modify(removal(share.name, self._port))

    @property
    def lists_shares(self) -> bool:
        """Whether the compute system can tell which shares it has."""
        return isinstance(self._compute_system, ListsPlan9Shares)

    async def list_plan9(self) -> Mapping[str, ListedShare] | None:
        """Return the shares that the VM has, by name; None when its compute system cannot tell.

        See `uvmshare.share.interfaces.ListsShares`. Raises what the compute system raises.
        """
        if not isinstance(self._compute_system, ListsPlan9Shares):
            return None
        shares = await self._compute_system.plan9_shares()
        more: Mapping[str, schema.Beside] = {}
        if isinstance(self._compute_system, TakesMore):
            more = await self._compute_system.plan9_beside()
        nothing = schema.Beside()
        return {
            share.access_name: ListedShare(
                share.path,
                bool(share.flags & schema.Plan9ShareFlags.READ_ONLY),
                tuple(sorted(share.allowed_files)),
                beside.directory,
                beside.hide,
                beside.map_owner,
            )
            for share in shares
            for beside in (more.get(share.access_name, nothing),)
        }

    def on_exit(self, callback: Callable[[ComputeSystemGone], None]) -> None:
        """Have `callback` called when the VM exits, if its compute system can tell. See `TellsExit`."""
        if isinstance(self._compute_system, TellsExit):
            self._compute_system.on_exit(callback)


def removal(name: str, port: int = schema.DEFAULT_PORT) -> schema.ModifySettingRequest:
    """Return the document that removes a share: it holds the key of the share and nothing else."""
    return schema.ModifySettingRequest(
        resource_path=schema.PLAN9_SHARES,
        request_type=schema.RequestType.REMOVE,
        settings=schema.Plan9Share(name=name, access_name=name, port=port),
    )
