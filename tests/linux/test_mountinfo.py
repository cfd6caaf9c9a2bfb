"""The kernel's table of mounts, as it is and as it could be."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from uvmshare.linux import mountinfo
from uvmshare.linux.mountinfo import Mounted, mounted

if TYPE_CHECKING:
    from pathlib import Path

LINES = rb"""21 1 8:1 / / rw,relatime shared:1 master:2 - ext4 /dev/sda1 rw,errors=remount-ro
30 21 0:33 /a\040b /mnt/new\012line\134 ro - 9p what\040ever rw,access=client,trans=fd
31 21 0:34 / /mnt/caf\303\251-\377 ro - tmpfs none rw
"""


def test_each_line_is_read_and_what_the_kernel_escaped_is_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mountinfo").write_bytes(LINES.replace(rb"\303\251", "é".encode()).replace(rb"\377", b"\xff"))
    monkeypatch.setattr(mountinfo, "TABLE", str(tmp_path / "mountinfo"))
    assert mounted() == [
        Mounted(21, "8:1", "/", "/", "ext4", "/dev/sda1", "rw,errors=remount-ro"),
        Mounted(30, "0:33", "/a b", "/mnt/new\nline\\", "9p", "what ever", "rw,access=client,trans=fd"),
        Mounted(31, "0:34", "/", os.fsdecode("/mnt/café-".encode() + b"\xff"), "tmpfs", "none", "rw"),
    ]


def test_an_open_table_is_read_from_its_beginning_each_time() -> None:
    table = os.open(mountinfo.TABLE, os.O_RDONLY)
    try:
        assert mounted(table) == mounted(table) == mounted()
    finally:
        os.close(table)
    assert [found for found in mounted() if found.path == "/"]


def test_what_cannot_be_read_is_an_error_of_the_system() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        mounted(9999)
