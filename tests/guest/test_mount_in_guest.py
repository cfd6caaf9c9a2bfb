"""The mount command inside a real guest, over TCP, vsock and a unix socket, and what it says when it fails."""

from __future__ import annotations

import os
import shlex
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

from uvmshare import AddOptions, FileServer, Manager
from uvmshare.guest import mount as module
from uvmshare.testing.guest_vm import HOST

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

    from uvmshare.testing.guest_vm import GuestResult, GuestVM

pytestmark = pytest.mark.guest

RELAY = """
    # Hands everything that comes to the listening socket on to a TCP address, until it is killed.
    import socket, sys, threading
    kind, where, host, port = sys.argv[1:]
    if kind == "vsock":
        listening = socket.socket(socket.AF_VSOCK)
        listening.bind((socket.VMADDR_CID_ANY, int(where)))
    else:
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(where)
    listening.listen()
    open("/run/relaying", "w").close()
    def pump(source, target):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    while True:
        ours, _ = listening.accept()
        theirs = socket.create_connection((host, int(port)))
        for pair in ((ours, theirs), (theirs, ours)):
            threading.Thread(target=pump, args=pair, daemon=True).start()
"""


class Mounter:
    """Runs the mount command in the guest against a file server with one share, of a directory with a file in it."""

    def __init__(self, runner: asyncio.Runner, guest: GuestVM, address: str, share: str) -> None:
        self._runner = runner
        self._guest = guest
        self.port = address.rpartition(":")[2]
        self.address = f"tcp:{HOST}:{self.port}"
        self.share = share

    def run(self, command: str) -> GuestResult:
        return self._runner.run(self._guest.run(command))

    def mount(self, *arguments: str) -> GuestResult:
        return self.run(f"python3 -I {shlex.quote(module.__file__)} {shlex.join(arguments)}")


@pytest.fixture(scope="module")
def mounter(runner: asyncio.Runner, guest: GuestVM, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounter]:
    directory = tmp_path_factory.mktemp("mounter")
    (directory / "f").write_text("text")
    server = runner.run(FileServer(listen=["tcp:127.0.0.1:0"]).start())
    manager = Manager(server)
    share = runner.run(manager.add(AddOptions(directory)))
    yield Mounter(runner, guest, server.addresses[0], share)
    runner.run(manager.aclose())
    runner.run(server.aclose())


def test_a_share_is_mounted_and_unmounted(mounter: Mounter) -> None:
    mounter.mount(mounter.address, mounter.share, "/run/made/for/it").require()
    assert mounter.run("cat /run/made/for/it/f").output == b"text"
    line = mounter.run("grep /run/made/for/it /proc/mounts").text
    for option in (mounter.address, "trans=fd", "access=client", f"aname={mounter.share}"):
        assert option in line
    mounter.run("umount /run/made/for/it && rmdir /run/made/for/it").require()


def test_options_reach_the_kernel(mounter: Mounter) -> None:
    mounter.mount(
        *(mounter.address, mounter.share, "/run/with-options", "--read-only", "--msize", "16384"),
        *("--cache", "mmap", "--access", "any", "--uname", "someone"),
    ).require()
    line = mounter.run("grep /run/with-options /proc/mounts").text
    for option in (" ro,", "msize=16384", "mmap,", "access=any", "uname=someone"):
        assert option in line, line
    result = mounter.run("touch /run/with-options/new")
    assert "Read-only" in result.text
    mounter.run("umount /run/with-options").require()


def test_what_is_chosen_is_told_and_access_control_lists_are_kept(mounter: Mounter, guest: GuestVM) -> None:
    chosen = module.choose("auto", None, read_only=False, release=guest.release)
    said = mounter.mount(mounter.address, mounter.share, "/run/chosen", "--posixacl").require()
    assert said == f"mounted share {mounter.share} on /run/chosen ({chosen})\n"
    line = mounter.run("grep /run/chosen /proc/mounts").text
    for option in ("posixacl", f"msize={module.CHOSEN_MSIZE}"):
        assert option in line
    shown = mounter.run("cd /run/chosen && setfacl -m u:1234:r f && getfacl -n f").require()
    assert "user:1234:r--" in shown
    mounter.run("umount /run/chosen").require()


