"""A real Linux guest for tests and demonstrations: Debian's kernel under QEMU, driven from asyncio.

What lives here: starting the guest, carrying commands to it, and ending it. What must not: what is tested.

    async with await GuestVM.start() as guest:
        result = await guest.run("uname -r; mount")
        print(result.status, result.text)

Commands travel over virtio-serial ports, which are lossless and 8-bit clean, unlike the serial console, where the
kernel writes in between and a terminal changes bytes; and they need no network, which the guest's share traffic then
has for itself. The host's end of each port is one half of a socket pair that QEMU inherits, so there is no listening
socket that another local process could connect to, and none is left behind. Commands run at the same time on as many
ports as there are; the rest wait for their turn.

The machine is QEMU's q35, not its smaller microvm: that one has neither HPET nor ACPI timer, so that a kernel that
cannot calibrate its clock against the PIT, as happens in one emulated boot of three on a busy host, hangs before its
first line.

With `vsock` the guest has a vsock device too, whose host's side is the unix sockets of Firecracker or Cloud Hypervisor
(`uvmshare.testing.vsock`).

KVM is used where a probe has shown that it runs a guest, software emulation (TCG) elsewhere: there are machines
where /dev/kvm opens and a guest then hangs in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import socket
import tempfile
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, Literal, Self

from uvmshare.errors import GuestFailed, GuestUnavailable
from uvmshare.linux.boot import boot_id
from uvmshare.testing import initramfs
from uvmshare.testing.kernel import cache_directory, find_busybox, find_kernel
from uvmshare.testing.vsock import VsockDevice

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from uvmshare.testing.kernel import GuestKernel
    from uvmshare.testing.vsock_streams import FlavourName


__all__ = ["HOST", "QEMU", "GuestResult", "GuestVM", "choose_accelerator", "has_vsock", "send_signal"]

HOST = "10.0.2.2"
"""The host's loopback, as the guest sees it through QEMU's user network."""

_SIGKILL = 9
"""The signal module of Windows, where this is only imported, has no name for it."""

QEMU: Final = "qemu-system-x86_64"
_INIT = os.path.join(os.path.dirname(__file__), "guest_init.sh")
_MODULES = ("virtio_pci", "virtio_net", "virtio_console", "9p", "9pnet_fd")
_VSOCK_MODULE = "vmw_vsock_virtio_transport"
_VSOCK_DEVICE = "vhost-user-vsock-pci"
_VSOCK_PATIENCE = 60.0
"""Seconds that the vsock device waits for the guest. The monitors wait 2, which an emulated guest may miss."""
_KERNEL_ARGUMENTS = (
    "console=ttyS0 quiet loglevel=4 panic=-1 reboot=t mitigations=off nokaslr audit=0 random.trust_cpu=on"
)
_HOST_ROOT_ARGUMENTS = (
    "-fsdev",
    "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap",
    "-device",
    "virtio-9p-pci,fsdev=root,mount_tag=host",
)
_BOOT_DEADLINE = 300.0
"""Seconds; a boot takes two to five under TCG on an idle core, and only a hung one should meet this."""
_COMMAND_DEADLINE = 300.0
"""Seconds for one command, unless its caller gives others; likewise."""
_PROBE_DEADLINE = 10.0
"""Seconds for a guest to come up under KVM, where it takes about one."""
_END_DEADLINE = 60.0
_OUTPUT_LIMIT = 64 << 20
_INPUT_LIMIT = 4 << 20
_MOST_BOOTS: Final = 3
"""How often one guest is booted under TCG, where a kernel panics now and then in its first seconds (seen with QEMU 7.2
on a busy host)."""
_INIT_EXITED: Final = re.compile(r"Attempted to kill init! exitcode=0x[0-9a-f]{6}00")
"""The panic of a kernel whose first process ended by itself, with a status: that comes again."""
_LOG_TAIL = 6000
"""Bytes of a log in an error message: a kernel's panic takes half of it."""

Accelerator = Literal["kvm", "tcg"]


