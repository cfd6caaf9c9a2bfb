"""The dashboard: a read-only page about the daemon's VMs, for one user, on a port of loopback."""
