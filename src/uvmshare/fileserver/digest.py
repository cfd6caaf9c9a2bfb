"""A hash without OpenSSL, which `hashlib` brings.

What lives here: where it comes from. What must not: what is hashed. OpenSSL was 1.5 MiB of memory of each supervisor's
own and 12 mappings, which each fork of a mount process copies.
"""

from __future__ import annotations

from _blake2 import blake2b  # CPython's own; where it is not, `hashlib` has none with a size either

__all__ = ["blake2b"]
