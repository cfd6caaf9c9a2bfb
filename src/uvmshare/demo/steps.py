"""`uvmshare demo`: a running guest gets directories and loses them again, each step shown and checked.

What lives here: the steps, their checks and how they are shown. What must not: how a guest does what it is asked
(`uvmshare.demo.guest`), or the picture (`uvmshare.demo.states`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import sys
import tempfile
import time
from functools import partial
from typing import TYPE_CHECKING

import click
from rich.text import Text

from uvmshare.cli import EXTRAS, missing_extra
from uvmshare.cli.foreground import until_signalled
from uvmshare.cli.pictures import SafeConsole, cell
from uvmshare.demo.guest import ClientGuest, QemuGuest
from uvmshare.demo.states import RecordingVM, draw
from uvmshare.errors import ComputeSystemError, GuestUnavailable, UnsupportedPlatform, UvmshareError
from uvmshare.printable import printable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from uvmshare import AddOptions, Manager
    from uvmshare.demo.guest import DemoGuest
    from uvmshare.fileserver.models import SecurityModel

__all__ = ["CheckFailed", "Steps", "check", "demo", "run_demo"]

GUESTS = ("auto", "qemu", "client")
_DIGESTS = "SHA256SUMS"


class CheckFailed(UvmshareError):
    """A step of the demonstration came out otherwise than it must."""


def check(holds: bool, otherwise: str) -> None:  # noqa: FBT001  reads as an assertion
    """See that something holds. Raises `CheckFailed`."""
    if not holds:
        raise CheckFailed(otherwise)


@click.command()
@click.option(
    "--guest",
    type=click.Choice(GUESTS),
    default="auto",
    show_default=True,
    help="Who mounts the shares: a Linux guest under QEMU, or the project's own 9P client; auto prefers QEMU.",
)
@click.option(
    "--fleet", is_flag=True, help="Show a fleet: two hosts with a guest each. Needs root, etcd and the extra fleet."
)
def demo(guest: str, *, fleet: bool) -> int:
    """Boot a guest, and share directories with it while it runs.

    It shares this project's own files read-only, and an empty directory that the guest may write to. The guest
    mounts both, and writes the SHA-256 of every file into the second. Then a second caller shares the first
    directory. The first release changes nothing; the last one ends the share while the guest uses it. After that
    the daemon is shown: two programs map one directory, both crash, and the share goes when their leases end.
    At last a file is edited on the host, and a server in the guest reloads it. Every step is checked. Exit status 1
    says that a step failed.

    The guest reaches the host over vsock, as a Firecracker guest does, if QEMU has vhost-user-vsock-pci, and
    over TCP otherwise. This needs qemu-system-x86, a kernel with 9P and busybox-static, which "make demo"
    installs. It needs no root and no KVM.

    With --fleet another demonstration runs: three members of etcd, two gates and two hosts in network namespaces
    of this machine, with a guest on each host. Meanwhile a gate is killed, a program's machine is lost, and a host is
    cut off.

    \b
    Examples:
      uvmshare demo                  a real guest, if QEMU is there
      uvmshare demo --guest client   the project's own 9P client in the guest's place
      uvmshare demo --fleet          two hosts of a fleet
    """  # noqa: D301  \b is click's mark for lines that stay as they are
    if sys.platform != "linux":
        msg = "uvmshare demo needs a Linux host, because the file server it shows runs there"
        raise UnsupportedPlatform(msg)
    statuses: list[int] = []

    async def run() -> None:
        if fleet and sys.platform == "linux":
            from uvmshare.demo.fleet import run_fleet_demo  # noqa: PLC0415  an extra, which the rest does without

            statuses.append(await run_fleet_demo())
        else:
            statuses.append(await run_demo(guest=guest))

    until_signalled(run())
    return statuses[0] if statuses else 1  # it was asked to end, without being interrupted


async def run_demo(*, guest: str, console: SafeConsole | None = None) -> int:
    """Run the demonstration and return 0, or 1 when a check failed.

    `guest` is one of `GUESTS`. Raises `GuestUnavailable` for "qemu" when there is no QEMU, and what the
    file server's start raises.
    """
    console = console or SafeConsole()
    shown = Steps(console)
    with tempfile.TemporaryDirectory(prefix="uvmshare-demo-") as directory:
        log = os.path.join(directory, "server.log")
        try:
            async with _set_up(guest, directory, log, shown) as (manager, recorder, mounting):
                await _Demonstration(manager, recorder, mounting, directory, shown).run()
                took = recorder.clock()
                await _daemon_way(mounting, directory, shown, console)
        except CheckFailed as error:
            failed = Text.assemble(("the demonstration FAILED:", "bold red"), " ", printable(str(error)))
            console.print(failed, soft_wrap=True)
            with contextlib.suppress(FileNotFoundError):
                console.print(f"the file server's log:\n{_read(log)}", soft_wrap=True)
            return 1
    console.print()
    console.print(draw(recorder.histories))
    done = f"{len(recorder.calls)} modify calls; {took:.1f} s, set-up aside. "
    console.print(Text.assemble(done, ("Everything held.", "bold green")))
    return 0


class Steps:
    """Shows each step while it is done, and what came of it with the seconds it took."""

    def __init__(self, console: SafeConsole) -> None:
        self._console = console

    def note(self, text: str) -> None:
        """Say something in between."""
        self._console.print(Text.assemble("  ", (printable(text), "dim")), soft_wrap=True)

    def waiting(self, words: str) -> contextlib.AbstractContextManager[object]:
        """Show that something takes its time, for the length of a block."""
        return self._console.status(cell(words))

    async def step(self, title: str, action: Awaitable[str]) -> None:
        """Do one step; the action returns what to say of it. A failure is shown and raised on."""
        begun = time.monotonic()
        try:
            with self._console.status(cell(title)):
                detail = await action
        except BaseException:
            self._ended("✗", "red", title, begun)
            raise
        self._ended("✓", "green", title, begun)
        self.note(detail)

    def _ended(self, mark: str, style: str, title: str, begun: float) -> None:
        took = (f"{time.monotonic() - begun:.2f} s", "dim")
        self._console.print(Text.assemble((mark, style), f" {printable(title)}  ", took), soft_wrap=True)


@contextlib.asynccontextmanager
async def _set_up(
    guest: str, directory: str, log: str, shown: Steps
) -> AsyncIterator[tuple[Manager, RecordingVM, DemoGuest]]:
    """Start a file server with a manager, and a guest that reaches it; end them afterwards."""
    from uvmshare import FileServer, Manager  # noqa: PLC0415  --help need not load a server

    async with contextlib.AsyncExitStack() as stack:
        vm = None
        if guest != "client":
            from uvmshare.testing.guest_vm import GuestVM, has_vsock  # noqa: PLC0415  as above

            # Over vsock a guest needs Python to mount, which it finds in the host's root.
            uds_path = f"{directory}/vsock" if await has_vsock() else None
            try:
                starting = GuestVM.start(root="host" if uds_path else "busybox", vsock=uds_path, progress=shown.note)
                with shown.waiting("booting the guest, which takes half a minute without KVM"):
                    vm = await stack.enter_async_context(await starting)
            except GuestUnavailable as error:
                if guest == "qemu":
                    raise
                shown.note(f"no QEMU guest ({error}); the project's own 9P client takes its place")
        model: SecurityModel = "mapped-xattr" if _has_xattrs(directory) else "none"
        if vm is None:
            listen = f"unix:{directory}/9p"
        else:
            listen = "tcp:127.0.0.1:0" if vm.vsock is None else f"{vm.vsock.flavour}:{vm.vsock.uds_path}"
        server = await stack.enter_async_context(FileServer(listen=[listen], security_model=model, log=log))
        (address,) = server.addresses
        shown.note(f"the file server listens on {address}, security model {model}")
        mounting: DemoGuest
        if vm is None:
            mounting = client = ClientGuest(address)
            stack.callback(client.close)
        else:
            mounting = QemuGuest(vm, address)
        shown.note(f"the guest: {mounting.description}")
        recorder = RecordingVM(server)
        manager = await stack.enter_async_context(Manager(recorder))
        yield manager, recorder, mounting


class _Demonstration:
    """The steps, in order, with what each leaves to the next."""

    def __init__(self, manager: Manager, recorder: RecordingVM, guest: DemoGuest, directory: str, shown: Steps) -> None:
        from uvmshare import AddOptions  # noqa: PLC0415  --help need not load it

        self._wanted = partial(AddOptions, read_only=True)
        self._manager = manager
        self._recorder = recorder
        self._guest = guest
        self._shown = shown
        self._tree = _own_tree()
        self._out = os.path.join(directory, "out")
        os.mkdir(self._out)
        self._writable = AddOptions(self._out)
        self._absent = os.path.join(directory, "absent")
        os.mkdir(self._absent)
        self._doomed = self._wanted(self._absent)
        self._tree_share = self._out_share = ""

    async def run(self) -> None:
        """Do every step. Raises `CheckFailed` at the first that does not hold."""
        steps: list[tuple[str, Callable[[], Awaitable[str]]]] = [
            ("share this project's files read-only and an empty directory writable, with the guest running", self._add),
            ("the guest mounts both", self._mount),
            ("the guest writes the SHA-256 of every file of the first into the second", self._digest),
            ("the host compares", self._compare),
            ("a second caller shares the same directory", self._add_again),
            ("the guest tries to write to the read-only share, which it has mounted read-write", self._write),
            ("one of the two callers releases the share", self._release),
            ("the other one releases it too", self._release_last),
            ("an add that fails", self._add_in_vain),
            ("the writable share is released", self._end),
        ]
        for title, action in steps:
            await self._shown.step(title, action())
            differing = self._recorder.disagreements(self._manager)
            check(not differing, "; ".join(differing))

    async def _add(self) -> str:
        self._tree_share = await self._manager.add(self._tree, owner="first")
        self._out_share = await self._manager.add(self._writable, owner="first")
        check(len(self._recorder.calls) == 2, f"two adds made the modify calls {self._calls()}")
        return f"share {self._tree_share}: {self._tree.host_path}; share {self._out_share}: {self._out}"

    async def _mount(self) -> str:
        for share in (self._tree_share, self._out_share):
            error = await self._guest.mount(share)
            check(error is None, f"the guest could not mount share {share}: {error}")
        return "each by its name, on a connection of its own"

    async def _digest(self) -> str:
        error = await self._guest.write_digests(self._tree_share, self._out_share, _DIGESTS)
        check(error is None, f"the guest could not read the one share or write to the other: {error}")
        size = os.stat(os.path.join(self._out, _DIGESTS)).st_size
        return f"{size:,} bytes are in {os.path.join(self._out, _DIGESTS)} on the host"

    async def _compare(self) -> str:
        theirs = await asyncio.to_thread(_read_digests, os.path.join(self._out, _DIGESTS))
        ours, size = await asyncio.to_thread(digests, self._tree)
        differing = sorted(path for path in theirs.keys() | ours.keys() if theirs.get(path) != ours.get(path))
        check(bool(ours), f"{self._tree.host_path} has no files")
        check(not differing, f"{len(differing)} of {len(ours)} files differ, the first {differing[:3]}")
        return f"{len(ours)} files, {size:,} bytes: all the same"

    async def _add_again(self) -> str:
        before = len(self._recorder.calls)
        share = await self._manager.add(self._tree, owner="second")
        check(share == self._tree_share, f"it got the name {share}, not {self._tree_share}")
        check(len(self._recorder.calls) == before, f"there was another modify call: {self._calls()}")
        return f"the same name, {share}, and no second modify call: {self._calls()}"

    async def _write(self) -> str:
        error = await self._guest.create(self._tree_share, "written-by-the-guest")
        check(error is not None, "it could")
        made = "written-by-the-guest" in os.listdir(self._tree.host_path)
        check(not made, f"it was refused ({error}), and yet the file is there")
        return f"refused by the host: {error}"

    async def _release(self) -> str:
        before = len(self._recorder.calls)
        await self._manager.remove(self._tree_share, owner="first")
        check(len(self._recorder.calls) == before, f"it made a modify call: {self._calls()}")
        error = await self._guest.list(self._tree_share)
        check(error is None, f"the guest cannot read it any more: {error}")
        return "nothing changed: no modify call, and the guest still reads it"

    async def _release_last(self) -> str:
        await self._manager.remove(self._tree_share, owner="second")
        error = await self._guest.list(self._tree_share)
        check(error is not None, "the guest still reads it")
        left = await self._guest.list(self._out_share)
        check(left is None, f"the other share went with it: {left}")
        unmounted = await self._guest.unmount(self._tree_share)
        check(unmounted is None, f"the guest cannot unmount it: {unmounted}")
        again = await self._guest.mount(self._tree_share)
        check(again is not None, "the guest could mount it again")
        return f"the guest, at once: {error}; its other share goes on"

    async def _add_in_vain(self) -> str:
        os.rmdir(self._absent)
        before = self._manager.shares()
        try:
            share = await self._manager.add(self._doomed)
        except ComputeSystemError as error:
            refused = error
        else:
            msg = f"a directory that is gone was shared as {share}"
            raise CheckFailed(msg)
        check(self._manager.shares() == before, "the Manager lists something of it")
        failed = self._recorder.calls[-1][1]
        check(await self._guest.mount(failed) is not None, f"the guest can mount share {failed}")
        os.mkdir(self._absent)
        async with self._manager.share(self._wanted(self._absent)) as share:  # another directory, at the same path
            check(share != failed, f"the name {share} was used twice")
        return f"nothing is left of share {failed} ({refused}); with the directory back, a retry got the name {share}"

    async def _end(self) -> str:
        await self._manager.remove(self._out_share, owner="first")
        check(await self._guest.list(self._out_share) is not None, "the guest still reads it")
        unmounted = await self._guest.unmount(self._out_share)
        check(unmounted is None, f"the guest cannot unmount it: {unmounted}")
        check(not self._manager.shares(), f"the VM still has {self._manager.shares()}")
        return "the VM has no share any more, and the guest runs on"

    def _calls(self) -> str:
        return ", ".join(f"{kind.value} {share}" for kind, share in self._recorder.calls)


async def _daemon_way(mounting: DemoGuest, directory: str, shown: Steps, console: SafeConsole) -> None:
    """Show the same with a daemon, in a guest that has an agent; without one, or the extra, say why not."""
    console.print(Text.assemble("\n", ("The daemon way", "bold"), ": programs that come and go"), soft_wrap=True)
    if not isinstance(mounting, QemuGuest):
        shown.note("left out: it needs a guest, in which an agent mounts")
        return
    if sys.platform == "linux":  # `demo` refused others already; this is for the type checker
        from uvmshare.demo.daemon import DaemonDemonstration  # noqa: PLC0415  --help need not load it

        try:
            await DaemonDemonstration(mounting.vm, directory, shown.step, check).run()
        except ModuleNotFoundError as error:
            missing = missing_extra(error)
            if missing is None:
                raise
            shown.note(f"left out: it needs {missing}: pip install 'uvmshare[{EXTRAS[missing]}]'")


def _own_tree() -> AddOptions:
    """Return the options that share the project's own files read-only; an installed package has no tree but itself."""
    from uvmshare import AddOptions  # noqa: PLC0415  --help need not load it

    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    tree = os.path.dirname(os.path.dirname(package))
    if not os.path.exists(os.path.join(tree, "pyproject.toml")):
        return AddOptions(package, read_only=True)
    return tree_options(tree)


