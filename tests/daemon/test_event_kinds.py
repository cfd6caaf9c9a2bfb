"""The kinds of event: each is told somewhere, and the page says what it tells."""

from __future__ import annotations

import re
from pathlib import Path

from uvmshare.daemon.event_kinds import EventKind

ROOT = Path(__file__).parents[2]


def test_the_page_about_the_daemon_has_a_row_for_each_kind_of_event() -> None:
    page = (ROOT / "docs/daemon.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z]+\.[a-z_]+)` \| (.*) \|$", page, re.MULTILINE))
    assert rows == {kind.value: kind.meaning for kind in EventKind}


def test_each_kind_of_event_is_told_somewhere_and_none_by_its_text() -> None:
    modules = [path for path in ROOT.glob("src/uvmshare/daemon/*.py") if path.name != "event_kinds.py"]
    source = "\n".join(path.read_text() for path in modules)
    assert set(re.findall(r"\bEventKind\.([A-Z_]+)", source)) == {kind.name for kind in EventKind}
    assert [kind for kind in EventKind if f'"{kind.value}"' in source] == []
