"""A vsock device for test guests under QEMU, with the unix sockets of Firecracker or Cloud Hypervisor on the host.

What lives here: `VsockDevice`: connections and who asked for them, its thread, and what tests may do to it. What must
not: the rings (`uvmshare.testing.vhost_user`), a connection's own state (`uvmshare.testing.vsock_streams`).

    with VsockDevice("/run/vm1.vsock", flavour="firecracker") as device:
        qemu = subprocess.Popen([..., *device.qemu_arguments(512)], pass_fds=[device.qemu_end.fileno()])

A guest that dials port N of CID 2 arrives at the unix socket ``/run/vm1.vsock_N``. Whoever connects to
``/run/vm1.vsock`` and writes ``CONNECT N`` reaches port N of the guest, and reads ``OK PORT`` first. So a file server
at ``firecracker:/run/vm1.vsock`` serves this guest as it would serve the monitor's.

`VsockDevice.cut`, `reset` and `forget` end connections in three ways, `stall` holds everything up, and `stats` tells
what happened. QEMU keeps the device's event queue itself and marks the device as one that cannot be migrated, so a
snapshot is not to be had with it; `forget` leaves a guest as a restored one is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final, Self, TypeVar

from uvmshare.testing.vhost_user import FrontEnd, FrontEndError, MalformedChain
from uvmshare.testing.vsock_streams import (
    FLAVOURS,
    HEADER,
    HOST_CID,
    SHUT_BOTH,
    STREAM,
    Key,
    Op,
    Overdrawn,
    Packet,
    VsockStats,
    VsockStream,
    ask_for_port,
    is_scattered,
    part,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from uvmshare.testing.vhost_user import Chain, Queue
    from uvmshare.testing.vsock_streams import FlavourName

__all__ = ["VsockDevice", "VsockStats"]

_T = TypeVar("_T")

_FIRST_PORT: Final = 1 << 30  # of the host's side, for connections that the host asks for; both monitors begin here
_LONGEST_COMMAND: Final = 32
_MOST_CONNECTIONS: Final = 1023
_TURN: Final = 256  # chains of each queue that are served before the sockets are looked at again
_VERB_DEADLINE: Final = 60.0


class VsockDevice:
    """The back end of one vhost-user-vsock device.

    Its own thread serves it between `start` and `close`; a test that wants to see each step calls `turn` instead.
    """

    def __init__(
        self,
        uds_path: str,
        *,
        flavour: FlavourName = "firecracker",
        cid: int = 3,
        patience: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Listen at `uds_path`, which must not exist. `cid` is the guest's.

        After `patience` seconds of `clock` a connection that the guest has not answered, or not let go of, is ended;
        both monitors have 2. Raises `OSError` when it cannot listen there.
        """
        self.uds_path = uds_path
        self.qemu_end, control = socket.socketpair()
        """QEMU's end of the control socket."""
        self._flavour = FLAVOURS[flavour]
        self._cid = cid
        self._patience = patience
        self._clock = clock
        self._control = control
        self._front_end = FrontEnd(control, 2, struct.pack("<Q", cid), self._on_queue)
        self._to_guest, self._from_guest = self._front_end.queues
        self._kicks: set[int] = set()
        self._streams: dict[Key, VsockStream] = {}
        self._by_socket: dict[int, VsockStream] = {}
        self._asking: dict[int, tuple[socket.socket, bytes]] = {}
        """Connections of the host's that have not said which port they want, and what they said so far."""
        self._resets: deque[bytes] = deque()
        """Packets to the guest that belong to no connection."""
        self._turns: deque[VsockStream] = deque()
        """Those that may have something for the guest, each once."""
        self._deadlines: dict[Key, float] = {}
        self._last_port = _FIRST_PORT - 1
        self._stalled = False
        self._ended = False
        self._stats = VsockStats()
        self._thread: threading.Thread | None = None
        self._serving = False
        self._ordering = threading.Lock()  # guards the next, and whether they are served
        self._orders: deque[Callable[[], None]] = deque()
        try:
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listener.bind(uds_path)
        except BaseException:
            self._listener.close()
            self.qemu_end.close()
            control.close()
            raise
        self._listener.listen(128)
        self._listener.setblocking(False)  # noqa: FBT003  it takes no keyword
        self._woken, self._waking = socket.socketpair()
        self._epoll = select.epoll()
        for watched in (self._listener, self._control, self._woken):
            self._epoll.register(watched.fileno(), select.EPOLLIN)

    def qemu_arguments(self, memory_mib: int) -> list[str]:
        """Return what QEMU is to be told, for a machine with so much memory; it has to inherit `qemu_end`."""
        return [
            *("-object", f"memory-backend-memfd,id=ram,size={memory_mib}M,share=on", "-machine", "memory-backend=ram"),
            *("-chardev", f"socket,id=vsock,fd={self.qemu_end.fileno()}"),
            *("-device", "vhost-user-vsock-pci,chardev=vsock"),
        ]

    @property
    def flavour(self) -> FlavourName:
        """Whose ways it has; another one holds for connections that begin afterwards."""
        return self._flavour.name

    @flavour.setter
    def flavour(self, name: FlavourName) -> None:
        self._flavour = FLAVOURS[name]

    # Its thread

    def start(self) -> None:
        """Serve on a thread of its own, until `close` or until QEMU ends."""
        self._serving = True
        self._thread = threading.Thread(target=self._serve, name=f"vsock {self.uds_path}", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._ended:
            self.turn(None)
        with self._ordering:
            self._serving = False
        self._obey()

    def close(self) -> None:
        """End every connection and remove the socket file. Does nothing the second time."""
        if self._thread is not None:
            self._do(self._end)
            self._thread.join()
        else:
            self._end()
        if self._epoll.closed:
            return
        self._front_end.close()
        self._epoll.close()
        for end in (self._control, self.qemu_end, self._woken, self._waking):
            end.close()

    def __enter__(self) -> Self:
        if self._thread is None:
            self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _end(self) -> None:
        """End every connection, because the guest is gone."""
        if self._ended:
            return
        self._ended = True
        for stream in list(self._streams.values()):
            self._drop(stream)
        for asking, _ in self._asking.values():
            asking.close()
        self._asking.clear()
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.uds_path)

    def _do(self, work: Callable[[], _T]) -> _T:
        """Do it where nothing else is done meanwhile: on the thread, if there is one."""
        done: Future[_T] = Future()

        def obey() -> None:
            try:
                done.set_result(work())
            except BaseException as error:  # noqa: BLE001  whoever asked for it gets it
                done.set_exception(error)

        with self._ordering:
            if self._serving:
                self._orders.append(obey)
                self._waking.send(b"!")
            else:
                obey()
        return done.result(_VERB_DEADLINE)

    def _obey(self) -> None:
        while self._orders:
            self._orders.popleft()()

    # What tests do to it

    def cut(self, port: int | None = None) -> int:
        """End connections in order: the guest is told that neither more comes nor is taken, the host reads the end.

        With a `port`, those of that port on either side. Returns how many. The same for the next two.
        """
        return self._do(lambda: sum(1 for stream in self._chosen(port) if self._cut(stream)))

    def reset(self, port: int | None = None) -> int:
        """End connections with a reset to the guest; the host reads the end."""
        return self._do(lambda: sum(1 for stream in self._chosen(port) if self._kill(stream)))

    def forget(self, port: int | None = None) -> int:
        """End connections without a word to the guest, as when it is restored from a snapshot; the host reads the end.

        What the guest sends on one of them is answered with a reset, as the monitors do.
        """
        return self._do(lambda: sum(1 for stream in self._chosen(port) if self._drop(stream)))

    def stall(self) -> None:
        """Move nothing more in either direction, until `resume`."""
        self._do(lambda: setattr(self, "_stalled", True))

    def resume(self) -> None:
        """Go on after `stall`."""
        self._do(lambda: setattr(self, "_stalled", False))

    def stats(self) -> VsockStats:
        """Return what it has done so far."""
        return self._do(lambda: dataclasses.replace(self._stats, connections=len(self._streams)))

    def _chosen(self, port: int | None) -> list[VsockStream]:
        return [stream for stream in self._streams.values() if port is None or port in stream.key]

    # The loop

    def turn(self, timeout: float | None = 0.0) -> None:
        """Wait for at most so many seconds, and do what there is to do."""
        if self._deadlines:
            first = max(0.0, min(self._deadlines.values()) - self._clock())
            timeout = first if timeout is None else min(timeout, first)
        for descriptor, events in self._epoll.poll(timeout):
            self._on_event(descriptor, events)
        now = self._clock()
        for key in [key for key, deadline in self._deadlines.items() if deadline <= now]:
            del self._deadlines[key]
            if key in self._streams:
                self._kill(self._streams[key])
        if not self._stalled and not self._ended:
            self._pump()

    def _on_event(self, descriptor: int, events: int) -> None:
        if descriptor in self._by_socket:
            self._on_stream(self._by_socket[descriptor], events)
        elif descriptor in self._kicks:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(descriptor)
        elif descriptor in self._asking:
            self._on_command(descriptor)
        elif descriptor == self._woken.fileno():
            self._woken.recv(64)
            self._obey()
        elif self._ended:
            return
        elif descriptor == self._listener.fileno():
            self._accept()
        elif descriptor == self._control.fileno():
            try:
                there = self._front_end.receive()
            except FrontEndError:
                there = False
            if not there:
                self._end()

    def _on_queue(self, queue: Queue, old: int | None) -> None:
        """Watch the kicks of a queue, and no longer those that came by `old`."""
        if old is not None:
            self._kicks.discard(old)
            self._epoll.unregister(old)
        if queue.kick is not None:
            self._kicks.add(queue.kick)
            os.set_blocking(queue.kick, False)
            self._epoll.register(queue.kick, select.EPOLLIN)

    def _pump(self) -> None:
        """Move what can be moved now."""
        again = False
        for serve, queue in ((self._serve_guest, self._from_guest), (self._fill_guest, self._to_guest)):
            for _ in range(_TURN):
                try:
                    if not serve():
                        break
                except MalformedChain as error:
                    self._stats.malformed += 1
                    if error.head is not None:
                        queue.give(error.head, 0)
            else:
                again = True
            queue.notify()
        if again and self._thread is not None:
            self._waking.send(b"!")

    # From the guest

    def _serve_guest(self) -> bool:
        """Take one packet from the guest; return False when there is none."""
        if not self._from_guest.has_available():
            return False
        chain = self._from_guest.take()
        header = (
            b"".join(chain.readable)[: HEADER.size] if is_scattered(chain) else bytes(chain.readable[0][: HEADER.size])
        )
        if len(header) < HEADER.size:
            raise MalformedChain(chain.head, f"a packet of {len(header)} bytes")
        packet = Packet.decode(header)
        self._stats.from_guest += 1
        if packet.length > sum(map(len, chain.readable)) - HEADER.size:
            raise MalformedChain(chain.head, f"a packet that lacks some of its {packet.length} bytes")
        self._on_packet(packet, list(part(chain.readable, HEADER.size, packet.length)))
        self._from_guest.give(chain.head, 0)
        return True

    def _on_packet(self, packet: Packet, data: list[memoryview]) -> None:
        key = Key(packet.target_port, packet.source_port)
        stream = self._streams.get(key)
        if packet.target_cid != HOST_CID or packet.source_cid != self._cid:
            self._stats.malformed += 1
        elif packet.op == Op.RST:
            self._stats.resets_from_guest += 1
            if stream is not None:
                if not stream.open:
                    self._stats.refused += 1
                self._drop(stream)
        elif packet.kind != STREAM or stream is None:
            if packet.op == Op.REQUEST and packet.kind == STREAM:
                self._on_request(key, packet)
            else:
                self._refuse(key, packet.kind)
        else:
            stream.note(packet)
            self._on_stream_packet(stream, packet, data)
            self._schedule(stream)

    def _on_stream_packet(self, stream: VsockStream, packet: Packet, data: list[memoryview]) -> None:
        if not stream.open:
            if packet.op == Op.RESPONSE:
                self._established(stream)
            return
        match packet.op:
            case Op.RW:
                self._stats.bytes_from_guest += packet.length
                try:
                    stream.forward(data, packet.length)
                except Overdrawn:
                    self._stats.overdrawn += 1
                    self._kill(stream)
                except OSError:  # the host's program hung up
                    self._kill(stream)
            case Op.SHUTDOWN:
                stream.shut(packet.flags)
                if stream.unsent and stream.shut_by_guest == SHUT_BOTH:
                    self._expire(stream)
            case Op.CREDIT_UPDATE:
                self._stats.credit_updates += 1
            case Op.CREDIT_REQUEST:
                stream.owed.append((Op.CREDIT_UPDATE, 0))
            case _:
                self._stats.malformed += 1

    def _on_request(self, key: Key, packet: Packet) -> None:
        """Connect a guest to the unix socket of the port that it dialled."""
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # The monitors block here; a program that is behind with accepting is waited for, but not for ever.
            seconds, rest = divmod(self._patience, 1)
            connected.setsockopt(
                socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(seconds), int(rest * 1e6))
            )
            if len(self._streams) >= _MOST_CONNECTIONS:
                raise ConnectionRefusedError
            connected.connect(f"{self.uds_path}_{key.host}")
        except OSError:
            connected.close()
            self._stats.refused += 1
            self._refuse(key, STREAM)
            return
        self._stats.dialled_by_guest += 1
        self._adopt(VsockStream(key, connected, self._cid, self._flavour, dialled_by_host=False)).note(packet)

    # To the guest

    def _fill_guest(self) -> bool:
        """Put one packet into the guest; return False when there is none, or no room for one."""
        queue = self._to_guest
        if not self._resets and not self._turns:
            return False
        if not queue.has_available():
            return False
        if self._resets:
            chain = queue.take()
            self._put(chain, self._resets.popleft())
            self._stats.resets_to_guest += 1
            return True
        stream = self._turns.popleft()
        if self._streams.get(stream.key) is not stream:
            return True
        if stream.owed:
            op, flags = stream.owed.pop(0)
            self._tell(queue.take(), stream, op, flags)
        elif stream.has_data:
            if stream.credit():
                self._read(queue.take(), stream)
            else:
                self._stats.credit_requests += 1
                self._put(queue.take(), stream.ask_for_credit())
        self._schedule(stream)
        return True

    def _tell(self, chain: Chain, stream: VsockStream, op: Op, flags: int) -> None:
        self._put(chain, stream.header(op, flags=flags))
        if op == Op.RST:
            self._stats.resets_to_guest += 1
            self._drop(stream)
        elif op == Op.REQUEST or (op == Op.SHUTDOWN and flags == SHUT_BOTH):
            self._expire(stream)

    def _read(self, chain: Chain, stream: VsockStream) -> None:
        """Bring what the host's program has sent into the guest."""
        room = sum(map(len, chain.writable)) - HEADER.size
        if room <= 0:
            raise MalformedChain(chain.head, "a buffer that holds no packet")
        views = list(part(chain.writable, HEADER.size, min(room, stream.credit())))
        try:
            count = stream.read_into(views)
        except OSError:
            self._put(chain, stream.header(Op.RST))
            self._stats.resets_to_guest += 1
            self._drop(stream)
            return
        if count:
            self._stats.bytes_to_guest += count
            self._put(chain, stream.header(Op.RW, length=count), count)
        elif count == 0:
            stream.end_by_host()
            op, flags = stream.owed.pop(0)
            self._tell(chain, stream, op, flags)
        else:
            self._to_guest.put_back()

    def _put(self, chain: Chain, header: bytes, count: int = 0) -> None:
        """Give the guest a buffer back with a header in it, and so many bytes behind that are there already."""
        at = 0
        for view in chain.writable:
            piece = header[at : at + len(view)]
            view[: len(piece)] = piece
            at += len(piece)
        if at < HEADER.size:
            raise MalformedChain(chain.head, "a buffer that holds no header")
        self._to_guest.give(chain.head, HEADER.size + count)
        self._stats.to_guest += 1

    def _refuse(self, key: Key, kind: int) -> None:
        """Answer with a reset what belongs to no connection; a guest that takes none is not remembered for ever."""
        if len(self._resets) < _MOST_CONNECTIONS:
            packet = Packet(HOST_CID, self._cid, key.host, key.guest, 0, kind, Op.RST, 0, 0, 0)
            self._resets.append(packet.encode())

    # The host's side

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            connected, _ = self._listener.accept()
            if len(self._streams) + len(self._asking) >= _MOST_CONNECTIONS:
                connected.close()
                return
            connected.setblocking(False)  # noqa: FBT003  it takes no keyword
            self._asking[connected.fileno()] = connected, b""
            self._epoll.register(connected.fileno(), select.EPOLLIN)

    def _on_command(self, descriptor: int) -> None:
        """Read which port a connection of the host's wants: no byte more than the line."""
        connected, said = self._asking[descriptor]
        try:
            waiting = connected.recv(_LONGEST_COMMAND - len(said), socket.MSG_PEEK)
            line, end, _ = waiting.partition(b"\n")
            if waiting:
                said += connected.recv(len(line) + len(end))
        except BlockingIOError:
            return
        except OSError:
            waiting = b""
        port = ask_for_port(said)
        if waiting and not end and self._flavour.connect_in_pieces and len(said) < _LONGEST_COMMAND:
            self._asking[descriptor] = connected, said
            return
        del self._asking[descriptor]
        self._epoll.unregister(descriptor)
        if port is None or not waiting:
            self._stats.refused += 1
            connected.close()
            return
        while True:
            self._last_port = (self._last_port + 1) & (2 * _FIRST_PORT - 1) | _FIRST_PORT
            key = Key(self._last_port, port)
            if key not in self._streams:
                break
        self._adopt(VsockStream(key, connected, self._cid, self._flavour, dialled_by_host=True))

    def _adopt(self, stream: VsockStream) -> VsockStream:
        stream.socket.setblocking(False)  # noqa: FBT003  it takes no keyword
        self._streams[stream.key] = stream
        self._by_socket[stream.socket.fileno()] = stream
        edges = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
        self._epoll.register(stream.socket.fileno(), edges)
        self._schedule(stream)
        return stream

    def _established(self, stream: VsockStream) -> None:
        """Tell the host's program that the guest took its connection."""
        stream.open = True
        self._deadlines.pop(stream.key, None)
        self._stats.dialled_by_host += 1
        try:
            stream.socket.send(b"OK %d\n" % stream.key.host, socket.MSG_NOSIGNAL)
        except OSError:
            self._kill(stream)

    def _on_stream(self, stream: VsockStream, events: int) -> None:
        if events & select.EPOLLHUP:
            stream.hang_up()
        if events & select.EPOLLRDHUP:
            stream.at_end = stream.readable = True
        if events & select.EPOLLIN:
            stream.readable = True
        if events & select.EPOLLOUT and stream.unsent:
            try:
                stream.flush()
            except OSError:
                self._kill(stream)
                return
        self._schedule(stream)

    # Connections

    def _schedule(self, stream: VsockStream) -> None:
        """Let it have its turn, if it has something for the guest and is not waiting for one."""
        if stream.has_turn and stream not in self._turns and self._streams.get(stream.key) is stream:
            self._turns.append(stream)

    def _expire(self, stream: VsockStream) -> None:
        """Have it ended if it is still there after a while."""
        self._deadlines.setdefault(stream.key, self._clock() + self._patience)

    def _cut(self, stream: VsockStream) -> bool:
        stream.hang_up()
        stream.unsent.clear()
        stream.end_by_host()
        with contextlib.suppress(OSError):
            stream.socket.shutdown(socket.SHUT_RDWR)
        self._schedule(stream)
        return True

    def _kill(self, stream: VsockStream) -> bool:
        """End it with a reset to the guest."""
        self._refuse(stream.key, STREAM)
        return self._drop(stream)

    def _drop(self, stream: VsockStream) -> bool:
        """Forget it, and close the host's end."""
        if self._streams.get(stream.key) is not stream:
            return False
        del self._streams[stream.key]
        self._deadlines.pop(stream.key, None)
        del self._by_socket[stream.socket.fileno()]
        stream.socket.close()
        return True
