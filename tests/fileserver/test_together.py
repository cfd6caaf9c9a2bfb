"""What an attach runs is brought together: functions that are there, which run as before when they were moved."""

from __future__ import annotations

import ctypes
import hashlib
import json
import subprocess
import sys
from textwrap import dedent
from typing import Final

import pytest

import attached
from uvmshare.fileserver.supervisor import together
from uvmshare.fileserver.supervisor.attached import ATTACHED
from uvmshare.fileserver.supervisor.together import bring_together, function_of


def _plain(number: int = 1, *, added: int = 1) -> int:
    return number + added


class _Kind:
    def __init__(self, number: int) -> None:
        self._number = number

    @property
    def asked(self) -> int:
        return self._number

    @classmethod
    def made(cls) -> _Kind:
        return cls(2)

    @staticmethod
    def said() -> str:
        return "as before"

    def counting(self) -> list[int]:
        return [self._number + each for each in range(3)]


_NAMES = ("_plain", "_Kind.__init__", "_Kind.asked", "_Kind.made", "_Kind.said", "_Kind.counting")


def test_each_function_of_ours_that_is_to_be_brought_together_is_there() -> None:
    gone = [
        f"{module}.{name}"
        for module, names in ATTACHED.items()
        for name in names
        if module.startswith("uvmshare.") and function_of(module, name) is None
    ]
    assert not gone, "tools/attached.py writes the list"


def test_nearly_all_that_an_attach_runs_is_to_be_brought_together() -> None:
    found = [(module, name) for module, names in attached.found().items() for name in names]
    ours = [(module, name) for module, name in found if module.startswith("uvmshare.")]
    assert ("uvmshare.fileserver.supervisor.shares", "ServedShares.begin") in ours
    assert ("uvmshare.fileserver.mount.serving", "Serving.run") in ours
    missing = [f"{module}.{name}" for module, name in ours if name not in ATTACHED.get(module, ())]
    assert len(missing) < len(ours) / 10, f"tools/attached.py writes the list, which lacks {missing}"


def test_what_was_moved_runs_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: _code(name) for name in _NAMES}
    monkeypatch.setattr(together, "ATTACHED", {__name__: _NAMES})
    bring_together()
    for name, code in before.items():
        assert _code(name) is not code
        assert _code(name) == code
    assert (_plain(), _plain(2, added=3)) == (2, 5)
    made = _Kind.made()
    assert (made.asked, made.said(), made.counting()) == (2, "as before", [2, 3, 4])


def test_a_name_that_is_not_there_or_no_function_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    code = _code("_plain")
    odd = {"no.such.module": ("f",), "sys": ("getsizeof",), __name__: ("_Kind", "_Kind.gone", "gone.asked", "_NAMES")}
    monkeypatch.setattr(together, "ATTACHED", odd)
    bring_together()
    assert _code("_plain") is code


def _code(name: str) -> object:
    function = function_of(__name__, name)
    assert function is not None
    return function.__code__


_LOADED: Final = """
    import sys

    import uvmshare.fileserver.mount.process
    import uvmshare.fileserver.supervisor.main
    from uvmshare.fileserver.digest import blake2b

    print(blake2b(b"name", digest_size=8).hexdigest(), "_hashlib" in sys.modules)
"""


def test_a_supervisor_loads_no_openssl_for_its_hash() -> None:
    digest = hashlib.blake2b(b"name", digest_size=8).hexdigest()
    command = [sys.executable, "-I", "-c", dedent(_LOADED)]
    assert subprocess.check_output(command, text=True) == f"{digest} False\n"


_HOLES: Final = """
    import json, sys

    from uvmshare.fileserver.supervisor import together

    together.ATTACHED = {}
    size = int(sys.argv[1])
    there = [bytes(size) for _ in range(4000)]
    del there[::20]
    if sys.argv[2] == "filled":
        together.bring_together()
    made = [bytes(size) for _ in range(50)]
    print(json.dumps([list(map(id, there)), list(map(id, made))]))
"""


def _made(size: int, how: str) -> tuple[list[int], list[int]]:
    """Return the addresses of objects that leave holes, and of those made later."""
    command = [sys.executable, "-I", "-c", dedent(_HOLES), str(size), how]  # no other malloc than the usual
    there, made = json.loads(subprocess.check_output(command))
    return there, made


def test_small_objects_that_are_made_later_lie_together_and_in_no_holes() -> None:
    pools = {how: len({address // 0x4000 for address in _made(100, how)[1]}) for how in ("left", "filled")}
    assert pools["left"] > 2, "this test makes no holes"
    assert pools["filled"] <= 2


def test_large_objects_that_are_made_later_lie_behind_all_others() -> None:
    there, made = _made(3000, "left")
    assert min(made) < max(there), "this test makes no holes"
    there, made = _made(3000, "filled")
    assert min(made) > max(there)


@pytest.mark.parametrize("lacks", ["mallinfo2", "sbrk"])
def test_a_c_library_that_tells_nothing_of_its_heap_keeps_its_holes(
    monkeypatch: pytest.MonkeyPatch, lacks: str
) -> None:
    class Library:
        def __getattr__(self, name: str) -> object:
            if name == lacks:
                raise AttributeError(name)
            return object()

    monkeypatch.setattr(together, "ATTACHED", {__name__: ("_plain",)})
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Library())
    code = _code("_plain")
    bring_together()
    assert _code("_plain") is not code
