"""What a guest reaches that has taken a mount process over: code of its own runs there, past every check of the server.

Each attempt is made in a process that was confined as a mount process is, in every security model, as root and as
nobody, and with parts of the confinement masked, as on older kernels. And each is made once where nothing confines it:
what fails there anyway would prove nothing.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.processes import kill
from tests.root import require_root

from uvmshare.hcs.schema import Plan9Share, Plan9ShareFlags

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

from tests.hostile import taken_over_scene, taken_over_table
from tests.hostile.taken_over import ATTEMPTS, NOBODY, Layers, Scene
from tests.hostile.taken_over_process import tried

from uvmshare.fileserver import syscalls
from uvmshare.fileserver.export import Export

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT_AND_NOBODY = [pytest.param(0, id="root"), pytest.param(NOBODY, id="nobody")]


@dataclass
class Stage:
    """A share and what lies outside, and how attempts are made there."""

    scene: Scene
    user: int
    model: str
    read_only: bool
    export: Export

    def unstopped(self, layers: Layers) -> list[str]:
        """Make every attempt that these layers are to stop; return those that worked nevertheless."""
        enclosed = layers.namespace
        attempts = [
            attempt
            for attempt in ATTEMPTS
            if attempt.is_stopped(layers, model=self.model, read_only=self.read_only, enclosed=enclosed)
        ]
        assert attempts or not layers.seccomp
        found = tried(self.export, self.scene, attempts, layers, user=self.user)
        assert found.enclosed == enclosed
        return [name for name, number in found.errnos.items() if number == 0]


@pytest.fixture
def stage() -> Iterator[Callable[..., Stage]]:
    """Set the stage for a user, a security model, and a kind of share."""
    with ExitStack() as made:

        def set_up(user: int, model: str, *, read_only: bool = False, allowed: tuple[str, ...] = ()) -> Stage:
            require_root("becoming nobody, and serving as root, needs root")
            top = Path(tempfile.mkdtemp(prefix="uvmshare-"))
            made.callback(shutil.rmtree, top)
            top.chmod(0o755)
            share, outside = taken_over_scene.build(top, user)
            flags = Plan9ShareFlags.LINUX_METADATA
            if read_only:
                flags |= Plan9ShareFlags.READ_ONLY
            if allowed:
                flags |= Plan9ShareFlags.RESTRICT_FILE_ACCESS
            document = Plan9Share(name="0", access_name="0", path=str(share), flags=int(flags), allowed_files=allowed)
            export = Export.open(document, model)
            made.callback(export.close)
            victim = taken_over_scene.start_victim(user)
            made.callback(os.waitpid, victim, 0)
            made.callback(kill, victim)
            kept = os.open(top, os.O_RDONLY | os.O_CLOEXEC)
            made.callback(os.close, kept)
            addresses = []
            for family, address in (
                (socket.AF_UNIX, os.fspath(outside / "socket")),
                (socket.AF_UNIX, f"\0{top.name}"),
                (socket.AF_INET, ("127.0.0.1", 0)),
            ):
                listening = made.enter_context(socket.socket(family))
                listening.bind(address)
                listening.listen()
                addresses.append(listening.getsockname())
            (outside / "socket").chmod(0o777)
            abstract = addresses[1].decode()
            scene = Scene(export.root, outside, victim, kept, addresses[0], abstract, addresses[2][1])
            return Stage(scene, user, model, read_only, export)

        yield set_up


@pytest.mark.parametrize("user", ROOT_AND_NOBODY)
def test_each_attempt_works_where_nothing_confines_it(stage: Callable[..., Stage], user: int) -> None:
    made = stage(user, "none")
    attempts = [each for each in ATTEMPTS if each.proves_itself and (user == 0 or not each.needs_root)]
    found = tried(made.export, made.scene, attempts, Layers(nothing=True), user=user)
    assert {name: os.strerror(number) for name, number in found.errnos.items() if number} == {}


@pytest.mark.parametrize("read_only", [False, True], ids=["writable", "read-only"])
@pytest.mark.parametrize(
    ("user", "model"),
    [(0, "mapped-xattr"), (0, "none"), (0, "passthrough"), (NOBODY, "mapped-xattr"), (NOBODY, "none")],
)
def test_nothing_is_reached_outside_the_share(
    stage: Callable[..., Stage], user: int, model: str, *, read_only: bool
) -> None:
    assert stage(user, model, read_only=read_only).unstopped(Layers()) == []


@pytest.mark.parametrize("user", ROOT_AND_NOBODY)
def test_nothing_is_reached_outside_the_directory_of_an_allow_list(stage: Callable[..., Stage], user: int) -> None:
    assert stage(user, "none", allowed=("inside",)).unstopped(Layers()) == []


@pytest.mark.parametrize("seccomp", [True, False], ids=["seccomp", "no seccomp"])
@pytest.mark.parametrize("namespace", [True, False], ids=["namespace", "no namespace"])
@pytest.mark.parametrize("user", ROOT_AND_NOBODY)
def test_what_is_left_of_the_confinement_on_older_kernels_stops_what_it_is_to_stop(
    stage: Callable[..., Stage], user: int, *, namespace: bool, seccomp: bool
) -> None:
    """Landlock by its ABI: none (before 5.13), 1, 2 (5.19), 3 (6.2), 4 (6.7), 5 (6.10), 6 (6.12)."""
    assert syscalls.landlock_abi() >= 6, "the test needs Linux 6.12, to have something to mask"
    for model in ("none", "passthrough") if user == 0 else ("none",):
        made = stage(user, model)
        for abi in range(7):
            layers = Layers(landlock=abi, namespace=namespace, seccomp=seccomp)
            assert made.unstopped(layers) == [], (model, abi)


def test_the_table_in_the_documentation_is_what_was_tried() -> None:
    page = (Path(__file__).parents[2] / "docs" / "security.md").read_text(encoding="utf-8").splitlines()
    start = page.index("| Attempt | Each of these stops it |") + 2
    assert page[start : start + len(taken_over_table.rows())] == taken_over_table.rows()
