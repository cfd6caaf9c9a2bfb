"""What the host does while a check runs in the guest, by the names by which the checks ask for it.

What lives here: the steps. What must not: what is expected of them.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import subprocess
from typing import TYPE_CHECKING, Any

from tests.conformance.harness import USER, compiled, mount_here

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conformance.harness import Mount

_SECOND = "/run/second"


class Host:
    """The host's side of the checks of one mount."""

    def __init__(self, mount: Mount) -> None:
        self._mount = mount
        self._root = mount.host
        self._held: list[int] = []
        self._remembered: set[int] = set()
        self._steps: dict[str, Callable[..., Any]] = {
            "append": self._append,
            "begin": self._begin,
            "another mount": self._another_mount,
            "compiled": compiled,
            "count": lambda: len(os.listdir(self._root)),
            "deleted but open": lambda: sum(
                found.st_nlink == 0 and found.st_ino in self._remembered for found in self._open_in_mounts()
            ),
            "descriptors": lambda: max(self._counts(), default=0),
            "files": self._files,
            "full": self._full,
            "git status": lambda name: self._git(name, "status", "--porcelain"),
            "hold": self._hold,
            "let go": self._let_go,
            "link": lambda target, name: os.symlink(target, self._path(name)),
            "mkdir": self._mkdir,
            "mode": lambda name, mode: os.chmod(self._path(name), mode),
            "mounted at": lambda: mount.at,
            "no other mount": lambda: mount.bench.check(f"umount {_SECOND} && rmdir {_SECOND}"),
            "owners": self._owners,
            "program": self._program,
            "read": lambda name: _text(self._path(name)),
            "remove": lambda name: shutil.rmtree(self._path(name)),
            "remember": self._remember,
            "rename": lambda old, new: os.rename(self._path(old), self._path(new)),
            "repository": self._repository,
            "run": lambda name: _said(self._path(name)),
            "save": self._save,
            "sparse": self._sparse,
            "sqlite": self._sqlite,
            "stat": self._stat,
            "times": lambda name, at: os.utime(self._path(name), ns=(at, at)),
            "tree": self._tree,
            "tree of modes": self._tree_of_modes,
            "try": self._try,
            "unmount": lambda name: subprocess.run(["umount", self._path(name)], check=True).returncode,
            "write": self._write,
        }

    def do(self, step: str, *arguments: Any) -> Any:
        """Do a step and return its answer."""
        return self._steps[step](*arguments)

    def _begin(self, name: str) -> None:
        """Work in the directory of a check from now on."""
        self._root = os.path.join(self._mount.host, name)

    def _path(self, name: str) -> str:
        return os.path.join(self._root, name)

    def _mkdir(self, name: str) -> None:
        os.mkdir(self._path(name))
        self._own(name)

    def _own(self, name: str) -> None:
        """Give what was made to the user whose files these are meant to be, if it is not root."""
        if self._mount.setting.server in ("a user's", "mapped owner"):
            os.chown(self._path(name), USER, USER, follow_symlinks=False)

    def _write(self, name: str, text: str) -> None:
        with open(self._path(name), "w", encoding="utf-8") as file:
            file.write(text)
        self._own(name)

    def _program(self, name: str, text: str) -> None:
        self._write(name, text)
        os.chmod(self._path(name), 0o755)

    def _append(self, name: str, text: str) -> None:
        with open(self._path(name), "a", encoding="utf-8") as file:
            file.write(text)

    def _save(self, name: str, text: str) -> None:
        """Save as an editor does: another file, renamed over the name."""
        self._write(f"{name}.new", text)
        os.rename(self._path(f"{name}.new"), self._path(name))

    def _sparse(self, name: str, size: int, at: int, text: str) -> None:
        with open(self._path(name), "wb") as file:
            file.truncate(size)
            file.seek(at)
            file.write(text.encode())

    def _stat(self, name: str) -> dict[str, int]:
        found = os.lstat(self._path(name))
        return {"size": found.st_size, "blocks": found.st_blocks, "mode": found.st_mode}

    def _owners(self, name: str) -> list[list[int]]:
        found = [os.lstat(path) for path in self._below(name)]
        return sorted([each.st_uid, each.st_gid] for each in found)

    def _below(self, name: str) -> list[str]:
        top = self._path(name)
        return [top, *(os.path.join(at, each) for at, inner, files in os.walk(top) for each in (*inner, *files))]

    def _tree(self, name: str) -> None:
        os.makedirs(self._path(f"{name}/inner"))
        for each, mode in (("file", 0o644), ("read-only", 0o444), ("inner/deep", 0o644)):
            self._write(f"{name}/{each}", "content\n")
            os.chmod(self._path(f"{name}/{each}"), mode)
        for path in self._below(name):
            self._own(os.path.relpath(path, self._root))

    def _tree_of_modes(self, name: str) -> None:
        self._tree(name)
        os.chmod(self._path(f"{name}/inner/deep"), 0o444)
        os.chmod(self._path(f"{name}/inner"), 0o555)
        os.chmod(self._path(name), 0o555)

    def _files(self, name: str, count: int) -> None:
        """Make a directory of so many files, each with its number as the content."""
        self._mkdir(name)
        for number in range(count):
            self._write(f"{name}/{number:04}", str(number))

    def _full(self, name: str, size: int) -> None:
        """Put a small file system at a name."""
        os.mkdir(self._path(name))
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", self._path(name)], check=True)

    def _git(self, name: str, *words: str) -> str:
        command = ["git", "-c", "safe.directory=*", "-C", self._path(name), *words]
        quiet = {
            "GIT_CONFIG_NOSYSTEM": "1",
            "HOME": "/nonexistent",
            "PATH": os.environ["PATH"],
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
            **{f"GIT_{who}_{what}": "a@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        }
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=quiet).stdout

    def _repository(self, name: str) -> None:
        os.mkdir(self._path(name))
        self._git(name, "init", "-q", "-b", "main")
        self._write(f"{name}/run.sh", "#!/bin/sh\n")
        os.chmod(self._path(f"{name}/run.sh"), 0o755)
        self._write(f"{name}/text", "text\n")
        os.symlink("run.sh", self._path(f"{name}/link"))
        self._git(name, "add", ".")
        self._git(name, "commit", "-q", "-m", "first")
        for path in self._below(name):
            self._own(os.path.relpath(path, self._root))

    def _sqlite(self, statement: str) -> str:
        connection = sqlite3.connect(self._path("database"), timeout=0, isolation_level=None)
        try:
            connection.execute(statement)
        except sqlite3.OperationalError as error:
            return str(error)
        finally:
            connection.close()
        return ""

    def _locked(self, kind: str, name: str) -> int:
        descriptor = os.open(self._path(name), os.O_RDWR)
        try:
            if kind == "flock":
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 10 if kind == "range" else 0)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def _hold(self, kind: str, name: str) -> None:
        self._held.append(self._locked(kind, name))

    def _let_go(self) -> None:
        while self._held:
            os.close(self._held.pop())

    def _try(self, kind: str, name: str) -> bool:
        """Say whether the host gets a lock, and let it go."""
        try:
            os.close(self._locked(kind, name))
        except BlockingIOError:
            return False
        return True

    def _another_mount(self) -> str:
        mount_here(self._mount, _SECOND)
        return _SECOND

    def _remember(self) -> int:
        """Remember the files that are there now; return how many these are."""
        self._remembered = {entry.inode() for entry in os.scandir(self._root)}
        return len(self._remembered)

    def _mounts(self) -> list[str]:
        """Return the file descriptors' directories of processes that have the share's directory as their own."""
        found = []
        root = os.stat(self._mount.host)
        for process in filter(str.isdigit, os.listdir("/proc")):
            try:
                here = f"/proc/{process}/fd"
                if int(process) != os.getpid() and any(
                    os.path.samestat(os.stat(f"{here}/{each}"), root) for each in os.listdir(here)
                ):
                    found.append(here)
            except OSError:
                continue
        return found

    def _counts(self) -> list[int]:
        return [len(os.listdir(here)) for here in self._mounts()]

    def _open_in_mounts(self) -> list[os.stat_result]:
        device = os.stat(self._root).st_dev
        found = []
        for here in self._mounts():
            for each in os.listdir(here):
                one = os.stat(f"{here}/{each}")
                if one.st_dev == device:
                    found.append(one)
        return found


def _text(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def _said(path: str) -> str:
    return subprocess.run([path], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
