#!/usr/bin/env python3
"""Mount a share inside a guest: ``python3 mount.py ADDRESS SHARE TARGET``, as root.

What lives here: reading an address, connecting to it, and mount(2) with the connected socket as 9P's transport
(``trans=fd``), which works over vsock, TCP and unix sockets alike, where mount(8) can only do TCP and unix. What must
not: anything that the standard library does not have, or the rest of uvmshare; this one file is copied into
guests and runs there alone, with Python 3.9 or later.

The socket is the kernel's once it is mounted: nothing of this program stays. When the mount fails, the socket and
the target directory, if it was made here, are gone again.

Sources: mount(2), vsock(7), and the Linux kernel's Documentation/filesystems/9p.rst for the options.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import os
import platform
import re
import socket
import struct
import sys
import threading
from typing import TYPE_CHECKING, NamedTuple, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = [
    "MountError",
    "Parser",
    "ServerAddress",
    "attach",
    "choose",
    "chosen",
    "connect",
    "flags",
    "ignored",
    "main",
    "mount",
    "mount_options",
    "parse_address",
    "printable",
    "seconds",
    "why_not_mounted",
]

DEFAULT_PORT = 5640
CHOSEN_MSIZE = 256 * 1024
"""Bytes; docs/guest-kernel.md says why. Before Linux 5.15 the kernel takes 64 KiB of it."""
DEFAULT_TIMEOUT = 30.0
_LONGEST = 86400
"""Seconds."""
CACHES = ("auto", "none", "loose", "mmap", "readahead")
_DIRECT_SINCE = (6, 4)
"""The release of Linux since which cache=mmap also keeps what is read and written, unless directio is given."""
_MIN_MSIZE = 4096
_MAX_MSIZE = 1 << 30
_LONGEST_PATH = 4095
_MAX_CID = 0xFFFFFFFF
_MAX_PORT = 0xFFFF
_HOST_CID = 2
_CONNECT_TIMEOUT = 6
"""SO_VM_SOCKETS_CONNECT_TIMEOUT of linux/vm_sockets.h: a timeval."""
_LONGEST_CONNECT = 1_000_000
"""Seconds; the kernel refuses what its clock cannot count."""
LOST = (errno.EIO, errno.ENOTCONN, errno.ECONNRESET, errno.EPIPE, errno.ESHUTDOWN, errno.EFAULT, errno.ECONNABORTED)
"""What the kernel's 9P client answers when its connection is gone. EIO is seen most; EFAULT to what is under way when
the stream ends in order, because the client takes that for error 0 and then reads a reply that is not there."""
_MS_RDONLY = 1
_MS_NOSUID = 2
_MS_NODEV = 4
_MNT_DETACH = 2


_INVISIBLE = re.compile(
    "[\\u034f\\u115f\\u1160\\u17b4\\u17b5\\u180b-\\u180d\\u180f\\u2800\\u3164\\ufe00-\\ufe0f\\uffa0\\U000e0100-\\U000e01ef]"
)


def printable(text: str, most: int = 8192) -> str:
    r"""Return the text on one line, with all escaped that does not show itself (``\x1b``); at most `most` characters.

    Names and reasons come from others and go to terminals and logs. The host has the same function in a file that no
    guest has (`uvmshare.printable`).
    """
    shown = "".join(
        letter if letter.isprintable() and not _INVISIBLE.match(letter) else ascii(letter)[1:-1]
        for letter in text[:most]
    )
    return f"{shown[:most]}..." if len(text) > most or len(shown) > most else shown


class MountError(Exception):
    """The share is not mounted. The message names the thing, the reason and the remedy, in one line."""


class ServerAddress(NamedTuple):
    """Where the file server listens: `kind` is "vsock", "tcp" or "unix"; `place` a CID, a host or a path."""

    kind: str
    place: str
    port: int = 0

    def __str__(self) -> str:
        if self.kind == "unix":
            return f"unix:{self.place}"
        place = f"[{self.place}]" if ":" in self.place else self.place
        return f"{self.kind}:{place}:{self.port}"


def parse_address(text: str) -> ServerAddress:
    """Read ``vsock:CID[:PORT]`` (CID 2 is the host), ``tcp:HOST[:PORT]`` or ``unix:PATH``.

    The port is 5640 unless given. Raises `MountError` for anything else.
    """
    kind, _, rest = text.partition(":")
    if kind == "unix" and rest and "\0" not in rest:
        return ServerAddress("unix", rest)
    if kind == "vsock":
        match = re.fullmatch(r"([0-9]{1,10})(?::([0-9]{1,10}))?", rest)
        if match and int(match[1]) < _MAX_CID and int(match[2] or 0) < _MAX_CID:
            return ServerAddress("vsock", str(int(match[1])), int(match[2] or DEFAULT_PORT))
    if kind == "tcp":
        match = re.fullmatch(r"(?:\[([^\]\s]+)\]|([^:\[\]\s]+))(?::([0-9]{1,5}))?", rest)
        if match and 0 < int(match[3] or DEFAULT_PORT) <= _MAX_PORT:
            return ServerAddress("tcp", match[1] or match[2], int(match[3] or DEFAULT_PORT))
    message = f"address {text!r}: want vsock:CID[:PORT] (CID 2 is the host), tcp:HOST[:PORT] or unix:PATH"
    raise MountError(message)


def connect(address: ServerAddress, *, timeout: float = DEFAULT_TIMEOUT) -> socket.socket:
    """Return a stream socket connected to the address, in blocking mode. `timeout` is in seconds.

    Raises `MountError` when nothing listens there, or the kernel has no such sockets.
    """
    if sys.platform != "linux":
        message = "a share is mounted by a Linux guest; this is no Linux"
        raise MountError(message)
    try:
        if address.kind == "tcp":
            connected = socket.create_connection((address.place, address.port), timeout)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # 9P waits for each small reply
        else:
            vsock = address.kind == "vsock"
            connected = socket.socket(socket.AF_VSOCK if vsock else socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connected.settimeout(timeout)
                if vsock:
                    allow_to_connect(connected, timeout)
                connected.connect((int(address.place), address.port) if vsock else address.place)
            except BaseException:
                connected.close()
                raise
    except OSError as error:
        message = f"cannot connect to {address}: {_why_not_connected(error, address)}"
        raise MountError(message) from error
    except ValueError as error:  # UnicodeError, of a host that no name in DNS can be, is one; so is what a NUL raises
        message = f"cannot connect to {address}: that is no name that a host or a socket can have"
        raise MountError(message) from error
    connected.settimeout(None)
    return connected


def allow_to_connect(dialling: socket.socket, seconds: float) -> None:
    """Have a vsock socket try to connect for so long; by itself the kernel gives up after 2 s.

    Raises `OSError` when the kernel has no such option; Linux has it since 3.9 as all of vsock.
    """
    if sys.platform == "linux":
        # Python 3.11 and older take no bytes for a socket of this family: the descriptor is given another for a moment.
        other = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=dialling.fileno())
        try:
            other.setsockopt(socket.AF_VSOCK, _CONNECT_TIMEOUT, struct.pack("@ll", *_timeval(seconds)))
        finally:
            other.detach()


def _timeval(seconds: float) -> tuple[int, int]:
    """Return whole seconds and microseconds; 0 would be the kernel's own 2 s."""
    whole, rest = divmod(min(seconds, _LONGEST_CONNECT), 1)
    return int(whole), max(1, int(rest * 1_000_000))


