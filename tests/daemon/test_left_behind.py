"""A removal whose mount process waits for a file system that hangs returns, and the daemon says what is left."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.root import needs_root

from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import GetattrMask
from uvmshare.testing.client import NinePClient as Guest

if TYPE_CHECKING:
    from tests.daemon.harness import Home

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)
from tests.fuse import HungFuse

pytestmark = needs_root


def test_an_event_names_the_process_the_share_and_what_is_waited_for(home: Home, tmp_path: Path) -> None:
    shown = tmp_path / "shown"
    shown.mkdir()
    (shown / "bad").write_bytes(b"")
    path = Path(home.directory("ws"))
    with HungFuse(shown, path / "mnt") as fuse, home.running() as daemon:
        vm = daemon.add_vm()
        share = daemon.add_share(str(path), owner="job")
        with Guest.connect(vm.addresses[0], share.name) as guest, home.client() as client:
            fid = guest.walk("mnt/bad")
            fuse.hang("bad")
            guest.send(m.Tgetattr(fid, int(GetattrMask.BASIC)))
            fuse.wait_until_asked()
            released = client.shares.release("vm", share.name, owner="job")
            assert released.ended
            (words,) = released.left_behind
            assert client.shares("vm") == []
            events = [event for event in client.events(since="0", follow=False) if event is not None]
            (left,) = [event for event in events if event.kind == "vm.left_behind"]
            told = str(left.detail)
            for part in (f"share {share.name} ({path})", "process ", "fuse at ", "umount -f"):
                assert part in told
                assert part in words
            guest.drain()
            fuse.release()
