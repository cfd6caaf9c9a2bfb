"""The log: what a guest can make of it."""

from __future__ import annotations

import os
from contextlib import closing

from uvmshare.fileserver.log import _BURST, _PER_SECOND, Log


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
