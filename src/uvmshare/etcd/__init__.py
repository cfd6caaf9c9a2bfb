"""The store of a fleet: etcd behind a protocol. It knows nothing of shares and VMs.

    store: Store = ...
    done = await store.txn([absent("/F/vm/acme/build")], [Put("/F/vm/acme/build", b"{}")])

`protocol` is what the rest of uvmshare knows, `uvmshare.testing.etcd` a fake of it. Nothing of them is imported here.
"""

from __future__ import annotations

import os

# Before grpc is loaded, which reads it once: its handlers at fork(2) can end the child of a process that has more
# threads ("Check failed: next_worker->state == KICKED"), or print that they do nothing. A daemon forks to start file
# servers, and no child of it asks etcd (grpc's own doc/fork_support.md).
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
