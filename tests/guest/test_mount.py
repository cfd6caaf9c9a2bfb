"""The guest's mount command without a guest: addresses, options, errors, and what is left behind."""

from __future__ import annotations

import ast
import errno
import os
import re
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uvmshare.guest import keepalive
from uvmshare.guest import mount as module
from uvmshare.guest.mount import MountError, ServerAddress, connect, main, mount, parse_address

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("vsock:2", ServerAddress("vsock", "2", 5640)),
        ("vsock:2:1024", ServerAddress("vsock", "2", 1024)),
        ("vsock:4294967294:4294967294", ServerAddress("vsock", "4294967294", 4294967294)),
        ("tcp:10.0.2.2", ServerAddress("tcp", "10.0.2.2", 5640)),
        ("tcp:host.example:1", ServerAddress("tcp", "host.example", 1)),
        ("tcp:[::1]:65535", ServerAddress("tcp", "::1", 65535)),
        ("tcp:[::1]", ServerAddress("tcp", "::1", 5640)),
        ("unix:/run/a:b", ServerAddress("unix", "/run/a:b")),
    ],
)
def test_an_address_is_read(text: str, address: ServerAddress) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "vsock",
            "vsock:",
            "vsock:x",
            "vsock:-1",
            "vsock:4294967295",
            "vsock:2:",
            "vsock:2:4294967295",
            "vsock:2:1:1",
        ),
        *("tcp:", "tcp::5640", "tcp:h:0", "tcp:h:65536", "tcp:h:x", "tcp:::1", "tcp:[::1", "tcp:[]:1", "tcp:h h:1"),
        *("unix:", "unix:a\0b", "udp:h:1", "10.0.2.2", "/run/socket", "VSOCK:2"),
    ],
)
def test_what_is_no_address_is_named_with_the_right_form(text: str) -> None:
    with pytest.raises(MountError) as caught:
        parse_address(text)
    assert repr(text) in str(caught.value)
    assert "vsock:CID" in str(caught.value)


@given(st.text())
def test_any_text_is_an_address_that_reads_back_or_one_error(text: str) -> None:
    try:
        address = parse_address(text)
    except MountError:
        return
    assert parse_address(str(address)) == address


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    if sys.platform == "win32":
        pytest.fail("the guest's command is for Linux")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "socket"))
        made.listen()
        yield made


@pytest.fixture
def address(listener: socket.socket) -> ServerAddress:
    return ServerAddress("unix", listener.getsockname())


