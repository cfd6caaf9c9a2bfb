"""Supervisors that the tests fork (`tests/forked.py`): they are what those are that a program starts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.root import require_root

from uvmshare.fileserver import link

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fileserver.harness import Device
    from tests.forked import Zygote

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

ALIKE = ("Umask", "Uid", "Gid", "Groups", "SigBlk", "SigIgn", "SigCgt", "CapEff", "NoNewPrivs", "Seccomp", "Threads")


def described(device: Device, top: Path) -> dict[str, object]:
    """What a supervisor has of its surroundings, without the numbers that two processes never have in common."""
    about = Path(f"/proc/{device.pid()}")
    status = dict(line.split(":", 1) for line in (about / "status").read_text().splitlines())
    descriptors = {
        int(each.name): re.sub(
            r"\d+", "N", os.readlink(each).replace(str(top), "top").replace(device.directory, "beside")
        )
        for each in (about / "fd").iterdir()
    }
    return {
        "standard": [descriptors.pop(number) for number in range(3)],
        "descriptors": sorted(descriptors.values()),
        "limits": (about / "limits").read_text(),
        "name": (about / "comm").read_text(),
        "groups": (about / "cgroup").read_text(),
        "leads its session": os.getsid(device.pid()) == device.pid(),
        **{name: status[name].strip() for name in ALIKE},
    }


def test_a_forked_supervisor_has_what_a_started_one_has(
    start_device: Callable[..., Device], zygote: Zygote | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if zygote is not None:
        assert vars(link)["subprocess"] is zygote
    found = []
    for name in ("forked", "started"):
        top = tmp_path / name
        top.mkdir()
        found.append(described(start_device(log=top / "log", run_dir=top / "run"), top))
        monkeypatch.setattr(link, "subprocess", subprocess)
    assert found[0] == found[1]


def test_where_a_child_would_have_other_groups_it_is_started(start_device: Callable[..., Device]) -> None:
    require_root("only root may have other groups")
    before = os.getgroups()
    os.setgroups([*before, 4711])
    try:
        found = described(start_device(), Path("/nowhere"))
    finally:
        os.setgroups(before)
    assert "4711" in str(found["Groups"])
