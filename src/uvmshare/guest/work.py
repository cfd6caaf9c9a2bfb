"""What the agent's child processes do: mount, unmount, read. Everything here may hang.

What lives here: the system calls that touch a mount. What must not: the table, or waiting for a child. Standard
library only (Python 3.9): it runs in guests.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import tempfile
import time
from typing import TYPE_CHECKING

from uvmshare.guest import keepalive, mount, mount_paths, wire
from uvmshare.guest.wire import RequestError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from uvmshare.guest.loop import Send
    from uvmshare.guest.mount import ServerAddress
    from uvmshare.guest.table import AgentMount
    from uvmshare.linux.mountinfo import Mounted

__all__ = ["bind", "is_there", "make_read_only", "mounting", "read", "reading", "unmounting"]

_MS_REMOUNT, _MS_BIND = 32, 4096
_DEAD = mount.LOST
"""What the kernel's 9P client answers when its connection is gone."""


def is_there(record: AgentMount, server: ServerAddress) -> bool:
    """Tell whether the record's share is mounted at its path, and uppermost there."""
    found = mount_paths.mounted_at(record.path)
    return found is not None and _is_its(found, record, _address(server, record))


def _is_its(found: Mounted, record: AgentMount, address: ServerAddress) -> bool:
    return (found.kind, found.source) == ("9p", str(address)) and f"aname={record.share}" in found.options.split(",")


def _address(server: ServerAddress, record: AgentMount) -> ServerAddress:
    return server if server.kind == "unix" else server._replace(port=record.port)


def mounting(
    record: AgentMount, server: ServerAddress, prefixes: list[str], directory: str, timeout: float
) -> Callable[[Send], None]:
    """Return the work that mounts the record, over what is left of it at its path if that is the case."""
    address = _address(server, record)

    def task(send: Send) -> None:
        options = mount.mount_options(
            record.share,
            msize=record.msize,
            cache=record.cache,
            posixacl=record.posixacl,
            read_only=record.read_only,
        )
        with mount_paths.walk(record.path, prefixes, make=True) as (above, made):
            found = _what_is_there(above, record)
            if found is not None and not _is_its(found, record, address):
                words = f"{record.path} has another mount, {found.kind} from {found.source}: choose another path"
                raise RequestError(wire.REFUSED, words)
            with mount.connect(address, timeout=timeout) as connected:
                keepalive.begin(connected)
                send({}, connected.fileno())
                if found is None and not record.has_writable_inside:
                    with mount_paths.opened(above, record.path) as target:
                        _attach(connected, address, f"/proc/self/fd/{target}", record, options)
                        try:
                            how = _require_all(options, record.path, record)
                        except RequestError:
                            mount_paths.unmount(record.path, prefixes, lazy=True)
                            raise
                else:
                    with _aside(directory) as aside:
                        _attach(connected, address, aside, record, options)
                        how = _require_all(options, aside, record)
                        if record.has_writable_inside:
                            _make_read_only(aside, record)
                        if found is not None:
                            mount_paths.unmount(record.path, prefixes, lazy=True)
                        _bind(aside, above, record)
        send({"done": True, "made": made, "chosen": how})

    return _telling(task)


def _what_is_there(above: int, record: AgentMount) -> Mounted | None:
    """Return what is mounted at the path, None if nothing is. The directory itself is not touched."""
    with mount_paths.opened(above, record.path) as target:
        if mount_paths.mount_number(target) == mount_paths.mount_number(above):
            return None
    found = mount_paths.mounted_at(record.path)
    if found is None:
        raise RequestError(wire.REFUSED, f"{record.path} has a mount that this mount namespace does not tell of")
    return found


def _attach(connected: socket.socket, address: ServerAddress, where: str, record: AgentMount, options: str) -> None:
    read_only = record.read_only and not record.has_writable_inside
    code = mount.attach(connected, str(address), where, options, read_only=read_only, suid=record.suid, dev=record.dev)
    if code:
        why = mount.why_not_mounted(code, record.share, record.cache)
        words = f"cannot mount share {record.share!r} of {address} on {record.path}: {why}"
        raise RequestError(wire.FAILED, words)


