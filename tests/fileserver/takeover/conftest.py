"""A supervisor that dies, and the one that takes over: the place where that happens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.fileserver.takeover.harness import Place

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def place() -> Iterator[Place]:
    made = Place()
    yield made
    made.close()
