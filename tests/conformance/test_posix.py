"""Thousands of POSIX checks on a share, held against the same checks on the guest's own ext4."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from tests.conformance.causes import cause_of
from tests.conformance.harness import TREE, Setting, keep

from results import NO_CAUSE

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conformance.harness import Bench, Mount

pytestmark = pytest.mark.guest

Results = dict[str, tuple[str, str]]

WHOLE = ("paths", "creation", "renames", "times", "contents", "descriptors", "permissions")
SHORT = ("renames", "contents")

_witnesses: dict[tuple[str, str], Results] = {}


def run_part(bench: Bench, directory: str, part: str) -> Results:
    """Run one part of the checks below a directory of the guest's."""
    results = f"/run/results/{part}.json"
    bench.check(
        f"mkdir {directory}/{part} && cd {TREE} && "
        f"python3 -B -m tests.conformance.posix {directory}/{part} {results} {part}"
    )
    found: Results = json.loads(bench.check(f"cat {results}"))
    return found


def witness(bench: Bench, part: str) -> Results:
    """Return what the guest's own ext4 says to a part. Its wants are held to it first."""
    key = bench.kernel, part
    if key not in _witnesses:
        _witnesses[key] = run_part(bench, "/run/local", part)
        bench.check("rm -r /run/local/*")
    return _witnesses[key]


def compare(bench: Bench, mount: Mount, parts: tuple[str, ...], name: str) -> None:
    """Run parts on a share and on ext4, keep the figures, and fail on a difference that has no cause."""
    checks = 0
    differ: dict[str, str | None] = {}
    seen: list[str] = []
    for part in parts:
        local = witness(bench, part)
        wrong = [f"{check}: {got}, wanted {want}" for check, (got, want) in local.items() if got != want]
        assert not wrong, f"the guest's ext4 does not do what is wanted: {wrong[:20]}"
        remote = run_part(bench, mount.at, part)
        assert remote.keys() == local.keys()
        checks += len(remote)
        for check, (got, _) in remote.items():
            if got != local[check][0]:
                differ[check] = cause_of(check, mount.setting)
                if differ[check] is None:
                    seen.append(f"{check}: {got}, on ext4 {local[check][0]}")
    failures = {check: cause or NO_CAUSE for check, cause in differ.items()}
    keep(name, mount.setting, {"checks": checks, "differ": len(differ)}, failures)
    assert not seen, "\n".join(seen[:50])


@pytest.mark.soak
@pytest.mark.parametrize("setting", [Setting("6.12")], ids=str)
def test_some_posix_checks_come_out_as_on_ext4(bench: Callable[[str], Bench], directory: str, setting: Setting) -> None:
    up = bench(setting.kernel)
    with up.mounted(setting, directory) as mount:
        compare(up, mount, SHORT, "posix-short")


@pytest.mark.long
@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        (Setting("6.12"), WHOLE),
        # What the security model decides: the rest is the same code as above.
        (Setting("6.12", model="mapped-xattr"), ("creation", "times", "owners")),
        # Permissions are the kernel's own, and the newer one has looked at them.
        pytest.param(Setting("6.1"), WHOLE[:-1], marks=pytest.mark.soak),
    ],
    ids=lambda value: str(value) if isinstance(value, Setting) else f"{len(value)}-parts",
)
def test_posix_checks_come_out_as_on_ext4(
    bench: Callable[[str], Bench], directory: str, setting: Setting, parts: tuple[str, ...]
) -> None:
    up = bench(setting.kernel)
    with up.mounted(setting, directory) as mount:
        compare(up, mount, parts, "posix")


@pytest.mark.long
@pytest.mark.parametrize(
    "setting",
    [
        Setting("6.12", cache="loose"),
        Setting("6.12", cache="mmap"),
        Setting("6.12", cache="mmap", more=",directio"),
        Setting("6.12", cache="readahead", msize=65536),
        Setting("6.12", msize=8192),
        Setting("6.1", cache="loose"),
        Setting("6.1", cache="mmap"),
        Setting("6.12", access="user"),
        Setting("6.1", access="user"),
    ],
    ids=str,
)
def test_names_and_contents_come_out_as_on_ext4(
    bench: Callable[[str], Bench], directory: str, setting: Setting
) -> None:
    up = bench(setting.kernel)
    with up.mounted(setting, directory) as mount:
        compare(up, mount, ("renames", "contents"), "posix-names-and-contents")


@pytest.mark.long
@pytest.mark.parametrize("setting", [Setting("6.12", more=",ro"), Setting("6.12", more=",rw")], ids=str)
def test_a_read_only_share_answers_as_a_read_only_ext4(
    bench: Callable[[str], Bench], directory: str, setting: Setting
) -> None:
    up = bench(setting.kernel)
    populate = f"cd {TREE} && python3 -B -m tests.conformance.posix populate"
    with up.mounted(Setting(setting.kernel), directory) as mount:
        up.check(f"{populate} {mount.at}")
    up.check(f"mkdir /run/local/r && {populate} /run/local/r && mkdir /run/ro && mount --bind /run/local/r /run/ro")
    up.check("mount -o remount,ro,bind /run/ro")
    run = f"cd {TREE} && python3 -B -m tests.conformance.posix {{}} /run/results/{{}}.json read-only"
    up.check(run.format("/run/ro", "local"))
    with up.mounted(setting, directory, read_only=True) as mount:
        up.check(run.format(mount.at, "share"))
    up.check("umount /run/ro && rmdir /run/ro && rm -r /run/local/r")
    local, share = (json.loads(up.check(f"cat /run/results/{name}.json")) for name in ("local", "share"))
    assert [name for name, (got, want) in local.items() if got != want] == []
    differ = {name: cause_of(name, setting) for name, (got, _) in share.items() if got != local[name][0]}
    failures = {name: why or NO_CAUSE for name, why in differ.items()}
    keep("posix-read-only", setting, {"checks": len(share), "differ": len(differ)}, failures)
    assert [(name, *share[name]) for name, why in differ.items() if why is None] == []
    assert sorted(os.listdir(os.path.join(directory, "ro"))) == sorted(
        ("regular", "directory", "fifo", "block", "character", "socket", "symlink", "empty")
    )
