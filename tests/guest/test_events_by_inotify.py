"""Events in a real guest, where the host refuses fanotify to the file server: inotify tells it what was changed.

What lives here: some rows of the table of changes, and that the guest's own changes are not repeated to it. What the
file server tells is in tests/fileserver/test_events_own.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.guest.test_agent import Bench
from tests.guest.test_events import LONG, QUICK, pinned, require_heard, until_heard
from tests.refusing import fanotify_refused

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

    from tests.guest.test_events import Change
    from tests.guest.test_pins import Pinned
    from tests.guest.transports import Transport

__all__ = ["pinned"]

pytestmark = [
    pytest.mark.guest,
    pytest.mark.long,
    pytest.mark.transports("firecracker", over=("firecracker",)),
]

ROWS = {**QUICK, **{name: LONG[name] for name in ("overwrite", "chmod", "rename a directory", "rm -r", "many at once")}}


@pytest.fixture(scope="module")
def bench(runner: asyncio.Runner, transport: Transport, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = Bench(runner, transport, tmp_path_factory.mktemp("inotify"))
    with fanotify_refused():
        made.run(made.start())
    yield made
    made.run(made.close())


@pytest.mark.parametrize(("change", "lines"), ROWS.values(), ids=ROWS)
def test_what_the_host_does_is_an_event_in_the_guest_by_inotify_too(
    pinned: Pinned, change: Change, lines: list[str]
) -> None:
    require_heard(pinned, change, lines)


def test_what_the_guest_does_itself_is_not_repeated_to_it(pinned: Pinned) -> None:
    bench, src = pinned.bench, pinned.host / "src"
    with pinned.listening("src"):
        bench.sh(
            f"cd {pinned.path}/src && echo 1 >own && echo 2 >>own && mkdir made && touch made/f && chmod 600 own "
            "&& mv own moved && ln moved twin && rm twin && rm -r made && dd if=/dev/zero of=large bs=1M count=2 2>&1"
        )
        (src / "new").touch()
        until_heard(pinned, "src/new CREATE")
    pins = bench.listed(pinned.path).pins
    assert pins is not None
    assert pins.events is not None
    assert (pins.events.repeated, pins.events.failed, pins.events.ended) == (1, 0, "")