def mount(
    address: ServerAddress,
    share: str,
    target: str,
    *,
    read_only: bool = False,
    suid: bool = False,
    dev: bool = False,
    posixacl: bool = False,
    msize: int | None = None,
    cache: str = "auto",
    access: str = "client",
    uname: str = "root",
    timeout: float = DEFAULT_TIMEOUT,
) -> str:
    """Mount the share that the server at `address` calls `share` on the directory `target`, which is made if need be.

    Returns what `cache` and `msize` came to, in the kernel's words.

    `suid` and `dev` are as in `attach`, `posixacl` as in `mount_options`.

    `msize` is the largest 9P message in bytes; the server may ask for less. `cache` is one of `CACHES` and `access` is
    "client", "user", "any" or a uid, as in the kernel's documentation; None and "auto" leave it to `choose`. `uname` is
    the name given to the server.
    After `timeout` seconds without an answer the connection is shut, so that a mute server cannot hold the mount up
    for ever.

    Raises `MountError`; then nothing is left behind.
    """
    options = mount_options(
        share, uname=uname, msize=msize, cache=cache, access=access, posixacl=posixacl, read_only=read_only
    )
    if not 0 < timeout < threading.TIMEOUT_MAX:
        message = f"timeout {timeout:g}: want a number of seconds above 0"
        raise MountError(message)
    with _target(target) as directory, connect(address, timeout=timeout) as connected:
        shown_at = os.path.realpath(directory)  # now: with a share on it the server is asked
        # Only the end of the connection ends a mount(2) that waits for an answer; a signal makes the
        # kernel's client wait for the answer to a Tflush instead.
        mute = threading.Event()

        def give_up() -> None:
            mute.set()
            connected.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(timeout, give_up)
        timer.start()
        try:
            code = attach(connected, str(address), directory, options, read_only=read_only, suid=suid, dev=dev)
        finally:
            timer.cancel()
            timer.join()
        shown = "" if code else _shown(shown_at)
        why = why_not_mounted(code, share, cache) if code else ignored(options, shown)
        if mute.is_set():  # perhaps it was mounted in the same moment, on a connection that is shut now
            why = f"no answer within {timeout:g} s"
        if why:
            if not code:
                _libc().umount2(os.fsencode(directory), _MNT_DETACH)
            message = f"cannot mount share {share!r} of {address} on {target}: {why}"
            raise MountError(message)
        return chosen(options, shown)


