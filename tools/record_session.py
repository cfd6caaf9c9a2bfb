"""Draw docs/session.svg, the session at the top of the README, from a real run: ``python tools/record_session.py``.

What lives here: what is typed, and drawing what came. What must not: a line of output that no command printed.

It needs root and QEMU, as the tests of the pages do, and is run by hand when commands or their output change.
"""

from __future__ import annotations

import asyncio
import io
import re
import sys
import tempfile
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from tests.docs.pages import Block  # noqa: E402  the path comes first
from tests.docs.sandbox import empty, sandbox  # noqa: E402  as above

from uvmshare.testing.guest_vm import GuestVM  # noqa: E402  as above

_WIDTH: Final = 104
_BEFORE: Final = (
    "$ uvmshare daemon",
    "$ uvmshare guest agent --print > uvmshare-guest",
    "guest# python3 uvmshare-guest agent > /dev/null 2>&1 &",
    "guest# until [ -e /run/uvmshare-agent/lock ]; do sleep 0.1; done",  # on a busy machine its start takes long
)
"""What has to be there, and is not shown."""
_TYPED: Final = (
    "$ uvmshare vm add dev firecracker:/run/fc/v.sock --agent firecracker:/run/fc/v.sock",
    "$ uvmshare map dev ~/project:ro /run/uvmshare/project --owner job-7",
    "guest# cat /run/uvmshare/project/greeting.txt",
    "guest# touch /run/uvmshare/project/mine || true",
    "$ uvmshare share ls",
    "$ uvmshare unmap dev /run/uvmshare/project --owner job-7",
    "guest# cat /run/uvmshare/project/greeting.txt || true",
)


def recorded() -> list[tuple[str, str]]:
    """Return what is typed, each with what it printed."""
    with asyncio.Runner() as runner, tempfile.TemporaryDirectory(prefix="v-", dir="/tmp") as folder:
        vm = runner.run(GuestVM.start(root="host", vsock=f"{folder}/v.sock"))
        try:
            empty((runner, vm))
            with sandbox((runner, vm)) as machine:
                for line in _BEFORE:
                    machine.type(Block("session", 0, "console", line), stays=True)
                return [(line, machine.type(Block("session", 0, "console", line), stays=True)) for line in _TYPED]
        finally:
            runner.run(vm.aclose())


def drawn(session: list[tuple[str, str]]) -> str:
    """Return a picture of the session, with its text as the description."""
    console = Console(record=True, width=_WIDTH, file=io.StringIO(), force_terminal=True, legacy_windows=False)
    plain = []
    for line, came in session:
        prompt, _, command = line.removesuffix(" || true").partition(" ")
        shown = "\n".join(row.rstrip() for row in came.rstrip().splitlines())
        console.print(
            Text.assemble((prompt, "bold green" if prompt == "$" else "bold cyan"), f" {command}"), soft_wrap=True
        )
        plain.append(f"{prompt} {command}")
        if shown:
            console.print(Text(shown, "grey70"), soft_wrap=True)
            plain.append(shown)
    # The library's form fetches its fonts from elsewhere.
    form = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    assert "url(http" not in form
    picture = console.export_svg(title="uvmshare", theme=MONOKAI, code_format=form, unique_id="session")
    return picture.replace(">", f">\n<desc>{escape(chr(10).join(plain))}</desc>", 1)


if __name__ == "__main__":
    (ROOT / "docs" / "session.svg").write_text(drawn(recorded()), encoding="utf-8")
