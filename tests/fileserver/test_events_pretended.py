"""What is pretended to the reserved user of a mount: what was told it, and nothing else, whoever asks for what.

How the host's kernel tells of changes makes no difference to it, so ``make test`` tries one way.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from typing import TYPE_CHECKING

import pytest
from tests.fileserver.harness import WITHOUT_FANOTIFY
from tests.fileserver.test_events import Agent, agent
from tests.fileserver.test_watched import BEGIN, CHANGES, asked

from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import NOFID, NONUNAME, OpenFlag

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.fileserver.harness import Host, Refused

    from uvmshare.testing.client import NinePClient

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

__all__ = ["agent"]

pytestmark = pytest.mark.parametrize(
    "model",
    ["passthrough", pytest.param(WITHOUT_FANOTIFY, marks=pytest.mark.long)],
    ids=["fanotify", "inotify"],
)


def _there(top: Path) -> dict[str, object]:
    """Return all that a mistake could change."""
    found: dict[str, object] = {}
    for path in top.rglob("*"):
        state = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        about = stat.S_IMODE(state.st_mode), state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns
        found[str(path)] = (*about, content)
    return found


def test_what_was_told_is_pretended_once_and_nothing_changes_on_the_host(
    host: Host, agent: Callable[..., Agent], refused: Refused
) -> None:
    for each in ("d/sub", "d/old"):
        (host.root / each).mkdir(parents=True)
    for name in ("gone", "from", "f"):
        (host.root / "d" / name).write_text(name)
    told = agent("d")
    d = host.root / "d"
    told.settle(d)
    with host.at_once():
        (d / "new").write_text("content")
        (d / "dir").mkdir()
        (d / "gone").unlink()
        (d / "sub").rmdir()
        (d / "from").rename(d / "to")
    found: list[str] = []
    before = _there(host.root)
    pretend: dict[str, Callable[[NinePClient], object]] = {
        "Cf d/new": lambda guest: guest.clunk(guest.create("d/new", OpenFlag.WRONLY | OpenFlag.EXCL)),
        "Cd d/dir": lambda guest: guest.mkdir("d/dir"),
        "Df d/gone": lambda guest: guest.unlink("d/gone"),
        "Dd d/sub": lambda guest: guest.rmdir("d/sub"),
        "Rf d/from d/to": lambda guest: guest.rename("d/from", "d/to"),
    }
    while len(found) < len(pretend):
        lines = told.told()
        found += lines
        with told.as_ghost() as guest:
            for line in lines:
                first, *others = (word for word in line.split()[1:])
                assert guest.exists(first) == (line[0] in "DR")
                assert not any(guest.exists(other) for other in others)
                pretend[line](guest)
                assert guest.exists(first) == (line[0] == "C")
                assert all(guest.exists(other) for other in others)
                with refused(errno.EPERM):
                    pretend[line](guest)
    assert sorted(found) == sorted(pretend)
    assert _there(host.root) == before


def test_of_a_read_only_share_changes_are_pretended_and_nothing_is_written_as_any_user(
    host: Host, agent: Callable[..., Agent], refused: Refused
) -> None:
    d = host.root / "d"
    d.mkdir()
    (d / "f").write_text("content")
    (d / "gone").write_text("x")
    told = agent("d", read_only=True)
    told.settle(d)
    with host.at_once():
        (d / "new").write_text("new")
        (d / "gone").unlink()
    found: list[str] = []
    before = _there(host.root)
    while not {"Cf d/new", "Df d/gone"} <= set(found):
        lines = told.told()
        found += lines
        with told.as_ghost() as guest:
            for line in lines:
                if line == "Cf d/new":
                    fid = guest.create("d/new", OpenFlag.WRONLY | OpenFlag.EXCL)
                    with refused(errno.EROFS):
                        guest.write(fid, 0, b"written")
                    guest.clunk(fid)
                elif line == "Df d/gone":
                    guest.unlink("d/gone")
    with told.as_ghost() as guest, guest.walked("d/f") as fid:
        guest.ask(m.Tlopen(fid, OpenFlag.RDWR), m.Rlopen)
        assert guest.read(fid, 0, 100) == b"content"
        with refused(errno.EROFS):
            guest.write(fid, 0, b"written")
    with refused(errno.EROFS):
        told.guest.write_file("d/f", b"written")
    with refused(errno.EROFS):
        told.guest.unlink("d/f")
    with refused(errno.EROFS):
        told.guest.mkdir("d/made")
    assert _there(host.root) == before


def test_other_users_never_see_what_is_pretended(host: Host, agent: Callable[..., Agent]) -> None:
    (host.root / "d").mkdir()
    (host.root / "d" / "gone").write_text("x")
    told = agent("d")
    (host.root / "d" / "gone").rename(host.root / "out")
    assert told.told() == ["Df d/gone"]
    assert not told.guest.exists("d/gone")
    with host.at_once():
        (host.root / "d" / "new").write_text("x")
    assert told.told() == ["Cf d/new"]
    assert told.guest.exists("d/new")
    with told.as_ghost() as guest:
        assert not guest.exists("d/new")
        assert not guest.exists("d/gone"), "what was told before is over"


HOSTILE: dict[str, Callable[[NinePClient], object]] = {
    "create": lambda guest: guest.create("d/made"),
    "create over": lambda guest: guest.create("d/f"),
    "mkdir": lambda guest: guest.mkdir("d/made"),
    "symlink": lambda guest: guest.symlink("/etc", "d/made"),
    "mknod": lambda guest: guest.mknod("d/made", stat.S_IFREG | 0o600),
    "link": lambda guest: guest.link("d/f", "d/made"),
    "unlink": lambda guest: guest.unlink("d/f"),
    "rmdir": lambda guest: guest.rmdir("d/sub"),
    "rename": lambda guest: guest.rename("d/f", "d/made"),
    "truncate": lambda guest: guest.open("d/f", OpenFlag.WRONLY | OpenFlag.TRUNC),
}


@pytest.mark.parametrize("attempt", HOSTILE.values(), ids=HOSTILE)
def test_what_was_not_told_is_refused_to_the_reserved_user(
    host: Host, agent: Callable[..., Agent], attempt: Callable[[NinePClient], object], refused: Refused
) -> None:
    (host.root / "d" / "sub").mkdir(parents=True)
    (host.root / "d" / "f").write_text("kept")
    told = agent("d")
    before = _there(host.root)
    with told.as_ghost() as guest, refused(errno.EPERM):
        attempt(guest)
    assert _there(host.root) == before


def test_attributes_are_changed_by_nobody_who_is_pretended_to(host: Host, agent: Callable[..., Agent]) -> None:
    (host.root / "f").write_text("kept")
    told = agent("")
    before = _there(host.root)
    with told.as_ghost() as guest, guest.walked("f") as fid:
        guest.setattr(fid, mode=0o777, size=0, mtime_ns=1)
    assert _there(host.root) == before


def test_what_the_reserved_user_reads_and_writes_is_the_file_itself(host: Host, agent: Callable[..., Agent]) -> None:
    (host.root / "f").write_text("content")
    told = agent("")
    with told.as_ghost() as guest:
        assert guest.read_file("f") == b"content"
        fid = guest.open("f", OpenFlag.RDWR)
        # Who watches the file on the host does not hear of one that was open for writing.
        assert not any(flags & os.O_ACCMODE for flags in host.flags(host.root / "f"))
        guest.write(fid, 0, b"dirty p")  # a guest's kernel writes pages back through any fid of the file
        guest.clunk(fid)
    assert (host.root / "f").read_text() == "dirty p"


@pytest.mark.parametrize(("flags", "is_written"), [(OpenFlag.RDWR, True), (OpenFlag.RDWR | OpenFlag.APPEND, False)])
def test_a_programs_data_is_not_lost_because_nobody_may_open_the_file_any_more(
    host: Host, agent: Callable[..., Agent], refused: Refused, flags: int, *, is_written: bool
) -> None:
    """A guest's kernel chooses by which fid it writes back, and the program that has the file open may write it."""
    (host.root / "f").write_text("content")
    told = agent("")
    program = told.guest.open("f", flags)
    with told.as_ghost() as guest:
        repeating = guest.open("f", OpenFlag.WRONLY)
        (host.root / "f").rename(host.outside / "f")
        if is_written:
            assert guest.write(repeating, 0, b"dirty p") == 7
        else:  # it would be put at the end
            with refused(errno.ENOENT):
                guest.write(repeating, 0, b"dirty p")
        guest.clunk(repeating)
    told.guest.write(program, 7, b"!")
    told.guest.clunk(program)
    assert (host.outside / "f").read_text() == ("dirty p!" if is_written else "content!")


