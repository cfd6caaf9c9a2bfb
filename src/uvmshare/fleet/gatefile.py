"""The fleet file of a gate: where its etcd is, where it listens, and whose certificates it takes.

    endpoints = ["https://etcd1.example:2379", "https://etcd2.example:2379"]
    ca = "ca.pem"                 # of etcd
    certificate = "gate.pem"      # the gate's own, for etcd and for its callers
    key = "gate.key"
    callers = "callers.pem"       # who signs the certificates of tenants and administrators
    listen = "0.0.0.0:8443"

What lives here: how it is read. What must not: a connection.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from uvmshare.errors import DaemonError
from uvmshare.fleet.hostfile import Ends, EndsText, Text, ends_of, read_file

__all__ = ["GateFile", "read_gate_file"]


class _GateFile(EndsText, forbid_unknown_fields=True, kw_only=True):
    listen: Text = "0.0.0.0:8443"
    callers: Text


@dataclass(frozen=True, slots=True)
class GateFile:
    """What a gate's fleet file says."""

    path: str
    ends: Ends
    listen: str
    certificate: str
    key: str
    callers: str


def read_gate_file(path: str) -> GateFile:
    """Read a gate's fleet file. Raises `DaemonError`, which says what is wrong with it."""
    found = read_file(path, _GateFile)
    ends = ends_of(path, found)
    if ends.certificate is None or ends.key is None:
        msg = f"{path}: a gate needs a certificate and a key of its own: give ca, certificate and key"
        raise DaemonError(msg)
    callers = os.path.join(os.path.dirname(os.path.abspath(path)), found.callers)
    return GateFile(path, ends, found.listen, ends.certificate, ends.key, callers)
