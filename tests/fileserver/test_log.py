"""The log: what a guest can make of it."""

from __future__ import annotations

import os
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

from tests.fileserver.harness import Device
from tests.processes import await_answer

from uvmshare.fileserver.log import _BURST, _LONGEST, _PER_SECOND, CUT_BYTES, KEPT_BYTES, MOST_BYTES, Log
from uvmshare.hostfiles import open_log

if TYPE_CHECKING:
    from pathlib import Path


def test_a_guest_cannot_fill_the_disk_with_lines() -> None:
    now = 0.0
    reader, writer = os.pipe()
    with closing(os.fdopen(reader, "rb")) as lines, closing(os.fdopen(writer, "wb")) as end:
        log = Log(end.fileno(), clock=lambda: now)
        for number in range(10 * _BURST):
            log(f"line {number}")
        now += 1.0
        for number in range(10 * _BURST):
            log(f"later {number}")
        end.close()
        written = lines.read().decode().splitlines()
    assert written[:2] == ["uvmshare: line 0", "uvmshare: line 1"]
    assert len(written) == _BURST + _PER_SECOND
    assert written[_BURST] == f"uvmshare: later 0 ({9 * _BURST} lines before this one were left out)"


def test_a_log_that_nobody_reads_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        Log(writer)("nobody reads this")
    finally:
        os.close(writer)


def test_bytes_of_a_guest_are_written_readably() -> None:
    reader, writer = os.pipe()
    Log(writer)("aname '\udcff'")
    os.close(writer)
    with os.fdopen(reader, "rb") as lines:
        assert lines.read() == b"uvmshare: aname '\\udcff'\n"


def test_a_log_has_a_bound_and_keeps_its_newest_lines(tmp_path: Path) -> None:
    now = 0.0
    descriptor, reader = open_log(str(tmp_path / "log"))
    assert reader is not None
    log = Log(descriptor, clock=lambda: now)
    log.bound(reader)
    try:
        sizes = []
        for number in range(2 * MOST_BYTES // _LONGEST):
            now += 1.0
            log(f"{number} {'x' * 2 * _LONGEST}")
            log.cut()
            sizes.append((tmp_path / "log").stat().st_size)
        assert max(sizes) <= CUT_BYTES
        lines = (tmp_path / "log").read_bytes().splitlines()
        assert lines[0] == b"uvmshare: older lines were cut"
        assert lines[-1].startswith(f"uvmshare: {number} x".encode())
        assert all(len(line) <= _LONGEST for line in lines)
    finally:
        os.close(descriptor)
        os.close(reader)


def test_a_log_that_nobody_cuts_is_full_at_last(tmp_path: Path) -> None:
    """A mount process cuts nothing; its supervisor may have died."""
    now = 0.0
    descriptor, reader = open_log(str(tmp_path / "log"))
    assert reader is not None
    log = Log(descriptor, clock=lambda: now)
    log.bound(reader)
    try:
        os.truncate(tmp_path / "log", MOST_BYTES - _LONGEST)
        for _ in range(10):
            now += 1.0
            log("x" * 2 * _LONGEST)
        assert (tmp_path / "log").stat().st_size <= MOST_BYTES + _LONGEST + 1
    finally:
        os.close(descriptor)
        os.close(reader)


def _is_cut(device: Device, log: Path) -> bool:
    device.run(device.server.status())  # a turn of its loop
    return log.stat().st_size < 2 * KEPT_BYTES


def test_a_supervisor_cuts_the_log_that_was_opened_for_it_and_the_one_in_its_run_directory(tmp_path: Path) -> None:
    for settings in ({"log": tmp_path / "log"}, {"run_dir": tmp_path / "run"}):
        log = settings.get("log", tmp_path / "run" / "log")
        log.parent.mkdir(exist_ok=True, mode=0o700)
        with log.open("wb") as file:
            file.write(b"old\n" * (CUT_BYTES // 4) + b"new\n" * 2)
        device = Device(security_model="none", **settings)
        try:
            await_answer(partial(_is_cut, device, log), True)
            assert b"new\nnew\n" in log.read_bytes()
        finally:
            device.close()
