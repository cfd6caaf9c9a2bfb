"""A shared directory is replaced on the host: who asks next gets what is there now, and who had the old one is told."""

from __future__ import annotations

import os
import subprocess
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from uvmshare import errors
from uvmshare.daemon import fates
from uvmshare.directory import fate_of
from uvmshare.testing.client import NinePClient as Guest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.daemon.harness import Home

    from uvmshare.daemon.documents import Vm


def names_in(vm: Vm, share: str) -> list[str]:
    with Guest.connect(vm.addresses[0], share) as guest:
        return sorted(map(os.fsdecode, guest.listdir("")))


def made(path: str, content: str) -> str:
    os.mkdir(path)
    with open(f"{path}/{content}", "w", encoding="ascii"):
        pass
    return path


def emptied(path: str) -> None:
    for name in os.listdir(path):
        os.unlink(f"{path}/{name}")
    os.rmdir(path)


def seen(home: Home) -> dict[str, tuple[str, list[str]]]:
    with home.client() as client:
        return {
            each.name: (each.directory, [reference.owner for reference in each.references])
            for each in client.shares("vm")
        }


def told(home: Home) -> list[tuple[str | None, str | None, object]]:
    with home.client() as client:
        events = [event for event in client.events(since="0", follow=False) if event is not None]
    return [(e.share, e.owner, e.detail["directory"]) for e in events if e.kind == "share.directory"]


@contextmanager
def tmpfs_at(path: str) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "ours", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", path], check=False, capture_output=True)


def test_a_directory_that_is_made_anew_is_a_share_of_its_own(home: Home) -> None:
    path = made(f"{home.folder}/ws", "old")
    with home.running() as daemon:
        vm = daemon.add_vm()
        first = daemon.add_share(path, owner="job-1")
        emptied(path)
        assert seen(home) == {first.name: ("gone", ["job-1"])}
        made(path, "new")
        second = daemon.add_share(path, owner="job-2")
        assert second.name != first.name
        assert names_in(vm, second.name) == ["new"]
        assert seen(home) == {first.name: ("replaced", ["job-1"]), second.name: ("there", ["job-2"])}
        # The same job again, for what is there now, holds it once.
        assert daemon.add_share(path, owner="job-2").name == second.name
        assert told(home) == [(first.name, "job-1", "gone"), (first.name, "job-1", "replaced")]
        with home.client() as client:
            client.shares.release("vm", first.name, owner="job-1")
        assert seen(home) == {second.name: ("there", ["job-2"])}


def test_after_a_swap_by_renaming_each_owner_has_the_directory_that_was_asked_for(home: Home) -> None:
    path, aside = made(f"{home.folder}/ws", "old"), made(f"{home.folder}/next", "new")
    with home.running() as daemon:
        vm = daemon.add_vm()
        first = daemon.add_share(path, owner="job-1")
        os.rename(path, f"{home.folder}/previous")
        os.rename(aside, path)
        second = daemon.add_share(path, owner="job-2")
        assert names_in(vm, first.name) == ["old"]
        assert names_in(vm, second.name) == ["new"]
    with home.running() as daemon:  # and so it is in the next daemon's time
        assert seen(home) == {first.name: ("replaced", ["job-1"]), second.name: ("there", ["job-2"])}
        assert daemon.add_share(path, owner="job-3").name == second.name
        os.rename(path, aside)
        os.rename(f"{home.folder}/previous", path)
        assert daemon.add_share(path, owner="job-4").name == first.name


def test_what_is_mounted_over_a_path_is_shared_and_what_is_unmounted_is_not(home: Home) -> None:
    path = made(f"{home.folder}/ws", "below")
    with home.running() as daemon, ExitStack() as mounts:
        vm = daemon.add_vm()
        below = daemon.add_share(path, owner="job-1")
        mounts.enter_context(tmpfs_at(path))
        with open(f"{path}/above", "w", encoding="ascii"):
            pass
        above = daemon.add_share(path, owner="job-2")
        assert names_in(vm, below.name) == ["below"]
        assert names_in(vm, above.name) == ["above"]
        assert seen(home)[below.name][0] == "replaced"
        subprocess.run(["umount", "-l", path], check=True)
        assert daemon.add_share(path, owner="job-3").name == below.name
        assert {name: fate for name, (fate, _) in seen(home).items()} == {below.name: "there", above.name: "replaced"}


