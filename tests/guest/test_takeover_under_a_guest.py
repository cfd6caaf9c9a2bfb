"""The supervisor is killed while a guest's kernel writes an open file, and another one takes over."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.processes import kill

from uvmshare import AddOptions, FileServer, Manager

if TYPE_CHECKING:
    from tests.guest.transports import Transport

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

pytestmark = pytest.mark.guest

RECORD = 4096
_DEADLINE = 300.0
"""Seconds until a test that hangs is ended."""

WRITER = """
import errno, os
progress = os.open("/run/progress", os.O_RDWR)
file = os.open("data", os.O_RDWR | os.O_CREAT)
count = 0
try:
    while not os.path.exists("stop"):
        os.pwrite(file, count.to_bytes(4, "little") * 1024, count * 4096)
        os.fsync(file)
        count += 1
        os.write(progress, b"%d\\n" % count)
    for number in range(count):
        assert os.pread(file, 4096, number * 4096) == number.to_bytes(4, "little") * 1024, number
    print("wrote", count, flush=True)
    os.write(progress, b"1000000000\\n")
    while True:
        os.pwrite(file, b"x", 0)
        os.fsync(file)
except OSError as error:
    print(errno.errorcode[error.errno])
"""


def require_records(path: Path, count: int) -> None:
    """Every record is there; the first is what the guest wrote until its share was taken away."""
    data = path.read_bytes()
    assert len(data) == count * RECORD
    for number in range(1, count):
        assert data[number * RECORD : (number + 1) * RECORD] == number.to_bytes(4, "little") * 1024


@pytest.mark.parametrize("cache", ["none", pytest.param("mmap", marks=pytest.mark.long)])
def test_a_guest_writes_on_while_the_supervisor_dies_and_another_takes_over(
    runner: asyncio.Runner, transport: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str
) -> None:
    guest = transport.guest
    shared, late = tmp_path / "shared", tmp_path / "late"
    for path in (shared, late):
        path.mkdir()
    (late / "file").write_text("late")
    at, at_late = (f"/run/{cache}-{name}" for name in ("shared", "late"))

    async def until_record(number: int) -> None:
        # The shell's read takes a line and no more; what reads ahead would wait for what never comes.
        await guest.check(f'while read -r n; do [ "$n" -lt {number} ] || break; done < /run/progress')

    async def mount(port: int, name: str, where: str) -> None:
        await guest.check(f"mkdir -p {where} && {transport.mount(port, name, where, cache=cache)}")

    async def scenario(run_dir: Path) -> None:
        async with FileServer([transport.address()], run_dir=run_dir) as server:
            taken_over = asyncio.Event()
            server.on_takeover(lambda _: taken_over.set())
            port = transport.port(server.addresses[0])
            manager = Manager(server)
            name = await manager.add(AddOptions(shared))
            await guest.check("rm -f /run/progress && mkfifo /run/progress")
            await mount(port, name, at)
            await guest.write_file("/run/writer.py", WRITER.encode())
            writing = asyncio.create_task(guest.check(f"cd {at} && python3 -I /run/writer.py", timeout=_DEADLINE))
            await until_record(10)
            pid = (await server.status()).pid
            with monkeypatch.context() as nobody:
                nobody.setattr(sys, "executable", "/nonexistent/python")  # so that none takes over yet
                kill(pid)
                await until_record((shared / "data").stat().st_size // RECORD + 20)
            await taken_over.wait()
            await until_record((shared / "data").stat().st_size // RECORD + 20)
            second = await manager.add(AddOptions(late, read_only=True))
            await mount(port, second, at_late)
            assert await guest.check(f"cat {at_late}/file") == "late"
            (shared / "stop").touch()
            verified = asyncio.create_task(until_record(1_000_000_000))
            await asyncio.wait({verified, writing}, return_when=asyncio.FIRST_COMPLETED)
            assert not writing.done(), await writing
            await verified
            await manager.remove(name)
            wrote, count, error = (await writing).split()
            # As Linux's client has it: ECONNRESET or EPIPE where the cut meets its send, EIO otherwise.
            assert (wrote, error) in (("wrote", "EIO"), ("wrote", "ECONNRESET"), ("wrote", "EPIPE"))
            require_records(shared / "data", int(count))
            await guest.check(f"umount {at} {at_late}")
            await manager.aclose()

    with tempfile.TemporaryDirectory(prefix="9p-") as folder:  # a unix socket's path is short, pytest's are not
        try:
            runner.run(asyncio.wait_for(scenario(Path(folder) / "run"), _DEADLINE))
        finally:
            with suppress(Exception):
                runner.run(guest.run(f"umount -l {at} {at_late}"))
