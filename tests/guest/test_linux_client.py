"""The file server under the real Linux client: a guest mounts shares, works in them, and loses them."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import textwrap
from typing import TYPE_CHECKING

import pytest
from tests.guest.harness import Host

import uvmshare
from uvmshare import AddOptions
from uvmshare.errors import UvmshareError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator
    from pathlib import Path

    from tests.guest.transports import Transport

    from uvmshare.testing.guest_vm import GuestResult

pytestmark = pytest.mark.guest

SOURCE = os.path.dirname(uvmshare.__file__)


@pytest.fixture(scope="module")
def host(runner: asyncio.Runner, transport: Transport) -> Iterator[Host]:
    made = Host(runner, transport)
    yield made
    made.close()


class Mounted:
    """A writable share that the guest has mounted: `host` is the directory here, `at` its path in the guest."""

    def __init__(self, host: Host, directory: Path, at: str) -> None:
        self._host = host
        self.host = directory
        self.at = at

    def check(self, command: str) -> str:
        """Run a shell command that has to succeed in the share."""
        return self._host.check(f"cd {self.at} && {command}")

    def run(self, command: str) -> GuestResult:
        return self._host.run(f"cd {self.at} && {command}")

    def python(self, script: str) -> str:
        """Run a Python script that has to succeed in the share."""
        code = textwrap.dedent(script)
        return self._host.check(f"cd {self.at} && python3 -I - <<'END'\n{code}\nEND\n")


@pytest.fixture
def mounted(host: Host, tmp_path: Path) -> Iterator[Mounted]:
    directory = tmp_path / "share"
    directory.mkdir()
    name = host.add(AddOptions(directory))
    at = host.mount(name)
    yield Mounted(host, directory, at)
    host.unmount(at)
    host.remove(name)


def contents(root: Path | str) -> dict[str, bytes | str | None]:
    """Return what a tree holds: file contents, link targets, None for directories."""
    found: dict[str, bytes | str | None] = {}
    for directory, names, files in os.walk(root):
        for name in names + files:
            path = os.path.join(directory, name)
            key = os.path.relpath(path, root)
            if os.path.islink(path):
                found[key] = os.readlink(path)
            elif os.path.isdir(path):
                found[key] = None
            else:
                with open(path, "rb") as file:
                    found[key] = file.read()
    return found


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of some of the package's sources that nothing else writes to, with a link and an empty directory."""
    copy = tmp_path_factory.mktemp("tree") / "tree"
    for part in ("share", "hcs"):
        shutil.copytree(os.path.join(SOURCE, part), copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "link").symlink_to("share/state.py")
    (copy / "empty").mkdir()
    return copy


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"cache": "loose", "msize": 1048576}, marks=pytest.mark.long),
        pytest.param({"cache": "mmap"}, marks=pytest.mark.long),
        pytest.param({"msize": 4096}, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_a_tree_is_copied_in_compared_renamed_and_deleted(
    host: Host, tmp_path: Path, tree: Path, options: dict[str, str | int]
) -> None:
    source = host.add(AddOptions(tree, read_only=True))
    target = host.add(AddOptions(tmp_path))
    there, here = host.mount(source, **options), host.mount(target, **options)
    host.check(f"cp -a {there}/. {here}/copy && diff -r {there} {here}/copy")
    # Under mapped-xattr the host has a guest's symbolic link as a file with the target in it, as QEMU has it.
    expected = contents(tree) | {"link": b"share/state.py"}
    assert contents(tmp_path / "copy") == expected
    host.check(f"mv {here}/copy {here}/moved && mv {here}/moved/hcs/schema.py {here}/moved/share/new-name")
    expected["share/new-name"] = expected.pop("hcs/schema.py")
    assert contents(tmp_path / "moved") == expected
    host.check(f"rm -r {here}/moved && ls -A {here} | wc -l | grep -x 0")
    assert list(tmp_path.iterdir()) == []
    for at, name in ((there, source), (here, target)):
        host.unmount(at)
        host.remove(name)


def test_permissions_and_owners_are_the_guests_own(mounted: Mounted) -> None:
    mounted.python("""
        import os
        open("f", "w").close()
        for mode in (0o000, 0o640, 0o777, 0o4755, 0o2711, 0o1666):
            os.chmod("f", mode)
            assert os.stat("f").st_mode & 0o7777 == mode, oct(os.stat("f").st_mode)
        os.chown("f", 1234, 5678)
        assert (os.stat("f").st_uid, os.stat("f").st_gid) == (1234, 5678)
        os.umask(0o027)
        os.mkdir("d")
        assert os.stat("d").st_mode & 0o7777 == 0o750
        assert os.stat("d").st_uid == 0
    """)
    status, directory = os.stat(mounted.host / "f"), os.stat(mounted.host)
    assert (status.st_uid, status.st_gid) == (directory.st_uid, directory.st_gid), "the file is the server's user's"
    assert not stat.S_IMODE(status.st_mode) & 0o7000, "setuid, setgid and sticky never get a meaning on the host"


def test_another_user_of_the_guest_gets_what_the_modes_say(mounted: Mounted) -> None:
    mounted.python("""
        import os
        for name, mode in (("closed", 0o600), ("open", 0o644)):
            with open(name, "w") as file:
                file.write("text")
            os.chmod(name, mode)
        os.chmod(".", 0o755)
        os.setgroups([])
        os.setgid(1000)
        os.setuid(1000)
        assert open("open").read() == "text"
        for forbidden in (
            lambda: open("closed"), lambda: open("open", "w"), lambda: os.mkdir("d"), lambda: os.unlink("open")
        ):
            try:
                forbidden()
            except PermissionError:
                pass
            else:
                raise AssertionError("allowed")
    """)


def test_symlinks_are_the_guests_to_follow(mounted: Mounted) -> None:
    mounted.python("""
        import errno, os
        os.mkdir("d")
        with open("d/f", "w") as file:
            file.write("here")
        targets = {"relative": "d/f", "absolute": "/etc/hostname", "dangling": "nowhere", "up": "../../.."}
        for name, target in targets.items():
            os.symlink(target, name)
            assert os.readlink(name) == target
            assert os.lstat(name).st_size == len(target)
        assert open("relative").read() == "here"
        assert not os.path.exists("dangling")
        os.symlink("loop", "loop")
        try:
            open("loop")
        except OSError as error:
            assert error.errno == errno.ELOOP
        else:
            raise AssertionError("followed")
        os.symlink("x" * 4000, "long")
        assert os.readlink("long") == "x" * 4000
    """)


def test_a_link_that_leads_out_of_the_share_leads_nowhere_on_the_host(mounted: Mounted) -> None:
    # The guest's root is the host's, but for /dev, which is its own: what is there only the server could read.
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as outside:
        outside.write(b"the host's")
        outside.flush()
        relative = os.path.relpath(outside.name, mounted.host)
        os.symlink(outside.name, mounted.host / "absolute")
        os.symlink(relative, mounted.host / "relative")
        mounted.check(f"ln -s {outside.name} absolute-too && ln -s {relative} relative-too")
        for name in ("absolute", "relative", "absolute-too", "relative-too"):
            result = mounted.run(f"cat {name}")
            assert (result.status, "the host's" in result.text) == (1, False), result
            assert mounted.run(f"echo overwritten > {name}").status != 0
        with open(outside.name, "rb") as file:
            assert file.read() == b"the host's"


@pytest.mark.long
def test_ten_thousand_entries_are_listed_and_removed(mounted: Mounted) -> None:
    names = {f"entry-{number:05}" for number in range(10_000)}
    (mounted.host / "d").mkdir()
    for name in names:
        (mounted.host / "d" / name).touch()
    assert set(mounted.check("ls -f d").split()) - {".", ".."} == names
    mounted.python("""
        import os
        with os.scandir("d") as entries:
            for number, entry in enumerate(entries):
                if number % 50 == 0:
                    os.unlink(entry)
        assert len(os.listdir("d")) == 10_000 - 200
    """)
    assert len(os.listdir(mounted.host / "d")) == 9_800


def test_sizes_from_nothing_to_past_four_gib(mounted: Mounted) -> None:
    mounted.python("""
        import os
        open("empty", "w").close()
        assert os.stat("empty").st_size == 0 and open("empty", "rb").read() == b""
        data = os.urandom(3_000_001)
        with open("big", "wb") as file:
            file.write(data)
        assert open("big", "rb").read() == data
        with open("sparse", "w+b") as file:
            for at in (2**31 - 3, 2**32 - 3, 2**32 + 7, 2**40):
                file.seek(at)
                file.write(b"here and there")
                file.flush()
                file.seek(at)
                assert file.read(14) == b"here and there"
            assert os.fstat(file.fileno()).st_size == 2**40 + 14
            file.truncate(2**32 + 10)
        assert os.stat("sparse").st_size == 2**32 + 10
        with open("sparse", "rb") as file:
            file.seek(2**32 - 3)
            assert file.read() == b"here and t" + b"her"
    """)
    with open(mounted.host / "sparse", "rb") as file:
        file.seek(2**32 + 7)
        assert file.read() == b"her"


def test_names_up_to_255_bytes(mounted: Mounted) -> None:
    mounted.python("""
        import errno, os
        names = [b"n" * 255, "ü".encode() * 127, b"\\xff\\xfe not UTF-8", b" ", b"-rf", b"a\\nb", b"...", b"a:b"]
        for name in names:
            os.mkdir(name)
            assert os.path.isdir(name)
        assert sorted(os.listdir(b".")) == sorted(names)
        for name in names:
            os.rename(name, name[:-1] + b"2")
            os.rmdir(name[:-1] + b"2")
        try:
            os.mkdir("n" * 256)
        except OSError as error:
            assert error.errno == errno.ENAMETOOLONG
        else:
            raise AssertionError("made")
    """)
    assert list(mounted.host.iterdir()) == []


@pytest.mark.long
def test_a_deep_path(mounted: Mounted) -> None:
    mounted.python("""
        import os
        for _ in range(60):
            os.mkdir("d" * 100)
            os.chdir("d" * 100)
        with open("f", "w") as file:
            file.write("deep")
        assert open("f").read() == "deep"
    """)
    mounted.check("rm -r ddd*")


def test_an_unlinked_open_file_works_on(mounted: Mounted) -> None:
    mounted.python("""
        import os
        with open("f", "w+b") as file:
            file.write(b"before")
            file.flush()
            os.unlink("f")
            assert os.listdir(".") == []
            file.write(b" after")
            file.flush()
            assert os.fstat(file.fileno()).st_size == 12
            os.fchmod(file.fileno(), 0o600)
            assert os.fstat(file.fileno()).st_mode & 0o777 == 0o600
            file.truncate(9)
            file.seek(0)
            assert file.read() == b"before af"
            os.fsync(file.fileno())
    """)
    assert list(mounted.host.iterdir()) == []


def test_open_files_follow_renames(mounted: Mounted) -> None:
    mounted.python("""
        import os
        os.mkdir("d")
        with open("d/f", "w+b") as file, open("other", "wb") as replaced:
            replaced.write(b"old")
            replaced.flush()
            below = os.open("d", os.O_RDONLY)
            os.rename("d", "e")
            file.write(b"new")
            file.flush()
            os.close(os.open("g", os.O_CREAT | os.O_WRONLY, dir_fd=below))
            os.rename("e/f", "other")
            assert os.fstat(file.fileno()).st_size == 3
            assert os.fstat(replaced.fileno()).st_size == 3
            replaced.write(b"er")
            os.close(below)
        assert open("other").read() == "new"
        assert os.listdir("e") == ["g"]
    """)


def test_other_things_that_files_can_do(mounted: Mounted) -> None:
    mounted.python("""
        import errno, os, stat
        def fails(code, action):
            try:
                action()
            except OSError as error:
                assert error.errno == code, error
            else:
                raise AssertionError("worked")
        with open("f", "w") as file:
            file.write("text")
        os.link("f", "hard")
        assert os.stat("f").st_nlink == 2 and os.path.samefile("f", "hard")
        os.mkfifo("fifo")
        assert stat.S_ISFIFO(os.stat("fifo").st_mode)
        os.utime("f", ns=(10**18, 2 * 10**18))
        assert (os.stat("f").st_atime_ns, os.stat("f").st_mtime_ns) == (10**18, 2 * 10**18)
        with open("f", "a") as one, open("f", "a") as two:
            one.write("1")
            one.flush()
            two.write("2")
        assert open("f").read() == "text12"
        with open("f", "w") as file:
            assert os.stat("f").st_size == 0
        fails(errno.EEXIST, lambda: os.open("f", os.O_CREAT | os.O_EXCL))
        fails(errno.ENOENT, lambda: os.stat("missing"))
        fails(errno.ENOTDIR, lambda: os.stat("f/below"))
        os.makedirs("full/of")
        fails(errno.ENOTEMPTY, lambda: os.rmdir("full"))
        fails(errno.EISDIR, lambda: os.open("full", os.O_WRONLY))
        fails(errno.EINVAL, lambda: os.rename("full", "full/of/itself"))
        assert os.statvfs(".").f_bsize > 0 and os.statvfs(".").f_namemax == 255
        file = os.open("full", os.O_RDONLY)
        os.fsync(file)
        os.close(file)
    """)


def test_guest_and_host_see_each_others_changes(mounted: Mounted) -> None:
    (mounted.host / "f").write_text("from the host")
    assert mounted.check("cat f") == "from the host"
    mounted.check("printf 'from the guest' > f")
    assert (mounted.host / "f").read_text() == "from the guest"
    (mounted.host / "f").write_text("again")
    assert mounted.check("cat f") == "again"
    (mounted.host / "f").unlink()
    assert mounted.run("cat f").status != 0


READ_ONLY = """
    import errno, os
    attempts = {
        "create": lambda: os.open("new", os.O_CREAT | os.O_WRONLY),
        "open for writing": lambda: os.open("f", os.O_WRONLY),
        "open for both": lambda: os.open("f", os.O_RDWR),
        "truncate": lambda: os.truncate("f", 0),
        "mkdir": lambda: os.mkdir("new"),
        "rmdir": lambda: os.rmdir("d"),
        "unlink": lambda: os.unlink("f"),
        "rename": lambda: os.rename("f", "g"),
        "link": lambda: os.link("f", "g"),
        "symlink": lambda: os.symlink("f", "g"),
        "mknod": lambda: os.mkfifo("g"),
        "chmod": lambda: os.chmod("f", 0o600),
        "chown": lambda: os.chown("f", 1, 1),
        "utime": lambda: os.utime("f"),
    }
    for name, attempt in attempts.items():
        try:
            attempt()
        except OSError as error:
            assert error.errno == errno.EROFS, (name, error)
        else:
            raise AssertionError(name)
    assert open("f").read() == "as it was"
    assert sorted(os.listdir(".")) == ["d", "f"]
"""


def test_read_only_holds_though_the_guest_mounts_it_writable(host: Host, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("as it was")
    (tmp_path / "d").mkdir()
    before = os.stat(tmp_path / "f")
    name = host.add(AddOptions(tmp_path, read_only=True))
    at = host.mount(name)  # writable, which is the default
    Mounted(host, tmp_path, at).python(READ_ONLY)
    after = os.stat(tmp_path / "f")
    assert (after.st_mode, after.st_mtime_ns, after.st_ctime_ns) == (
        before.st_mode,
        before.st_mtime_ns,
        before.st_ctime_ns,
    )
    host.unmount(at)
    host.remove(name)


def test_only_the_allowed_names_exist(host: Host, tmp_path: Path) -> None:
    for name in ("seen", "hidden"):
        (tmp_path / name).write_text(name)
    share = host.add(AddOptions(tmp_path, allowed_names=["seen"]))
    at = host.mount(share)
    assert host.check(f"ls -A {at}") == "seen\n"
    assert host.check(f"cat {at}/seen") == "seen"
    for command in ("cat hidden", "cat seen/../hidden", "mv seen hidden", "touch other"):
        assert host.run(f"cd {at} && {command}").status != 0, command
    assert (tmp_path / "hidden").read_text() == "hidden"
    host.unmount(at)
    host.remove(share)


def test_removal_ends_a_share_under_the_guests_eyes(host: Host, tmp_path: Path) -> None:
    taken, kept = tmp_path / "taken", tmp_path / "kept"
    for directory in (taken, kept):
        directory.mkdir()
        (directory / "f").write_text("text")
    taken_name, kept_name = host.add(AddOptions(taken)), host.add(AddOptions(kept))
    at, other = host.mount(taken_name), host.mount(kept_name)
    # A process that has a file and a directory open when the share goes: it says so, waits to be told, and tries.
    script = textwrap.dedent("""
        import errno, os
        file, directory = os.open("f", os.O_RDWR), os.open(".", os.O_RDONLY)
        assert os.read(file, 4) == b"text"
        open("/run/ready", "w").close()
        open("/run/gone").close()
        for attempt in (
            # Linux 6.12 lets every other write(2) return 0.
            lambda: os.pread(file, 4, 0), lambda: os.write(file, b"x") or os.write(file, b"x"), lambda: os.fstat(file),
            lambda: os.listdir("."), lambda: os.stat("f"), lambda: open("new", "w"), lambda: os.fsync(file),
        ):
            try:
                attempt()
            except OSError as error:
                assert error.errno in (errno.ECONNRESET, errno.EIO), error
            else:
                raise AssertionError("it still works")
        print("all gone")
    """)
    host.check("rm -f /run/ready /run/gone /run/done && mkfifo /run/ready /run/gone /run/done")
    host.runner.run(host.guest.write_file("/run/script.py", script.encode()))
    # It leaves the mount before it says that it is done, so that this can be unmounted.
    inside = f"cd {at} && python3 -I /run/script.py > /run/said 2>&1; status=$?; cd /; echo $status > /run/done"
    host.check(f"({inside}) &")
    host.check("cat /run/ready")
    host.remove(taken_name)
    assert host.check(": > /run/gone; cat /run/done /run/said") == "0\nall gone\n"
    assert host.check(f"cat {other}/f") == "text"
    host.unmount(at)
    again = host.run(host.transport.mount(host.port, taken_name, at))
    assert again.status != 0
    host.unmount(other)
    host.remove(kept_name)
    assert (taken / "f").read_text() == "text"


@pytest.mark.long
def test_requests_under_way_when_a_share_goes_see_an_input_output_error(host: Host, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(1 << 20))
    for _ in range(3):  # the threads are never twice at the same place
        name = host.add(AddOptions(tmp_path))
        at = host.mount(name)
        host.check(host.transport.use_until_lost(at))
        host.remove(name)
        count, *seen = host.check("cat /run/over /run/said").split()
        assert count == "12"
        # EPIPE where a send meets the end before the server's last word is read, ECONNRESET where TCP's reset does.
        assert {*seen} <= {"EIO", "EPIPE"} | (set() if host.transport.is_vsock else {"ECONNRESET"})
        host.unmount(at)


def test_shares_come_while_others_are_in_use(host: Host, mounted: Mounted, tmp_path: Path) -> None:
    mounted.check("touch before")
    late = tmp_path / "late"
    late.mkdir()
    (late / "f").write_text("late")
    name = host.add(AddOptions(late, read_only=True))
    at = host.mount(name)
    assert host.check(f"cat {at}/f") == "late"
    mounted.check("touch after && ls before after")
    host.unmount(at)
    host.remove(name)


def test_an_add_that_fails_is_not_there_for_the_guest(host: Host, tmp_path: Path) -> None:
    doomed = tmp_path / "doomed"
    doomed.mkdir()
    options = AddOptions(doomed)
    doomed.rmdir()
    before = host.manager.shares()
    with pytest.raises(UvmshareError):
        host.add(options)
    assert host.manager.shares() == before
