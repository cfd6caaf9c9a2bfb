"""docs/journal.md says how Python programs have what `uvmshare serve --run-dir` has; it is run here as it stands."""

from __future__ import annotations

import asyncio
import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.processes import kill

import uvmshare
from uvmshare.share.recovery import RecoveryReport
from uvmshare.testing.client import NinePClient

if TYPE_CHECKING:
    from tests.fileserver.takeover.harness import Place

    from uvmshare.fileserver.device import FileServer
    from uvmshare.share.manager import Manager

ROOT = Path(__file__).resolve().parents[3]


def block_with(text: str) -> str:
    """Return the one Python block of the page that has this text."""
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "journal.md").read_text(), re.MULTILINE | re.DOTALL)
    (found,) = [block for block in blocks if text in block]
    return str(found)


def test_a_share_that_the_next_supervisor_could_not_take_over_comes_back_by_itself(place: Place) -> None:
    program = block_with("run_dir=")
    for theirs, ours in (
        ("firecracker:/run/fc/v.sock", place.address),
        ("/run/vm1", str(place.run_dir)),
        ("/var/lib/vms/journal.db", str(place.directory / "journal.db")),
        ("/srv/project", str(place.shared)),
    ):
        assert theirs in program
        program = program.replace(theirs, ours)
    program, replaced = re.subn(r"\.\.\. .*", "await meanwhile(vm, manager, name)", program)
    assert replaced == 1
    done: list[str] = []

    async def meanwhile(server: FileServer, manager: Manager, name: str) -> None:
        settled: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        manager.on_settled(settled.set_result)
        aside = place.directory / "aside"
        place.shared.rename(aside)

        def put_back(_: object) -> None:
            aside.rename(place.shared)

        # Back before the Manager looks: it was subscribed first, and what it begins runs in the loop's next turn.
        server.on_takeover(put_back)
        pid = (await server.status()).pid
        kill(pid)
        report = await settled
        assert isinstance(report, RecoveryReport)
        assert [lost.name for lost in server.lost] == [name]
        assert [(share.name, share.done.value, share.error) for share in report] == [(name, "added again", None)]
        (info,) = manager.shares()
        assert (info.name, info.state.value, info.owners) == (name, "added", ("build-7",))
        with NinePClient.connect(place.address, name) as guest:
            assert guest.listdir("") == [b"file"]
        done.append(name)

    names: dict[str, Any] = {**{each: getattr(uvmshare, each) for each in uvmshare.__all__}, "meanwhile": meanwhile}
    exec(f"async def program():\n{textwrap.indent(program, '    ')}", names)  # it is the project's own text
    place.run(names["program"]())
    assert done == ["0"]
