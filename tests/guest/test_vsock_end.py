"""The end of a share as a guest on vsock has it: what the server said last, and what a monitor makes of it."""

from __future__ import annotations

import errno
import sys
from typing import TYPE_CHECKING, NoReturn

import pytest
from tests.guest.test_vsock_device import GUEST_PORT, PORT, pair_of
from tests.processes import DEADLINE

from uvmshare.ninep import messages
from uvmshare.ninep.constants import NOTAG
from uvmshare.testing.vsock_streams import Op

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

from uvmshare.fileserver.mount.outbox import Outbox

if TYPE_CHECKING:
    from tests.guest.test_vsock_device import Flavour

    from uvmshare.testing.vsock_streams import Packet

LAST_WORD = messages.Rlerror(errno.EIO).encode(NOTAG)
REQUEST = messages.Tgetattr(0, 0).encode(1)


class Ended(BaseException):
    """In place of the end of a mount process."""


def end() -> NoReturn:
    raise Ended


@pytest.mark.parametrize("flavour", ["firecracker", "cloud-hypervisor"])
def test_a_monitor_drops_what_it_had_not_read_when_the_guest_sends_to_a_connection_that_ended(flavour: Flavour) -> None:
    """So they do it: a write that fails ends the connection with a reset (``send_pkt`` in ``csm/connection.rs``)."""
    with pair_of(flavour) as pair:
        host = pair.guest_dials()
        pair.device.stall()
        host.send(LAST_WORD)
        host.close()
        pair.send(Op.RW, REQUEST)
        pair.device.resume()
        assert pair.driver.ops() == [Op.RST]


@pytest.mark.parametrize("flavour", ["firecracker", "cloud-hypervisor"])
def test_a_guest_that_asks_on_reads_the_last_word_before_the_connection_ends(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pair_of(flavour) as pair:
        pair.driver.room = 100
        host = pair.guest_dials()
        reply = messages.Rread(bytes(300)).encode(2)
        came: list[tuple[Packet, bytes]] = []

        def as_time_passes(_: float) -> None:
            # The guest asks for something, and has room for what it was sent, as it has read that.
            pair.driver.forwarded = sum(len(data) for _, data in came)
            pair.send(Op.RW, REQUEST)
            came.extend(pair.driver.turn())

        monkeypatch.setattr("time.sleep", as_time_passes)
        monkeypatch.setattr("uvmshare.fileserver.mount.outbox.TELL_SECONDS", DEADLINE)
        host.send(reply)
        with pytest.raises(Ended):
            Outbox(host).end(end)
        host.close()
        pair.driver.send(Op.RW, REQUEST, host=PORT, guest=GUEST_PORT)
        came.extend(pair.driver.turn())
        assert b"".join(data for _, data in came) == reply + LAST_WORD
        assert came[-1][0].op in {Op.RST, Op.SHUTDOWN}
