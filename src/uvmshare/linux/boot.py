"""Which boot of this kernel it is.

What lives here: reading that. What must not: what is void after another boot.
"""

from __future__ import annotations

__all__ = ["boot_id"]


def boot_id() -> str:
    """Return what Linux calls this boot (proc_sys_kernel_random(5)). Raises `OSError` where /proc is missing."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii", errors="replace") as file:
        return file.read().strip()
