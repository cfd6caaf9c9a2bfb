"""A VM's shares and mounts for synchronous programs: everything in one object, without an event loop.

    with uvmshare.serve(listen=["firecracker:/run/fc/v.sock"]) as vm:
        share = vm.share("/srv/project", read_only=True)
        ...  # the guest mounts the share of that name

What lives here: `serve`, and what it returns. What must not: a decision about a share or a mount: the Manager and the
MountManager in the background event loop make those (`uvmshare.blocking`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from uvmshare import arguments, blocking
from uvmshare.errors import InvalidState, UvmshareError
from uvmshare.fileserver.device import FileServer
from uvmshare.lifecycle.entry import BlockOwner
from uvmshare.mounts.agent_client import LAST_PORT, AgentClient
from uvmshare.mounts.options import mapping_of
from uvmshare.share.options import options_of

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Unpack

    from uvmshare.fileserver.limits import Limits
    from uvmshare.fileserver.models import Links, SecurityModel
    from uvmshare.mounts.mount import MountInfo
    from uvmshare.mounts.options import MapKeywords
    from uvmshare.share.manager import ShareInfo
    from uvmshare.share.options import AddOptions, HostPath, ShareKeywords

__all__ = ["Held", "ServedVM", "serve"]


class Held:
    """A held share or mount. `name` is the name of the share. `release` or the end of a ``with`` block releases it."""

    def __init__(self, what: str, name: str, release: Callable[[], object]) -> None:
        self.name = name
        self._what = what
        self._release: Callable[[], object] | None = release

    def __repr__(self) -> str:
        return f"<{self._what}, share {self.name}: {'released' if self._release is None else 'held'}>"

    def release(self) -> None:
        """Release it. Nothing in the guest reaches it afterwards, unless others hold it. A second call does nothing.

        Raises what the Manager's `remove` or the MountManager's `unmount` raises. Call again to try again.
        """
        if self._release is not None:
            self._release()
            self._release = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.release()
        except UvmshareError as more:
            if error is None:
                raise
            error.add_note(f"and it could not be released: {more}")


class ServedVM:
    """One VM: its file server, its shares, and its mounts when it has an agent. Made by `serve`."""

    def __init__(self, server: FileServer, agent: AgentClient | None) -> None:
        self._server = server
        self._agent = agent
        self._mounts: blocking.MountManager | None = None
        self.manager = blocking.Manager(server)
        """The Manager of its shares, for all that it has besides `share`."""
        if agent is not None:
            try:
                self._mounts = blocking.MountManager(agent, shares=self.manager)
            except BaseException:
                self.manager.close()
                raise

    def __repr__(self) -> str:
        return f"<ServedVM of {self._server!r}{'' if self._agent is None else f', {self._agent!r}'}>"

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where its file server listens, with the ports that were really bound."""
        return self._server.addresses

    def share(self, share: AddOptions | HostPath, **keywords: Unpack[ShareKeywords]) -> Held:
        """Share a directory or file, and hold it until it is released, or the VM is closed. Raises as `Manager.add`."""
        options, owner = options_of(share, keywords), BlockOwner()
        name = self.manager.add(options, owner=owner)
        return Held(f"share of {options.host_path}", name, lambda: self.manager.remove(name, owner=owner))

    def map(self, share: AddOptions | HostPath, guest_path: str, **keywords: Unpack[MapKeywords]) -> Held:
        """Share a directory and have the guest mount it, and hold it until it is released, or the VM is closed.

        Needs the address of an agent. Raises as `MountManager.map` does.
        """
        wanted, owner, mounts = mapping_of(share, guest_path, keywords), BlockOwner(), self._require_mounts()
        info = mounts.mount(wanted, owner=owner)
        return Held(
            f"mount at {info.mount_path}",
            info.share_name or "",
            lambda: mounts.unmount(info.mount_path, owner=owner),
        )

    def shares(self) -> tuple[ShareInfo, ...]:
        """Return a snapshot of its shares."""
        return self.manager.shares()

    def mounts(self) -> tuple[MountInfo, ...]:
        """Return a snapshot of the mounts in its guest."""
        return self._require_mounts().mounts()

    @property
    def mount_manager(self) -> blocking.MountManager:
        """The MountManager of its guest, for owners and everything else beside `map`.

        ``vm.mount_manager.map(path, guest_path, owner="job-7")``; its ``agent`` tells what the guest can do. Without an
        agent raises `InvalidState`.
        """
        return self._require_mounts()

    def _require_mounts(self) -> blocking.MountManager:
        if self._mounts is None:
            msg = "this VM has no agent, which mounts: give serve() its address, agent='firecracker:/run/fc/v.sock'"
            raise InvalidState(msg)
        return self._mounts

    def close(self) -> None:
        """Remove every mount and share; end the file server and the background event loop. A second call does nothing.

        Raises `MountsLeft` and `SharesLeft` with what could not be removed. The file server is ended in any case.
        """
        try:
            if self._mounts is not None:
                mounts, self._mounts = self._mounts, None
                with mounts:
                    pass
        finally:
            with self.manager:
                pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and self.manager.is_of_another_process:
            return  # a forked child that ends: the block is its parent's to end
        if error is None:
            self.close()
            return
        try:
            self.close()
        except UvmshareError as more:
            error.add_note(f"and {more}")


def serve(
    listen: Sequence[str],
    *,
    agent: str | None = None,
    agent_dials: bool = False,
    agent_token: str | None = None,
    server_port: int = 5640,
    security_model: SecurityModel = "mapped-xattr",
    links: Links = "mapped",
    allow_remote: bool = False,
    allow_uids: Sequence[int | Literal["any"]] = (),
    run_dir: str | os.PathLike[str] | None = None,
    log: str | os.PathLike[str] | None = None,
    socket_mode: int = 0o600,
    limits: Limits | None = None,
) -> ServedVM:
    """Serve directories of the host to a VM, without an event loop: ``with uvmshare.serve(listen=[...]) as vm:``.

    `listen` and the settings below it are those of `FileServer`. `agent` is the address of the agent in the guest, for
    `ServedVM.map`; with `agent_dials` this side listens there. `agent_token` and `server_port` are as of `AgentClient`.

    Any number of threads may use the object that it returns. A forked child may not (`WrongProcess`). If a program ends
    without closing it, the file server ends too, unless it has a `run_dir`; nothing waits.

    Raises what `FileServer` raises, when it is made and when it is started.
    """
    if agent is not None:
        arguments.text("agent", agent, "the address of the agent in the guest, such as 'firecracker:/run/fc/v.sock'")
    if agent_token is not None:
        arguments.text("agent_token", agent_token, "the secret that the agent was started with: a str", secret=True)
    arguments.flag("agent_dials", agent_dials)
    arguments.number("server_port", server_port, least=1, most=LAST_PORT)
    server = FileServer(
        listen,
        security_model=security_model,
        links=links,
        allow_remote=allow_remote,
        allow_uids=allow_uids,
        run_dir=run_dir,
        log=log,
        socket_mode=socket_mode,
        limits=limits,
    )
    wanted: dict[str, Any] = {"accept": agent_dials, "token": agent_token, "server_port": server_port}
    return ServedVM(server, None if agent is None else AgentClient(agent, allow_uids=allow_uids, **wanted))
