"""On Windows every public name can be imported, and what is Linux's says so in one line when it is called."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

import uvmshare
from uvmshare.errors import UnsupportedPlatform


# Under Wine the package is a source tree that nobody installed, so there is no version to read.
@pytest.mark.parametrize("name", [each for each in uvmshare.__all__ if each != "__version__"])
def test_every_public_name_can_be_imported(name: str) -> None:
    if name in {"Client", "AsyncClient"} and find_spec("httpcore") is None:
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'uvmshare\[daemon\]'"):
            getattr(uvmshare, name)
    else:
        assert getattr(uvmshare, name) is not None


def test_what_is_linuxs_says_so_when_it_is_called() -> None:
    for call in (
        lambda: uvmshare.FileServer(listen=["tcp:127.0.0.1:0"]),
        lambda: uvmshare.FileServer.connect("C:\\run"),
        lambda: uvmshare.serve(listen=["tcp:127.0.0.1:0"]),
    ):
        with pytest.raises(UnsupportedPlatform, match="runs on Linux") as refused:
            call()
        assert "\n" not in str(refused.value)