def choose(cache: str, msize: int | None, *, read_only: bool, release: str = "") -> str:
    """Return cache mode and msize in the kernel's words, where "auto" and None leave them to this rule.

    What the host changes must be seen at once, so programs' reads and writes are not kept in the guest. A mount that
    can be written to also takes shared writable mappings (SQLite's WAL, linkers): ``cache=mmap``, and since Linux 6.4
    ``directio`` with it, without which that mode keeps reads and writes too. `release` is uname(2)'s; the running
    kernel's unless given. docs/guest-kernel.md has what each mode gives.
    """
    if cache == "auto":
        match = re.match(r"([0-9]{1,5})\.([0-9]{1,5})", release or platform.release())
        is_new = match is None or (int(match[1]), int(match[2])) >= _DIRECT_SINCE
        cache = "none" if read_only else ("mmap,directio" if is_new else "mmap")
    return f"cache={cache},msize={CHOSEN_MSIZE if msize is None else msize}"


def chosen(options: str, shown: str) -> str:
    """Return what cache and msize came to. `shown` is what the kernel shows of the mount, "" where nothing is known.

    The mode is as it was asked for, since kernels show it in different ways; msize is what the server agreed to.
    """
    words = [word for word in options.split(",") if word.startswith("cache=") or word == "directio"]
    sizes = [word for word in f"{shown},{options}".split(",") if word.startswith("msize=")]
    return ",".join([*words, sizes[0]])


def ignored(options: str, shown: str) -> str:
    """Say which option the kernel has passed over without a word, and what to do; "" when there is none."""
    if "posixacl" in options.split(",") and "posixacl" not in shown.split(","):
        return "this kernel passes over posixacl: take one with CONFIG_9P_FS_POSIX_ACL, or mount without ACLs"
    return ""


