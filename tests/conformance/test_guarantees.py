"""What each way of mounting gives, in each kernel: the table of docs/guest-kernel.md, tried in a guest.

What lives here: the ways, the host's side of what is tried, and what is expected. The guest's side is `guarantees.py`.
"""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, Final

import pytest
from tests.conformance.guarantees import FILLING, FOUND, HEARD, SAID
from tests.conformance.harness import TREE, Setting, keep

from uvmshare.fileserver.models import SECURITY_MODELS
from uvmshare.guest.mount import choose

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conformance.harness import Bench

ROWS: Final = {
    "mmap": "shared writable mmap",
    "acls": "ACLs, with `posixacl`",
    "landlock": "Landlock in the guest",
    "changes": "host-side changes seen at once",
    "full": "full disk reported at once",
}

_HELD: Final = "only for the mount's root, a directory that is kept open"
_KEPT: Final = "not removed names, attributes, contents, contents of open files, appended bytes of open files"
_RETURNS_0: Final = "write returns 0, then write: ENOSPC"


def _way(mmap: str, landlock: str, changes: str, full: str) -> dict[str, str]:
    return {"mmap": mmap, "acls": "yes", "landlock": landlock, "changes": changes, "full": full}


EXPECTED: Final[dict[str, dict[str, dict[str, str]]]] = {
    "6.1": {
        "mmap": _way("yes; read(2) sees it after msync(2)", _HELD, "yes", "write: ENOSPC"),
        "none": _way("EINVAL", _HELD, "yes", "write: ENOSPC"),
        "loose": _way("yes", "yes", _KEPT, "fsync: ENOSPC"),
    },
    "6.12": {
        "mmap,directio": _way("yes", _HELD, "yes", _RETURNS_0),
        "none": _way("EINVAL", _HELD, "yes", _RETURNS_0),
        "readahead": _way("EINVAL", _HELD, "not contents of open files, appended bytes of open files", _RETURNS_0),
    },
}
"""By kernel, by cache mode in the kernel's words, by row."""

PAGE: Final = os.path.join(TREE, "docs", "guest-kernel.md")


def setting(kernel: str, cache: str) -> Setting:
    mode, _, more = cache.partition(",")
    return Setting(kernel, cache=mode, msize=262144, more=f",posixacl{',' if more else ''}{more}")


def words(setting: Setting) -> str:
    """Return the cache mode of a setting in the kernel's words."""
    return f"{setting.cache},directio" if "directio" in setting.more else setting.cache


EVERY: Final = [(kernel, cache) for kernel, modes in EXPECTED.items() for cache in modes]


@pytest.mark.guest
@pytest.mark.long
@pytest.mark.parametrize("setting", [pytest.param(setting(*each), id="-".join(each)) for each in EVERY])
def test_each_way_of_mounting_gives_what_the_page_says(
    bench: Callable[[str], Bench], directory: str, setting: Setting
) -> None:
    up = bench(setting.kernel)
    found = {}
    with up.mounted(setting, directory) as mount:
        for what in ("mmap", "acls", "landlock"):
            found[what] = up.check(command(what, mount.at))

    make_files(directory)
    with up.mounted(setting, directory) as mount:
        pipes = f"{SAID} {HEARD} {FOUND}"
        begin = f"( ({command('changes', mount.at)} >/run/said 2>&1; cat /run/said >{FOUND}) &)"
        assert up.check(f"mkfifo {pipes} && {begin} && cat {SAID}") == "ready"
        change_files(directory)
        found["changes"] = up.check(f"echo >{HEARD}; cat {FOUND}; rm {pipes}")

    disk = f"{directory}/disk"
    os.mkdir(disk)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], check=True)
    try:
        with up.mounted(setting, disk) as mount:
            found["full"] = up.check(command("full", mount.at))
        with open(f"{disk}/filling", "rb") as file:
            content = file.read()
        assert content == FILLING[: len(content)]  # nothing is overwritten by what there was no room for
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
    keep("guarantees", setting, found)
    assert found == EXPECTED[setting.kernel][words(setting)]


@pytest.mark.guest
@pytest.mark.long
@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        pytest.param(
            Setting(kernel, model=model, more=",posixacl"), "no" if model == "none" else "yes", id=f"{kernel}-{model}"
        )
        for kernel in EXPECTED
        for model in SECURITY_MODELS
    ],
)
def test_access_control_lists_are_kept_by_the_security_models_that_keep_attributes(
    bench: Callable[[str], Bench], directory: str, setting: Setting, expected: str
) -> None:
    up = bench(setting.kernel)
    with up.mounted(setting, directory) as mount:
        assert up.check(command("acls", mount.at)) == expected


def command(what: str, at: str) -> str:
    return f"cd {TREE} && python3 -B -m tests.conformance.guarantees {what} {at}"


def make_files(directory: str) -> None:
    for name in ("kept", "appended", "changed", "removed", "grown", "mode"):
        with open(f"{directory}/{name}", "w", encoding="ascii") as file:
            file.write("before")
    os.chmod(f"{directory}/mode", 0o600)


def change_files(directory: str) -> None:
    for name in ("kept", "changed"):
        with open(f"{directory}/{name}", "r+", encoding="ascii") as file:
            file.write("AFTER!")
    with open(f"{directory}/appended", "a", encoding="ascii") as file:
        file.write(", after")
    with open(f"{directory}/grown", "a", encoding="ascii") as file:
        file.write("AFTER!")
    with open(f"{directory}/new", "w", encoding="ascii") as file:
        file.write("new")
    os.unlink(f"{directory}/removed")
    os.chmod(f"{directory}/mode", 0o640)


def test_the_mode_that_is_chosen_is_in_the_table_for_each_kernel() -> None:
    for kernel, modes in EXPECTED.items():
        for read_only in (False, True):
            chosen = choose("auto", 262144, read_only=read_only, release=f"{kernel}.0").removesuffix(",msize=262144")
            assert chosen.removeprefix("cache=") in modes


def test_the_page_has_the_table_that_the_guests_are_held_to() -> None:
    with open(PAGE, encoding="utf-8") as file:
        page = file.read()
    assert table() in page, f"put this into {PAGE}:\n{table()}"


def table() -> str:
    lines = [("kernel", "`cache=`", *ROWS.values()), ("---",) * (2 + len(ROWS))]
    for kernel, modes in EXPECTED.items():
        lines += [(kernel, f"`{cache}`", *(by_row[row] for row in ROWS)) for cache, by_row in modes.items()]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