@pytest.mark.long
def test_the_packages_own_command_does_the_same(mounter: Mounter) -> None:
    # The interpreter of these tests is on the host's root, which is the guest's too.
    command = os.path.join(os.path.dirname(sys.executable), "uvmshare")
    mounter.run(f"{command} guest mount {mounter.address} {mounter.share} /run/by-command").require()
    assert mounter.run("cat /run/by-command/f; umount /run/by-command").output == b"text"


@pytest.mark.parametrize(
    ("kind", "where", "address"),
    [("vsock", "5640", "vsock:1"), pytest.param("unix", "/run/u", "unix:/run/u", marks=pytest.mark.long)],
)
def test_over_vsock_and_unix_sockets(mounter: Mounter, kind: str, where: str, address: str) -> None:
    script = textwrap.dedent(RELAY)
    mounter.run(f"mkfifo /run/relaying && cat > /run/relay.py <<'END'\n{script}\nEND\n").require()
    arguments = shlex.join([kind, where, HOST, mounter.port])
    mounter.run(f"python3 -I /run/relay.py {arguments} > /run/relay.log 2>&1 & echo $! > /run/relay.pid").require()
    try:
        mounter.run("cat /run/relaying").require()
        mounter.mount(address, mounter.share, "/run/relayed").require()
        assert mounter.run("cat /run/relayed/f && umount /run/relayed").require() == "text"
    finally:
        mounter.run("kill $(cat /run/relay.pid); rm /run/relaying; cat /run/relay.log").require()


@pytest.mark.parametrize(
    ("arguments", "words"),
    # What each address is refused with is in test_mount.py too, with a kernel that only answers.
    [
        (("{address}", "77", "/run/new/target"), "no share '77'"),
        *(
            pytest.param(*row, marks=pytest.mark.long)
            for row in (
                (("tcp:10.0.2.2:1", "0", "/run/new/target"), "nothing listens there"),
                (("vsock:1:1", "0", "/run/new/target"), "its CID is 2"),
                (("vsock:2", "0", "/run/new/target"), "vmw_vsock_virtio_transport"),
                (("unix:/run/nothing", "0", "/run/new/target"), "nothing listens there"),
                (("{address}", "{share}", "/etc/hostname"), "not a directory"),
                (("{address}", "{share}", "/run/new/target", "--cache", "readahead"), "Linux 6.4"),
            )
        ),
        (("{address}", "{share}", "/etc/new"), "cannot make the directory /etc/new: Read-only file system"),
    ],
)
def test_a_failure_is_one_line_and_leaves_nothing(mounter: Mounter, arguments: tuple[str, ...], words: str) -> None:
    filled = [argument.format(address=mounter.address, share=mounter.share) for argument in arguments]
    result = mounter.mount(*filled)
    assert result.status == 1
    assert words in result.text
    assert result.text.count("\n") == 1
    assert mounter.run("ls -d /run/new").status != 0
    assert "/run/new" not in mounter.run("cat /proc/mounts").text


def test_only_root_may_mount(mounter: Mounter) -> None:
    command = (
        # The module first: its directory may be root's alone.
        f"import os, sys; sys.path.insert(0, {os.path.dirname(module.__file__)!r}); import mount; os.setuid(1000); "
    )
    call = f"sys.exit(mount.main(['{mounter.address}', '{mounter.share}', '/mnt']))"
    result = mounter.run(f'python3 -I -B -c "{command}{call}"')
    assert result.status == 1
    assert "only root may mount" in result.text


def test_a_server_that_says_nothing_is_given_up(mounter: Mounter) -> None:
    # Debian's kernel alone knows how such a mount ends; nothing here depends on how long it takes.
    script = textwrap.dedent("""
        import socket
        listening = socket.create_server(("127.0.0.1", 999))
        open("/run/mute", "w").close()
        accepted = listening.accept()
        listening.accept()
    """)
    mounter.run(f"mkfifo /run/mute && cat > /run/mute.py <<'END'\n{script}\nEND\n").require()
    mounter.run("python3 -I /run/mute.py > /dev/null 2>&1 & echo $! > /run/mute.pid").require()
    mounter.run("cat /run/mute").require()
    result = mounter.mount("tcp:127.0.0.1:999", "0", "/run/new/target", "--timeout", "0.5")
    assert result.status == 1
    assert "no answer within 0.5 s" in result.text
    assert mounter.run("ls -d /run/new").status != 0
    mounter.run("kill $(cat /run/mute.pid)").require()
