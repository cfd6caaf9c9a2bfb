"""Many hosts: gates that take what users want, hosts that follow it, and etcd in between. Needs the extra `fleet`."""
