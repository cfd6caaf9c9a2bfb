"""What a guest can and cannot do, for `uvmshare doctor`.

What lives here: looking. What must not: what it means, which the host says (`uvmshare.mounts.doctor`). Standard library
only (Python 3.9): it runs in guests.
"""

from __future__ import annotations

import contextlib
import glob
import gzip
import os
import platform
import socket
import sys
import time
from typing import Any

from uvmshare.linux import mountinfo

__all__ = ["survey"]

_OPTIONS = (
    *("CONFIG_NET_9P", "CONFIG_NET_9P_FD", "CONFIG_9P_FS", "CONFIG_9P_FS_POSIX_ACL"),
    *("CONFIG_VSOCKETS", "CONFIG_VIRTIO_VSOCKETS", "CONFIG_HYPERV_VSOCKETS", "CONFIG_INET", "CONFIG_VIRTIO_NET"),
)
_MODULES = ("9p", "9pnet", "9pnet_fd", "vsock", "vmw_vsock_virtio_transport", "hv_sock")


def survey(prefixes: list[str]) -> dict[str, Any]:
    """Return what `GuestReport` of the host's side holds, but for what only the table of mounts knows."""
    config = _config()
    return {
        "kernel": platform.release(),
        "python": ".".join(str(part) for part in sys.version_info[:3]),
        "machine": platform.machine(),
        "config": config,
        "modules": {name: _has(name, config) for name in _MODULES},
        "vsock": _vsock(),
        "time": time.time(),
        "root": os.geteuid() == 0,
        "allow": [_file_system(prefix) for prefix in prefixes],
    }


def _config() -> dict[str, str]:
    """Return the options of the running kernel, as far as it or its package tells them."""
    for path in ("/proc/config.gz", f"/boot/config-{platform.release()}", f"/lib/modules/{platform.release()}/config"):
        with contextlib.suppress(OSError, EOFError):
            opening = gzip.open if path.endswith(".gz") else open
            with opening(path, "rt", encoding="utf-8", errors="replace") as file:
                found = dict(line.rstrip("\n").split("=", 1) for line in file if line.startswith("CONFIG_"))
            return {name: found.get(name, "n") for name in _OPTIONS}
    return {}


def _has(name: str, config: dict[str, str]) -> bool:
    if name == "9p":
        with contextlib.suppress(OSError), open("/proc/filesystems", encoding="ascii") as file:
            if any(line.split()[-1] == name for line in file):
                return True
    option = {"9pnet_fd": "CONFIG_NET_9P_FD", "9pnet": "CONFIG_NET_9P", "vsock": "CONFIG_VSOCKETS"}.get(name, "")
    return os.path.isdir(f"/sys/module/{name}") or config.get(option) == "y"


def _vsock() -> str:
    family = getattr(socket, "AF_VSOCK", None)
    if family is None:
        return "this Python was built without vsock"
    try:
        with socket.socket(family, socket.SOCK_STREAM):
            pass
    except OSError as error:
        return f"the kernel has no vsock ({error.strerror})"
    if not os.path.exists("/dev/vsock"):
        return "there is no /dev/vsock"
    for driver in ("virtio_transport", "hv_sock", "vmw_vsock_virtio_transport", "vsock_loopback"):
        if glob.glob(f"/sys/bus/virtio/drivers/{driver}/virtio*") or (
            driver == "hv_sock" and os.path.isdir("/sys/module/hv_sock")
        ):
            return ""
    return "there is no vsock device"


def _file_system(prefix: str) -> dict[str, Any]:
    on = ""
    kind = "?"
    for found in mountinfo.mounted():
        if (prefix == found.path or prefix.startswith(found.path.rstrip("/") + "/")) and len(found.path) >= len(on):
            on, kind = found.path, found.kind
    return {"path": prefix, "kind": kind, "writable": os.access(prefix, os.W_OK | os.X_OK)}
