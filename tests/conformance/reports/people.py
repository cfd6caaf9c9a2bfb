"""Owners, modes, locks and other programs: what people do in a share that is the guest's and the host's."""

from __future__ import annotations

import fcntl
import os
import pwd
import select
import shutil
import sqlite3
import stat
import struct
import subprocess
import sys
import tarfile
import tempfile
from functools import partial

from tests.conformance.reports.guest import as_user, checked, host, libc, read, refused, same, write

MYSQL = 999
DEVELOPER = 4242
"""Users of the guest that the host does not have."""

_GIT = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@example.org",
    "HOME": "/run",
    "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
}


def git(*words: str) -> str:
    return subprocess.run(
        ["git", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True, env=_GIT
    ).stdout


def give_all_to_a_user() -> None:
    host("tree", "mysql")
    before = host("owners", "mysql")
    subprocess.run(["chown", "-R", f"{MYSQL}:{MYSQL}", "mysql"], check=True)
    owners = {
        os.lstat(os.path.join(at, name)).st_uid
        for at, directories, files in os.walk("mysql")
        for name in (".", *directories, *files)
    }
    same(owners, {MYSQL}, "the owners")
    same(host("owners", "mysql"), before, "the owners on the host")
    as_user(MYSQL, lambda: write("mysql/inner/ibdata1", "data"))


def give_links_of_the_host_to_a_user() -> None:
    host("tree", "mysql")
    host("link", "inner", "mysql/link")
    subprocess.run(["chown", "-R", "-h", f"{MYSQL}:{MYSQL}", "mysql"], check=True)
    same(os.stat("mysql/inner").st_uid, MYSQL, "the owner of what is beside the link")


def change_modes() -> None:
    host("tree", "tree")
    for path, mode in (("tree/file", 0o755), ("tree/file", 0o400), ("tree/inner", 0o700), ("tree/read-only", 0o644)):
        os.chmod(path, mode)
        same(stat.S_IMODE(os.stat(path).st_mode), mode, "the mode")
    os.chown("tree/file", MYSQL, MYSQL)
    same(os.stat("tree/file").st_uid, MYSQL, "the owner")


def a_directory_for_its_user_alone() -> None:
    host("tree", "home")
    host("mode", "home", 0o700)
    host("mode", "home/file", 0o600)
    same("file" in os.listdir("home"), True, "root lists it")
    same(read("home/file"), "content\n", "the content")


def an_entry_point() -> None:
    os.mkdir("data", 0o777)
    subprocess.run(["chown", "-R", f"{MYSQL}:{MYSQL}", "data"], check=True)
    os.chmod("data", 0o700)
    as_user(MYSQL, lambda: write("data/appendonly.aof", "data"))
    same(as_user(DEVELOPER, lambda: refused(os.listdir, "data")), "EACCES", "what another user gets")
    found = os.stat("data/appendonly.aof")
    same((found.st_uid, found.st_gid), (MYSQL, MYSQL), "the owner")


def every_user_sees_one_owner() -> None:
    write("f", "")
    os.chown("f", MYSQL, 888)
    seen = {as_user(uid, lambda: (os.stat("f").st_uid, os.stat("f").st_gid)) for uid in (0, MYSQL, DEVELOPER)}
    same(seen, {(MYSQL, 888)}, "the owners that users see")


def a_database_directory() -> None:
    os.mkdir("volume")
    os.chown("volume", MYSQL, MYSQL)

    def initialise() -> None:
        os.mkdir("volume/pgdata", 0o700)
        found = os.stat("volume/pgdata")
        same(found.st_uid, os.geteuid(), "the owner of the data directory")
        same(stat.S_IMODE(found.st_mode), 0o700, "its mode")
        os.mkdir("volume/pgdata/pg_wal", 0o700)
        os.mkdir("volume/pgdata/pg_wal/archive_status", 0o700)
        write("volume/pgdata/pg_wal/xlogtemp.1", b"\0" * 65536, 0o600)
        os.link("volume/pgdata/pg_wal/xlogtemp.1", "volume/pgdata/pg_wal/000000010000000000000001")
        os.unlink("volume/pgdata/pg_wal/xlogtemp.1")
        at = os.open("volume/pgdata/pg_wal", os.O_RDONLY)
        os.fsync(at)
        write("volume/pgdata/postmaster.pid", "1\n", 0o600)

    as_user(MYSQL, initialise)


def unpack_an_archive_with_links() -> None:
    os.mkdir("testln")
    write("testln/file", "content")
    os.symlink("file", "testln/link")
    os.link("testln/file", "testln/hard")
    with tarfile.open("/run/testln.tar", "w") as archive:
        for name in ("testln", "testln/file", "testln/link", "testln/hard"):
            entry = archive.gettarinfo(name)
            entry.uid = entry.gid = MYSQL
            entry.uname = entry.gname = ""
            if entry.isreg():
                with open(name, "rb") as file:
                    archive.addfile(entry, file)
            else:
                archive.addfile(entry)
    shutil.rmtree("testln")
    said = subprocess.run(
        ["tar", "--warning=no-timestamp", "-xpf", "/run/testln.tar"], capture_output=True, text=True, check=False
    )
    same((said.returncode, said.stderr), (0, ""), "what tar says")
    same({os.lstat(f"testln/{name}").st_uid for name in ("file", "hard")}, {MYSQL}, "the owners")
    same(os.readlink("testln/link"), "file", "where the link leads")
    assert os.lstat("testln/link").st_uid == MYSQL, "tar says nothing, and the link is the serving user's"


def install_a_package() -> None:
    build = tempfile.mkdtemp(dir="/run")
    os.chmod(build, 0o755)
    os.makedirs(f"{build}/DEBIAN")
    os.makedirs(f"{build}/var/www/html")
    write(
        f"{build}/DEBIAN/control",
        "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: a <a@example.org>\nDescription: x\n",
    )
    write(f"{build}/var/www/html/index.html", "hello\n")
    os.symlink("index.html", f"{build}/var/www/html/link")
    os.chown(f"{build}/var/www/html", 33, 33)
    os.chmod(f"{build}/var/www/html", 0o2755)
    os.chown(f"{build}/var/www/html/index.html", 33, 33)
    subprocess.run(["dpkg-deb", "--build", "-Znone", build, "/run/x.deb"], check=True, stdout=subprocess.DEVNULL)
    os.makedirs("root/var/lib/dpkg/info")
    os.makedirs("root/var/lib/dpkg/updates")
    write("root/var/lib/dpkg/status", "")
    install = [
        *("dpkg", f"--root={os.getcwd()}/root", "--log=/run/dpkg.log", "--force-not-root"),
        *("--force-bad-path", "--install", "/run/x.deb"),
    ]
    for _ in range(2):  # the second time over what is there
        done = subprocess.run(install, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        assert done.returncode == 0, done.stdout.strip().splitlines()[-1]
    found = os.stat("root/var/www/html")
    same((found.st_uid, stat.S_IMODE(found.st_mode)), (33, 0o2755), "owner and mode")
    same(read("root/var/www/html/link"), "hello\n", "the content")
    shutil.rmtree(build)


def a_lock_keeps_others_out() -> None:
    write("Cargo.lock", "")
    with open("Cargo.lock", "r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        same(as_user(0, partial(refused, locked, "flock", "Cargo.lock")), "EAGAIN", "another program's lock")
        same(host("try", "flock", "Cargo.lock"), False, "that the host gets it")
    same(host("try", "flock", "Cargo.lock"), True, "that the host gets it when it is free")
    host("hold", "flock", "Cargo.lock")
    with open("Cargo.lock", "r+") as held:
        same(refused(fcntl.flock, held, fcntl.LOCK_EX | fcntl.LOCK_NB), "EAGAIN", "the guest's lock beside the host's")
    host("let go")


def a_second_descriptor_is_closed() -> None:
    write("f", "")
    with open("f", "r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        os.close(os.open("f", os.O_RDWR))
        same(as_user(0, partial(refused, locked, "flock", "f")), "EAGAIN", "another program's lock")
        assert host("try", "flock", "f") is False, "the host gets the lock"


KINDS = ("flock", "whole", "range")
_EXCLUDES = {
    ("guest", "flock"): {"flock": True, "whole": True, "range": True},
    ("guest", "whole"): {"flock": True, "whole": True, "range": True},
    ("guest", "range"): {"flock": False, "whole": True, "range": True},
    ("host", "flock"): {"flock": True, "whole": True, "range": False},
    ("host", "whole"): {"flock": True, "whole": True, "range": True},
    ("host", "range"): {"flock": True, "whole": True, "range": True},
}
"""By who holds which: which kinds the guest, or for a guest's lock the host, is refused (docs/file-server.md)."""


def locked(kind: str, path: str) -> int:
    """Lock a file exclusively in one of the `KINDS` and return its descriptor, or raise `BlockingIOError`."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        if kind == "flock":
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 10 if kind == "range" else 0)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def the_table_of_locks() -> None:
    write("f", "x" * 100)
    other = host("another mount")
    here = os.path.relpath(os.getcwd(), host("mounted at"))
    wrong = []
    for held in KINDS:
        descriptor = locked(held, "f")
        for asked in KINDS:
            got = host("try", asked, "f")
            if got is _EXCLUDES["guest", held][asked]:
                wrong.append(f"guest {held}, host {asked}")
            if not as_user(0, partial(refused, locked, asked, f"{other}/{here}/f")):
                wrong.append(f"guest {held}, another mount {asked}")
        os.close(descriptor)
        host("hold", held, "f")
        wrong += [
            f"host {held}, guest {asked}"
            for asked in KINDS
            if bool(as_user(0, partial(refused, locked, asked, "f"))) is not _EXCLUDES["host", held][asked]
        ]
        host("let go")
    host("no other mount")
    assert not wrong, f"otherwise than the table: {'; '.join(wrong)}"


def count_in_sqlite(journal: str) -> None:
    script = os.path.join(os.path.dirname(__file__), "..", "programs", "count_in_sqlite.py")
    done = subprocess.run(
        [sys.executable, "-I", "-B", script, journal, "2", "10"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr.strip().splitlines()[-1]
    same(done.stdout.split(), [journal, "20", "ok"], "journal, count and integrity")


def sqlite_from_two_processes() -> None:
    count_in_sqlite("delete")


def sqlite_with_a_write_ahead_log() -> None:
    count_in_sqlite("wal")


def sqlite_beside_the_host() -> None:
    with sqlite3.connect("database") as made:
        made.execute("CREATE TABLE t (x)")
    made.close()
    connection = sqlite3.connect("database", timeout=0, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("INSERT INTO t VALUES (1)")
    same(host("sqlite", "INSERT INTO t VALUES (2)"), "database is locked", "what the host gets meanwhile")
    connection.execute("COMMIT")
    same(host("sqlite", "INSERT INTO t VALUES (3)"), "", "what the host gets afterwards")
    same(connection.execute("SELECT x FROM t ORDER BY x").fetchall(), [(1,), (3,)], "the rows")
    connection.close()


def clone_a_repository() -> None:
    git("init", "-q", "-b", "main", "origin")
    write("origin/run.sh", "#!/bin/sh\n", 0o755)
    os.symlink("run.sh", "origin/link")
    git("-C", "origin", "add", ".")
    git("-C", "origin", "commit", "-q", "-m", "first")
    git("clone", "-q", "--no-local", "origin", "clone")
    same(git("-C", "clone", "status", "--porcelain"), "", "git status")
    shutil.rmtree("clone")


def clone_as_a_user() -> None:
    os.mkdir("app")
    os.chown("app", DEVELOPER, DEVELOPER)

    def clone() -> None:
        os.chdir("app")
        clone_a_repository()

    as_user(DEVELOPER, clone)
    owners = {os.lstat(os.path.join(at, name)).st_uid for at, inner, _ in os.walk("app/origin") for name in inner}
    same(owners, {DEVELOPER}, "the owners of the directories that git made")


def both_sides_have_a_clean_tree() -> None:
    host("repository", "tree")
    same(git("-c", "safe.directory=*", "-C", "tree", "status", "--porcelain"), "", "git status")
    os.unlink("tree/run.sh")
    os.unlink("tree/link")
    git("-c", "safe.directory=*", "-C", "tree", "reset", "-q", "--hard")
    same(git("-c", "safe.directory=*", "-C", "tree", "status", "--porcelain"), "", "git status after a reset")
    same(host("git status", "tree"), "", "git status on the host")


def save_like_an_editor() -> None:
    os.mkdir("home")
    os.chown("home", DEVELOPER, DEVELOPER)

    def edit() -> None:
        write("home/example", "text")
        os.utime("home/example")
        os.rename("home/example", "home/example~")
        write("home/example", "more text")
        os.chmod("home/example", stat.S_IMODE(os.stat("home/example~").st_mode))
        shutil.copystat("home/example~", "home/example")
        os.unlink("home/example~")

    as_user(DEVELOPER, edit)
    same(read("home/example"), "more text", "the content")


def transfer_like_rsync() -> None:
    os.mkdir("target")
    os.chown("target", 1001, 121)
    for number, mode in enumerate((0o644, 0o444, 0o600, 0o755)):
        descriptor, path = tempfile.mkstemp(dir="target", prefix=f".feed{number}.")
        os.write(descriptor, b"data")
        os.fchmod(descriptor, 0o600)
        os.close(descriptor)
        os.chown(path, 1001, 121, follow_symlinks=False)
        os.chmod(path, mode)
        os.utime(path, (1_600_000_000, 1_600_000_000), follow_symlinks=False)
        os.rename(path, f"target/feed{number}")
        found = os.stat(f"target/feed{number}")
        same(
            (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode), int(found.st_mtime)),
            (1001, 121, mode, 1_600_000_000),
            "owner, mode and time",
        )


def run_a_program_as_a_user() -> None:
    host("program", "entry.sh", "#!/bin/sh\nid -u\n")
    said = as_user(DEVELOPER, lambda: subprocess.run(["./entry.sh"], capture_output=True, text=True, check=True).stdout)
    same(said.strip(), str(DEVELOPER), "who runs it")


def a_tree_that_git_made_on_the_host() -> None:
    host("repository", "tree")
    subprocess.run(["chown", "-R", f"{DEVELOPER}:{DEVELOPER}", "tree"], check=True)
    owners = {
        os.lstat(os.path.join(at, name)).st_uid
        for at, inner, files in os.walk("tree")
        for name in (*inner, *files)
        if not os.path.islink(os.path.join(at, name))
    }
    same(owners, {DEVELOPER}, "the owners")
    as_user(DEVELOPER, lambda: git("-C", "tree", "commit", "-q", "--allow-empty", "-m", "more"))


def _modes(top: str) -> dict[str, tuple[int, int, int]]:
    """Return mode and owner of all that is below a directory."""
    paths = [os.path.join(at, name) for at, inner, files in os.walk(top) for name in (".", *inner, *files)]
    found = {os.path.relpath(path, top): os.lstat(path) for path in paths}
    return {path: (each.st_mode, each.st_uid, each.st_gid) for path, each in found.items()}


def _odd_tree(top: str) -> None:
    """Make a tree with the modes of programs and caches: setuid, setgid, sticky, read-only, nobody's."""
    os.makedirs(f"{top}/bin")
    os.makedirs(f"{top}/cache/inner")
    for path, mode, owner in (
        ("bin/su", 0o4755, 0),
        ("bin/mail", 0o2755, 8),
        ("bin/both", 0o6711, MYSQL),
        ("cache/inner/object", 0o444, MYSQL),
        ("cache/nothing", 0o000, MYSQL),
    ):
        write(f"{top}/{path}", path)
        os.chown(f"{top}/{path}", owner, owner)
        os.chmod(f"{top}/{path}", mode)
    os.symlink("su", f"{top}/bin/link")
    os.link(f"{top}/bin/su", f"{top}/bin/hard")
    for path, mode in (("cache/inner", 0o555), ("cache", 0o1777), ("bin", 0o2775), (".", 0o555)):
        os.chmod(f"{top}/{path}", mode)


def odd_modes_are_unpacked() -> None:
    """As root, as tar and cp -a do it: over what is there, too."""
    _odd_tree("/run/odd")
    try:
        subprocess.run(["tar", "-C", "/run", "-cf", "/run/odd.tar", "odd"], check=True)
        for _ in range(2):
            subprocess.run(["tar", "-xpf", "/run/odd.tar"], check=True, capture_output=True, text=True)
            _same_but_links(_modes("odd"), _modes("/run/odd"), "what tar unpacked")
        for source in ("/run/odd", "odd"):
            for _ in range(2):
                words = ["cp", "-a", "--remove-destination", f"{source}/.", "copy"]
                os.makedirs("copy", exist_ok=True)
                subprocess.run(words, check=True, capture_output=True, text=True)
                _same_but_links(_modes("copy"), _modes("/run/odd"), f"what cp -a copied from {source}")
        subprocess.run(["rm", "-rf", "odd", "copy"], check=True, capture_output=True, text=True)
    finally:
        shutil.rmtree("/run/odd")
        os.unlink("/run/odd.tar")


def _same_but_links(got: dict[str, tuple[int, int, int]], want: dict[str, tuple[int, int, int]], what: str) -> None:
    for path, (mode, *owner) in want.items():
        found = got[path]
        same(oct(found[0]), oct(mode), f"{what}: the mode of {path}")
        if not stat.S_ISLNK(mode):
            same(found[1:], tuple(owner), f"{what}: the owner of {path}")
    same(sorted(got), sorted(want), f"{what}: the names")


def programs_are_installed() -> None:
    host("tree", "tree")
    host("mode", "tree", 0o555)
    write("program", "#!/bin/sh\n")
    for mode, owner in ((0o4755, 0), (0o2555, 8), (0o444, MYSQL), (0o000, MYSQL)):
        for target in ("tree/new", "tree/read-only"):
            words = ["install", "-m", f"{mode:o}", "-o", f"{owner}", "-g", f"{owner}", "program", target]
            subprocess.run(words, check=True, capture_output=True, text=True)
            found = os.stat(target)
            same((oct(stat.S_IMODE(found.st_mode)), found.st_uid), (oct(mode), owner), f"install -m {mode:o}: {target}")
    subprocess.run(["install", "-d", "-m", "0555", "tree/inner/made/deep"], check=True, capture_output=True, text=True)
    subprocess.run(["sed", "-i", "s/sh/bash/", "tree/read-only"], check=True, capture_output=True, text=True)
    same(read("tree/read-only"), "#!/bin/bash\n", "what sed -i wrote")
    subprocess.run(["cp", "--preserve=all", "tree/read-only", "tree/inner/made/deep"], check=True)


def garbage_is_collected() -> None:
    host("repository", "tree")
    for number in range(3):
        write("tree/text", f"{number}")
        git("-c", "safe.directory=*", "-C", "tree", "commit", "-q", "-a", "-m", f"{number}")
    git("-c", "safe.directory=*", "-C", "tree", "gc", "-q", "--prune=now")
    git("-c", "safe.directory=*", "-C", "tree", "repack", "-q", "-a", "-d", "-f")
    git("-c", "safe.directory=*", "-C", "tree", "fsck", "--strict")
    same(host("git status", "tree"), "", "git status on the host")


def modes_that_keep_root_out() -> None:
    host("tree", "tree")
    for name, mode in (("read-only", 0o444), ("nothing", 0o000)):
        host("write", f"tree/{name}", "content\n")
        host("mode", f"tree/{name}", mode)
        with open(f"tree/{name}", "a", encoding="utf-8") as file:
            file.write("more\n")
        same(read(f"tree/{name}"), "content\nmore\n", "the content")
    same(os.stat("tree/nothing").st_size, 13, "its size")
    os.chmod("tree/read-only", 0o755)
    host("mode", "tree/inner", 0o555)
    write("tree/inner/new", "new")
    os.unlink("tree/inner/new")


def told_of_changes() -> None:
    """Inotify: the guest's own changes, and the host's."""
    write("index.js", "1")
    at = checked(libc.inotify_init1(os.O_NONBLOCK))
    checked(libc.inotify_add_watch(at, b"index.js", 0x2 | 0x4))  # IN_MODIFY, IN_ATTRIB
    with open("index.js", "a", encoding="utf-8") as file:
        file.write("2")
    assert select.select([at], [], [], 0)[0], "not told of the guest's own change"
    os.read(at, 4096)
    host("write", "index.js", "333")
    os.stat("index.js")
    assert select.select([at], [], [], 0)[0], "not told of the host's change"


def confined_by_landlock() -> None:
    os.mkdir("work")
    write("work/testfile", "hi\n")

    def confine() -> str:
        rights = 0x1FFF  # all of the first ABI
        ruleset = checked(libc.syscall(444, struct.pack("<Q", rights), 8, 0))
        at = os.open("work", os.O_PATH)
        checked(libc.syscall(445, ruleset, 1, struct.pack("<Qi", rights, at), 0))
        os.close(at)
        checked(libc.prctl(38, 1, 0, 0, 0))  # PR_SET_NO_NEW_PRIVS
        checked(libc.syscall(446, ruleset, 0))
        return read("work/testfile")

    same(as_user(0, confine), "hi\n", "the content")


def deleted_files_are_free() -> None:
    for number in range(20):
        write(f"xxxx{number}", "content")
    same({read(f"xxxx{number}") for number in range(20)}, {"content"}, "the contents")
    same(host("remember"), 20, "the files")
    for number in range(20):
        os.unlink(f"xxxx{number}")
    same(host("deleted but open"), 0, "files that are deleted and still open on the host")


def many_remembered_files() -> None:
    host("files", "store", 600)
    for number in range(600):
        same(read(f"store/{number:04}"), f"{number}", "the content")
    same(len(os.listdir("store")), 600, "the number of names")
    used = host("descriptors")
    assert used <= 256, f"{used} descriptors"


def many_written_files() -> None:
    for number in range(600):
        write(f"{number:04}", f"{number}")
    for number in range(600):
        with open(f"{number:04}", "a", encoding="ascii") as file:
            file.write(", and more")
        same(read(f"{number:04}"), f"{number}, and more", "the content")
    used = host("descriptors")
    assert used <= 256, f"{used} descriptors"
    for number in range(600):
        os.unlink(f"{number:04}")
    same(os.listdir(), [], "the names")


def owners_by_name() -> None:
    """What ls shows is what the guest's passwd says."""
    write("f", "")
    same(pwd.getpwuid(os.stat("f").st_uid).pw_name, "root", "the owner")


def hidden_names() -> None:
    host("mkdir", "app")
    host("mkdir", "app/node_modules")
    host("write", "app/node_modules/x.js", "x")
    host("write", "app/.env", "secret")
    host("write", "app/index.js", "x")
    same(os.listdir("app"), ["index.js"], "the names")
    same(refused(read, "app/node_modules/x.js"), "ENOENT", "what a file in it is")
    same(refused(read, "app/.env"), "ENOENT", "what the hidden file is")
    same(refused(os.mkdir, "app/node_modules"), "EACCES", "what making it is")
    same(read("app/index.js"), "x", "what is not hidden")


def an_owner_of_the_guest() -> None:
    host("repository", "tree")
    same({os.lstat(f"tree/{name}").st_uid for name in (".git", "run.sh", "link")}, {DEVELOPER}, "the owners")
    same(as_user(DEVELOPER, lambda: git("-C", "tree", "status", "--porcelain")), "", "git status of that user")
    as_user(DEVELOPER, lambda: write("tree/new", "new"))
    same(host("owners", "tree/new"), host("owners", "tree/run.sh"), "the owner of a new file on the host")