def test_a_mount_above_the_path_replaces_its_directory_too(home: Home) -> None:
    os.mkdir(f"{home.folder}/above")
    path = made(f"{home.folder}/above/ws", "old")
    with home.running() as daemon, tmpfs_at_later(f"{home.folder}/above") as mount:
        vm = daemon.add_vm()
        first = daemon.add_share(path)
        mount()
        assert seen(home)[first.name][0] == "gone"
        with pytest.raises(errors.InvalidOptions):
            daemon.add_share(path)
        os.chmod(f"{home.folder}/above", 0o755)
        made(path, "new")
        assert names_in(vm, daemon.add_share(path).name) == ["new"]


@contextmanager
def tmpfs_at_later(path: str) -> Iterator[Callable[[], None]]:
    with ExitStack() as mounts:
        yield lambda: mounts.enter_context(tmpfs_at(path))


def test_a_file_that_is_saved_by_a_rename_stays_the_same_share_with_the_new_content(home: Home) -> None:
    path = f"{made(f'{home.folder}/etc', 'settings')}/settings"
    with home.running() as daemon:
        vm = daemon.add_vm()
        share = daemon.add_share(path, owner="job-1")
        with open(f"{path}.new", "w", encoding="ascii") as file:
            file.write("new")
        os.replace(f"{path}.new", path)
        assert daemon.add_share(path, owner="job-2").name == share.name
        assert names_in(vm, share.name) == ["settings"]
        os.unlink(path)
        os.rmdir(os.path.dirname(path))
        made(os.path.dirname(path), "settings")
        assert daemon.add_share(path, owner="job-2").name != share.name


def test_a_lease_is_on_what_its_owner_asked_for_whichever_directory_is_there(home: Home) -> None:
    path = made(f"{home.folder}/ws", "old")
    with home.running() as daemon:
        daemon.add_vm()
        old = daemon.add_share(path, owner="job-1", lease=30)
        emptied(path)
        made(path, "new")
        new = daemon.add_share(path, owner="job-2", lease=90)
        daemon.add_share(path, owner="job-1", lease=60)
        daemon.pass_time(59)
        assert seen(home) == {old.name: ("replaced", ["job-1"]), new.name: ("there", ["job-2", "job-1"])}
        with home.client() as client:
            client.shares.release("vm", old.name, owner="job-1")
    home.clock.now += 1000
    with home.running() as daemon:
        daemon.pass_time(59)
        assert seen(home) == {new.name: ("there", ["job-2", "job-1"])}
        daemon.pass_time(1)
        assert seen(home) == {new.name: ("there", ["job-2"])}
        daemon.pass_time(30)
        assert seen(home) == {}


def test_a_lease_that_ends_gives_back_every_directory_that_was_at_the_path(home: Home) -> None:
    path = made(f"{home.folder}/ws", "old")
    with home.running() as daemon:
        daemon.add_vm()
        for content in ("new", "newer"):
            daemon.add_share(path, owner="job-1", lease=30)
            emptied(path)
            made(path, content)
        daemon.add_share(path, owner="job-1", lease=30)
        assert len(seen(home)) == 3
        daemon.pass_time(30)
        assert seen(home) == {}


def test_a_file_system_that_hangs_is_waited_for_by_few_and_named_unknown(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [made(f"{home.folder}/{name}", "file") for name in ("hangs", "answers")]
    answer = threading.Event()
    looks: list[str] = []

    def hanging(path: str, identity: str | None) -> object:
        looks.append(path)
        if path == paths[0]:
            answer.wait()
        return fate_of(path, identity)

    with home.running() as daemon:
        daemon.add_vm()
        hangs, answers = (daemon.add_share(path) for path in paths)
        monkeypatch.setattr(fates, "fate_of", hanging)
        monkeypatch.setattr(fates, "_PATIENCE", 0.01)
        assert daemon.daemon is not None
        daemon.daemon.service.threads.seconds = 0.01
        try:
            for _ in range(20):
                shown = seen(home)
            assert shown[hangs.name][0] == "unknown"
            assert looks.count(paths[0]) == 1
            while seen(home)[answers.name][0] != "there":
                pass
        finally:
            answer.set()
        while seen(home)[hangs.name][0] != "there":
            pass
