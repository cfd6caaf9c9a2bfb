"""What mount(2) keeps when a mount that was made aside is bound to its place: in a mount namespace of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tests.root import needs_root

pytestmark = needs_root

PROGRAM = """
import os, sys
from uvmshare.guest import work
base, *flags = sys.argv[1:]
for name in ("aside", "place"):
    os.mkdir(f"{base}/{name}")
os.system(f"mount -t tmpfs -o {','.join(flags)} none {base}/aside")
assert work.bind(f"{base}/aside", f"{base}/place") == 0
os.system(f"umount {base}/aside")
(options,) = [line.split()[5] for line in open("/proc/self/mountinfo") if line.split()[4] == f"{base}/place"]
print(options)
"""


@pytest.mark.parametrize(
    "flags", [("nosuid", "nodev"), ("nosuid", "dev"), ("suid", "nodev"), ("ro", "nosuid", "nodev")]
)
def test_what_is_bound_in_the_place_of_a_dead_mount_has_the_flags_of_what_was_mounted(
    flags: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = str(tmp_path_factory.mktemp("bound"))
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, "-W", "error::SyntaxWarning", "-c"]
    shown = subprocess.run([*command, PROGRAM, base, *flags], stdout=subprocess.PIPE, check=True).stdout.decode()
    kept = {"ro", "nosuid", "nodev"}
    assert kept & set(shown.strip().split(",")) == kept & set(flags)
