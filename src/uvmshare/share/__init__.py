"""Shares: which a VM has, what becomes of each, what is written down; and nothing of how a VM is modified."""
