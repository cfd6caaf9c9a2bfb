"""The agent in a guest: ``uvmshare guest agent``. It mounts and unmounts what the host asks for.

What lives here: the command line, listening and dialling, and what may be asked. What must not: what is said on a
connection (`uvmshare.guest.session`), or mounts (`uvmshare.guest.table`). Standard library only (Python 3.9):
``uvmshare guest agent --print`` writes one file with all of it, which runs in a guest that has nothing but Python.

Who may ask: on vsock the host alone (CID 2); on a unix socket root and the agent's own user; on TCP whoever knows the
token. Without a token TCP takes everybody who reaches the port, so that off loopback it has to be asked for.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import os
import select
import signal
import socket
import stat
import sys
import time
from typing import TYPE_CHECKING, Any

from uvmshare.guest import mount, wire
from uvmshare.guest.bundle import bundle
from uvmshare.guest.loop import Child, Loop
from uvmshare.guest.mount import MountError, Parser, ServerAddress, make_directories, printable
from uvmshare.guest.session import HostSession
from uvmshare.guest.survey import survey
from uvmshare.guest.table import MountTable
from uvmshare.guest.wire import RequestError
from uvmshare.linux.boot import boot_id
from uvmshare.linux.credentials import credentials
from uvmshare.linux.loopback import is_loopback
from uvmshare.linux.notify import notify
from uvmshare.linux.sockets import make_room

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from uvmshare.guest.loop import Send

__all__ = ["Agent", "main"]

RELEASE = "0.1.0"
_HOST_CID = 2
_BACKLOG = 64
_MOST_STRANGERS = 16
"""Connections that have not said hello. Anybody may make them, so that they take no place of those who have: the oldest
goes."""
_LONGEST_QUOTE = 80
"""Characters of a request that an error says again."""
_MOST_DIGITS = 20
"""Of a share's name."""
_DIAL_FIRST = 0.1
_DIAL_LONGEST = 5.0
"""Seconds between two attempts to reach the host; the wait doubles from the first to the longest."""
_LONGEST_TIMEOUT = 600.0


