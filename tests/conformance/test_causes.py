"""Each cause of causes.py, seen on the wire: what the guest's client sent for a call, or that it sent nothing."""

from __future__ import annotations

import os
import shlex
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.conformance.harness import Setting, mount_here
from tests.conformance.wire import wire

from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import SetattrValid

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conformance.harness import Bench

pytestmark = pytest.mark.guest

BOTH = [Setting("6.12"), pytest.param(Setting("6.1"), marks=pytest.mark.long)]

_WATCHED = "/run/watched"


def sent(up: Bench, directory: str, setting: Setting, script: str, *, read_only: bool = False) -> list[m.Message]:
    """Run a Python script in a share of the directory; return what the client sent from the line "# now" on."""
    before, _, after = script.partition("# now\n")
    # The client tells a mark from the rest by a name that nothing else walks to.
    mark = "os.path.lexists('the-mark')\n"
    with up.mounted(setting, directory, read_only=read_only) as mount, wire(mount.port) as relay:
        mount_here(replace(mount, port=relay.port), _WATCHED)
        relay.taken()
        try:
            up.check(f"cd {_WATCHED} && python3 -I -c {shlex.quote(f'import os{chr(10)}{before}{mark}{after}')}")
            requests = relay.taken()
        finally:
            up.check(f"umount {_WATCHED} && rmdir {_WATCHED}")
    at = next(
        index for index, one in enumerate(requests) if isinstance(one, m.Twalk) and one.names[-1:] == (b"the-mark",)
    )
    return requests[at + 1 :]


def changes(requests: list[m.Message]) -> list[m.Tsetattr]:
    return [request for request in requests if isinstance(request, m.Tsetattr)]


@pytest.mark.long
@pytest.mark.parametrize("setting", BOTH, ids=str)
def test_times_that_are_set_are_sent_in_whole_seconds(
    bench: Callable[[str], Bench], directory: str, setting: Setting
) -> None:
    script = "open('f', 'w').close()\n# now\nos.utime('f', ns=(5_000_000_123, 6_999_999_999))\n"
    (change,) = changes(sent(bench(setting.kernel), directory, setting, script))
    assert change.valid & SetattrValid.ATIME_SET
    assert change.valid & SetattrValid.MTIME_SET
    assert (change.atime_sec, change.atime_nsec, change.mtime_sec, change.mtime_nsec) == (5, 0, 6, 0)


@pytest.mark.long
@pytest.mark.parametrize("setting", BOTH, ids=str)
def test_a_time_before_1970_is_sent_as_0(bench: Callable[[str], Bench], directory: str, setting: Setting) -> None:
    script = "open('f', 'w').close()\n# now\nos.utime('f', (-5, -1_000_000))\n"
    (change,) = changes(sent(bench(setting.kernel), directory, setting, script))
    assert (change.atime_sec, change.mtime_sec) == (0, 0)


@pytest.mark.parametrize("setting", BOTH, ids=str)
@pytest.mark.long
@pytest.mark.parametrize("how", ["fifo", "path"])
def test_what_is_held_without_an_open_fid_is_looked_for_by_its_name(
    bench: Callable[[str], Bench], directory: str, setting: Setting, how: str
) -> None:
    opened = {
        "fifo": "os.mkfifo('f'); held = os.open('f', os.O_RDONLY | os.O_NONBLOCK)",
        "path": "open('f', 'w').close(); held = os.open('f', os.O_PATH)",
    }[how]
    script = (
        f"{opened}\n"
        "os.unlink('f')\n"
        "# now\n"
        "try:\n    os.fstat(held)\n"
        "except FileNotFoundError:\n    pass\n"
        "else:\n    raise SystemExit('it was found')\n"
    )
    requests = sent(bench(setting.kernel), directory, setting, script)
    walks = [request for request in requests if isinstance(request, m.Twalk)]
    assert [walk.names for walk in walks] == [(b"f",)]


