"""Give a running utility VM host directories, and take them away again.

    async with FileServer(listen=["unix:/run/vm1.9p"]) as server, Manager(server) as manager:
        name = await manager.add("/srv/project", read_only=True)
        ...
        await manager.remove(name)

What lives here: the public names, from most to least important. They are loaded when first used, so
that importing the package costs nothing and loads nothing of the other operating system.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uvmshare import blocking
    from uvmshare.daemon.client import AsyncClient, Client
    from uvmshare.errors import (
        ComputeSystemError,
        ComputeSystemGone,
        InvalidOptions,
        JournalError,
        OperationDenied,
        OutcomeUnknown,
        SharesLeft,
        UvmshareError,
    )
    from uvmshare.fileserver.device import FileServer
    from uvmshare.hcs.compute_system import ComputeSystem
    from uvmshare.hcs.utility_vm import UtilityVM
    from uvmshare.mounts.agent_client import AgentClient
    from uvmshare.mounts.manager import MountManager
    from uvmshare.mounts.options import MountOptions
    from uvmshare.serving import ServedVM, serve
    from uvmshare.share.journal import Journal
    from uvmshare.share.manager import Manager, ShareInfo
    from uvmshare.share.options import AddOptions
    from uvmshare.share.recovery import RecoveryReport
    from uvmshare.share.state import ShareState
    from uvmshare.sqlite_journal import SqliteJournal

    __version__: str

__all__ = [  # noqa: RUF022  most to least important
    "serve",
    "ServedVM",
    "AddOptions",
    "Manager",
    "UtilityVM",
    "FileServer",
    "MountManager",
    "AgentClient",
    "MountOptions",
    "blocking",
    "Client",
    "AsyncClient",
    "ComputeSystem",
    "SqliteJournal",
    "Journal",
    "RecoveryReport",
    "ShareState",
    "ShareInfo",
    "UvmshareError",
    "InvalidOptions",
    "OperationDenied",
    "ComputeSystemError",
    "ComputeSystemGone",
    "OutcomeUnknown",
    "JournalError",
    "SharesLeft",
    "__version__",
]

_HOME = {
    "serve": "serving",
    "ServedVM": "serving",
    "AddOptions": "share.options",
    "Manager": "share.manager",
    "UtilityVM": "hcs.utility_vm",
    "FileServer": "fileserver.device",
    "MountManager": "mounts.manager",
    "AgentClient": "mounts.agent_client",
    "MountOptions": "mounts.options",
    "Client": "daemon.client",
    "AsyncClient": "daemon.client",
    "ComputeSystem": "hcs.compute_system",
    "SqliteJournal": "sqlite_journal",
    "Journal": "share.journal",
    "RecoveryReport": "share.recovery",
    "ShareState": "share.state",
    "ShareInfo": "share.manager",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415  it is slow, and seldom asked for

        return version("uvmshare")
    if name == "blocking":
        return import_module(f"{__name__}.blocking")
    try:
        home = import_module(f"{__name__}.{_HOME.get(name, 'errors')}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == __name__:
            raise
        msg = f"uvmshare.{name} needs {error.name}, which is not installed: pip install 'uvmshare[daemon]'"
        raise ModuleNotFoundError(msg, name=error.name) from None
    value: object = getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
