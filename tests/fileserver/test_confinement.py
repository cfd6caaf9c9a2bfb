"""What a mount process can no longer do, tried in a process that was confined as one.

Everything here goes past the server's own checks: it is what holds when one of those is wrong.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import functools
import os
import socket
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from uvmshare.fileserver.device import FileServer
from uvmshare.fileserver.export import Export
from uvmshare.fileserver.limits import Limits
from uvmshare.fileserver.mount import confinement, seccomp
from uvmshare.guest import keepalive
from uvmshare.hcs.schema import Plan9Share, Plan9ShareFlags
from uvmshare.linux.descriptors import close_all_but
from uvmshare.share.interfaces import NamedShare
from uvmshare.share.options import AddOptions
from uvmshare.testing.client import NinePClient

if TYPE_CHECKING:
    from collections.abc import Callable


def _export(path: Path, *, read_only: bool = False, model: str = "none") -> Export:
    flags = Plan9ShareFlags.LINUX_METADATA | (Plan9ShareFlags.READ_ONLY if read_only else Plan9ShareFlags(0))
    return Export.open(Plan9Share(name="0", access_name="0", path=os.path.realpath(path), flags=int(flags)), model)


def confined(export: Export, attempt: Callable[[], object], *, over_vsock: bool = False) -> int:
    """Confine a forked process to the export and try something there; returns the errno, 0 for success."""
    report, reporter = os.pipe()
    pid = os.fork()
    if pid == 0:
        number = 255
        try:
            close_all_but((reporter, export.root))
            confinement.confine(export, Limits(), over_vsock=over_vsock)
            try:
                attempt()
                number = 0
            except OSError as error:
                number = error.errno or 254
            except MemoryError:
                number = errno.ENOMEM
        finally:
            # write(2) is allowed on standard error alone: the exit status is all there is to tell with.
            os._exit(number)
    os.close(reporter)
    os.close(report)
    _, status = os.waitpid(pid, 0)
    export.close()
    assert os.WIFEXITED(status), status
    return os.WEXITSTATUS(status)


NO_SOCKET = 1
"""A descriptor of every process here."""


def _libc_call(name: str, *arguments: int) -> None:
    """Make a call that Python does not have; raises `OSError` when it returns -1."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc[name](*arguments) == -1:
        raise OSError(ctypes.get_errno(), name)


@pytest.fixture
def share(tmp_path: Path) -> Path:
    (tmp_path / "share").mkdir()
    (tmp_path / "share" / "inside").write_text("inside")
    (tmp_path / "outside").write_text("outside")
    return tmp_path / "share"


def test_this_host_has_both() -> None:
    assert confinement.missing() == ()


def test_files_of_the_share_are_read_and_written(share: Path) -> None:
    export = _export(share)

    def work() -> None:
        os.close(os.open("inside", os.O_RDWR, dir_fd=export.root))
        made = os.open("made", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640, dir_fd=export.root)
        os.pwrite(made, b"made", 0)
        os.mkdir("directory", dir_fd=export.root)
        os.rename("made", "directory/moved", src_dir_fd=export.root, dst_dir_fd=export.root)

    assert confined(export, work) == 0
    assert (share / "directory" / "moved").read_text() == "made"


def test_a_file_outside_cannot_be_opened_even_by_its_path(share: Path) -> None:
    outside = os.fspath(share.parent / "outside")
    assert confined(_export(share), lambda: os.open(outside, os.O_RDONLY)) == errno.EACCES


def test_a_file_outside_cannot_be_reached_over_the_root_either(share: Path) -> None:
    export = _export(share)
    assert confined(export, lambda: os.open("../outside", os.O_RDONLY, dir_fd=export.root)) == errno.EACCES


def test_nothing_is_made_outside(share: Path) -> None:
    export = _export(share)
    assert confined(export, lambda: os.mkdir("../made", dir_fd=export.root)) == errno.EACCES
    assert not (share.parent / "made").exists()


