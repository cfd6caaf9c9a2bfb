"""For tests that only root can run: mounting, becoming other users, giving files away.

What lives here: the one mark, and the one call for where only some cases of a test need it. What must not: fixtures.
"""

from __future__ import annotations

import os

import pytest

__all__ = ["needs_root", "require_root"]

IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0

needs_root = pytest.mark.skipif(not IS_ROOT, reason="only root mounts, becomes other users and gives files away")


def require_root(why: str) -> None:
    """Skip the test, or the module that says so, unless it is run by root."""
    if not IS_ROOT:
        pytest.skip(why, allow_module_level=True)
