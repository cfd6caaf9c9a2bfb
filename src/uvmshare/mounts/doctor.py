"""What a guest's report means: the guest's half of `uvmshare doctor`.

    findings = examine(await agent.report())

What lives here: one function a finding, and the list of them. What must not: asking the guest
(`uvmshare.mounts.agent_client`), or showing (`uvmshare.cli.doctor`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from uvmshare.finding import Finding
from uvmshare.mounts.report import ListedEvents

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from uvmshare.mounts.report import GuestReport

__all__ = ["examine"]

_CLOCKS: Final = 2.0
"""Seconds that guest and host may be apart: make(1) and git compare times that both of them set."""


def _kernel(report: GuestReport) -> Iterator[Finding]:
    match = re.match(r"(\d+)\.(\d+)", report.kernel)
    version = (int(match[1]), int(match[2])) if match else (0, 0)
    if version < (5, 15):
        yield Finding(
            "guest kernel",
            "warning",
            f"Linux {report.kernel}",
            "messages of more than 64 KiB (before 5.15), so that large reads and writes are slower",
            "use a guest kernel of 5.15 or later",
        )
    else:
        yield Finding("guest kernel", "good", f"Linux {report.kernel} on {report.machine}")


def _client(report: GuestReport) -> Iterator[Finding]:
    needed = {"9p": "CONFIG_9P_FS", "9pnet_fd": "CONFIG_NET_9P_FD (CONFIG_NET_9P before 5.17)"}
    missing = [name for name in needed if not report.modules.get(name)]
    if not missing:
        yield Finding("guest 9P client", "good", "9p and 9pnet_fd are there")
        return
    built = [name for name in missing if report.config.get(needed[name].split()[0]) in ("m", "y")]
    yield Finding(
        "guest 9P client",
        "bad",
        f"the kernel has no {' and no '.join(missing)}",
        "nothing can be mounted",
        f"modprobe -a {' '.join(built)}"
        if built == missing
        else f"use a kernel with {' and '.join(needed[name] for name in missing)}; as modules: "
        f"modprobe -a {' '.join(missing)}",
    )


def _acls(report: GuestReport) -> Iterator[Finding]:
    if report.config.get("CONFIG_9P_FS_POSIX_ACL") == "n":
        yield Finding(
            "guest ACLs",
            "warning",
            "CONFIG_9P_FS_POSIX_ACL is off",
            "access control lists on a share: getfacl and setfacl",
            "use a kernel with it, if you need them",
        )


def _vsock(report: GuestReport) -> Iterator[Finding]:
    if not report.vsock:
        yield Finding("guest vsock", "good", "there is a device")
        return
    needed = report.server.startswith("vsock:")
    yield Finding(
        "guest vsock",
        "bad" if needed else "warning",
        report.vsock,
        f"the file server at {report.server} cannot be reached" if needed else "vsock: addresses; this guest uses none",
        "give the VM a vsock device, and load vmw_vsock_virtio_transport (hv_sock on Hyper-V)",
    )


def _root(report: GuestReport) -> Iterator[Finding]:
    if report.root:
        yield Finding(
            "guest agent", "good", f"uvmshare {report.release or '?'}, Python {report.python or 'none'}, as root"
        )
    else:
        yield Finding("guest agent", "bad", "it does not run as root", "only root may mount", "start it as root")


def _clock(report: GuestReport) -> Iterator[Finding]:
    apart = report.time - report.asked
    if abs(apart) <= _CLOCKS:
        yield Finding("guest clock", "good", f"{apart:+.1f} s from the host's")
        return
    yield Finding(
        "guest clock",
        "warning",
        f"{abs(apart):.1f} s {'ahead of' if apart > 0 else 'behind'} the host's",
        "make, git and everything that compares the times of files; usual after a snapshot was restored",
        "set it (hwclock --hctosys, chronyc makestep), or run chronyd in the guest with 'refclock PHC /dev/ptp0'",
    )


def _places(report: GuestReport) -> Iterator[Finding]:
    for place in report.allow:
        if place.writable:
            yield Finding(f"guest {place.path}", "good", f"mounts may be made below it ({place.kind})")
        else:
            yield Finding(
                f"guest {place.path}",
                "warning",
                f"it cannot be written ({place.kind})",
                "directories to mount on have to be there already",
                "make them in the guest's image, or start the agent with --allow and a directory on a tmpfs",
            )


def _mounts(report: GuestReport) -> Iterator[Finding]:
    remedies = {
        "slow": "uvmshare vm ls shows whether the file server runs, stats what it does; what waits cannot be killed",
        "dead": "uvmshare share ls shows whether the host has the share, vm ls whether its file server runs; the agent "
        "mounts again by itself",
        "missing": "mount it again: somebody in the guest unmounted it",
        "failing": "see DIRECTORY in uvmshare share ls: on the host it may be gone, or not be readable any more",
    }
    for mount in report.mounts:
        if mount.status == "ok":
            yield Finding(f"guest mount {mount.mount_path}", "good", f"read in {1000 * (mount.seconds or 0):.0f} ms")
        else:
            yield Finding(
                f"guest mount {mount.mount_path}",
                "bad",
                f"{mount.status}: {mount.error or 'it cannot be read'}",
                "every program in the guest that uses it",
                remedies[mount.status],
            )


def _events(report: GuestReport) -> Iterator[Finding]:
    for mount in report.mounts:
        if not mount.events or mount.status != "ok":
            continue
        if mount.no_events:
            yield Finding(
                f"guest events {mount.mount_path}",
                "warning",
                mount.no_events,
                "tools in the guest that wait for changes by the host: they hear of none",
                "docs/events.md says what each case needs; until then have the tools poll",
            )
        elif mount.pins is not None:
            counted = mount.pins.events or ListedEvents()
            limit = ", and there are more than may be held" if mount.pins.full else ""
            yield Finding(
                f"guest events {mount.mount_path}",
                "good",
                f"{counted.repeated} changes repeated, {counted.failed} failed; {mount.pins.directories} directories "
                f"held{limit}",
            )


_GUEST: Final[tuple[Callable[[GuestReport], Iterator[Finding]], ...]] = (
    *(_kernel, _client, _acls, _vsock, _root, _clock, _places, _mounts, _events),
)


def examine(report: GuestReport) -> list[Finding]:
    """Return what is found in a guest, the good things too."""
    return [finding for look in _GUEST for finding in look(report)]
