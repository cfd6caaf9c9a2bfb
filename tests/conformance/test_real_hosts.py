"""What a guest sees of a host that lives: replaced directories, and what calls cost on the wire."""

from __future__ import annotations

import os
import shlex
import shutil
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.conformance.harness import TREE, Setting, keep, mount_here
from tests.conformance.wire import wire

from uvmshare.ninep import messages as m

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conformance.harness import Bench

pytestmark = [pytest.mark.guest, pytest.mark.long]

_WATCHED = "/run/watched"


def sent(up: Bench, directory: str, setting: Setting, command: str) -> list[m.Message]:
    """Run a command in a share that was mounted for it; return what the client sent."""
    with up.mounted(setting, directory) as mount, wire(mount.port) as relay:
        mount_here(replace(mount, port=relay.port), _WATCHED)
        relay.taken()
        try:
            up.check(f"cd {_WATCHED} && {command}")
            return relay.taken()
        finally:
            up.check(f"umount {_WATCHED} && rmdir {_WATCHED}")


def kinds(requests: list[m.Message]) -> Counter[str]:
    return Counter(type(request).__name__ for request in requests)


@pytest.mark.parametrize(
    "setting", [Setting("6.1"), pytest.param(Setting("6.1", model="mapped-xattr"), marks=pytest.mark.soak)], ids=str
)
def test_a_workspace_that_was_made_anew_is_what_the_next_job_sees(
    bench: Callable[[str], Bench], directory: str, setting: Setting
) -> None:
    up = bench(setting.kernel)
    workspace = os.path.join(directory, "ws")

    def make(content: str) -> None:
        os.mkdir(workspace)
        os.chmod(workspace, 0o755)
        with open(os.path.join(workspace, "job"), "w", encoding="ascii") as file:
            file.write(content)

    make("one")
    with up.mounted(setting, workspace) as first:
        assert first.check("cat job") == "one"
        shutil.rmtree(workspace)
        make("two")
        with up.mounted(setting, workspace) as second:
            assert second.share != first.share
            assert second.check("cat job && echo more >> job") == "two"
            assert first.check("cat job 2>&1 || true").endswith("No such file or directory\n")
        moved = os.path.join(directory, "moved")
        os.rename(workspace, moved)  # a swap: the path leads to a third directory, and the second one is elsewhere
        make("three")
        with up.mounted(setting, workspace) as third:
            assert third.check("cat job") == "three"
    with open(os.path.join(directory, "moved", "job"), encoding="ascii") as file:
        assert file.read() == "twomore\n"


@pytest.mark.parametrize(
    "setting", [Setting("6.1"), pytest.param(Setting("6.1", model="mapped-xattr"), marks=pytest.mark.soak)], ids=str
)
def test_find_asks_for_no_attributes(bench: Callable[[str], Bench], directory: str, setting: Setting) -> None:
    for number in range(10):
        os.mkdir(os.path.join(directory, f"d{number}"))
        for each in range(50):
            with open(os.path.join(directory, f"d{number}", f"f{each}"), "wb"):
                pass
    requests = kinds(sent(bench(setting.kernel), directory, setting, "find . -type f | wc -l | grep -qx 500"))
    keep("find", setting, {"files": 500, "directories": 11, "requests": sum(requests.values())})
    assert sum(requests.values()) < 20 * 11  # some for each directory, none for each file


@pytest.mark.parametrize("setting", [Setting("6.1"), pytest.param(Setting("6.12"), marks=pytest.mark.soak)], ids=str)
def test_a_listing_that_is_rewound_in_the_middle_is_asked_for_again_since_linux_6_12(
    bench: Callable[[str], Bench], directory: str, setting: Setting
) -> None:
    # Why reports/table.py says that 6.1's client does not heed lseek(2): it has entries left, and sends no Treaddir.
    for number in range(100):
        with open(os.path.join(directory, f"name{number}"), "wb"):
            pass
    script = (
        "import os; from tests.conformance.reports.directories import listed, whole; at = os.open('.', os.O_RDONLY); "
        "listed(at, 500); os.lseek(at, 0, os.SEEK_SET); whole(at)"
    )
    requests = sent(
        bench(setting.kernel), directory, setting, f"PYTHONPATH={TREE} python3 -B -P -c {shlex.quote(script)}"
    )
    offsets = [request.offset for request in requests if isinstance(request, m.Treaddir)]
    assert set(offsets) == {0, 102}, offsets  # all, and the end
    assert offsets.count(0) == (1 if setting.kernel == "6.1" else 2), offsets


@pytest.mark.parametrize("setting", [Setting("6.1"), pytest.param(Setting("6.12"), marks=pytest.mark.soak)], ids=str)
def test_a_volume_that_is_bound_with_its_parent_follows_a_mount_that_is_made_again(
    bench: Callable[[str], Bench], directory: str, setting: Setting
) -> None:
    # What the agent does when a connection was lost; a container has a mount namespace of its own.
    up = bench(setting.kernel)
    parent, place = "/run/volumes", "/run/volumes/share"
    with open(os.path.join(directory, "f"), "w", encoding="ascii") as file:
        file.write("content")
    with up.mounted(setting, directory) as mount:
        up.check(f"mkdir {parent} && mount -t tmpfs none {parent} && mount --make-shared {parent}")
        mount_here(mount, place)
        for name, bound, looked_at in (("itself", place, "f"), ("parent", parent, "share/f")):
            at, ready, go = f"/run/{name}", f"/run/{name}.ready", f"/run/{name}.go"
            inside = f"mount --rbind {bound} {at} && echo > {ready} && cat {go} && exec cat {at}/{looked_at}"
            begun = f"(unshare -m --propagation slave sh -c '{inside}' > {at}.said 2>&1; echo > {ready})"
            up.check(f"mkdir {at} && mkfifo {ready} {go} && ({begun} > /dev/null 2>&1 &) && cat {ready}")
    with up.mounted(setting, directory) as again:
        up.check(f"umount -l {place}")
        mount_here(again, place)
        said = [
            up.check(f"echo > /run/{name}.go; cat /run/{name}.ready /run/{name}.said") for name in ("itself", "parent")
        ]
        up.check(f"umount {place} && umount {parent}")
    # Over TCP the first who asks sees the reset.
    assert said[0].strip().endswith(("Input/output error", "Connection reset by peer"))
    assert said[1].strip() == "content"


@pytest.mark.parametrize("setting", [Setting("6.1"), pytest.param(Setting("6.12"), marks=pytest.mark.soak)], ids=str)
def test_programs_that_buffer_write_as_much_at_a_time_as_suits_msize(
    bench: Callable[[str], Bench], directory: str, setting: Setting
) -> None:
    setting = replace(setting, msize=256 << 10)
    script = "file = open('f', 'wb'); [file.write(bytes(1000)) for _ in range(1000)]; file.close()"
    requests = sent(
        bench(setting.kernel), directory, setting, f"python3 -I -c {shlex.quote(script)} && stat -c %o f > g"
    )
    with open(os.path.join(directory, "g"), encoding="ascii") as file:
        size = int(file.read())
    assert 64 << 10 <= size <= 256 << 10
    sizes = [len(request.data) for request in requests if isinstance(request, m.Twrite) and len(request.data) > 100]
    # What the buffer has no room for is written first, so each has as many whole pieces of 1,000 as fit.
    assert sum(sizes) == 1_000_000
    assert len(sizes) <= 1_000_000 // (size - 1000) + 1
