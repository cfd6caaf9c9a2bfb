"""Share lifecycle: which shares a VM has, who holds them, and nothing of how a VM is modified."""
