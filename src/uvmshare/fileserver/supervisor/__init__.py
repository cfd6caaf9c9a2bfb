"""One process a VM: it listens, keeps the table of shares, and forks a process for each mount."""