def test_the_reserved_user_gets_nowhere_that_others_do_not(
    host: Host, agent: Callable[..., Agent], refused: Refused
) -> None:
    (host.root / "secret").write_text("x")
    (host.root / "link").symlink_to(host.outside)
    told = agent("", hide=("secret",))
    with told.as_ghost() as guest:
        for path in ("secret", "missing", "secret/below"):
            with refused(errno.ENOENT):
                guest.walk(path)
        with pytest.raises(FileNotFoundError):  # it gets to the link and no further
            guest.walk("link/canary")
        with guest.walked("..") as fid:
            assert guest.getattr(fid).qid == guest.stat("").qid


def test_a_moved_name_that_is_hidden_by_now_is_not_reached(
    host: Host, agent: Callable[..., Agent], refused: Refused
) -> None:
    (host.root / "d").mkdir()
    (host.root / "a").write_text("x")
    told = agent("", "d", hide=("secret",))
    told.settle(host.root / "d")
    (host.root / "a").rename(host.root / "b")
    assert told.told() == ["Rf a b"]
    (host.root / "b").rename(host.root / "secret")
    with told.as_ghost() as guest, refused(errno.ENOENT):
        guest.walk("a")


def test_when_the_agent_begins_anew_nothing_of_before_is_pretended(
    host: Host, agent: Callable[..., Agent], refused: Refused
) -> None:
    (host.root / "gone").write_text("x")
    told = agent("")
    (host.root / "gone").unlink()
    assert told.told() == ["Df gone"]
    asked(told.guest, "", BEGIN)
    between = told.guest.new_fid()
    told.guest.ask(m.Tattach(between, NOFID, b"", told.name, told.uid), m.Rattach)
    for ghost in (told.ghost, between):  # an agent that another one has followed changes nothing
        told.ghost = ghost
        with told.as_ghost() as guest:
            assert not guest.exists("gone")
            with refused(errno.EPERM):
                guest.mkdir("made")
            with refused(errno.EPERM):
                guest.unlink("gone")
    assert not (host.root / "made").exists()
    again = Agent(told.guest, "")
    assert again.uid == told.uid
    (host.root / "new").touch()
    assert again.told() == ["Cf new"]


