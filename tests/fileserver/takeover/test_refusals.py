"""What a new supervisor cannot take over: it says so, and leaves everything for the next."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

import pytest

from uvmshare.errors import FileServerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fileserver.takeover.harness import Place

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)


def test_a_directory_that_is_gone_or_another_is_had_through_its_mounts(place: Place) -> None:
    one, two, three = (place.directory / name for name in ("one", "two", "three"))
    server = place.start()
    for name, path in (("1", one), ("2", two), ("3", three)):
        path.mkdir()
        (path / "mine").write_bytes(name.encode())
        place.add(server, name, path)
    guest = place.guest("1")
    for path in (one, two, three):
        path.rename(path.with_name(f"{path.name}-moved"))
    two.mkdir()  # another directory in its place, which was never shared
    place.kill(server)
    server = place.start()
    assert set(place.mounts(server)) == {"1"}
    assert place.guest("1").read_file("mine") == guest.read_file("mine") == b"1"
    lost = {each.name: each.reason for each in server.lost}
    assert set(lost) == {"2", "3"}
    assert "another directory" in lost["2"]
    assert "No such file" in lost["3"]
    assert place.run(server.status()).lost == server.lost
    for name in ("2", "3"):
        assert f"share {name} " in place.log()
    place.add(server, "2", two)


def test_a_table_of_another_boot_is_void_and_says_so(place: Place) -> None:
    server = place.start()
    place.add(server, "0")
    place.kill(server)
    table = place.run_dir / "shares"
    header, _, rest = table.read_bytes().partition(b"\n")
    from uvmshare.linux.boot import boot_id

    table.write_bytes(resign(header.replace(boot_id().encode(), b"another")) + b"\n" + rest)
    server = place.start()
    assert place.mounts(server) == {}
    (lost,) = server.lost
    assert (lost.name, lost.path) == ("0", str(place.shared))
    assert "host was started anew" in lost.reason


def resign(line: bytes) -> bytes:
    import zlib

    return b"+ %08x %s" % (zlib.crc32(line[11:]), line[11:])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[:20] + b"x" + data[21:], "damaged"),
        (lambda data: b"", "no first line"),
        (lambda data: resign(data.split(b"\n")[0].replace(b'"version":2', b'"version":9')) + b"\n", "version is 9"),
        (lambda data: data[:-9] + b"x" + data[-8:], "damaged"),
    ],
)
def test_a_damaged_table_is_said_and_removing_it_is_the_way_out(
    place: Place, damage: Callable[[bytes], bytes], reason: str
) -> None:
    server = place.start()
    place.add(server, "0")
    guest = place.guest("0")
    place.kill(server)
    table = place.run_dir / "shares"
    table.write_bytes(damage(table.read_bytes()))
    with pytest.raises(FileServerError, match=rf"{table}.*{reason}.*remove it"):
        place.start()
    assert guest.listdir() == [b"file"]  # it stays as it was
    table.unlink()
    server = place.start()
    assert guest.drain() == []
    assert place.mounts(server) == {}


def test_a_line_that_broke_off_was_never_answered_for(place: Place) -> None:
    server = place.start()
    place.add(server, "0")
    place.add(server, "1")
    place.kill(server)
    table = place.run_dir / "shares"
    table.write_bytes(table.read_bytes()[:-7])
    server = place.start()
    assert set(place.mounts(server)) == {"0"}
    place.add(server, "1")


def test_other_owners_of_files_are_not_taken_over_silently(place: Place) -> None:
    server = place.start()
    place.add(server, "0")
    guest = place.guest("0")
    place.kill(server)
    with pytest.raises(FileServerError, match="security model none, not mapped-xattr"):
        place.start(security_model="mapped-xattr")
    assert guest.listdir() == [b"file"]


def test_an_address_that_is_taken_leaves_everything_for_the_next(place: Place) -> None:
    server = place.start()
    place.add(server, "0")
    guest = place.guest("0")
    place.kill(server)
    elsewhere = place.start(run_dir=None)
    with pytest.raises(FileServerError, match=f"process {place.run(elsewhere.status()).pid}"):
        place.start()
    place.servers.remove(elsewhere)
    place.run(elsewhere.aclose())
    server = place.start()
    assert place.mounts(server)["0"]
    assert guest.listdir() == [b"file"]


def test_a_mount_that_cannot_be_identified_is_not_passed_over(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    server = place.start()
    place.add(server, "0")
    place.guest("0")
    place.kill(server)
    from uvmshare.fileserver.rundir import directory

    (name,) = os.listdir(place.run_dir / "mounts")
    path = place.run_dir / "mounts" / name
    lines = path.read_text().splitlines()
    saved = path.read_text()
    who = json.loads(lines[1]) | {"started": 1}  # as another PID namespace would have it
    path.write_text(f"{lines[0]}\n{json.dumps(who)}\n")
    monkeypatch.setattr(directory, "_INTRODUCED_SECONDS", 0.0)
    monkeypatch.setattr(directory, "_has_open", lambda *_: None)
    held = directory.RunDirectory(str(place.run_dir))
    with pytest.raises(FileServerError, match="cannot be identified"):
        held.find_mounts()
    held.release()
    path.write_text(saved)
    assert place.mounts(place.start())["0"]


@pytest.mark.parametrize("lie", ["another process", "another number", "nothing", "no permission"])
def test_a_mount_that_lies_about_itself_is_found_and_another_process_is_not_harmed(
    place: Place, monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    """As one could that a guest has taken over, on a host without Landlock."""
    server = place.start()
    place.add(server, "0")
    place.guest("0")
    (pid,) = place.mounts(server)["0"]
    place.kill(server)
    from uvmshare.fileserver.rundir import directory

    (name,) = os.listdir(place.run_dir / "mounts")
    path = place.run_dir / "mounts" / name
    opened, introduced = map(json.loads, path.read_text().splitlines())
    monkeypatch.setattr(directory, "_INTRODUCED_SECONDS", 0.0)
    if lie == "another process":
        introduced |= {"pid": os.getpid(), "started": directory._started(os.getpid())}
    elif lie == "another number":
        opened |= {"connection": 99}
    path.write_text("" if lie == "nothing" else f"{json.dumps(opened)}\n{json.dumps(introduced)}\n")
    if lie == "no permission":
        path.chmod(0)
    held = directory.RunDirectory(str(place.run_dir))
    (found,) = held.find_mounts()
    assert found.pid == pid
    assert found.connection == int(name)
    os.close(found.pidfd)
    held.release()
    assert set(place.mounts(place.start())) == {"0"}
