"""A name that the guest, or the host, puts to another use between a change of the host's and its repetition.

A guest's kernel repeats a change with what it has under the name. So what is no longer as the agent was told is
refused: or a file that a program has just made would be taken for the one that is gone, or would answer to the name of
another one.
"""

from __future__ import annotations

import errno
import sys
from typing import TYPE_CHECKING, Final

import pytest
from tests.fileserver.test_events import Agent
from tests.fileserver.test_watched import confined

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.fileserver.harness import Host, Refused

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

pytestmark = confined


NAMES: Final = ("gone", "from", "over", "under")


@pytest.fixture
def told(host: Host) -> Agent:
    """An agent that was told that gone was removed, from renamed to to, and over to under, which was there."""
    d = host.root / "d"
    d.mkdir()
    for name in NAMES:
        (d / name).write_text(name)
    share = host.share()
    Agent.name = share.encode()
    agent = Agent(host.connect(share), "d")
    agent.settle(d)
    with host.at_once():
        (d / "gone").rename(host.outside / "gone")
        (d / "from").rename(d / "to")
        (d / "over").rename(d / "under")
    assert sorted(agent.told()) == ["Df d/gone", "Rf d/from d/to", "Rf d/over d/under"]
    return agent


def repeat(told: Agent) -> Iterator[Callable[[], object]]:
    """What an agent does then."""
    yield lambda: told.guest.unlink("d/gone")
    yield lambda: told.guest.rename("d/from", "d/to")
    yield lambda: told.guest.rename("d/over", "d/under")


@pytest.mark.parametrize("by", ["the guest", "the host"])
def test_a_file_that_the_guest_has_under_a_name_by_now_is_not_taken_for_the_one_that_is_gone(
    host: Host, told: Agent, refused: Refused, by: str
) -> None:
    d = host.root / "d"
    guest, names = told.guest, ("gone", "from", "over")
    for name in names:
        guest.write_file(f"d/{name}", b"new") if by == "the guest" else (d / name).write_text("new")
    in_use = [guest.open(f"d/{name}") for name in names]
    with told.as_ghost():
        for each in repeat(told):
            with refused(errno.EPERM):
                each()
    for fid in in_use:
        assert guest.read(fid, 0, 100) == b"new"
        guest.clunk(fid)
    with told.as_ghost():  # what the guest's kernel has under these names now is what it had before
        for each in repeat(told):
            each()
    assert all(guest.read_file(f"d/{name}") == b"new" for name in names)


def test_a_file_that_has_replaced_a_renamed_one_does_not_get_its_name(
    host: Host, told: Agent, refused: Refused
) -> None:
    told.guest.write_file("d/new", b"new")
    told.guest.rename("d/new", "d/to")
    (host.root / "d" / "under").unlink()
    with told.as_ghost():
        unlink, *renames = repeat(told)
        for each in renames:
            with refused(errno.EPERM):
                each()
        unlink()
    assert told.guest.read_file("d/to") == b"new"


def test_what_the_host_itself_put_in_its_place_before_it_was_told_is_no_obstacle(host: Host, told: Agent) -> None:
    """As logs are rotated, and a file becomes a directory."""
    d = host.root / "d"
    with told.as_ghost():
        for each in repeat(told):
            each()
    with host.at_once():
        (d / "to").rename(d / "to.1")
        (d / "to").write_text("the next one")
        (d / "under").unlink()
        (d / "under").mkdir()
    lines: list[str] = []
    while len(lines) < 4:
        said = told.told()
        lines += said
        with told.as_ghost() as guest:
            for line in said:
                what, *names = line.split()
                if what == "Rf":
                    guest.rename(*names)
                elif what == "Df":
                    guest.unlink(*names)
                elif what == "Cd":
                    guest.mkdir(names[0])
                else:
                    guest.clunk(guest.create(names[0]))
    assert sorted(lines) == ["Cd d/under", "Cf d/to", "Df d/under", "Rf d/to d/to.1"]
