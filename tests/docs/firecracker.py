#!/usr/bin/env python3
"""A stand-in for Firecracker's API, for the tutorial: it takes the calls that the real one takes, and starts nothing.

What lives here: the paths and fields of Firecracker's public API (its swagger document) that the tutorial uses, and in
which order they may come. What must not: a VM; the guest of the tests is one, behind the same vsock socket.
"""

from __future__ import annotations

import http.server
import json
import os
import socketserver
import sys
from typing import Any, Final

PATHS: Final[dict[str, dict[str, type]]] = {
    "/machine-config": {"vcpu_count": int, "mem_size_mib": int},
    "/boot-source": {"kernel_image_path": str, "boot_args": str},
    "/drives/rootfs": {"drive_id": str, "path_on_host": str, "is_root_device": bool, "is_read_only": bool},
    "/vsock": {"guest_cid": int, "uds_path": str},
    "/actions": {"action_type": str},
}
BEFORE_START: Final = {"/boot-source", "/drives/rootfs", "/vsock"}


class Api(http.server.BaseHTTPRequestHandler):
    """One connection; what was configured is the class's, as there is one VM a process."""

    configured: Final[dict[str, Any]] = {}
    started = False

    def do_PUT(self) -> None:
        """Take one call, or say as Firecracker does what is wrong with it."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.fault(json.loads(body))
        text = b"" if fault is None else json.dumps({"fault_message": fault}).encode()
        self.send_response(204 if fault is None else 400)
        if fault is not None:
            self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def fault(self, document: dict[str, Any]) -> str | None:
        """Return what is wrong with a call, after which nothing has changed, or None."""
        fields = PATHS.get(self.path)
        if fields is None:
            return f"no such path: {self.path}"
        if wrong := [name for name, value in document.items() if type(value) is not fields.get(name)]:
            return f"{self.path}: {wrong}"
        if missing := set(fields) - set(document) - {"boot_args"}:
            return f"{self.path}: missing {missing}"
        if Api.started:
            return "the VM has started"
        if self.path == "/actions":
            if missing := BEFORE_START - set(Api.configured):
                return f"not configured: {missing}"
            Api.started = True
        Api.configured[self.path] = document
        return None

    def address_string(self) -> str:
        """Return who asks, for the log; a unix socket's peer has no name."""
        return "unix"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  its name in the library
        """Write nothing: Firecracker's log is elsewhere."""


class Server(socketserver.UnixStreamServer):
    """Takes one connection after the other."""


if __name__ == "__main__":
    if sys.argv[1:2] != ["--api-sock"] or len(sys.argv) != 3 or os.path.exists(sys.argv[2]):
        sys.exit(f"usage: {sys.argv[0]} --api-sock PATH, which is not there yet")
    with Server(sys.argv[2], Api) as server:
        sys.stdout.write("Listening on API socket\n")
        sys.stdout.flush()
        server.serve_forever()
