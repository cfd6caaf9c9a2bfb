"""Tests of what only Windows has. Elsewhere there is nothing to collect: `make test-windows` runs them under Wine."""

from __future__ import annotations

import sys

collect_ignore_glob = [] if sys.platform == "win32" else ["test_*.py"]
