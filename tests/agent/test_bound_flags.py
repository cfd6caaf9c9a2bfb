"""What a mount that was made aside is when it is bound to its place: in a mount namespace of the test's own."""

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

KEPT = {"ro", "nosuid", "nodev"}


def options_after(program: str, base: str, flags: tuple[str, ...]) -> set[str]:
    """Run a program in a mount namespace of its own, and return the options of a mount that it prints."""
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, "-W", "error::SyntaxWarning", "-c"]
    shown = subprocess.run([*command, program, base, *flags], stdout=subprocess.PIPE, check=True).stdout.decode()
    return set(shown.strip().split(","))


@pytest.mark.parametrize(
    "flags", [("nosuid", "nodev"), ("nosuid", "dev"), ("suid", "nodev"), ("ro", "nosuid", "nodev")]
)
def test_what_is_bound_in_the_place_of_a_dead_mount_has_the_flags_of_what_was_mounted(
    flags: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> None:
    shown = options_after(PROGRAM, str(tmp_path_factory.mktemp("bound")), flags)
    assert KEPT & shown == KEPT & set(flags)


READ_ONLY = """
import ctypes, errno, os, sys
from uvmshare.guest import pinning, repeating, work
base, *flags = sys.argv[1:]
for name in ("aside", "place"):
    os.mkdir(f"{base}/{name}")
os.system(f"mount -t tmpfs -o {','.join(flags)} none {base}/aside")
assert work.make_read_only(f"{base}/aside", suid="suid" in flags, dev="dev" in flags) == 0
assert work.bind(f"{base}/aside", f"{base}/place") == 0

def require_read_only(where):
    try:
        os.mkdir(f"{base}/{where}/made")
    except OSError as error:
        assert error.errno == errno.EROFS
    else:
        raise AssertionError(where)

require_read_only("aside")
os.system(f"umount {base}/aside")
place = os.open(f"{base}/place", os.O_PATH)
own = pinning._clone(place)
repeater = repeating.Repeater.__new__(repeating.Repeater)
repeater._libc = ctypes.CDLL(None, use_errno=True)
repeater._make_writable(own)
os.mkdir("inside", dir_fd=own)
assert os.listdir(f"{base}/place") == ["inside"], "it is the same file system"
require_read_only("place")
(options,) = [line.split()[5] for line in open("/proc/self/mountinfo") if line.split()[4] == f"{base}/place"]
print(options)
"""


@pytest.mark.parametrize("flags", [("nosuid", "nodev"), ("suid", "dev")])
def test_a_mount_whose_file_system_is_written_through_another_one_stays_read_only_itself(
    flags: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> None:
    shown = options_after(READ_ONLY, str(tmp_path_factory.mktemp("bound")), flags)
    assert KEPT & shown == {"ro", *(KEPT & set(flags))}
