"""Which addresses a user may have the daemon use for their VM.

What lives here: what is refused before anything is started, and what is seen of addresses later (`Reachable`). What
must not: reading an address (`uvmshare.address`), or listening and dialling, which is done with the user's rights
(`machine`, `dialler`).
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from uvmshare import address
from uvmshare.daemon.looking import Looking
from uvmshare.errors import HostPathHangs, InvalidAddress, OperationDenied
from uvmshare.fileserver.host import out_of_reach
from uvmshare.guest.wire import DEFAULT_PORT as AGENT_PORT
from uvmshare.linux.loopback import is_loopback

if TYPE_CHECKING:
    from uvmshare.daemon.documents import NewVm
    from uvmshare.daemon.identity import Identity, Threads

__all__ = ["Reachable", "check_addresses"]

_FIRST_FREE_PORT: Final = 1024
"""Ports below are root's (ip(7), vsock(7))."""


def check_addresses(wanted: NewVm, user: Identity) -> None:
    """See that a VM's addresses can be used, and by that user. Raises `InvalidAddress`, `OperationDenied`."""
    for text in wanted.listen:
        _require_absolute(text, address.parse(text))
    if wanted.agent is None:
        return
    agent = address.parse(wanted.agent, default_port=AGENT_PORT)
    _require_absolute(wanted.agent, agent)
    if not wanted.agent_dials:
        return
    # The file server is the user's own process, and the kernel refuses this there. Here the daemon itself listens.
    if not user.is_root and agent.kind in ("tcp", "vsock") and 0 < agent.port < _FIRST_FREE_PORT:
        msg = f"address {wanted.agent!r}: uid {user.uid} may not listen on a port below {_FIRST_FREE_PORT}: use another"
        raise OperationDenied(msg)
    if agent.kind == "tcp" and not wanted.allow_remote and not is_loopback(agent.host):
        msg = (
            f"address {wanted.agent!r}: {agent.host} is not loopback, and whoever reaches it could be the VM's agent; "
            "use a loopback address, or allow remote guests explicitly (--allow-remote)"
        )
        raise InvalidAddress(msg)


def _require_absolute(text: str, where: address.Address) -> None:
    if where.path and not os.path.isabs(where.path):
        msg = f"address {text!r}: the daemon has another working directory than you; use an absolute path"
        raise InvalidAddress(msg)


_PATIENCE: Final = 1.0
"""Seconds that whoever asks for a VM waits for a look at its addresses. Whatever answers does so in milliseconds."""


class Reachable:
    """Why no guest can reach an address of a VM, as it was last seen. Belongs to one event loop."""

    def __init__(self, threads: Threads, user: Identity) -> None:
        self._threads = threads
        self._user = user
        self._looking = Looking()
        self.notes: tuple[str, ...] = ()

    async def look(self, addresses: tuple[str, ...]) -> None:
        """Look with the rights of the VM's user, one look at a time; wait for none for long."""
        if not addresses:
            self.notes = ()
            return
        await self._looking.wait(lambda: self._look(addresses), _PATIENCE)

    async def _look(self, addresses: tuple[str, ...]) -> None:
        with suppress(HostPathHangs, OperationDenied, OSError):
            self.notes = tuple(await self._threads.acting_as(self._user, addresses[0], lambda: out_of_reach(addresses)))
