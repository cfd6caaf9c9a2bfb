"""Holding a share or a mount with a lease, which is renewed for as long as the program holds it.

What lives here: when a lease is renewed, what a failed renewal means, and how it is logged. What must not: a connection
(`uvmshare.daemon.client`).

A lease is renewed three times in its length. After a failure, renewal is tried ten times in that length, until the
block ends: a daemon that is started again keeps leases. The logger ``uvmshare.leases`` tells the first failure
(WARNING), the renewal after it (INFO), and that a lease is over (ERROR), each once. The release at the end of the block
decides: `LeaseLost` says that the lease had ended before, `DaemonError` that the release failed.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from uvmshare.daemon import client_calls
from uvmshare.daemon.documents import Mount, Share
from uvmshare.errors import DaemonError, LeaseLost, NotThere, UvmshareError
from uvmshare.heard import logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from uvmshare.daemon.client_answers import Call
    from uvmshare.daemon.documents import Released, Renewed

__all__ = ["LEASE", "HeldDocument", "held_mount", "held_share", "owner_of", "renew_awaiting", "renew_in_thread"]

LEASE: Final = 30.0
"""Seconds of a lease, unless its holder says otherwise."""
_log: Final = logger("leases")

D = TypeVar("D", Share, Mount)


def owner_of(owner: str | None) -> str:
    """Return the owner, or a new one that nobody else uses: two blocks of one owner would both end with the first."""
    return f"python-{os.getpid()}-{os.urandom(6).hex()}" if owner is None else owner


def held_share(vm: str, share: Share, owner: str, lease: float | None) -> HeldDocument[Share]:
    """Return a share of a VM as it is held, with the calls that renew its lease and release it."""
    renewal = client_calls.renew(owner, vm=vm, share=share.name)
    return HeldDocument(
        share, owner, lease, renewal=renewal, release=client_calls.release_share(vm, share.name, owner=owner)
    )


def held_mount(vm: str, guest_path: str, mount: Mount, owner: str, lease: float | None) -> HeldDocument[Mount]:
    """Return a mount in a VM's guest as it is held, with the calls that renew its lease and release it."""
    release = client_calls.unmap_directory(vm, guest_path, owner=owner)
    return HeldDocument(mount, owner, lease, renewal=client_calls.renew(owner), release=release)


class HeldDocument(Generic[D]):
    """What a block holds: `document` is the share, or the mount, as it was when it was added.

    `lost` says why it is no longer held, if that is known. It is None while it is held.
    """

    def __init__(
        self,
        document: D,
        owner: str,
        lease: float | None,
        *,
        renewal: Call[Renewed],
        release: Call[Released],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.document: D = document
        self.owner = owner
        self.lease = lease
        self.renewal = renewal
        self.release = release
        self.lost: LeaseLost | None = None
        self._clock = clock
        self._renewed_at = clock()
        self._failing = False
        self._told_over = False

    @property
    def name(self) -> str:
        """The name of the share, which the guest passes as aname."""
        return self.document.name if isinstance(self.document, Share) else self.document.share or ""

    def __repr__(self) -> str:
        state = "held" if self.lost is None else "lost"
        return f"<{self}: {state} by {self.owner}, lease {self.lease}>"

    def __str__(self) -> str:
        if isinstance(self.document, Share):
            return f"share {self.name} of VM {self.document.vm}"
        return f"mount {self.document.guest_path} of VM {self.document.vm}"

    # While it is held

    @property
    def pause(self) -> float | None:
        """Seconds until the next renewal; None when there is none any more."""
        if self.lease is None or self.lost is not None:
            return None
        return self.lease / (10 if self._failing else 3)

    def renewed(self) -> None:
        """Note that the lease was renewed."""
        self._renewed_at = self._clock()
        if self._failing:
            _log.info("%s: the lease of %s is renewed again", self, self.owner)
        self._failing = self._told_over = False

    def not_renewed(self, error: Exception) -> None:
        """Note that the renewal failed."""
        if isinstance(error, NotThere):
            self.lost = LeaseLost(f"{self}: {self.owner} does not hold it any more: {error}; add it again")
            _log.error("%s", self.lost)
            return
        over = self.lease is not None and self._clock() - self._renewed_at >= self.lease
        if over and not self._told_over:
            _log.error("%s: the lease of %s was not renewed in time, and may be over: %s", self, self.owner, error)
            self._told_over = True
        elif not self._failing:
            _log.warning("%s: the lease of %s is not renewed, and is tried again: %s", self, self.owner, error)
        self._failing = True

    # In the end

    def released(self, answer: Released) -> None:
        """Check the answer to the release. Raises `LeaseLost` when there was nothing to release."""
        if not answer.released:
            raise self.lost or LeaseLost(f"{self}: {self.owner} did not hold it to the end; add it again")

    def not_released(self, error: Exception) -> Exception:
        """Return the error to raise after a failed release."""
        if self.lost is not None:
            return self.lost
        if isinstance(error, NotThere):
            return LeaseLost(f"{self}: {self.owner} did not hold it to the end: {error}; add it again")
        if isinstance(error, DaemonError):
            then = "release it when the daemon answers" if self.lease is None else f"its lease ends in {self.lease:g} s"
            return DaemonError(f"{self}: it could not be released for {self.owner}: {error}; {then}")
        return error


def renew_in_thread(held: HeldDocument[D], renew: Callable[[], object]) -> Callable[[], None]:
    """Start a thread that renews a lease. Return a function that ends the thread."""
    if held.lease is None:
        return lambda: None
    stopped = threading.Event()

    def keep() -> None:
        while (pause := held.pause) is not None and not stopped.wait(pause):
            try:
                renew()
            except UvmshareError as error:
                held.not_renewed(error)
            else:
                held.renewed()

    # It ends with the program, which may hang in a request: the lease then ends by itself.
    threading.Thread(target=keep, name="uvmshare lease", daemon=True).start()
    return stopped.set


async def renew_awaiting(held: HeldDocument[D], renew: Callable[[], Awaitable[object]]) -> None:
    """Renew a lease for as long as this runs."""
    import asyncio  # noqa: PLC0415  `Client`, and with it every command, need not load it

    while (pause := held.pause) is not None:
        await asyncio.sleep(pause)
        try:
            await renew()
        except UvmshareError as error:
            held.not_renewed(error)
        else:
            held.renewed()
