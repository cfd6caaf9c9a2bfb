"""Makes the pictures of docs/dashboard.md anew: ``python tools/dashboard_pictures.py [DIRECTORY]`` (docs).

What lives here: the VMs, shares and guests that are in the pictures, and what the guests do meanwhile. What must not:
the browser (`chromium`), or anything of the page.

A real daemon serves real shares to the project's own 9P client; the guest with an agent has a kernel that only notes
down its mounts (`tests/agent`). The page is the one of `uvmshare dashboard`. It takes two minutes: a sparkline needs
its time.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.daemon.guests import Guest  # noqa: E402  as above
from tests.daemon.harness import Home  # noqa: E402  as above

from chromium import Chromium  # noqa: E402  the path comes first
from uvmshare.testing.client import NinePClient  # noqa: E402  as above

if TYPE_CHECKING:
    from collections.abc import Iterator

_SECONDS: Final = float(os.environ.get("PICTURE_SECONDS", "100"))
"""Until the pictures are taken."""


class Reader(threading.Thread):
    """A guest that reads, in waves, and asks for what it may not have now and then."""

    def __init__(self, address: str, share: str, pause: float, wave: float, failing: int = 0) -> None:
        super().__init__(daemon=True)
        self._client = NinePClient.connect(address, share)
        self._pause = pause
        self._wave = wave
        self._failing = failing
        self.ends = threading.Event()

    def run(self) -> None:
        """Read until it is to end."""
        begun, count = time.monotonic(), 0
        while not self.ends.is_set():
            count += 1
            self._client.read_file("data")
            if self._failing and count % self._failing == 0:
                with contextlib.suppress(OSError):
                    self._client.write_file("data", b"x")
            part = ((time.monotonic() - begun) % self._wave) / self._wave
            self.ends.wait(self._pause * (0.2 + 3 * (part - 0.6) ** 2 + (2 if part > 0.8 else 0)))
        self._client.close()


def directory(home: Home, name: str) -> str:
    """Make a directory with a file in it."""
    path = home.directory(name)
    Path(path, "data").write_bytes(b"0123456789abcdef" * 4096)
    return path


@contextlib.contextmanager
def scene(home: Home) -> Iterator[None]:
    """Have VMs, shares, holders of them and guests that use them."""
    guests = [Guest(home.directory("ci-vm")), Guest(home.directory("dev-vm"))]
    for guest in guests:
        guest.start()
    readers: list[Reader] = []
    with home.client() as client:
        home.had_vms = True
        client.vms.add("build", listen=(f"unix:{home.folder}/build.9p",))
        client.vms.add("ci", listen=(f"unix:{home.folder}/ci.9p",), agent=f"unix:{guests[0].socket}")
        client.vms.add("dev", listen=(f"unix:{home.folder}/dev.9p",), agent=f"unix:{guests[1].socket}")
        project, cache = directory(home, "project"), directory(home, "cache")
        client.shares.add("build", project, read_only=True, hide=("node_modules", "**/.env"))
        client.shares.add("build", cache, owner="job-7", lease=90)
        client.shares.add("build", cache, owner="job-8", lease=30)
        gone = directory(home, "scratch")
        client.shares.add("build", gone, owner="job-8", lease=60)
        Path(gone, "data").unlink()
        Path(gone).rmdir()
        for guest, vm, path in ((guests[0], "ci", project), (guests[0], "ci", cache), (guests[1], "dev", cache)):
            guest_path = f"{guest.allow}/{os.path.basename(path)}"
            client.mounts.map(vm, path, guest_path, owner="runner", lease=600, read_only=True)
        for vm, share, pause, wave, failing in (
            ("build", "0", 0.02, 40.0, 0),
            ("build", "1", 0.03, 25.0, 0),
            ("ci", "0", 0.01, 60.0, 0),
            ("ci", "1", 0.1, 30.0, 12),
        ):
            readers.append(Reader(f"unix:{home.folder}/{vm}.9p", share, pause, wave, failing))
            readers[-1].start()
    try:
        guests[1].end()
        yield
    finally:
        for reader in readers:
            reader.ends.set()
            reader.join()
        for guest in guests:
            guest.close()


def main(target: Path) -> None:
    """Take the pictures."""
    folder = "/tmp/demo"  # noqa: S108  it is in the pictures
    os.mkdir(folder, 0o755)
    with Home.in_folder(folder) as home, home.running() as daemon, Chromium.started() as browser:
        command = [sys.executable, "-m", "uvmshare", "dashboard", "--json", "--host", home.host]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as dashboard:
            try:
                assert dashboard.stdout is not None
                page = browser.page(json.loads(dashboard.stdout.readline())["url"], height=800)
                page.wait_for("document.body.innerText.includes('No VMs yet')")
                with scene(home):
                    end = time.monotonic() + _SECONDS
                    while time.monotonic() < end:
                        time.sleep(1)
                        daemon.pass_time(0.45)
                    for name, width, height, dark in (
                        ("dashboard", 1280, 900, False),
                        ("dashboard-dark", 1280, 900, True),
                        ("dashboard-narrow", 400, 900, True),
                    ):
                        page.look(width, height, dark=dark)
                        time.sleep(1.5)
                        whole = name == "dashboard"
                        (target / f"{name}.png").write_bytes(page.picture(whole=whole))
            finally:
                dashboard.terminate()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs")