def mount_options(
    share: str,
    *,
    uname: str = "root",
    msize: int | None = None,
    cache: str = "auto",
    access: str = "client",
    posixacl: bool = False,
    read_only: bool = False,
) -> str:
    """Return what mount(2) is told of a share, without the connection. Raises `MountError` for what cannot be.

    With `posixacl` the guest's kernel asks for each file's access control lists and holds programs to them (acl(5)),
    which it does with `access` "client" alone. `read_only` matters to what `choose` chooses.
    """
    for what, value in (("share", share), ("uname", uname)):
        if not value or "," in value or "\0" in value:
            message = f"{what} {value!r}: it must not be empty or have a comma, which ends an option of mount(2)"
            raise MountError(message)
    if cache not in CACHES:
        message = f"cache {cache!r}: want one of {', '.join(CACHES)}"
        raise MountError(message)
    if not re.fullmatch(r"client|user|any|[0-9]{1,10}", access):
        message = f"access {access!r}: want client, user, any or a uid"
        raise MountError(message)
    if posixacl and access != "client":
        message = f"posixacl with access {access!r}: the kernel keeps ACLs with access=client alone: leave one out"
        raise MountError(message)
    if msize is not None and not _MIN_MSIZE <= msize <= _MAX_MSIZE:
        message = f"msize {msize}: want {_MIN_MSIZE} to {_MAX_MSIZE} bytes"
        raise MountError(message)
    how = choose(cache, msize, read_only=read_only) + f",access={access}" + (",posixacl" if posixacl else "")
    return f"version=9p2000.L,aname={share},uname={uname},{how}"


def attach(
    connected: socket.socket,
    source: str,
    directory: str,
    options: str,
    *,
    read_only: bool,
    suid: bool = False,
    dev: bool = False,
) -> int:
    """Mount what the connected socket leads to, and return 0 or the errno. `source` is what /proc/mounts shows.

    Unless `suid`, set-user-ID bits and file capabilities in the share give nobody in the guest any rights; unless
    `dev`, device nodes in it cannot be opened (mount(2), MS_NOSUID and MS_NODEV).
    """
    number = connected.fileno()
    how = flags(read_only=read_only, suid=suid, dev=dev)
    return _mount(source, directory, how, f"trans=fd,rfdno={number},wfdno={number},{options}")


def flags(*, read_only: bool, suid: bool, dev: bool) -> int:
    """Return the flags of mount(2) for this."""
    return (_MS_RDONLY if read_only else 0) | (0 if suid else _MS_NOSUID) | (0 if dev else _MS_NODEV)


def require_path(path: str) -> str:
    """Return the path made absolute. Raises `OSError`, also for what Python raises `ValueError` for."""
    if not path:
        raise OSError(errno.EINVAL, "it is empty", path)
    if "\0" in path:
        raise OSError(errno.EINVAL, "it holds a NUL, which no path does", path)
    try:
        length = len(os.fsencode(os.path.abspath(path)))
    except UnicodeEncodeError:
        raise OSError(errno.EINVAL, "it holds half a character, which no path does", path) from None
    if length > _LONGEST_PATH:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
    return os.path.abspath(path)


def make_directories(path: str, mode: int = 0o777) -> None:
    """Make a directory with that mode, and those above it, unless they are there.

    As `os.makedirs`, which raises `RecursionError` for a deep path. Raises `OSError`.
    """
    missing = [require_path(path)]
    while not os.path.lexists(missing[-1]):
        missing.append(os.path.dirname(missing[-1]))
    for directory in reversed(missing):
        try:
            os.mkdir(directory, mode if directory == missing[0] else 0o777)
        except FileExistsError:
            if not os.path.isdir(directory):
                what = "it" if directory == missing[0] else repr(directory)
                raise NotADirectoryError(errno.ENOTDIR, f"{what} is there, and is no directory", path) from None


@contextlib.contextmanager
def _target(target: str) -> Iterator[str]:
    """Give the absolute path of the target directory; directories made for it are removed again on an error."""
    made: list[str] = []
    try:
        try:
            directory = require_path(target)
            above = directory
            while not os.path.lexists(above):
                made.append(above)
                above = os.path.dirname(above)
            for path in reversed(made):
                os.mkdir(path)
        except OSError as error:
            message = f"cannot make the directory {target}: {error.strerror}; mount on another"
            raise MountError(message) from error
        if not os.path.isdir(directory):
            message = f"{target} is not a directory: a share is mounted on a directory"
            raise MountError(message)
        yield directory
    except BaseException:
        for path in made:
            with contextlib.suppress(OSError):
                os.rmdir(path)
        raise


