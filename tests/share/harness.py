"""What the tests of the Manager share: options of directories that there are, and what they look at."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from uvmshare.share.options import AddOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvmshare.share.manager import Manager, ShareInfo
    from uvmshare.testing.fakes import FakeVM

HERE = Path(__file__).parent
ONE = AddOptions(HERE, read_only=True)
OTHER = AddOptions(HERE.parent, read_only=True)
WRITABLE = AddOptions(HERE)


async def until(condition: Callable[[], bool], step: float = 0) -> None:
    """Let one round of callbacks happen, or `step` seconds pass, until it is so."""
    while not condition():  # noqa: ASYNC110  what is waited for is inside the thing under test
        await asyncio.sleep(step)


def kinds(vm: FakeVM) -> list[tuple[str, str]]:
    """The calls that the VM was given."""
    return [(call.kind, call.name) for call in vm.calls]


def only(manager: Manager) -> ShareInfo:
    """The one share there is."""
    (info,) = manager.shares()
    return info