class Kernel:
    """Stands for mount(2) and mountinfo: keeps what it was asked, fails as it is told, shows what it has taken."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, str, int, str]] = []
        self.fails_with = 0
        self.passes_over: tuple[str, ...] = ()
        self.agrees_to = ""
        """The msize that the server wants, if it is another than the one that was asked for."""
        self.unmounted: list[str] = []
        monkeypatch.setattr(module, "_mount", self.mount)
        monkeypatch.setattr(module, "_shown", self.shown)
        monkeypatch.setattr(module, "_libc", lambda: self)

    def mount(self, source: str, directory: str, flags: int, options: str) -> int:
        self.calls.append((source, directory, flags, options))
        return self.fails_with

    def shown(self, path: str) -> str:
        _, directory, _, options = self.calls[-1]
        shown = [word for word in options.split(",") if word not in self.passes_over]
        shown = [self.agrees_to if self.agrees_to and word.startswith("msize=") else word for word in shown]
        return ",".join(shown) if path == directory else ""

    def umount2(self, directory: bytes, _: int) -> int:
        self.unmounted.append(os.fsdecode(directory))
        return 0


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(monkeypatch)


def test_the_kernel_gets_a_connected_socket_and_the_options(
    kernel: Kernel, address: ServerAddress, listener: socket.socket, tmp_path: Path
) -> None:
    how = mount(address, "0", str(tmp_path), read_only=True, msize=65536, cache="mmap", access="user", uname="me")
    ((source, directory, flags, options),) = kernel.calls
    assert (source, directory, flags) == (str(address), str(tmp_path), 1 | 2 | 4), "read-only, nosuid, nodev"
    given_options = dict(option.split("=") for option in options.split(","))
    assert given_options.pop("rfdno") == given_options.pop("wfdno")
    assert how == "cache=mmap,msize=65536"
    assert given_options == {
        "trans": "fd",
        "version": "9p2000.L",
        "aname": "0",
        "uname": "me",
        "msize": "65536",
        "cache": "mmap",
        "access": "user",
    }
    accepted, _ = listener.accept()
    with accepted:
        assert accepted.recv(1) == b"", "this end must be closed: the kernel has its own reference"


@pytest.mark.parametrize(
    ("release", "read_only", "cache"),
    [
        ("6.1.0-50-amd64", False, "mmap"),
        ("5.10.0", False, "mmap"),
        ("6.3.13", False, "mmap"),
        ("6.4.0-rc1", False, "mmap,directio"),
        ("6.12.117+deb12-amd64", False, "mmap,directio"),
        ("7.0.0", False, "mmap,directio"),
        ("10.1", False, "mmap,directio"),
        ("no number", False, "mmap,directio"),
        ("6.1.0-50-amd64", True, "none"),
        ("6.12.117+deb12-amd64", True, "none"),
    ],
)
def test_the_cache_that_is_chosen_keeps_no_read_or_write_in_any_kernel(
    release: str, read_only: bool, cache: str
) -> None:
    chosen = module.choose("auto", None, read_only=read_only, release=release)
    assert chosen == f"cache={cache},msize={module.CHOSEN_MSIZE}"
    assert module.choose("loose", 8192, read_only=read_only, release=release) == "cache=loose,msize=8192"


def test_what_was_chosen_is_told_with_the_msize_that_the_server_agreed_to(
    kernel: Kernel, address: ServerAddress, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel.agrees_to = "msize=16384"
    cache = module.choose("auto", 16384, read_only=False)
    assert mount(address, "0", str(tmp_path)) == cache
    assert main([str(address), "0", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"mounted share 0 on {tmp_path} ({cache})\n"


def test_access_control_lists_are_asked_of_the_kernel(kernel: Kernel, address: ServerAddress, tmp_path: Path) -> None:
    assert main([str(address), "0", str(tmp_path), "--posixacl", "--cache", "loose", "--msize", "8192"]) == 0
    assert kernel.calls[-1][-1].endswith(",cache=loose,msize=8192,access=client,posixacl")
    mount(address, "0", str(tmp_path))
    assert "posixacl" not in kernel.calls[-1][-1]


def test_a_kernel_that_passes_over_access_control_lists_has_no_mount(
    kernel: Kernel, address: ServerAddress, tmp_path: Path
) -> None:
    kernel.passes_over = ("posixacl",)
    with pytest.raises(MountError, match="CONFIG_9P_FS_POSIX_ACL"):
        mount(address, "0", str(tmp_path / "new"), posixacl=True)
    assert kernel.unmounted == [str(tmp_path / "new")]
    assert not (tmp_path / "new").exists()


def test_access_control_lists_go_with_one_way_of_telling_users_apart(
    kernel: Kernel, address: ServerAddress, tmp_path: Path
) -> None:
    with pytest.raises(MountError, match="access=client alone"):
        mount(address, "0", str(tmp_path), posixacl=True, access="user")
    assert not kernel.calls


def test_directories_are_made(kernel: Kernel, address: ServerAddress, tmp_path: Path) -> None:
    mount(address, "0", str(tmp_path / "a" / "b"))
    assert (tmp_path / "a" / "b").is_dir()


def test_a_failed_mount_leaves_no_directory_and_no_socket(
    kernel: Kernel, address: ServerAddress, listener: socket.socket, tmp_path: Path
) -> None:
    kernel.fails_with = errno.ENOENT
    with pytest.raises(MountError, match="no share '7'"):
        mount(address, "7", str(tmp_path / "a" / "b"))
    assert not (tmp_path / "a").exists()
    accepted, _ = listener.accept()
    with accepted:
        assert accepted.recv(1) == b""


def test_a_directory_that_was_there_stays(kernel: Kernel, address: ServerAddress, tmp_path: Path) -> None:
    kernel.fails_with = errno.EIO
    with pytest.raises(MountError, match="closed the connection"):
        mount(address, "0", str(tmp_path))
    assert tmp_path.is_dir()


def test_a_target_that_is_a_file_is_refused_before_anything(
    kernel: Kernel, address: ServerAddress, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MountError, match=r"file is not a directory"):
        mount(address, "0", str(tmp_path / "file"))
    with pytest.raises(MountError, match=r"cannot make the directory .*: Not a directory"):
        mount(address, "0", str(tmp_path / "file" / "below"))
    assert not kernel.calls


def test_a_mute_server_ends_with_the_connection(
    monkeypatch: pytest.MonkeyPatch, address: ServerAddress, tmp_path: Path
) -> None:
    def wait_for_the_end(source: str, directory: str, flags: int, options: str) -> int:
        number = int(re.findall(r"rfdno=(\d+)", options)[0])
        assert os.read(number, 1) == b"", "nobody writes"
        return errno.EIO

    monkeypatch.setattr(module, "_mount", wait_for_the_end)
    with pytest.raises(MountError, match=r"no answer within 0\.01 s"):
        mount(address, "0", str(tmp_path), timeout=0.01)


def test_a_mount_on_a_connection_that_was_just_shut_is_undone(
    monkeypatch: pytest.MonkeyPatch, address: ServerAddress, tmp_path: Path
) -> None:
    unmounted = []

    class Libc:
        @staticmethod
        def umount2(directory: bytes, flags: int) -> None:
            unmounted.append((directory, flags))

    def mount_after_the_end(source: str, directory: str, flags: int, options: str) -> int:
        number = int(re.findall(r"rfdno=(\d+)", options)[0])
        assert os.read(number, 1) == b""
        return 0

    monkeypatch.setattr(module, "_mount", mount_after_the_end)
    monkeypatch.setattr(module, "_libc", Libc)
    with pytest.raises(MountError, match="no answer"):
        mount(address, "0", str(tmp_path), timeout=0.01)
    assert unmounted == [(os.fsencode(tmp_path), 2)]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("share", "", "must not be empty"),
        ("share", "a,version=9p2000", "comma"),
        ("uname", "a,b", "comma"),
        ("cache", "everything", "auto, none, loose, mmap, readahead"),
        ("access", "-1", "client, user, any or a uid"),
        ("msize", 4095, "4096 to"),
        ("msize", 1 << 31, "4096 to"),
        ("timeout", 0.0, "above 0"),
        ("timeout", float("nan"), "above 0"),
    ],
)
def test_a_bad_option_is_refused_before_anything(
    kernel: Kernel, tmp_path: Path, option: str, value: object, message: str
) -> None:
    arguments: dict[str, object] = {"share": "0", option: value}
    share = str(arguments.pop("share"))
    with pytest.raises(MountError, match=message):
        mount(ServerAddress("unix", "/nonexistent"), share, str(tmp_path / "new"), **arguments)  # type: ignore[arg-type]  # a table of wrong values
    assert not (tmp_path / "new").exists()
    assert not kernel.calls


@pytest.mark.parametrize(
    ("code", "has", "cache", "words"),
    [
        (errno.ENODEV, (), "none", "no 9p and no 9pnet_fd: modprobe -a 9p 9pnet_fd"),
        (errno.ENODEV, ("9pnet_fd",), "none", "no 9p: modprobe -a 9p,"),
        (errno.EINVAL, ("9p",), "none", "no 9pnet_fd: modprobe -a 9pnet_fd,"),
        (errno.EPROTONOSUPPORT, ("9p",), "none", "modprobe -a 9pnet_fd"),
        (errno.EINVAL, ("9p", "9pnet_fd"), "readahead", "Linux 6.4"),
        (errno.EINVAL, ("9p", "9pnet_fd"), "none", "dmesg"),
        (errno.EPERM, ("9p", "9pnet_fd"), "none", "root"),
        (errno.ENOENT, ("9p", "9pnet_fd"), "none", "no share '12'"),
        (errno.ECONNRESET, ("9p", "9pnet_fd"), "none", "closed the connection (Connection reset"),
        (errno.EFAULT, ("9p", "9pnet_fd"), "none", "closed the connection (before it had answered)"),
        *((code, ("9p", "9pnet_fd"), "none", "closed the connection") for code in module.LOST),
        (errno.EBUSY, ("9p", "9pnet_fd"), "none", "busy"),
    ],
)
def test_each_failure_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, code: int, has: tuple[str, ...], cache: str, words: str
) -> None:
    monkeypatch.setattr(module, "_has", has.__contains__)
    assert words in module.why_not_mounted(code, "12", cache)


def test_the_call_to_the_kernel_gives_its_errno(tmp_path: Path) -> None:
    # The path is looked up before anything else, whoever asks and whatever the kernel has.
    assert module._mount("x", str(tmp_path / "nowhere"), 0, "trans=fd") == errno.ENOENT


def test_what_the_kernel_has_is_read_from_it() -> None:
    with open("/proc/filesystems", encoding="ascii") as file:
        assert module._has("9p") == ("\t9p\n" in file.read())
    assert module._has("no_such_module") is False
    assert all(module._has(name) for name in os.listdir("/sys/module"))


def test_nothing_listens_on_a_unix_socket(tmp_path: Path) -> None:
    with pytest.raises(MountError, match="nothing listens there"):
        connect(ServerAddress("unix", str(tmp_path / "nothing")))


def test_nothing_listens_on_tcp() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can be there
        with pytest.raises(MountError, match="nothing listens there"):
            connect(ServerAddress("tcp", "127.0.0.1", taken.getsockname()[1]))


def test_a_tcp_connection_sends_small_messages_at_once() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        connect(ServerAddress("tcp", "127.0.0.1", server.getsockname()[1])) as connected,
    ):
        assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert connected.gettimeout() is None


@pytest.mark.parametrize("code", [errno.EAFNOSUPPORT, errno.ENODEV, errno.EADDRNOTAVAIL])
def test_a_guest_without_vsock_is_told_the_module(code: int) -> None:
    error = OSError(code, "")
    assert "vmw_vsock_virtio_transport" in module._why_not_connected(error, ServerAddress("vsock", "2", 5640))


@pytest.mark.parametrize("code", [errno.ENODEV, errno.ECONNRESET, errno.ETIMEDOUT])
def test_a_cid_that_is_not_the_hosts_is_said_to_be_so(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(module, "_own_cid", lambda: 3)
    words = module._why_not_connected(OSError(code, ""), ServerAddress("vsock", "3", 5640))
    assert words == "CID 3 is this guest's own, and a guest reaches the host alone: its CID is 2"
    words = module._why_not_connected(OSError(code, ""), ServerAddress("vsock", "7", 5640))
    assert words == "CID 7 is not the host's, and a guest reaches the host alone: its CID is 2"


@pytest.mark.parametrize(
    ("seconds", "given"), [(0.0, (0, 1)), (1e-9, (0, 1)), (2.5, (2, 500_000)), (30, (30, 1)), (1e12, (1_000_000, 1))]
)
def test_the_kernels_time_to_connect_is_the_one_that_was_given(seconds: float, given: tuple[int, int]) -> None:
    assert module._timeval(seconds) == given


@pytest.mark.skipif(sys.platform != "linux", reason="guests are Linux's")
def test_a_lost_connection_is_noticed_on_tcp_and_a_probe_does_nothing_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as connected:
        keepalive.begin(connected)
        assert connected.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        keepalive.probe(connected)


def test_what_is_no_tcp_and_no_vsock_is_left_alone() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        keepalive.begin(ours)
        keepalive.probe(ours)


@pytest.mark.parametrize(
    ("error", "words"),
    [(TimeoutError(), "no answer came in time"), (OSError(errno.ENETUNREACH, "Network is unreachable"), "unreachable")],
)
def test_other_reasons_are_given_as_they_are(error: OSError, words: str) -> None:
    assert words in module._why_not_connected(error, ServerAddress("tcp", "h", 1))


def run_copied(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the file as a guest does: copied alone, with nothing of the project or its dependencies in reach."""
    copied = tmp_path / "mount.py"
    with open(module.__file__, "rb") as file:
        copied.write_bytes(file.read())
    return subprocess.run(
        [sys.executable, "-I", "-S", str(copied), *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )


def test_it_runs_copied_alone(tmp_path: Path) -> None:
    assert "vsock:2 0 /mnt/project" in run_copied(tmp_path, "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ((), 2, "ADDRESS, SHARE, TARGET"),
        (("unix:nothing", "0", "target", "--cache", "all"), 2, "--cache"),
        (("nowhere", "0", "target"), 2, "'nowhere'"),
        (("unix:nothing", "0", "target"), 1, "nothing listens there"),
        (("unix:nothing", "0", "target", "--msize", "1"), 2, "msize 1"),
    ],
)
def test_an_error_is_one_line_and_a_status(tmp_path: Path, arguments: tuple[str, ...], status: int, words: str) -> None:
    done = run_copied(tmp_path, *arguments)
    assert done.returncode == status
    assert done.stderr.startswith("mount.py: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert not (tmp_path / "target").exists()


def test_a_command_line_that_cannot_be_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["unix:/x"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("uvmshare guest mount: the following arguments are required: SHARE, TARGET")
    assert said.count("\n") == 1


def test_main_returns_success(kernel: Kernel, address: ServerAddress, tmp_path: Path) -> None:
    assert main([str(address), "0", str(tmp_path), "--read-only", "--access", "any"]) == 0
    assert kernel.calls[0][2] == 1 | 2 | 4


def test_an_interruption_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(text: str) -> ServerAddress:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "parse_address", interrupted)
    assert main(["unix:/x", "0", "/x"]) == 130


def test_other_systems_are_told_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert main(["tcp:h", "0", str(tmp_path / "new")]) == 1
    assert capsys.readouterr().err == "uvmshare guest mount: a share is mounted by a Linux guest; this is no Linux\n"
    assert not (tmp_path / "new").exists()


def test_it_is_written_for_the_pythons_of_older_guests() -> None:
    with open(module.__file__, encoding="utf-8") as file:
        ast.parse(file.read(), feature_version=(3, 9))


@pytest.mark.parametrize(("more", "flags"), [([], 2 | 4), (["--suid"], 4), (["--dev"], 2), (["--suid", "--dev"], 0)])
def test_set_user_id_and_device_nodes_count_only_where_that_is_asked_for(
    tmp_path: Path, address: ServerAddress, kernel: Kernel, more: list[str], flags: int
) -> None:
    assert module.main([str(address), "0", str(tmp_path), *more]) == 0
    assert [call[2] for call in kernel.calls] == [flags]