@dataclass(frozen=True, slots=True)
class GuestResult:
    """How a command in the guest ended: its exit status as the shell gives it, and what it wrote.

    `output` holds standard output and standard error in the order in which they were written.
    """

    command: str
    status: int
    output: bytes

    @property
    def text(self) -> str:
        """The output as text; bytes that are not UTF-8 are shown as escapes."""
        return self.output.decode("utf-8", "backslashreplace")

    def require(self) -> str:
        """Return the text of a command that had to succeed.

        Raises `GuestFailed`, with what the command wrote, when its status is not 0.
        """
        if self.status != 0:
            msg = f"in the guest, {self.command!r} ended with status {self.status}:\n{self.text}"
            raise GuestFailed(msg)
        return self.text


class _Channel:
    """The host's end of one virtio-serial port; the other end is ``serve`` in guest_init.sh."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def ready(self) -> None:
        """Wait until the guest serves this port. Raises `EOFError` when it ends first."""
        if await self._reader.readexactly(6) != b"ready\n":
            raise EOFError

    async def exchange(self, command: str, stdin: bytes) -> GuestResult:
        """Have one command carried out. Once begun it must be let finish, or the channel is of no more use.

        Raises `EOFError` or `ConnectionError` when the guest ends meanwhile, `GuestFailed` when it answers nonsense.
        """
        encoded = command.encode("utf-8", "surrogateescape")
        self._writer.write(b"%d %d\n" % (len(encoded), len(stdin)) + encoded + stdin)
        await self._writer.drain()
        try:
            answer = await self._reader.readuntil(b"\n")
        except asyncio.LimitOverrunError:
            answer = b"a line that does not end"
        fields = answer.split()
        if len(fields) != 2 or not all(field.isdigit() for field in fields) or int(fields[1]) > _OUTPUT_LIMIT:
            msg = f"in the guest, {command!r} got the answer {answer[:80]!r}; wanted are a status and a size"
            raise GuestFailed(msg)
        return GuestResult(command, int(fields[0]), await self._reader.readexactly(int(fields[1])))

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


class _KernelEnded(GuestFailed):
    """The guest's kernel panicked before the guest's first word."""


class GuestVM:
    """A running guest. Build one with `start`; leaving its ``async with`` block ends it.

    `accelerator` says what runs it, `release` which kernel, and `boot_seconds` how long its start took. `vsock` is its
    vsock device, None if it has none.
    """

    booted_again: ClassVar[int] = 0
    """How often guests of this process were booted again because their kernel ended before their first word."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        channels: Sequence[_Channel],
        directory: str,
        *,
        accelerator: Accelerator,
        release: str,
        vsock: VsockDevice | None = None,
    ) -> None:
        """For `start` alone."""
        self._process = process
        self._channels = channels
        self._directory = directory
        self._idle: asyncio.Queue[_Channel] = asyncio.Queue()
        self._lost = 0
        self.accelerator: Accelerator = accelerator
        self.release = release
        self.vsock = vsock
        self.boot_seconds = 0.0

    @classmethod
    async def start(
        cls,
        *,
        root: Literal["busybox", "host"] = "busybox",
        kernel: GuestKernel | None = None,
        accelerator: Accelerator | None = None,
        memory_mib: int = 512,
        channels: int = 4,
        modules: Sequence[str] = (),
        vsock: str | None = None,
        flavour: FlavourName = "firecracker",
        qemu_arguments: Sequence[str] = (),
        deadline: float = _BOOT_DEADLINE,
        progress: Callable[[str], None] = lambda _: None,
    ) -> Self:
        """Boot a guest and return it when it takes commands.

        With `root` "busybox" its programs are busybox's, in memory. With "host" its root is the host's, read-only over
        QEMU's own virtio-9p, so that the host's Python, git and compiler are there too (the guest keeps read files
        in its cache: what the host changes below / later may not be seen). In both, /run is an empty
        writable tmpfs of the guest's own. The host's loopback is `HOST` in the guest.

        `kernel` is the newest one found unless given, `accelerator` what `choose_accelerator` finds, `modules` are
        loaded besides those for virtio and 9P, `qemu_arguments` are added to QEMU's command line, `deadline` is in
        seconds, and `progress` is told in words what is being done. A guest whose kernel ends under software emulation
        before the guest's first word is booted again, at most twice; `booted_again` counts that.

        With `vsock`, a path, the guest has CID 3 and its host's side is that unix socket, in the `flavour` of a
        monitor: a file server at ``firecracker:PATH`` is the guest's ``vsock:2``.

        Raises `GuestUnavailable` when QEMU, a kernel or busybox is missing, or QEMU has no vsock device;
        `GuestFailed` when the guest does not come up in time; the end of its console is in the message; `OSError` when
        the path of `vsock` is taken.
        """
        qemu = shutil.which(QEMU)
        if qemu is None:
            msg = f"{QEMU} is not on PATH: run tools/packages demo, or apt-get install qemu-system-x86"
            raise GuestUnavailable(msg)
        if vsock is not None and not await has_vsock():
            msg = f"{qemu} has no {_VSOCK_DEVICE}: take QEMU 5.1 or later, as Debian's qemu-system-x86 is"
            raise GuestUnavailable(msg)
        if kernel is None:
            kernel = await asyncio.to_thread(find_kernel)
        accelerator = accelerator or await choose_accelerator(progress)
        progress(f"booting Linux {kernel.release} under {accelerator}")
        boots = 1
        while True:
            try:
                return await cls._boot(
                    qemu=qemu,
                    root=root,
                    kernel=kernel,
                    accelerator=accelerator,
                    memory_mib=memory_mib,
                    channels=channels,
                    modules=modules,
                    vsock=vsock,
                    flavour=flavour,
                    qemu_arguments=qemu_arguments,
                    deadline=deadline,
                    progress=progress,
                )
            except _KernelEnded:
                if accelerator != "tcg" or boots == _MOST_BOOTS:
                    raise
                boots += 1
                GuestVM.booted_again += 1
                progress("the guest's kernel ended while it booted, as happens under software emulation: once more")

    @classmethod
    async def _boot(
        cls,
        *,
        qemu: str,
        root: str,
        kernel: GuestKernel,
        accelerator: Accelerator,
        memory_mib: int,
        channels: int,
        modules: Sequence[str],
        vsock: str | None,
        flavour: FlavourName,
        qemu_arguments: Sequence[str],
        deadline: float,
        progress: Callable[[str], None],
    ) -> Self:
        """Boot a guest once. Raises as `start` does; `_KernelEnded` when another boot may do better."""
        started = time.monotonic()
        directory = tempfile.mkdtemp(prefix="uvmshare-guest-")
        device = None
        try:
            if vsock is not None:
                device = VsockDevice(vsock, flavour=flavour, patience=_VSOCK_PATIENCE)
                device.start()
                modules = (*modules, _VSOCK_MODULE)
            image = await asyncio.to_thread(_prepare, directory, kernel, root, modules)
            command = [
                *(qemu, "-M", "q35,usb=off,sata=off,smbus=off,vmport=off", "-m", str(memory_mib)),
                *("-accel", accelerator, "-cpu", "host" if accelerator == "kvm" else "max"),
                *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
                *("-kernel", image, "-initrd", os.path.join(directory, "initramfs")),
                *("-append", f"{_KERNEL_ARGUMENTS} GUEST_ROOT={root} GUEST_CHANNELS={channels}"),
                *("-chardev", f"file,id=console,path={directory.replace(',', ',,')}/console"),
                *("-serial", "chardev:console"),
                *("-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net"),
                *("-device", f"virtio-serial-pci,max_ports={channels + 1}"),
                *(_HOST_ROOT_ARGUMENTS if root == "host" else ()),
                *(device.qemu_arguments(memory_mib) if device is not None else ()),
                *qemu_arguments,
            ]
            inherited = [] if device is None else [device.qemu_end.fileno()]
            process, opened = await _spawn(command, channels, directory, inherited)
        except BaseException:
            if device is not None:
                device.close()
            shutil.rmtree(directory, ignore_errors=True)
            raise
        if device is not None:
            device.qemu_end.close()  # so that QEMU's end is the end of the device
        guest = cls(process, opened, directory, accelerator=accelerator, release=kernel.release, vsock=device)
        has_spoken = False
        try:
            async with asyncio.timeout(deadline):
                for channel in opened:
                    await channel.ready()
                    has_spoken = True
        except (TimeoutError, EOFError, ConnectionError) as error:
            is_late = isinstance(error, TimeoutError)
            log = guest.log_tail()
            why = f"was not up after {deadline:g} s" if is_late else "ended while it booted"
            msg = f"the guest {why} under {accelerator}; {log}"
            await guest.aclose()
            may_do_better = not is_late and not has_spoken and "Kernel panic" in log and not _INIT_EXITED.search(log)
            raise (_KernelEnded if may_do_better else GuestFailed)(msg) from error
        except BaseException:
            await guest.aclose()
            raise
        for channel in opened:
            guest._idle.put_nowait(channel)
        guest.boot_seconds = time.monotonic() - started
        progress(f"the guest is up after {guest.boot_seconds:.1f} s")
        return guest

    async def run(self, command: str, *, stdin: bytes = b"", timeout: float = _COMMAND_DEADLINE) -> GuestResult:  # noqa: ASYNC109  the deadline says whose fault it was, which a caller's own timeout could not
        """Have /bin/sh in the guest run a command, wait for its end and return how it ended.

        `stdin` is the command's standard input, at most 4 MiB; `timeout` is in seconds. A command that is given up,
        for the time or because the caller is cancelled, may go on in the guest, and its channel is lost with it.

        Raises `GuestFailed` when the time is over or the guest ends, with the end of its console in the message.
        """
        if len(stdin) > _INPUT_LIMIT:
            msg = f"{len(stdin)} bytes of standard input; at most {_INPUT_LIMIT}: use write_file, or a share"
            raise ValueError(msg)
        if self._lost == len(self._channels):
            msg = f"all {self._lost} channels to the guest were lost to commands that did not end; {self.log_tail()}"
            raise GuestFailed(msg)
        try:
            async with asyncio.timeout(timeout):
                channel = await self._idle.get()
                try:
                    result = await channel.exchange(command, stdin)
                except BaseException:
                    self._lost += 1
                    raise
        except TimeoutError as error:
            msg = f"in the guest, {command!r} did not end within {timeout:g} s; {self.log_tail()}"
            raise GuestFailed(msg) from error
        except (EOFError, ConnectionError) as error:
            msg = f"the guest ended during {command!r}; {self.log_tail()}"
            raise GuestFailed(msg) from error
        self._idle.put_nowait(channel)
        return result

    async def check(self, command: str, *, stdin: bytes = b"", timeout: float = _COMMAND_DEADLINE) -> str:  # noqa: ASYNC109  as for run
        """Run a command that has to succeed and return its output as text.

        Raises `GuestFailed`, with what the command wrote, when its status is not 0, and as `run` does.
        """
        return (await self.run(command, stdin=stdin, timeout=timeout)).require()

    async def write_file(self, path: str, data: bytes) -> None:
        """Write a file in the guest. Raises `GuestFailed` as `check` does."""
        quoted = "'" + path.replace("'", "'\\''") + "'"
        await self.check(f": > {quoted}")
        for start in range(0, len(data), _INPUT_LIMIT):
            await self.check(f"cat >> {quoted}", stdin=data[start : start + _INPUT_LIMIT])

    def log_tail(self) -> str:
        """Return the end of what the guest's console and QEMU itself have written, for an error message."""
        parts = []
        for name in ("qemu", "console"):
            with contextlib.suppress(OSError), open(os.path.join(self._directory, name), "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _LOG_TAIL))
                if text := file.read().decode("utf-8", "backslashreplace").strip():
                    parts.append(f"end of its {name} log:\n{text}")
        return "\n".join(parts) or "its console and QEMU wrote nothing"

    async def aclose(self) -> None:
        """End the guest at once, as pulling the plug does, and remove what its start left on the host.

        Does nothing the second time. Raises `GuestFailed` when QEMU cannot be ended.
        """
        with contextlib.suppress(ProcessLookupError):
            send_signal(self._process, _SIGKILL)
        try:
            async with asyncio.timeout(_END_DEADLINE):
                for channel in self._channels:
                    await channel.close()
                await self._process.wait()
        except TimeoutError as error:
            msg = f"QEMU (process {self._process.pid}) did not end {_END_DEADLINE:g} s after it was killed"
            raise GuestFailed(msg) from error
        finally:
            if self.vsock is not None:
                await asyncio.to_thread(self.vsock.close)
            shutil.rmtree(self._directory, ignore_errors=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


def send_signal(process: asyncio.subprocess.Process, number: int) -> None:
    """Send a signal to a child that asyncio watches. Raises `ProcessLookupError` when it has ended and that is known.

    asyncio's own way looks first whether the child has ended, and so may take its exit status away from the watcher,
    which then logs "Unknown child process" and makes up the status 255 (CPython issue 87744). A QEMU that finds no
    usable KVM ends just before it is killed.
    """
    if process.returncode is not None:
        raise ProcessLookupError
    os.kill(process.pid, number)


async def has_vsock() -> bool:
    """Tell whether QEMU has the vsock device that needs nothing of the host's kernel; False without QEMU."""
    try:
        process = await asyncio.create_subprocess_exec(
            *(QEMU, "-device", "help"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError:
        return False
    devices, _ = await process.communicate()
    return f'"{_VSOCK_DEVICE}"'.encode() in devices


async def choose_accelerator(progress: Callable[[str], None] = lambda _: None) -> Accelerator:
    """Return "kvm" when a guest comes up under KVM here, else "tcg".

    That /dev/kvm opens proves nothing, so a small guest is booted to its first words, with a deadline of ten seconds.
    What was found is kept until the host boots again.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    works = _recall_kvm()
    if works is None:
        progress("trying whether KVM runs a guest here")
        try:
            await (await GuestVM.start(accelerator="kvm", channels=1, deadline=_PROBE_DEADLINE)).aclose()
        except GuestFailed:
            works = False
        else:
            works = True
        _remember_kvm(works=works)
        progress("KVM works" if works else "KVM opens but runs no guest here: software emulation it is")
    return "kvm" if works else "tcg"


def _recall_kvm() -> bool | None:
    """Return what an earlier probe found in this boot of the host, None when there was none."""
    try:
        with open(os.path.join(cache_directory(), "kvm"), encoding="ascii") as file:
            boot, _, works = file.read().partition(" ")
    except (OSError, ValueError):
        return None
    return works == "works" if boot == boot_id() else None


def _remember_kvm(*, works: bool) -> None:
    path = os.path.join(cache_directory(), "kvm")
    with contextlib.suppress(OSError):  # a place that cannot be written to costs the probe again, no more
        os.makedirs(cache_directory(), exist_ok=True)
        with open(f"{path}.{os.getpid()}", "w", encoding="ascii") as file:
            file.write(f"{boot_id()} {'works' if works else 'hangs'}")
        os.replace(f"{path}.{os.getpid()}", path)


def _prepare(directory: str, kernel: GuestKernel, root: str, modules: Sequence[str]) -> str:
    """Write the initramfs into the directory and return the path of the kernel's image."""
    with open(_INIT, encoding="utf-8") as file:
        init = file.read()
    archive = initramfs.build(
        busybox=find_busybox(),
        init=init,
        kernel=kernel,
        modules=(*_MODULES, *(["9pnet_virtio"] if root == "host" else []), *modules),
    )
    with open(os.path.join(directory, "initramfs"), "wb") as written:
        written.write(archive)
    return kernel.unpacked_image()


async def _spawn(
    command: list[str], channels: int, directory: str, inherited: Sequence[int]
) -> tuple[asyncio.subprocess.Process, Sequence[_Channel]]:
    """Start QEMU with so many virtio-serial ports and return it with the host's ends of them.

    It gets the `inherited` descriptors too.
    """
    pairs = [socket.socketpair() for _ in range(channels)]
    opened = [_Channel(*await asyncio.open_connection(sock=ours)) for ours, _ in pairs]
    for number, (_, theirs) in enumerate(pairs, 1):
        command += ["-chardev", f"socket,id=channel{number},fd={theirs.fileno()}"]
        command += ["-device", f"virtserialport,chardev=channel{number},nr={number}"]
    log = os.open(os.path.join(directory, "qemu"), os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[*inherited, *(theirs.fileno() for _, theirs in pairs)],
        )
    except BaseException:
        for channel in opened:
            await channel.close()
        raise
    finally:
        os.close(log)
        for _, theirs in pairs:
            theirs.close()
    return process, opened