def _shown(path: str) -> str:
    """Return the options that the kernel shows of the uppermost 9P mount at a path; "" where there is none.

    `uvmshare.linux.mountinfo` reads all of the table; this file is copied into guests alone.
    """
    name = re.sub(rb"[ \t\n\\]", lambda found: b"\\%03o" % found[0][0], os.fsencode(path))  # as the table has it
    shown = ""
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            before, _, after = line.rstrip(b"\n").partition(b" - ")
            kind, _, options = after.split(b" ", 2)
            if before.split(b" ")[4] == name and kind == b"9p":
                shown = os.fsdecode(options)
    return shown


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _mount(source: str, directory: str, flags: int, options: str) -> int:
    """Call mount(2) and return 0 or the errno."""
    libc = _libc()
    libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
    libc.mount.restype = ctypes.c_int
    failed = libc.mount(os.fsencode(source), os.fsencode(directory), b"9p", flags, os.fsencode(options))
    return ctypes.get_errno() if failed else 0


def _why_not_connected(error: OSError, address: ServerAddress) -> str:
    if address.kind == "vsock" and int(address.place) != _HOST_CID:
        whose = "this guest's own" if int(address.place) == _own_cid() else "not the host's"
        return f"CID {address.place} is {whose}, and a guest reaches the host alone: its CID is {_HOST_CID}"
    if isinstance(error, TimeoutError):
        return "no answer came in time: is there such a host, and does it drop what comes to this port?"
    if address.kind == "vsock" and error.errno in (errno.EAFNOSUPPORT, errno.ENODEV, errno.EADDRNOTAVAIL):
        return (
            "this guest has no vsock to the host: give the VM a vsock device and load the module "
            "vmw_vsock_virtio_transport (hv_sock on Hyper-V)"
        )
    if error.errno in (errno.ECONNREFUSED, errno.ECONNRESET, errno.ENOENT):
        # vsock answers with a reset; also when the only transport in the guest is another one's than the host's.
        device = ", and has this guest a vsock device (vmw_vsock_virtio_transport)" if address.kind == "vsock" else ""
        return f"nothing listens there: is the host's file server running, is this its address{device}?"
    return error.strerror or str(error)


def _own_cid() -> int | None:
    """Return this guest's CID, None where there is none (vsock(7))."""
    if sys.platform != "linux":
        return None
    import fcntl  # noqa: PLC0415  a system that is no Linux may not have it

    with contextlib.suppress(OSError), open("/dev/vsock", "rb") as device:
        told = fcntl.ioctl(device, socket.IOCTL_VM_SOCKETS_GET_LOCAL_CID, bytes(4))
        return int.from_bytes(told, sys.byteorder)
    return None


def why_not_mounted(code: int, share: str, cache: str) -> str:
    """Say in words why mount(2) failed, and what to do."""
    missing = [name for name in ("9p", "9pnet_fd") if not _has(name)]
    if code == errno.ENODEV or (missing and code in (errno.EINVAL, errno.EPROTONOSUPPORT)):
        names = missing or ["9p", "9pnet_fd"]
        return f"this kernel has no {' and no '.join(names)}: modprobe -a {' '.join(names)}, or take a kernel with them"
    if code == errno.EPERM:
        return "only root may mount; run this as root"
    if code == errno.ENOENT:
        return f"the server has no share {share!r}; the host lists what it serves"
    if code == errno.EINVAL:
        hint = "cache=readahead needs Linux 6.4 or later" if cache == "readahead" else "dmesg tells which"
        return f"the kernel does not take one of the options; {hint}"
    if code in LOST:
        how = "before it had answered" if code == errno.EFAULT else os.strerror(code)
        return f"the server closed the connection ({how}); its log tells why"
    return os.strerror(code)


def _has(name: str) -> bool:
    """Tell whether the running kernel has the module; for one that is built in, only "9p" can be told for sure."""
    if name == "9p":
        with contextlib.suppress(OSError), open("/proc/filesystems", encoding="ascii") as file:
            return any(line.split()[-1] == name for line in file)
    return os.path.exists(f"/sys/module/{name}")


