"""The guest harness: what it promises about commands, their output, and its own end."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
from typing import TYPE_CHECKING

import pytest

from uvmshare.errors import GuestFailed, GuestUnavailable
from uvmshare.testing import guest_vm as module
from uvmshare.testing.guest_vm import QEMU, GuestVM, _Channel, choose_accelerator, send_signal
from uvmshare.testing.kernel import GuestKernel, find_kernel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


def is_running(pid: int) -> bool:
    """Tell whether the process exists and has not ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.guest
def test_status_and_output_come_back_whole(runner: asyncio.Runner, guest: GuestVM) -> None:
    result = runner.run(guest.run("echo out; echo err >&2; exit 7"))
    assert (result.status, result.output) == (7, b"out\nerr\n")
    with pytest.raises(GuestFailed, match=r"(?s)'false' ended with status 1"):
        runner.run(guest.check("false"))
    assert runner.run(guest.run("kill -9 $$")).status == 128 + 9


@pytest.mark.guest
def test_every_byte_passes_in_both_directions(runner: asyncio.Runner, guest: GuestVM) -> None:
    data = bytes(range(256)) * 1000
    assert runner.run(guest.run("cat", stdin=data)).output == data
    assert runner.run(guest.run("cat", stdin=b"")).output == b""


@pytest.mark.guest
def test_a_file_larger_than_one_message_is_written(
    runner: asyncio.Runner, guest: GuestVM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_INPUT_LIMIT", 1000)
    data = os.urandom(2500)
    runner.run(guest.write_file("/run/it's a file", data))
    assert runner.run(guest.run('cat "/run/it\'s a file"')).output == data
    with pytest.raises(ValueError, match="write_file"):
        runner.run(guest.run("cat", stdin=data))


@pytest.mark.guest
def test_commands_run_at_the_same_time_and_do_not_mix(runner: asyncio.Runner, guest: GuestVM) -> None:
    async def all_at_once() -> list[str]:
        # Each waits for the other's FIFO, so that none could end if they ran one after the other.
        await guest.check("mkfifo /run/a /run/b")
        together = await asyncio.gather(
            guest.check("echo one > /run/a; cat /run/b"),
            guest.check("read line < /run/a; echo $line; echo two > /run/b"),
        )
        return [*together, *await asyncio.gather(*(guest.check(f"echo {number}") for number in range(8)))]

    assert runner.run(all_at_once()) == ["two\n", "one\n", *(f"{number}\n" for number in range(8))]


@pytest.mark.guest
def test_what_a_command_leaves_running_does_not_write_into_later_output(runner: asyncio.Runner, guest: GuestVM) -> None:
    runner.run(guest.check("mkfifo /run/go /run/went; (read line < /run/go; echo late; echo > /run/went) &"))
    assert runner.run(guest.check("echo > /run/go; cat /run/went; echo now")) == "\nnow\n"


@pytest.mark.guest
def test_the_guest_has_the_hosts_programs_and_cannot_write_to_its_root(runner: asyncio.Runner, guest: GuestVM) -> None:
    assert runner.run(guest.check("python3 -c 'print(6 * 7)'")) == "42\n"
    result = runner.run(guest.run(f"touch {os.path.dirname(__file__)}/written-by-the-guest"))
    assert result.status != 0
    assert "Read-only" in result.text


@pytest.mark.long
@pytest.mark.guest
def test_a_busybox_guest_lives_and_dies(runner: asyncio.Runner) -> None:
    async def live() -> str:
        said: list[str] = []
        async with await GuestVM.start(channels=2, progress=said.append) as vm:
            assert said[-1].startswith("the guest is up")
            assert (await vm.check("uname -r")).strip() == vm.release == find_kernel().release
            assert vm.accelerator == await choose_accelerator()
            for module_name in ("9p", "9pnet_fd"):
                await vm.check(f"grep -q '^{module_name} ' /proc/modules")

            with pytest.raises(GuestFailed, match=r"'cat /dev/vport.*' did not end within 0\.01 s"):
                await vm.run("cat /dev/vport*p1 /dev/zero > /dev/null", timeout=0.01)
            assert await vm.check("echo the other channel works") == "the other channel works\n"

            waiting = asyncio.create_task(vm.run("read forever < /dev/console"))
            await asyncio.sleep(0)
            process = vm._process
            process.kill()
            with pytest.raises(GuestFailed, match="the guest ended during 'read forever"):
                await waiting
            with pytest.raises(GuestFailed, match="all 2 channels"):
                await vm.run("true")
            assert "initramfs" in os.listdir(vm._directory)
        assert not is_running(process.pid)
        await vm.aclose()
        return vm._directory

    assert not os.path.exists(runner.run(live()))


@pytest.mark.guest
@pytest.mark.long
def test_a_kernel_that_does_not_come_up_is_ended_with_its_last_words(
    runner: asyncio.Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init = tmp_path / "init.sh"
    init.write_text("#!/bin/sh\necho 'these are my last words'\nexit 1\n")  # process 1 must not end: a panic
    monkeypatch.setattr(module, "_INIT", str(init))
    with pytest.raises(
        GuestFailed, match=r"(?s)ended while it booted.*these are my last words.*Attempted to kill init"
    ):
        runner.run(GuestVM.start())


_UNSURE_QEMU = """#!{python}
import os, re, sys
with open({boots!r}, "a+") as boots:
    boots.write("x")
    boots.seek(0)
    number = len(boots.read())
arguments = " ".join(sys.argv)
ports = [int(fd) for fd in re.findall(r"fd=([0-9]+)", arguments)]
if number in {spoken}:
    os.write(ports[0], b"ready\\n")
if number in {panics}:
    with open(re.search(r"id=console,path=(\\S+)", arguments)[1], "w") as console:
        console.write({panic!r})
    sys.exit(1)
for port in ports:
    os.write(port, b"ready\\n")
sys.stdin = open("/dev/null")
os.read(ports[0], 1)
"""


@pytest.fixture
def unsure_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Put a QEMU on the path whose guest panics in some of its boots; return where it counts them."""

    def install(panics: Sequence[int], panic: str, spoken: Sequence[int] = ()) -> Path:
        boots, qemu = tmp_path / "boots", tmp_path / QEMU
        qemu.write_text(
            _UNSURE_QEMU.format(
                python=sys.executable, boots=str(boots), panics=tuple(panics), panic=panic, spoken=tuple(spoken)
            )
        )
        qemu.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        monkeypatch.setattr(module, "_prepare", lambda *_: "/dev/null")
        monkeypatch.setattr(GuestVM, "booted_again", 0)
        return boots

    return install


_PANIC = "Kernel panic - not syncing: Fatal exception in interrupt"
_EXIT = "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100"
_KERNEL = GuestKernel("/dev/null", "/nowhere", "6.1.0")


def test_a_kernel_that_panics_before_the_guests_first_word_is_booted_again_and_counted(
    runner: asyncio.Runner, unsure_qemu: Callable[..., Path]
) -> None:
    boots = unsure_qemu((1, 2), _PANIC)
    told: list[str] = []

    async def start() -> None:
        async with await GuestVM.start(kernel=_KERNEL, accelerator="tcg", progress=told.append):
            pass

    runner.run(start())
    assert len(boots.read_text()) == 3
    assert GuestVM.booted_again == 2
    assert len([line for line in told if line.endswith("once more")]) == 2


@pytest.mark.parametrize(
    ("accelerator", "unsure", "number"),
    [
        pytest.param("tcg", ((1, 2, 3), _PANIC), 3, id="in each boot"),
        pytest.param("kvm", ((1,), _PANIC), 1, id="under KVM, where nothing excuses it"),
        pytest.param("tcg", ((1,), _PANIC, (1,)), 1, id="after the guest's first word"),
        pytest.param("tcg", ((1,), "qemu: out of memory"), 1, id="no panic"),
        pytest.param("tcg", ((1,), _EXIT), 1, id="its first process ended by itself"),
    ],
)
def test_what_another_boot_does_not_mend_is_raised(
    runner: asyncio.Runner,
    unsure_qemu: Callable[..., Path],
    accelerator: module.Accelerator,
    unsure: tuple[object, ...],
    number: int,
) -> None:
    boots = unsure_qemu(*unsure)
    with pytest.raises(GuestFailed, match="ended while it booted"):
        runner.run(GuestVM.start(kernel=_KERNEL, accelerator=accelerator))
    assert len(boots.read_text()) == number


@pytest.mark.guest
def test_what_qemu_refuses_is_in_the_error(runner: asyncio.Runner) -> None:
    with pytest.raises(GuestFailed, match=r"(?s)end of its qemu log.*no-such-device"):
        runner.run(GuestVM.start(qemu_arguments=["-device", "no-such-device"]))


@pytest.mark.parametrize("answer", [b"nonsense\n", b"0\n", b"0 -1\n", b"0 99999999999\n", b"x" * 100_000])
def test_an_answer_that_is_none_is_the_guests_failure(runner: asyncio.Runner, answer: bytes) -> None:
    async def ask() -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            channel = _Channel(*await asyncio.open_connection(sock=ours))
            theirs.sendall(answer)
            try:
                with pytest.raises(GuestFailed, match=r"'true' got the answer .*; wanted are a status and a size"):
                    await channel.exchange("true", b"")
            finally:
                await channel.close()

    runner.run(ask())


def test_a_port_that_says_anything_but_ready_is_not_served(runner: asyncio.Runner) -> None:
    async def ask() -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            channel = _Channel(*await asyncio.open_connection(sock=ours))
            theirs.sendall(b"panic\n")
            with pytest.raises(EOFError):
                await channel.ready()
            await channel.close()

    runner.run(ask())


@pytest.mark.guest
def test_a_start_that_is_cancelled_leaves_nothing(
    runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    spawned: list[asyncio.subprocess.Process] = []
    spawn = module._spawn

    async def start() -> None:
        booting = asyncio.Event()

        async def spawn_and_tell(
            command: list[str], channels: int, directory: str, inherited: Sequence[int]
        ) -> tuple[asyncio.subprocess.Process, Sequence[_Channel]]:
            process, opened = await spawn(command, channels, directory, inherited)
            spawned.append(process)
            booting.set()
            return process, opened

        monkeypatch.setattr(module, "_spawn", spawn_and_tell)
        starting = asyncio.create_task(GuestVM.start(vsock=f"{folder}/v"))
        await booting.wait()
        await asyncio.sleep(0)  # into the wait for the guest
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting

    with tempfile.TemporaryDirectory(prefix="v-", dir="/tmp") as folder:  # a unix socket's path is short
        runner.run(start())
        assert os.listdir(folder) == []
    assert not is_running(spawned[0].pid)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.guest
def test_a_qemu_that_cannot_be_run_leaves_nothing(
    runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: f"/nonexistent/{name}")
    with pytest.raises(FileNotFoundError):
        runner.run(GuestVM.start(accelerator="tcg"))
    assert list(tmp_path.iterdir()) == []


def test_a_qemu_that_does_not_end_is_named(
    runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Stuck:
        pid = 4711
        returncode = 0

        async def wait(self) -> None:
            await asyncio.Event().wait()

    monkeypatch.setattr(module, "_END_DEADLINE", 0.01)
    (tmp_path / "directory").mkdir()
    vm = GuestVM(Stuck(), [], str(tmp_path / "directory"), accelerator="tcg", release="0")  # type: ignore[arg-type]  # a stand-in
    with pytest.raises(GuestFailed, match="process 4711"):
        runner.run(vm.aclose())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="processes end otherwise there")
def test_killing_one_that_has_just_ended_takes_its_status_from_nobody(
    runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    killed = threading.Event()
    watcher = getattr(asyncio, "ThreadedChildWatcher", None)  # later Pythons watch in the loop, which stands still here
    if watcher is not None:
        look = watcher._do_waitpid

        def look_late(*args: object) -> None:
            killed.wait()
            look(*args)

        monkeypatch.setattr(watcher, "_do_waitpid", look_late)

    async def end() -> int:
        if sys.platform == "win32":  # for the type checker: Windows' modules have no such names
            raise AssertionError
        reading, writing = os.pipe()
        process = await asyncio.create_subprocess_exec("sh", "-c", "read line; exit 3", stdin=reading)
        os.close(reading)
        os.close(writing)  # now it ends, while the loop stands still
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222  it has ended, and nobody was told
        send_signal(process, signal.SIGKILL)
        killed.set()
        status = await process.wait()
        with pytest.raises(ProcessLookupError):
            send_signal(process, signal.SIGKILL)
        return status

    assert runner.run(end()) == 3
    assert caplog.text == ""


@pytest.mark.guest  # a real QEMU is asked, though it boots nothing
def test_a_qemu_without_the_vsock_device_is_named(runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_VSOCK_DEVICE", "no-such-device")
    with pytest.raises(GuestUnavailable, match="has no no-such-device"):
        runner.run(GuestVM.start(vsock="/nonexistent/v"))
    monkeypatch.setattr(module, "QEMU", "qemu-that-nobody-has")
    assert not runner.run(module.has_vsock())


def test_without_qemu_the_package_is_named(runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QEMU", "qemu-that-nobody-has")
    with pytest.raises(GuestUnavailable, match=r"qemu-that-nobody-has is not on PATH.*qemu-system-x86"):
        runner.run(GuestVM.start())


class Probe:
    """Stands for starting a guest under KVM: counts, and comes up or not."""

    def __init__(self, *, comes_up: bool) -> None:
        self.comes_up = comes_up
        self.started = 0

    async def start(self, **settings: object) -> Probe:
        assert settings["accelerator"] == "kvm"
        self.started += 1
        if not self.comes_up:
            msg = "was not up"
            raise GuestFailed(msg)
        return self

    async def aclose(self) -> None:
        self.started += 100


@pytest.fixture
def kvm_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(module, "cache_directory", lambda: str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda path, mode: path == "/dev/kvm")
    return tmp_path / "cache" / "kvm"


@pytest.mark.parametrize(("comes_up", "accelerator", "started"), [(True, "kvm", 101), (False, "tcg", 1)])
def test_kvm_is_taken_where_a_guest_came_up_and_is_tried_once_a_boot(
    kvm_is_there: Path, monkeypatch: pytest.MonkeyPatch, comes_up: bool, accelerator: str, started: int
) -> None:
    probe = Probe(comes_up=comes_up)
    monkeypatch.setattr(module, "GuestVM", probe)
    for _ in range(2):
        assert asyncio.run(choose_accelerator()) == accelerator
    assert probe.started == started
    kvm_is_there.write_text(f"another-boot-of-the-host {'hangs' if comes_up else 'works'}")
    assert asyncio.run(choose_accelerator()) == accelerator
    assert probe.started == 2 * started


def test_without_kvm_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(module, "GuestVM", None)
    assert asyncio.run(choose_accelerator()) == "tcg"


def test_the_kernel_is_the_callers_to_choose(
    runner: asyncio.Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QEMU", "true")  # it is not come to
    nothing = GuestKernel(str(tmp_path / "vmlinuz"), str(tmp_path), "0.0")
    with pytest.raises(GuestUnavailable, match=re.escape(f"kernel 0.0 has no module virtio_pci in {tmp_path}")):
        runner.run(GuestVM.start(kernel=nothing, accelerator="tcg"))
