"""Programs that people run on a file system: dbench, stress-ng, git, a C compiler, SQLite."""

from __future__ import annotations

import io
import re
import shlex
import tarfile
from typing import TYPE_CHECKING

import pytest
from tests.conformance.harness import GUEST_DEADLINE, TREE, Setting, keep

from results import NO_CAUSE

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conformance.harness import Bench

pytestmark = pytest.mark.guest

SETTINGS = [
    Setting("6.12"),
    Setting("6.12", cache="mmap", model="mapped-xattr"),
    Setting("6.12", cache="mmap", more=",directio"),
    Setting("6.12", cache="loose"),
    Setting("6.1"),
]

_STRESSORS = (
    *("chmod", "chown", "dentry", "dir", "fcntl", "filename", "flock", "fstat", "getdent", "hdd", "iomix", "lockf"),
    *("mknod", "open", "rename", "seek", "touch", "utime", "xattr"),
)
"""stress-ng's stressors of file systems that need nothing a 9P client refuses by itself (fallocate, O_TMPFILE)."""

_MANY_NAMES = ("link", "symlink")
"""These make 8192 names at a time and take as long as all the others together: in one setting only."""


@pytest.mark.long
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_dbench(bench: Callable[[str], Bench], directory: str, setting: Setting) -> None:
    up = bench(setting.kernel)
    with up.mounted(setting, directory) as mount:
        said = mount.check("dbench -t 12 -c /usr/share/dbench/client.txt -D . 2 2>&1")
    found = re.search(r"Throughput ([\d.]+) MB/sec +2 clients", said)
    assert found, said
    operations = {
        name: int(count) for name, count in re.findall(r"^ (\w+) +(\d+) +[\d.]+ +[\d.]+$", said, re.MULTILINE)
    }
    assert operations["WriteX"] > 0, said
    # How its processes wait for each other before they begin is a matter of semaphores, not of files.
    wrong = [line for line in said.splitlines() if "failed" in line and "barrier semaphore" not in line]
    assert wrong == []
    keep("dbench", setting, {"MB/s": found[1], "operations": sum(operations.values())})


@pytest.mark.long
@pytest.mark.parametrize("setting", [setting for setting in SETTINGS if setting.cache != "loose"], ids=str)
def test_stress_ng(bench: Callable[[str], Bench], directory: str, setting: Setting) -> None:
    up = bench(setting.kernel)
    failures = {}
    stressors = (*_STRESSORS, *_MANY_NAMES) if setting == SETTINGS[0] else _STRESSORS
    with up.mounted(setting, directory) as mount:
        for name in stressors:
            command = (
                f"stress-ng --{name} 1 --{name}-ops 20 --timeout 3 --verify --temp-path {mount.at} --hdd-bytes 2m "
                "--iomix-bytes 2m --seek-size 2m 2>&1"
            )
            result = up.runner.run(up.guest.run(command, timeout=GUEST_DEADLINE))
            if result.status != 0:
                failures[name] = NO_CAUSE
                print(result.text)  # noqa: T201  what it said of its failure
    keep("stress-ng", setting, {"stressors": len(stressors), "failed": len(failures)}, failures)
    assert failures == {}


@pytest.mark.long
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_git_clones_and_checks(bench: Callable[[str], Bench], directory: str, setting: Setting) -> None:
    up = bench(setting.kernel)
    script = """
        set -e
        export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@example.org GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@example.org
        git init -q -b main origin
        cd origin
        for number in $(seq 40); do
            mkdir -p d$((number % 7))
            seq $((number * 50)) > d$((number % 7))/f$number
        done
        ln -s d1/f1 link
        chmod +x d1/f1
        git add . && git commit -q -m first
        git mv d2 moved && seq 9999 > d1/f1 && git commit -q -a -m second
        cd ..
        git clone -q --no-local origin clone
        git -C clone fsck --strict --full
        test -z "$(git -C clone status --porcelain)"
        test "$(git -C clone rev-parse 'HEAD^{tree}')" = "$(git -C origin rev-parse 'HEAD^{tree}')"
        git -C clone ls-files | wc -l
    """
    with up.mounted(setting, directory) as mount:
        files = mount.check(f"bash -c {shlex.quote(script)}").split()[-1]
    assert files == "41"
    keep("git", setting, {"files": files, "fsck": "clean"})


_MAIN = """
#include <stdio.h>
#define X(n) int part##n(int);
#include "parts.h"
#undef X
int main(void)
{
    int sum = 0;
#define X(n) sum += part##n(n);
#include "parts.h"
    printf("%d\\n", sum);
    return 0;
}
"""
_PARTS = 12
_MAKEFILE = """
objects := main.o $(patsubst %.c,%.o,$(wildcard part*.c))
program: $(objects)
\tcc -o $@ $^
%.o: %.c parts.h
\tcc -O1 -c -o $@ $<
"""


def _program() -> bytes:
    """Return a tar archive of a program of a dozen C files, with a Makefile."""
    files = {"main.c": _MAIN, "Makefile": _MAKEFILE, "parts.h": "".join(f"X({n})\n" for n in range(_PARTS))}
    files |= {
        f"part{n}.c": f"#include <stdlib.h>\nint part{n}(int x) {{ return abs(x) * 2; }}\n" for n in range(_PARTS)
    }
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"program/{name}")
            entry.size = len(text)
            entry.mtime = 1_700_000_000
            archive.addfile(entry, io.BytesIO(text.encode()))
    return packed.getvalue()


@pytest.mark.long
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_a_c_program_is_unpacked_and_built(bench: Callable[[str], Bench], directory: str, setting: Setting) -> None:
    up = bench(setting.kernel)
    with up.mounted(setting, directory) as mount:
        up.check(f"cd {mount.at} && cat > program.tar.gz", stdin=_program())
        mount.check("tar xzf program.tar.gz && make -s -C program -j2")
        assert mount.check("./program/program").strip() == str(sum(2 * n for n in range(_PARTS)))
        assert "is up to date" in mount.check("make -C program program")  # the times of what was made are in order
    keep("build", setting, {"C files": _PARTS + 1, "built": "runs"})


@pytest.mark.long
@pytest.mark.parametrize(
    ("setting", "journal"),
    [
        (Setting("6.12"), "delete"),
        (Setting("6.12", model="mapped-xattr", cache="loose"), "delete"),
        (Setting("6.12", cache="mmap"), "delete"),
        (Setting("6.12", cache="mmap"), "wal"),
        (Setting("6.12", cache="mmap", more=",directio"), "wal"),
        (Setting("6.1"), "delete"),
        (Setting("6.1", cache="mmap"), "wal"),
    ],
    ids=str,
)
def test_sqlite(bench: Callable[[str], Bench], directory: str, setting: Setting, journal: str) -> None:
    up = bench(setting.kernel)
    with up.mounted(setting, directory) as mount:
        # Two processes of one mount count in one table; what each has committed must be there.
        said = mount.check(f"python3 -I -B {TREE}/tests/conformance/programs/count_in_sqlite.py {journal} 2 25")
    assert said.split() == [journal, "50", "ok"]
    keep(f"sqlite-{journal}", setting, {"transactions": 50, "integrity": "ok"})