class Agent:
    """The agent: sessions with the host, and the table of mounts."""

    def __init__(self, options: argparse.Namespace, token: str) -> None:
        self.loop = Loop()
        self.token = token
        self.sessions: dict[HostSession, None] = {}
        """The oldest first."""
        self._prefixes = [_prefix(given) for given in options.allow]
        self._server: ServerAddress = options.server
        self._peer_cid: int = options.peer_cid
        _make(options.state, 0o700, "--state")
        _require_own(options.state)
        self._lock = _lock(options.state)
        self._id = wire.new_nonce()
        self._table = MountTable(
            *(self.loop, self._server, self._prefixes, options.state),
            check_every=options.check_every,
            hung_after=options.hung_after,
            pins=options.pins,
            log=self.log,
        )

    def log(self, words: str) -> None:
        """Write a line on standard error, which systemd keeps."""
        sys.stderr.write(f"uvmshare guest agent: {printable(words)}\n")
        sys.stderr.flush()

    def run(self, *, listen: Sequence[ServerAddress], connect: Sequence[ServerAddress]) -> None:
        """Serve until a signal comes. Mounts stay: the next agent finds them again."""
        for address in listen:
            self._listen(address)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.loop.end())
        wake, woken = socket.socketpair()  # a signal that comes while nothing happens ends the wait
        for end in (wake, woken):
            end.settimeout(0)
        signal.set_wakeup_fd(woken.fileno())
        self.loop.watch(wake.fileno(), select.EPOLLIN, lambda _: _forget(wake.recv(64)))
        self._table.start()
        for address in connect:
            self._dial(address, _DIAL_FIRST)
        notify("READY=1")
        self.log(f"mounts below {', '.join(self._prefixes)}, from {self._server}")
        self.loop.run()

    def greeting(self) -> dict[str, Any]:
        """Return the first words, but for the nonce."""
        return {
            "uvmshare": "agent",
            "version": wire.VERSION,
            "agent": self._id,
            "boot": boot_id(),
            "token": bool(self.token),
            "allow": self._prefixes,
            "server": str(self._server),
            "release": RELEASE,
            "features": wire.FEATURES,
        }

    # ------------------------------------------------------------------ requests

    def carry_out(
        self, message: dict[str, Any], wanted: Callable[[], bool], answer: Callable[[Any, RequestError | None], None]
    ) -> None:
        """Begin a request. Raises `RequestError` for one that cannot be."""
        operation = message.get("op")
        if operation == "modify":
            self._modify(message, wanted, answer)
        elif operation == "list":
            answer([record.listed() for record in self._table.records.values()], None)
        elif operation == "health":
            self._table.health(_seconds(message.get("within", 1.0)), lambda found: answer(found, None))
        elif operation == "report":
            report = {**survey(self._prefixes), "release": RELEASE, "server": str(self._server)}
            self._table.health(1.0, lambda found: answer({**report, "mounts": found}, None))
        elif operation == "ping":
            answer({"changes": self._table.changes}, None)
        else:
            raise RequestError(wire.INVALID, f"there is no request {_quoted(operation)}; this is uvmshare {RELEASE}")

    def _modify(
        self, message: dict[str, Any], wanted: Callable[[], bool], answer: Callable[[Any, RequestError | None], None]
    ) -> None:
        request, options = message.get("request"), message.get("options", {})
        if not isinstance(request, dict) or not isinstance(options, dict):
            raise RequestError(wire.INVALID, "modify needs a request document")
        if request.get("ResourceType") != "MappedDirectory":
            raise RequestError(
                wire.INVALID, f"ResourceType {_quoted(request.get('ResourceType'))}: want MappedDirectory"
            )
        settings = request.get("Settings")
        if not isinstance(settings, dict):
            raise RequestError(wire.INVALID, "a MappedDirectory request needs Settings")
        fields = _fields(settings, options)
        timeout = _seconds(message.get("timeout", 30.0))
        kind = request.get("RequestType")
        if kind == "Add":
            self._table.add(fields, timeout, wanted, answer)
        elif kind == "Remove":
            self._table.remove(fields, timeout, wanted, answer, lazy=options.get("lazy") is True)
        else:
            raise RequestError(wire.INVALID, f"RequestType {_quoted(kind)}: want Add or Remove")

    # ------------------------------------------------------------------ the host's connections

    def _listen(self, address: ServerAddress) -> None:
        listening = _bind(address)
        listening.listen(_BACKLOG)
        listening.settimeout(0)
        self.loop.watch(listening.fileno(), select.EPOLLIN, lambda _: self._accept(listening))
        self.log(f"listening on {address.kind}:{_bound(address, listening)}")

    def _accept(self, listening: socket.socket) -> None:
        try:
            connected, peer = listening.accept()
        except OSError:  # it hung up before it was taken, or there are too many descriptors
            return
        why = self._unwelcome(connected, peer)
        if why:
            self.log(f"a connection was refused: {why}")
            connected.close()
            return
        self._begin(connected, lambda: None)

    def _begin(self, connected: socket.socket, ended: Callable[[], None]) -> HostSession:
        strangers = [session for session in self.sessions if not session.client]
        if len(strangers) >= _MOST_STRANGERS:
            strangers[0].close()
        session = HostSession(self, connected, ended)
        if session.open:
            self.sessions[session] = None
        return session

    def _unwelcome(self, connected: socket.socket, peer: Any) -> str:
        """Say why this peer may not ask; "" when it may."""
        if connected.family == socket.AF_UNIX:
            uid = credentials(connected).uid
            return "" if uid in (0, os.geteuid()) else f"uid {uid} is neither root nor the agent's"
        if connected.family in (socket.AF_INET, socket.AF_INET6):
            return ""
        return "" if peer[0] == self._peer_cid else f"CID {peer[0]} is not the host's"

    def _dial(self, address: ServerAddress, delay: float) -> None:
        """Reach the host, and again when the connection ends. Dialling may wait, so a child does it."""
        sessions: list[HostSession] = []

        def dial(send: Send) -> None:
            with contextlib.suppress(MountError), mount.connect(address, timeout=10.0) as connected:
                send({}, connected.fileno())

        def dialled(_: object, descriptors: list[int]) -> None:
            connected = socket.socket(fileno=descriptors[0])
            began = time.monotonic()
            sessions.append(self._begin(connected, lambda: again(time.monotonic() - began)))

        def again(lasted: float) -> None:
            """Dial again, soon after a connection that was one; a host that cuts each of them is not asked for ever."""
            self._dial_later(address, _DIAL_FIRST if lasted >= _DIAL_LONGEST else min(2 * delay, _DIAL_LONGEST))

        def ended() -> None:
            if not sessions:
                self._dial_later(address, min(2 * delay, _DIAL_LONGEST))

        try:
            Child(self.loop, dial, dialled, ended)
        except OSError:  # there are too many processes
            ended()

    def _dial_later(self, address: ServerAddress, delay: float) -> None:
        self.loop.later(delay, lambda: self._dial(address, delay))


