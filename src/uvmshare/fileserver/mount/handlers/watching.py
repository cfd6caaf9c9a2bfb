"""What an agent in the guest asks of the server beside 9P: to be told when a directory that it holds has changed.

What lives here: the names of these questions, which are extended attributes that no file has. What must not: watching
(`watched`). A guest's kernel lets root alone read what begins with ``trusted.`` (xattr(7)), and passes it on as it is.

| Attribute | Of | Answer |
| --- | --- | --- |
| `trusted.uvmshare.begin` | the root | the version of this, and how many directories there may be; watches none yet |
| `trusted.uvmshare.events` | the root | the uid to pretend as; from now on names are told as well (`listening`) |
| `trusted.uvmshare.watch` | a directory | its number, and where it is below the root; it is watched from now on |
| `trusted.uvmshare.changes` | the root | what has happened, a line each, or "lost"; waits until there is some |

Where the server can watch nothing, these attributes are not there, as with every other server.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from uvmshare.fileserver.mount.fids import Changes, XattrValue
from uvmshare.fileserver.mount.watched import MOST_TOLD
from uvmshare.ninep import messages as m

if TYPE_CHECKING:
    from uvmshare.fileserver.mount.files.node import Node
    from uvmshare.fileserver.mount.session import Session

_QUESTIONS: Final = b"trusted.uvmshare."
_VERSION: Final = 1


def answer(session: Session, node: Node, name: bytes) -> XattrValue | Changes | None:
    """Return the answer to one of the questions; None for what is none of them. Raises `OSError`."""
    watched = session.watched
    if watched is None or not name.startswith(_QUESTIONS):
        return None
    question = name.removeprefix(_QUESTIONS)
    if question == b"watch":
        number, path = watched.add(node)
        return XattrValue(b"%d %s" % (number, path))
    if node.parent is not None:
        raise OSError(errno.ENODATA, "only the root has it")
    if question == b"begin":
        watched.begin()
        return XattrValue(b"%d %d" % (_VERSION, watched.most))
    if question == b"events":
        uid = watched.listen()
        session.began_pretending()  # from now on what changes something is noted as well (`noting`)
        return XattrValue(b"%d" % uid)
    if question == b"changes":
        return Changes(MOST_TOLD)
    raise OSError(errno.ENODATA, "no such question")


def read(session: Session, tag: int, offset: int, count: int) -> None:
    """Answer a Tread of `Changes`, at once or when there are some. Raises `OSError`.

    Linux's client reads on until nothing comes: what there was came with the first one.
    """
    assert session.watched is not None
    reply = m.Rread(b"").encode(tag) if offset else session.watched.wait(tag, count)
    if reply is not None:
        session.outbox.reply(reply)