@pytest.mark.parametrize(
    ("over_vsock", "level", "option", "outcome"),
    [
        (True, socket.AF_VSOCK, keepalive.BUFFER_SIZE, errno.ENOTSOCK),  # past the filter
        (True, socket.AF_VSOCK, keepalive.BUFFER_SIZE + 1, errno.EPERM),
        (True, socket.AF_VSOCK, keepalive.BUFFER_SIZE + 2, errno.EPERM),
        (True, socket.SOL_SOCKET, keepalive.BUFFER_SIZE, errno.EPERM),
        (False, socket.AF_VSOCK, keepalive.BUFFER_SIZE, errno.EPERM),
    ],
)
def test_of_all_options_the_size_of_a_vsock_buffer_alone_is_left_and_only_over_vsock(
    share: Path, over_vsock: bool, level: int, option: int, outcome: int
) -> None:
    for call in ("setsockopt", "getsockopt"):
        attempt = functools.partial(_libc_call, call, NO_SOCKET, level, option, 0, 0)
        assert confined(_export(share), attempt, over_vsock=over_vsock) == outcome


def test_a_read_only_share_is_not_written_whatever_the_server_says(share: Path) -> None:
    export = _export(share, read_only=True)
    assert confined(export, lambda: os.open("inside", os.O_WRONLY, dir_fd=export.root)) == errno.EACCES


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda: os.chmod("/proc/self/fd/0", 0o777), id="chmod"),
        pytest.param(lambda: os.setxattr("/", "user.x", b"x"), id="setxattr"),
        pytest.param(lambda: os.utime("/proc/self/fd/0"), id="utimensat"),
    ],
)
def test_a_read_only_share_has_no_call_that_landlock_would_let_pass(share: Path, call: Callable[[], object]) -> None:
    assert confined(_export(share, read_only=True), call) == errno.EPERM


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda: os.execv("/bin/true", ["true"]), id="execve"),
        pytest.param(os.fork, id="fork"),
        pytest.param(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM), id="socket"),
        pytest.param(lambda: os.kill(os.getppid(), 0), id="kill"),
        pytest.param(lambda: os.setuid(1), id="setuid"),
        pytest.param(lambda: os.chroot("/"), id="chroot"),
        pytest.param(lambda: os.write(1, b"x"), id="write to anything but standard error"),
        pytest.param(lambda: _libc_call("setfsuid", 1), id="setfsuid"),
    ],
)
def test_calls_that_serving_does_not_need_are_refused(share: Path, call: Callable[[], object]) -> None:
    assert confined(_export(share), call) == errno.EPERM


def test_memory_cannot_be_made_executable(share: Path) -> None:
    def attempt() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
        if libc.mmap(None, 4096, 7, 0x22, -1, 0) == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), "mmap")

    assert confined(_export(share), attempt) == errno.EPERM


def test_threads_still_start(share: Path) -> None:
    def attempt() -> None:
        thread = threading.Thread(target=lambda: None)
        thread.start()
        thread.join()

    assert confined(_export(share), attempt) == 0


def test_memory_has_an_end(share: Path) -> None:
    assert confined(_export(share), lambda: bytearray(Limits().memory_bytes)) == errno.ENOMEM


def test_a_mount_process_of_a_running_server_is_confined(share: Path, tmp_path: Path) -> None:
    async def status_of_a_mount() -> str:
        address = f"unix:{tmp_path}/9p"
        async with FileServer([address]) as server:
            await server.add_plan9(NamedShare("0", AddOptions(share)))
            with await asyncio.to_thread(NinePClient.connect, address, "0"):
                (served,) = (await server.status()).shares
                (mount,) = served.mounts
                return Path(f"/proc/{mount.pid}/status").read_text(encoding="ascii")  # noqa: ASYNC240  of /proc

    lines = asyncio.run(status_of_a_mount()).splitlines()
    told = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    assert told["NoNewPrivs"] == "1"
    assert told["Seccomp"] == "2"
    assert told["Threads"] == "2"  # the other one, begun once all was given up, watches the table of mounts


def test_every_number_of_the_list_is_the_kernels_own() -> None:
    """The C compiler's headers are the witness for the architecture this runs on."""
    column = {"x86_64": 0, "aarch64": 1}[os.uname().machine]
    numbers = {name: pair[column] for name, pair in seccomp._NUMBERS.items() if pair[column] is not None}
    source = "#include <sys/syscall.h>\n" + "\n".join(f"@{name} SYS_{name}" for name in numbers)
    expanded = subprocess.run(["cc", "-E", "-P", "-"], input=source, capture_output=True, text=True, check=True).stdout
    told = dict(line[1:].split() for line in expanded.splitlines() if line.startswith("@"))
    if told["getxattrat"] == "SYS_getxattrat":  # of Linux 6.13: older headers do not know it
        del told["getxattrat"], numbers["getxattrat"]
    assert {name: str(number) for name, number in numbers.items()} == told
