"""The daemon: one process a host that owns the shares of all its VMs. Linux; needs the extra `daemon`."""