def tree_options(tree: str) -> AddOptions:
    """Return the options that share a source tree read-only, but for what is hidden in it.

    Environments and caches are there, which may be a hundred times the rest.
    """
    from uvmshare import AddOptions  # noqa: PLC0415  --help need not load it

    names = [name for name in os.listdir(tree) if not name.startswith(".")]
    return AddOptions(tree, read_only=True, allowed_names=names)


def digests(options: AddOptions) -> tuple[dict[bytes, bytes], int]:
    """Return path and SHA-256 of every regular file that the options share, and how many bytes they have."""
    root = os.fsencode(options.host_path)
    found: dict[bytes, bytes] = {}
    size = 0
    for directory, names, files in os.walk(root):
        if directory == root and options.allowed_names:
            allowed = [os.fsencode(name) for name in options.allowed_names]
            names[:] = [name for name in names if name in allowed]
            files[:] = [name for name in files if name in allowed]
        for name in files:
            path = os.path.join(directory, name)
            if os.path.isfile(path) and not os.path.islink(path):
                with open(path, "rb") as file:
                    content = file.read()
                found[b"./" + os.path.relpath(path, root)] = hashlib.sha256(content).hexdigest().encode()
                size += len(content)
    return found, size


def _read_digests(path: str) -> dict[bytes, bytes]:
    """Read what sha256sum(1) writes. Raises `CheckFailed` for anything else: the guest wrote it."""
    with open(path, "rb") as file:
        lines = [line.split(b"  ", 1) for line in file.read().splitlines()]
    check(all(len(line) == 2 for line in lines), f"{path} is not what sha256sum writes")
    return {line[1]: line[0] for line in lines}


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="backslashreplace") as file:
        return file.read()


def _has_xattrs(directory: str) -> bool:
    """Tell whether files there can have user xattrs, which mapped-xattr keeps the guest's owners in."""
    if sys.platform != "linux":
        return False
    try:
        os.setxattr(directory, b"user.uvmshare.demo", b"")
        os.removexattr(directory, b"user.uvmshare.demo")
    except OSError:
        return False
    return True
