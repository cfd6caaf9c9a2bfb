# The types of the compiled module, for those who check the Python side.

from collections.abc import Callable
from typing import Any

CONTRACT: int

class Loop:
    def __init__(self, plain: Any) -> None: ...
    def serve(self, start: int, end: int, msize: int, measured: bool) -> int: ...
    def run(self, start: int, end: int, msize: int) -> tuple[int, int, bool]: ...

def encode(
    raw: bytes,
    qid_base: int,
    most_inode: int,
    root_inode: int,
    qid_types: bytes,
    offset: int,
    directory: int,
    attribute: bytes,
    type_of: Callable[[bytes], int] | None,
) -> tuple[bytes, bytes, bytes] | None: ...
