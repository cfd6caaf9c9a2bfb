"""What happens in the background, for whoever wants to hear it: the loggers ``uvmshare.*``.

What lives here: the loggers, which say nothing unless a program listens (a NullHandler). What must not: what is said.

=========================  ====================================================================================
``uvmshare.fileserver``    WARNING: a supervisor died; INFO: another took over; ERROR: a file server has ended
``uvmshare.agent``         INFO: the agent in the guest was reached; WARNING: it was lost
``uvmshare.shares``        INFO: a share is to be added or removed again later, and why
``uvmshare.mounts``        INFO: a mount is to be mounted or unmounted again later, and why; WARNING: connections of
                           others than the agent were refused
``uvmshare.etcd``          WARNING: a member of etcd runs a version with a defect that ends leases
``uvmshare.leases``        WARNING: a lease is not renewed; INFO: it is again; ERROR: it is over, or lost
=========================  ====================================================================================

What is said has words of guests and of other users in it: `printable` shows them. A record keeps its text alone, so
that whoever keeps records keeps no error, and nothing that a guest sent.
"""

from __future__ import annotations

import logging

from uvmshare.printable import printable

__all__ = ["logger"]

logging.getLogger("uvmshare").addHandler(logging.NullHandler())


def logger(name: str) -> logging.Logger:
    """Return the logger ``uvmshare.NAME``."""
    made = logging.getLogger(f"uvmshare.{name}")
    made.addFilter(_as_text)
    return made


def _as_text(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable(record.getMessage()), ()
    return True