class Parser(argparse.ArgumentParser):
    """An argument parser that says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Say it, and end with status 2."""
        message = re.sub(r"invalid int value: (.*)", r"\1 is no whole number", message)
        message = re.sub(r"invalid float value: (.*)", r"\1 is no number", message)
        self.exit(2, f"{self.prog}: {printable(message)}; {self.prog} --help has examples\n")


def seconds(text: str) -> float:
    """Read a length of time from a command line: seconds, at most a day. Raises `argparse.ArgumentTypeError`."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= _LONGEST:  # "nan" neither
        msg = f"{printable(repr(text))} is no number of seconds from 0 to {_LONGEST}"
        raise argparse.ArgumentTypeError(msg)
    return value


def _parser(program: str) -> argparse.ArgumentParser:
    parser = Parser(
        prog=program,
        description="Mount a share of the host inside this guest. Needs root and a kernel with 9p and 9pnet_fd.",
        epilog=f"""examples:
  {program} vsock:2 0 /mnt/project
  {program} tcp:10.0.2.2:5640 1 /mnt/out --cache mmap
umount TARGET ends the mount. The share stays until the host removes it.""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "address",
        metavar="ADDRESS",
        help=f"vsock:CID[:PORT] (CID 2 is the host), tcp:HOST[:PORT] or unix:PATH; port {DEFAULT_PORT} unless given",
    )
    parser.add_argument("share", metavar="SHARE", help="the share's name as the host gave it, such as 0")
    parser.add_argument("target", metavar="TARGET", help="the directory to mount on; it is made if need be")
    parser.add_argument("--read-only", action="store_true", help="have the guest's kernel refuse writing too")
    parser.add_argument("--suid", action="store_true", help="let set-user-ID programs in the share have their rights")
    parser.add_argument("--dev", action="store_true", help="let device nodes in the share be opened")
    parser.add_argument("--posixacl", action="store_true", help="keep access control lists (getfacl, setfacl)")
    parser.add_argument("--msize", type=int, help=f"largest 9P message, in bytes ({CHOSEN_MSIZE})")
    parser.add_argument(
        "--cache",
        choices=CACHES,
        default="auto",
        help="what the guest may cache (%(default)s: nothing that would hide a change by the host)",
    )
    parser.add_argument("--access", default="client", help="client, user, any or a uid (%(default)s)")
    parser.add_argument("--uname", default="root", help="the user name told to the server (%(default)s)")
    parser.add_argument(
        "--timeout", type=seconds, default=DEFAULT_TIMEOUT, help="seconds to wait for the host (%(default)s)"
    )
    return parser


def main(
    arguments: Sequence[str],
    *,
    program: str = "uvmshare guest mount",
    while_mounting: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> int:
    """Mount as the command line says, tell on standard output how, and return 0; 1 when it is not mounted.

    A command line that cannot be ends the program with status 2. Errors are one line on standard error. Nothing is
    written in the block of `while_mounting`, which may show progress.
    """
    parser = _parser(program)
    options = parser.parse_args(arguments)
    try:
        try:
            address = parse_address(options.address)
            asked = ("uname", "msize", "cache", "access", "posixacl", "read_only")
            mount_options(options.share, **{each: getattr(options, each) for each in asked})
            if not options.target:
                parser.error("TARGET is empty: name the directory to mount on")
        except MountError as error:
            parser.error(str(error))
        with while_mounting():
            how = mount(
                address,
                options.share,
                options.target,
                read_only=options.read_only,
                suid=options.suid,
                dev=options.dev,
                posixacl=options.posixacl,
                msize=options.msize,
                cache=options.cache,
                access=options.access,
                uname=options.uname,
                timeout=options.timeout,
            )
    except MountError as error:
        sys.stderr.write(f"{program}: {printable(str(error))}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    sys.stdout.write(printable(f"mounted share {options.share} on {options.target} ({how})") + "\n")
    return 0


if __name__ == "__main__":
    for stream in ("stdin", "stdout", "stderr"):  # Python has None for a closed one, and a socket would get its number
        setattr(sys, stream, getattr(sys, stream) or open(os.devnull, "r+", encoding="utf-8"))  # noqa: SIM115  to the end
    sys.exit(main(sys.argv[1:], program=os.path.basename(sys.argv[0])))
