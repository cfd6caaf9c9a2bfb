"""Content: random operations against a model, and fio's own verification."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING

import pytest
from tests.conformance.harness import Setting, compiled, keep

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conformance.harness import Bench

pytestmark = pytest.mark.guest

_SEED = 20_011


def run_fsx(
    bench: Callable[[str], Bench], directory: str, setting: Setting, count: int, *, direct: bool = False
) -> dict[str, object]:
    """Run fsx in the share, look at the file from the host, and return the figures."""
    program = compiled("fsx")
    # Linux's client refuses shared writable mappings where writes are not cached.
    mapping = {"none": "no-map", "readahead": "map-read"}.get(setting.cache, "map-write")
    # Its stale last page after an append has a check and a cause of its own (`append/` among the features).
    more = f"{'direct' if direct else ''} {'no-append' if setting.cache == 'readahead' else ''}"
    up = bench(setting.kernel)
    with up.mounted(setting, directory) as mount:
        said = mount.check(f"{program} file {_SEED} {count} {mapping} {more}")
        size = int(mount.check("stat -c %s file"))
        seen = mount.check("cksum < file").split()[0]
    assert os.stat(os.path.join(directory, "file")).st_size == size
    there = up.check(f"cksum < {directory}/file").split()[0]
    assert there == seen, "the host has other bytes than the guest"
    operations = re.search(r"(\d+) operations", said)
    assert operations, said
    return {"operations": operations[1], "mapped": mapping.replace("-", " "), "wrong bytes": 0}


@pytest.mark.parametrize(
    "setting", [Setting("6.12"), pytest.param(Setting("6.12", cache="mmap"), marks=pytest.mark.long)], ids=str
)
def test_a_little_of_fsx(bench: Callable[[str], Bench], directory: str, setting: Setting) -> None:
    keep("fsx-short", setting, run_fsx(bench, directory, setting, 300))


EVERYWHERE = [
    Setting("6.12"),
    Setting("6.12", msize=8192),
    Setting("6.12", cache="mmap"),
    Setting("6.12", cache="mmap", more=",directio"),
    Setting("6.12", cache="loose", msize=65536),
    Setting("6.12", cache="readahead"),
    Setting("6.12", model="mapped-xattr", cache="mmap"),
    Setting("6.12", model="none", access="any"),
    Setting("6.1"),
    Setting("6.1", cache="mmap"),
    Setting("6.1", cache="loose", msize=65536),
]


@pytest.mark.long
@pytest.mark.parametrize("setting", EVERYWHERE, ids=str)
def test_fsx(bench: Callable[[str], Bench], directory: str, setting: Setting) -> None:
    keep("fsx", setting, run_fsx(bench, directory, setting, 1200))


@pytest.mark.long
@pytest.mark.parametrize("setting", [Setting("6.12"), Setting("6.1")], ids=str)
def test_fsx_with_direct_io(bench: Callable[[str], Bench], directory: str, setting: Setting) -> None:
    keep("fsx-direct", setting, run_fsx(bench, directory, setting, 1200, direct=True))


@pytest.mark.long
@pytest.mark.parametrize("setting", EVERYWHERE, ids=str)
def test_fio_verifies_what_it_wrote(bench: Callable[[str], Bench], directory: str, setting: Setting) -> None:
    up = bench(setting.kernel)
    engine = "mmap" if setting.cache == "mmap" else "psync"
    with up.mounted(setting, directory) as mount:
        said = mount.check(
            f"fio --name=verify --directory={mount.at} --rw=randrw --bsrange=512-64k --size=3m --numjobs=2 --thread "
            f"--verify=crc32c --verify_fatal=1 --do_verify=1 --ioengine={engine} --output-format=json"
        )
        report = json.loads(said[said.index("{") :])
    jobs = report["jobs"]
    assert [job["error"] for job in jobs] == [0, 0]
    read, written = (sum(job[way]["io_bytes"] for job in jobs) for way in ("read", "write"))
    assert read > 0
    assert written > 0
    keep("fio", setting, {"engine": engine, "bytes read": read, "bytes written": written, "errors": 0})
