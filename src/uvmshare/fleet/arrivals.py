"""VMs that come to this host from another one, or as a copy: with what was held of them, and under the same names.

What lives here: `Arrivals`: what such a VM would share here, looked at with its user's rights, and how that is told to
the daemon. What must not: etcd, or how a VM is added (`uvmshare.daemon.service`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from uvmshare.daemon.documents import NewMount, NewShare
from uvmshare.daemon.mount_documents import mount_options
from uvmshare.daemon.service import Brought
from uvmshare.daemon.shares import options_below
from uvmshare.daemon.store import MountRecord
from uvmshare.fleet.documents import read_request
from uvmshare.mounts.manager import share_owner
from uvmshare.share.save_restore import VERSION

if TYPE_CHECKING:
    from uvmshare.daemon.service import Service
    from uvmshare.fleet.documents import Holding
    from uvmshare.fleet.hostfile import TenantRights
    from uvmshare.fleet.local import Arriving, VmName
    from uvmshare.share.options import AddOptions

__all__ = ["Arrivals"]


class Arrivals:
    """What VMs bring along to this host."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def options_of(self, vm: VmName, holding: Holding, rights: TenantRights) -> AddOptions:
        """Return what a holding would share here. Raises `InvalidOptions`, `OperationDenied`, `HostPathHangs`."""
        wanted: NewShare | NewMount = read_request(NewShare if holding.kind == "share" else NewMount, holding.what)
        return await options_below(self._service.threads, rights.user, wanted, rights.below, whose=f" of VM {vm.vm!r}")

    async def of(self, vm: VmName, arriving: Arriving, rights: TenantRights) -> Brought:
        """Return what a VM brings along, as the daemon takes it. Raises as `options_of` does."""
        key = (rights.user.uid, vm.here)
        shares: dict[str, dict[str, Any]] = {}
        mounts = []
        for each in arriving.holdings:
            options = await self.options_of(vm, each, rights)
            owner = f"{rights.user.uid}/{vm.tenant}:{each.owner}"
            if each.kind == "mount":
                new: NewMount = read_request(NewMount, each.what)
                how = mount_options(options, new.guest_path, new)
                mounts.append(MountRecord.of(key, owner, how))
                owner = share_owner(how.mount_path)
            assert each.share is not None, "it was told"
            # The directory too: a path that leads to another one by then is refused, and not served.
            saved = shares.setdefault(
                each.share,
                {
                    "name": each.share,
                    "host_path": options.host_path,
                    "read_only": options.read_only,
                    "allowed_names": options.allowed_names,
                    "directory": options.directory,
                    "hide": options.hide,
                    "map_owner": options.map_owner,
                    "owners": [],
                },
            )
            if owner not in saved["owners"]:
                saved["owners"].append(owner)
        document = {"uvmshare_shares": VERSION, "next_name": arriving.names, "shares": list(shares.values())}
        return Brought(msgspec.json.encode(document), mounts)