def _require_all(options: str, where: str, record: AgentMount) -> str:
    """Return what cache and msize came to. Raises `RequestError` when the kernel has passed over another option."""
    found = mount_paths.mounted_at(where)
    shown = "" if found is None else found.options
    why = mount.ignored(options, shown)
    if why:
        raise RequestError(wire.FAILED, f"cannot mount share {record.share!r} on {record.path}: {why}")
    return mount.chosen(options, shown)


@contextlib.contextmanager
def _aside(directory: str) -> Iterator[str]:
    """Give a directory where nobody looks; what is mounted there at the end is unmounted from there."""
    aside = tempfile.mkdtemp(prefix="aside-", dir=directory)
    try:
        yield aside
    finally:
        mount_paths.umount(aside, lazy=True)
        os.rmdir(aside)


def _make_read_only(aside: str, record: AgentMount) -> None:
    """Make what is mounted aside read-only, but not its file system, which is written through another mount of it."""
    code = make_read_only(aside, suid=record.suid, dev=record.dev)
    if code:
        raise RequestError(wire.FAILED, f"{record.path} cannot be made read-only: {os.strerror(code)}")


def _bind(aside: str, above: int, record: AgentMount) -> None:
    """Put what is mounted aside in its place. A dead mount stays there until then.

    It is bound there, as it is: moving it would need a mount that is not shared (mount(2)).
    """
    with mount_paths.opened(above, record.path) as target:
        code = bind(aside, f"/proc/self/fd/{target}")
    if code:
        raise RequestError(wire.FAILED, f"{record.path}: {os.strerror(code)}")


def bind(source: str, target: str) -> int:
    """Bind a mount to a second place with mount(2), and return 0 or the errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    failed = libc.mount(os.fsencode(source), os.fsencode(target), None, ctypes.c_ulong(_MS_BIND), None)
    return ctypes.get_errno() if failed else 0


def make_read_only(path: str, *, suid: bool, dev: bool) -> int:
    """Have nobody write through a mount, though its file system is writable (mount(2)); return 0 or the errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    flags = _MS_REMOUNT | _MS_BIND | mount.flags(read_only=True, suid=suid, dev=dev)
    failed = libc.mount(None, os.fsencode(path), None, ctypes.c_ulong(flags), None)
    return ctypes.get_errno() if failed else 0


def unmounting(record: AgentMount, prefixes: list[str], *, lazy: bool) -> Callable[[Send], None]:
    """Return the work that unmounts the record and removes the directories that were made for it."""

    def task(send: Send) -> None:
        mount_paths.unmount(record.path, prefixes, lazy=lazy)
        mount_paths.remove_made(record.made)
        send({"done": True})

    return _telling(task)


def reading(paths: list[str]) -> Callable[[Send], None]:
    """Return the work that reads each of the mounts and tells, one by one, how that went."""

    def task(send: Send) -> None:
        for path in paths:
            began = time.monotonic()
            result: dict[str, object] = {"status": "ok"}
            try:
                read(path)
            except OSError as error:
                result = {"status": "dead" if error.errno in _DEAD else "failing", "error": error.strerror}
            send({**result, "seconds": time.monotonic() - began})

    return task


def read(path: str) -> None:
    """Ask the server about the mount's root and for its first entry. Raises `OSError`, or hangs."""
    os.statvfs(path)
    with os.scandir(path) as entries:
        next(entries, None)


def _telling(task: Callable[[Send], None]) -> Callable[[Send], None]:
    """Return the task with its errors told as messages."""

    def told(send: Send) -> None:
        try:
            task(send)
        except RequestError as error:
            send({"error": [error.code, str(error)]})
        except mount.MountError as error:
            send({"error": [wire.FAILED, str(error)]})
        except OSError as error:
            with contextlib.suppress(OSError):
                send({"error": [wire.FAILED, f"{error.filename or 'mount'}: {error.strerror}"]})

    return told