@pytest.mark.parametrize("by_name", [False, True], ids=["n_uname", "uname"])
def test_of_all_users_the_reserved_one_alone_is_pretended_to(
    host: Host, agent: Callable[..., Agent], refused: Refused, *, by_name: bool
) -> None:
    """However a client says which user it is, and however large the number."""
    told = agent("")
    guest = told.guest
    for uid in (0, 1, 0xFFFF, 0xFFFE, 1 << 31, 0xFFFFFFFE, told.uid & 0xFFFF, told.uid - 1, told.uid + 1, told.uid):
        guest.root = guest.new_fid()
        attach = m.Tattach(guest.root, NOFID, b"%d" % uid, told.name, NONUNAME if by_name else uid)
        guest.ask(attach, m.Rattach)
        if uid == told.uid:
            with refused(errno.EPERM):
                guest.mkdir(str(uid))
        else:
            guest.mkdir(str(uid))
    assert len([path for path in host.root.iterdir() if path.is_dir()]) == 9


@pytest.mark.parametrize("end", ["flush", "clunk", "version"])
def test_what_is_pretended_outlasts_a_read_that_is_taken_back_and_nothing_outlasts_a_version(
    host: Host, agent: Callable[..., Agent], refused: Refused, end: str
) -> None:
    told = agent("")
    guest = told.guest
    (host.root / "new").touch()
    assert told.told() == ["Cf new"]
    with guest.walked("") as fid:
        changes = guest.new_fid()
        guest.ask(m.Txattrwalk(fid, changes, CHANGES), m.Rxattrwalk)
    tag = guest.send(m.Tread(changes, 0, 4096))
    if end == "version":
        guest.version()
        guest.root = guest.attach(told.name)
        guest.ask(m.Tattach(ghost := guest.new_fid(), NOFID, b"", told.name, told.uid), m.Rattach)
        guest.root = ghost
        assert guest.exists("new")
        with refused(errno.EPERM):
            guest.unlink("new")
        return
    if end == "clunk":
        guest.clunk(changes)
    with told.as_ghost():
        assert not guest.exists("new")
        guest.clunk(guest.create("new", OpenFlag.WRONLY | OpenFlag.EXCL))
        assert guest.exists("new")
    assert not guest.flush(tag)
    (host.root / "other").touch()
    assert told.told() == ["Cf other"]
