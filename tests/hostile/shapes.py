"""Messages made of their own fields, with extreme values in each; and what any of them must be answered.

What lives here: the values, and how messages are made and sent. What must not: what a test does with them.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from uvmshare.errors import LocalProtocolError
from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import NOFID

if TYPE_CHECKING:
    from collections.abc import Iterator

    from uvmshare.testing.client import NinePClient

__all__ = [
    "DATA",
    "FID_FIELDS",
    "NAMES",
    "NUMBERS",
    "PLAIN",
    "REQUESTS",
    "VALUES",
    "answered",
    "forget",
    "kind_of",
    "shapes",
]

REQUESTS: Final = {number: cls for number, cls in m.BY_TYPE.items() if cls.__name__.startswith("T")}
FID_FIELDS: Final = {"fid", "newfid", "dfid", "dirfd", "olddirfid", "newdirfid", "afid"}

NUMBERS: Final = (0, 1, 0x7F, 0xFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
NAMES: Final = (
    *(b"", b".", b"..", b"/", b"a/b", b"/etc/passwd", b"../outside/canary", b"canary", b"\xff\xfe\x80", b"\n", b" "),
    *(b"x" * 255, b"x" * 256, b"x" * 4096, b"x" * 65535),
    *(b"user.virtfs.mode", b"user.x", b"security.x", b"trusted.x", b"system.posix_acl_access", b"user."),
)
WALKS: Final = (
    (),
    (b"..",),
    (b"..",) * 16,
    (b".",),
    (b"",),
    (b"link", b"canary"),
    (b"absolute", b"canary"),
    (b"link", b"..", b"..", b"outside", b"canary"),
    (b"x" * 255,) * 16,
    (b"directory", b"..") * 8,
)
DATA: Final = (b"", b"x", bytes(65536))

VALUES: Final[dict[str, tuple[Any, ...]]] = {"int": NUMBERS, "bytes": NAMES, "tuple": WALKS, "data": DATA}
PLAIN: Final[dict[str, Any]] = {"int": 1, "bytes": b"made", "tuple": (b"file",), "data": b"data"}


def kind_of(cls: type[m.Message], name: str) -> str:
    if name == "data":
        return "data"
    return str(cls.__annotations__[name]).partition("[")[0]


def shapes(cls: type[m.Message], fid: int, spare: int) -> Iterator[m.Message]:
    """A message with `fid` in the place of each of its fids, and with each extreme value in each other field."""
    plain: dict[str, Any] = {
        name: spare if name == "newfid" else fid if name in FID_FIELDS else PLAIN[kind_of(cls, name)]
        for name in cls.__struct_fields__
    }
    yield cls(**plain)
    if "newfid" in plain:
        yield cls(**plain | {"newfid": fid})
        yield cls(**plain | {"newfid": NOFID})
    for name in plain:
        if name not in FID_FIELDS:
            for value in VALUES[kind_of(cls, name)]:
                yield cls(**plain | {name: value})
    yield cls(
        **{name: value if name in FID_FIELDS else VALUES[kind_of(cls, name)][-1] for name, value in plain.items()}
    )


def answered(client: NinePClient, message: m.Message) -> bool:
    """Send a message that is well formed: it must be answered, and the answer is its own or an errno.

    Returns False when the message does not fit its fields or msize, and was not sent.
    """
    try:
        frame = message.encode(0)
    except LocalProtocolError:
        return False  # the number is too large for this field
    if len(frame) > client.msize:
        return False
    number = None
    try:
        client.rpc(message)
    except OSError as error:
        number = error.errno or 0
    assert number is None or 0 < number < 4096, message
    return True


def forget(client: NinePClient, *fids: int) -> None:
    for fid in fids:
        with suppress(OSError):
            client.rpc(m.Tclunk(fid))