@pytest.mark.long  # what the client does of itself
def test_a_page_that_was_read_is_not_asked_for_again_after_an_append(
    bench: Callable[[str], Bench], directory: str
) -> None:
    script = (
        "held = os.open('f', os.O_RDWR | os.O_CREAT); os.write(held, b'a' * 5000); os.pread(held, 5000, 0)\n"
        "os.write(os.open('f', os.O_WRONLY | os.O_APPEND), b'b' * 100)\n"
        "# now\n"
        "assert os.pread(os.open('f', os.O_RDONLY), 5, 5000) == bytes(5)\n"
    )
    requests = sent(bench("6.12"), directory, Setting("6.12", cache="readahead"), script)
    assert not [request for request in requests if isinstance(request, m.Tread)]
    with open(os.path.join(directory, "f"), "rb") as file:
        assert file.read()[5000:] == b"b" * 100


@pytest.mark.long  # the same
def test_a_write_that_is_refused_fails_the_next_one_which_is_not_sent(
    bench: Callable[[str], Bench], directory: str
) -> None:
    script = (
        "fd = os.open('f', os.O_RDWR | os.O_CREAT); os.write(fd, b'0123456789')\n"
        "# now\n"
        "assert os.pwrite(fd, b'x', 1 << 62) == 0\n"
        "try:\n    os.pwrite(fd, b'x', 11)\n"
        "except OSError as error:\n    assert error.errno == 5\n"
        "else:\n    raise SystemExit('it was written')\n"
    )
    requests = sent(bench("6.12"), directory, Setting("6.12"), script)
    assert [request.offset for request in requests if isinstance(request, m.Twrite)] == [1 << 62]


@pytest.mark.long
def test_the_older_client_counts_blocks_by_itself(bench: Callable[[str], Bench], directory: str) -> None:
    script = (
        "file = open('f', 'w+b', buffering=0); os.pwrite(file.fileno(), b'end', 1 << 40)\n"
        "# now\n"
        "assert os.fstat(file.fileno()).st_blocks > 1000\n"
    )
    requests = sent(bench("6.1"), directory, Setting("6.1", cache="loose"), script)
    assert not [request for request in requests if isinstance(request, m.Tgetattr)]
    assert os.stat(os.path.join(directory, "f")).st_blocks < 1000


@pytest.mark.long
def test_the_older_client_takes_no_setgid_bit_off_and_tells_no_groups(
    bench: Callable[[str], Bench], directory: str
) -> None:
    script = (
        "open('f', 'w').close(); os.chown('f', 2001, 2001); os.chmod('f', 0o2767)\n"
        "# now\n"
        "os.setgroups([]); os.setgid(2004); os.setuid(2004)\n"
        "os.write(os.open('f', os.O_WRONLY), b'x')\n"
    )
    os.chmod(directory, 0o777)
    requests = sent(bench("6.1"), directory, Setting("6.1"), script)
    assert [request for request in requests if isinstance(request, m.Twrite)]
    assert not [change for change in changes(requests) if change.valid & SetattrValid.MODE]
    for request in requests:
        if isinstance(request, m.Tattach):
            assert request.n_uname == 2004  # a number of a user is all that it has room for


@pytest.mark.long
def test_a_read_only_share_that_is_mounted_writable_is_not_asked(bench: Callable[[str], Bench], directory: str) -> None:
    os.close(os.open(os.path.join(directory, "f"), os.O_CREAT | os.O_WRONLY, 0o644))
    script = (
        "os.stat('f')\n"
        "os.setgroups([]); os.setgid(2004); os.setuid(2004); os.stat('f')\n"
        "# now\n"
        "try:\n    os.chmod('f', 0o600)\n"
        "except PermissionError:\n    pass\n"
        "else:\n    raise SystemExit('it was allowed')\n"
    )
    requests = sent(bench("6.12"), directory, Setting("6.12", more=",rw"), script, read_only=True)
    assert changes(requests) == []