def _fields(settings: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a record. Raises `RequestError` for those that cannot be."""
    share, port = settings.get("ShareName"), settings.get("Port")
    read_only = settings.get("ReadOnly", False)
    cache, msize = options.get("cache", "auto"), options.get("msize")
    if not (isinstance(share, str) and share.isascii() and share.isdigit() and len(share) <= _MOST_DIGITS):
        raise RequestError(wire.INVALID, f"ShareName {_quoted(share)}: want a decimal name")
    if not (type(port) is int and 0 < port < 1 << 32):
        raise RequestError(wire.INVALID, f"Port {_quoted(port)}: want the port of the file server")
    if not isinstance(read_only, bool):
        raise RequestError(wire.INVALID, f"ReadOnly {_quoted(read_only)}: want true or false")
    flags = {name: options.get(name, False) for name in ("suid", "dev", "posixacl", "events")}
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise RequestError(wire.INVALID, f"{name} {_quoted(value)}: want true or false")
    if not (isinstance(cache, str) and (msize is None or type(msize) is int)):
        words = f"cache {_quoted(cache)}, msize {_quoted(msize)}: want a word and a number"
        raise RequestError(wire.INVALID, words)
    if flags["events"] and cache == "loose":
        raise RequestError(
            wire.INVALID, "events with cache loose: its kernel would show old contents; want another cache"
        )
    try:
        mount.mount_options(share, msize=msize, cache=cache, posixacl=flags["posixacl"])
    except MountError as error:
        raise RequestError(wire.INVALID, str(error)) from error
    return {
        "path": settings.get("MountPath"),
        "port": port,
        "share": share,
        "read_only": read_only,
        "cache": cache,
        "msize": msize,
        **flags,
    }


def _forget(_: object) -> None:
    """Take it and do nothing."""


def _quoted(value: object) -> str:
    """Return what was said as an error may say it again."""
    return repr(value)[:_LONGEST_QUOTE]


def _seconds(value: object) -> float:
    if not isinstance(value, (int, float)) or value is True or not 0 < value <= _LONGEST_TIMEOUT:
        raise RequestError(wire.INVALID, f"{_quoted(value)}: want seconds, above 0 and at most {_LONGEST_TIMEOUT:g}")
    return float(value)


def _prefix(given: str) -> str:
    """Return the directory as the kernel calls it; it is made if need be."""
    _make(given, 0o777, "--allow")
    return os.path.realpath(given)


def _make(directory: str, mode: int, option: str) -> None:
    """Make a directory unless it is there. Raises `MountError`."""
    try:
        make_directories(directory, mode)
    except OSError as error:
        message = f"{directory} cannot be made: {error.strerror}: give another directory with {option}"
        raise MountError(message) from error


def _require_own(directory: str) -> None:
    """See that nobody else writes what is kept there: it says what is mounted again. Raises `MountError`."""
    found = os.stat(directory)
    if found.st_uid != os.geteuid():
        why = f"is uid {found.st_uid}'s, who could say there what is mounted"
    elif found.st_mode & 0o022:
        why = f"can be written to by others (mode {stat.S_IMODE(found.st_mode):o}), who could say there what is mounted"
    else:
        return
    message = f"{directory} {why}: give a directory of your own with --state"
    raise MountError(message)


def _lock(directory: str) -> int:
    """Hold the directory as long as this process lives. Raises `MountError` when another agent does.

    A record lock is this process's alone: its children would hold an flock(2) until they have closed their descriptors,
    and an agent that was killed just then could not be started again.
    """
    descriptor = os.open(os.path.join(directory, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        pid = os.read(descriptor, 20).decode("ascii", "replace").strip()
        message = f"another agent (pid {pid or '?'}) has {directory}: end it, or give this one another --state"
        raise MountError(message) from error
    os.ftruncate(descriptor, 0)
    os.write(descriptor, str(os.getpid()).encode())
    return descriptor


def _bind(address: ServerAddress) -> socket.socket:
    try:
        if address.kind == "unix":
            _remove_dead(address.place)
            bound = socket.socket(socket.AF_UNIX)
            bound.bind(address.place)
        elif address.kind == "vsock":
            bound = socket.socket(socket.AF_VSOCK)
            bound.bind((socket.VMADDR_CID_ANY, address.port))
        else:
            family = socket.AF_INET6 if ":" in address.place else socket.AF_INET
            bound = socket.create_server((address.place, address.port), family=family)
    except OSError as error:
        message = f"cannot listen on {address}: {_why_not_bound(error)}"
        raise MountError(message) from error
    return bound


def _remove_dead(path: str) -> None:
    """Remove what an agent left that was killed. Raises `OSError` when anything else is there."""
    above, name = os.path.split(os.path.abspath(path))
    directory = os.open(above, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        make_room(directory, name, os.geteuid())
    finally:
        os.close(directory)


def _why_not_bound(error: OSError) -> str:
    if error.errno in (errno.EAFNOSUPPORT, errno.ENODEV):
        return "this kernel has no vsock: load vmw_vsock_virtio_transport (hv_sock on Hyper-V)"
    return error.strerror or str(error)


def _bound(address: ServerAddress, listening: socket.socket) -> str:
    name = listening.getsockname()
    return str(name) if address.kind == "unix" else f"{address.place}:{name[1]}"


# ---------------------------------------------------------------------- the command line


def _address(text: str) -> ServerAddress:
    kind, _, rest = text.partition(":")
    if kind == "vsock" and rest.isascii() and rest.isdigit():
        return ServerAddress("vsock", "2", int(rest))
    try:
        return mount.parse_address(text)
    except MountError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _directory(text: str) -> str:
    """Return an absolute path. An empty one would be the working directory, or everything."""
    if not text.startswith("/"):
        message = f"{text!r}: want a directory as an absolute path"
        raise argparse.ArgumentTypeError(message)
    return text


def _file(text: str) -> str:
    if not text:
        message = "it is empty: give a file, or leave the option out"
        raise argparse.ArgumentTypeError(message)
    return text


def _count(text: str) -> int:
    """Return a whole number from 0 on."""
    if not (text.isascii() and text.isdigit() and len(text) < _MOST_DIGITS):
        message = f"{text!r}: want a whole number, 0 or more"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def _parser(program: str) -> argparse.ArgumentParser:
    parser = Parser(
        prog=program,
        description="Mount and unmount shares as the host asks, and mount lost ones again. Needs root.",
        epilog=f"""examples:
  {program}                                   on vsock port {wire.DEFAULT_PORT}, for the host alone
  {program} --allow /mnt --allow /srv         mounts there, and nowhere else
  {program} --listen tcp:10.0.2.15:{wire.DEFAULT_PORT} --server tcp:10.0.2.2 --token-file /etc/uvmshare-token
  {program} --print > uvmshare-guest          one file for guests that have only Python
  {program} --connect vsock:2:{wire.DEFAULT_PORT}              dials the host instead
Mounts stay when the agent ends; the next one finds them again.""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    where = "vsock:PORT, tcp:HOST:PORT or unix:PATH"
    add = parser.add_argument
    add("--listen", action="append", type=_address, metavar="ADDRESS", help=f"{where} (vsock:{wire.DEFAULT_PORT})")
    where_to = "dial the host at this address, and again when the connection ends"
    add("--connect", action="append", type=_address, metavar="ADDRESS", help=where_to)
    server = ServerAddress("vsock", "2", mount.DEFAULT_PORT)
    where = "where the file server is; each request names its port (vsock:2)"
    add("--server", type=_address, default=server, metavar="ADDRESS", help=where)
    where = "mount below it and nowhere else (/run/uvmshare)"
    add("--allow", action="append", type=_directory, metavar="DIRECTORY", help=where)
    where = "a file with the secret that the host must know; or put the secret into UVMSHARE_AGENT_TOKEN"
    add("--token-file", type=_file, metavar="FILE", help=where)
    add("--no-token", action="store_true", help="on TCP off loopback, let in anybody who reaches the port")
    where = "where the agent writes down its mounts (%(default)s)"
    add("--state", default="/run/uvmshare-agent", type=_directory, metavar="DIRECTORY", help=where)
    add(
        "--check-every",
        type=mount.seconds,
        default=2.0,
        metavar="SECONDS",
        help="how often to read every mount (%(default)s)",
    )
    what = "cut a mount that could not be read for this long, and mount it again; 0: never (%(default)s)"
    add("--hung-after", type=mount.seconds, default=60.0, metavar="SECONDS", help=what)
    what = (
        "hold at most this many directories of each mount, such as 2048, so that inotify works on them "
        "(%(default)s; 2048 for mounts with events)"
    )
    add("--pins", type=_count, default=0, metavar="NUMBER", help=what)
    add("--print", action="store_true", help="write one file with all of this, to be copied into guests, and end")
    add("--peer-cid", type=int, default=_HOST_CID, help=argparse.SUPPRESS)
    return parser


def _token(options: argparse.Namespace) -> str:
    token = os.environ.get("UVMSHARE_AGENT_TOKEN", "")
    if options.token_file is not None:
        try:
            with open(options.token_file, encoding="utf-8") as file:
                token = file.read().strip()
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            message = f"the token cannot be read from {options.token_file}: {why}: name the file with the secret"
            raise MountError(message) from error
        if not token:
            message = f"{options.token_file} is empty: put a secret into it"
            raise MountError(message)
    if not token and not options.no_token:
        for address in options.listen:
            if address.kind == "tcp" and not is_loopback(address.place):
                message = (
                    f"whoever reaches {address} could mount and unmount here: give a --token-file, "
                    f"or say --no-token if nobody else can reach it"
                )
                raise MountError(message)
    return token


def main(arguments: Sequence[str], *, program: str = "uvmshare guest agent") -> int:
    """Run the agent as the command line says and return the exit status: 0 ended by a signal, 1 it could not start.

    A command line that cannot be ends the program with status 2. Errors are one line on standard error.
    """
    options = _parser(program).parse_args(arguments)
    if options.print:
        sys.stdout.buffer.write(bundle())
        sys.stdout.flush()
        return 0
    options.connect = options.connect or []
    options.listen = options.listen or ([] if options.connect else [_address(f"vsock:{wire.DEFAULT_PORT}")])
    options.allow = options.allow or ["/run/uvmshare"]
    try:
        Agent(options, _token(options)).run(listen=options.listen, connect=options.connect)
    except MountError as error:
        sys.stderr.write(f"{program}: {printable(str(error))}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"{program}: {printable(str(error.filename or 'cannot start'))}: {error.strerror}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], program=os.path.basename(sys.argv[0])))
