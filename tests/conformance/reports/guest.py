"""What the checks in the guest share: users, the host's part in a check, and the form of an outcome.

What lives here: the tools. What must not: what is checked.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import pickle
import subprocess
import traceback
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

WORKS = "works"
"""The outcome of a check that ends without an error."""

ASKS = "/run/asks"
ANSWERS = "/run/answers"
"""FIFOs in the guest: what a check asks of the host, and what the host answers."""

libc = ctypes.CDLL(None, use_errno=True)


class Report(NamedTuple):
    """What somebody reported elsewhere, and the check that does what they did.

    `where` is the repository and the number of the report, `tried` says in words what is done here, and `settings` are
    names of how the share is mounted. The check ends without an error when all is as it should be. `otherwise` are the
    other outcomes that are known; one that is known and does not come is a failure too.
    """

    where: str
    tried: str
    check: Callable[[], None]
    settings: tuple[str, ...] = ("none",)
    otherwise: tuple[Otherwise, ...] = ()


class Otherwise(NamedTuple):
    """An outcome other than `WORKS`, and its reason. `settings` and `kernels` say where; "" is everywhere."""

    outcome: str
    why: str
    settings: str = ""
    kernels: str = ""


def outcome_of(check: Callable[[], None]) -> str:
    """Make a check and return what came of it, in one line."""
    try:
        check()
    except OSError as error:
        return "EOPNOTSUPP" if error.errno == errno.EOPNOTSUPP else errno.errorcode.get(error.errno or 0, str(error))
    except AssertionError as error:
        return str(error).splitlines()[0] if str(error) else "is wrong"
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout or "").strip().splitlines()
        return f"{error.cmd[0]} ends with {error.returncode}: {said[-1] if said else ''}"
    except Exception:  # noqa: BLE001  a check that is wrong is an outcome that nobody wants
        return traceback.format_exc().strip().splitlines()[-1]
    return WORKS


def host(step: str, *arguments: object) -> Any:
    """Have the host do a step of `host.py` and return what it answers."""
    with open(ASKS, "w", encoding="utf-8") as asks:
        json.dump([step, *arguments], asks)
    with open(ANSWERS, encoding="utf-8") as answers:
        done, value = json.load(answers)
    assert done, f"the host: {value}"
    return value


def as_user(uid: int, call: Callable[[], object]) -> Any:
    """Make a call as another user of the guest, who is in no other group, and return what it returns, or raise it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            said: object = (True, call())
        except Exception as error:  # noqa: BLE001  it is raised in the parent
            said = (False, error)
        os.write(writing, pickle.dumps(said))
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as told:
        ended, value = pickle.loads(told.read())
    os.waitpid(child, 0)
    if not ended:
        raise value
    return value


def same(got: object, want: object, what: str) -> None:
    """Fail in words unless two are equal."""
    assert got == want, f"{what}: {got!r}, not {want!r}"


def refused(call: Callable[..., object], *arguments: object) -> str:
    """Return the name of the errno that a call raises, or "" when it raises none."""
    try:
        call(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def write(path: str, text: str | bytes, mode: int = 0o644) -> None:
    """Make or overwrite a file."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        os.write(descriptor, text.encode() if isinstance(text, str) else text)
    finally:
        os.close(descriptor)


def read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def checked(result: int) -> int:
    """Raise the `OSError` that a call of libc left, if it failed."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
