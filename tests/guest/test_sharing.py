"""What a share shows, under the real Linux client: hidden names, mapped owners, a single file that is saved anew."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from tests.guest.harness import Host

from uvmshare import AddOptions

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator
    from pathlib import Path

    from tests.guest.transports import Transport

pytestmark = pytest.mark.guest


@pytest.fixture(scope="module")
def host(runner: asyncio.Runner, transport: Transport) -> Iterator[Host]:
    made = Host(runner, transport)
    yield made
    made.close()


@pytest.mark.long
def test_git_finds_no_dubious_ownership_where_owners_are_mapped_and_find_no_hidden_name(
    host: Host, tmp_path: Path
) -> None:
    git = "git -c user.name=x -c user.email=x@example.invalid"
    (tmp_path / "node_modules" / "deep").mkdir(parents=True)
    (tmp_path / "src").mkdir()
    for name in (".env", "src/.env", "src/main.py", "node_modules/deep/x", ".gitignore"):
        (tmp_path / name).write_text("node_modules\n.env\n")
    for command in ("init -q", "add .", "commit -q -m first"):
        subprocess.run(f"{git} {command}", shell=True, cwd=tmp_path, check=True)
    subprocess.run(["chown", "-R", "1000:100", str(tmp_path)], check=True)
    plain = host.add(AddOptions(tmp_path))
    mapped = host.add(AddOptions(tmp_path, hide=["node_modules", "**/.env"], map_owner="1000/100:0/0"))
    at, other = host.mount(mapped), host.mount(plain)
    assert "dubious ownership" in host.run(f"cd {other} && git status 2>&1").text
    assert host.check(f"cd {at} && git status --porcelain") == ""
    host.check(f"cd {at} && echo more >> src/main.py && {git} commit -q -a -m second")
    found = host.check(f"cd {at} && find . -not -path './.git/*'").splitlines()
    assert sorted(found) == [".", "./.git", "./.gitignore", "./src", "./src/main.py"]
    assert host.check(f"find {at} -name .env -o -name node_modules -o -not -user 0 -o -not -group 0") == ""
    for command in (
        "cat .env",
        "cat src/../.env",
        "ls node_modules",
        "mkdir node_modules",
        "touch src/.env",
        "mv src .env",
    ):
        assert host.run(f"cd {at} && {command}").status != 0, command
    host.check(f"cd {at} && mv src moved && test ! -e moved/.env && rm -r moved/main.py && ! rmdir moved")
    assert (tmp_path / "moved" / ".env").read_text() == "node_modules\n.env\n"
    for mounted, name in ((at, mapped), (other, plain)):
        host.unmount(mounted)
        host.remove(name)


def save(file: Path, text: str) -> None:
    """As editors do: written beside it, and renamed over it."""
    (file.parent / "temporary").write_text(text)
    os.rename(file.parent / "temporary", file)


def test_a_single_file_is_the_new_one_after_an_atomic_save(host: Host, tmp_path: Path) -> None:
    file = tmp_path / "settings"
    file.write_text("first")
    options = AddOptions(file)
    share = host.add(options)
    at = host.mount(share, cache="none")
    host.check(f"ln -sfn {at}/settings /run/link")
    read = f"cat {at}/settings /run/link"
    assert host.check(read) == "first" * 2
    save(file, "second")
    assert host.check(read) == "second" * 2
    assert AddOptions(file) == options
    # The guest's kernel goes on with the file that it has a use for: for everybody, until the last one lets go.
    host.check(f"touch /run/bound && mount --bind {at}/settings /run/bound")
    save(file, "third")
    assert host.check(f"{read} /run/bound") == "second" * 3
    host.check("umount /run/bound")
    assert host.check(read) == "third" * 2
    for command in ("touch temporary", "mv settings other", "rm settings", "cp settings settings~"):
        assert host.run(f"cd {at} && {command}").status != 0, command
    host.check(f"echo -n fourth > {at}/settings")
    assert file.read_text() == "fourth"
    file.unlink()
    assert host.run(f"cat {at}/settings").status != 0
    file.write_text("fifth")
    assert host.check(f"cat {at}/settings") == "fifth"
    host.unmount(at)
    host.remove(share)
