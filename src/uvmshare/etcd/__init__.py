"""The store of a fleet: etcd behind a protocol. It knows nothing of shares and VMs.

    store: Store = ...
    done = await store.txn([absent("/F/vm/acme/build")], [Put("/F/vm/acme/build", b"{}")])

`protocol` is what the rest of uvmshare knows, `uvmshare.testing.etcd` a fake of it. Nothing is imported here.
"""
