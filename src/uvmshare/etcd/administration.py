"""What the administrator of a fleet asks of etcd, beside keys: users and their roles, compaction, alarms.

What lives here: these calls, each of which may be repeated. What must not: which roles a fleet has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvmshare.errors import StoreError
from uvmshare.etcd import messages
from uvmshare.etcd.failures import STANDING
from uvmshare.etcd.translation import prefix_range

if TYPE_CHECKING:
    from uvmshare.etcd.client import EtcdStore
    from uvmshare.etcd.wire import Message

__all__ = ["Administration"]


class Administration:
    """An administrator's calls, through a store that is open."""

    def __init__(self, store: EtcdStore) -> None:
        self._store = store

    async def _do(self, method: str, request: Message) -> None:
        """Ask for what may be there, or gone, already."""
        try:
            await self._store.ask(method, request, messages.Answer, changes=True)
        except StoreError as error:
            if not any(words in str(error) for words in STANDING):
                raise

    async def add_user(self, name: str, *roles: str) -> None:
        """Add a user, whom a certificate of this common name stands for, without a password; grant them roles."""
        add = messages.AuthUserAddRequest(name, "", messages.UserAddOptions(no_password=True))
        await self._do("Auth/UserAdd", add)
        for role in roles:
            await self._do("Auth/UserGrantRole", messages.AuthUserGrantRoleRequest(name, role))

    async def remove_user(self, name: str) -> None:
        """Remove a user, who may nothing more from then on."""
        await self._do("Auth/UserDelete", messages.AuthNameRequest(name))

    async def add_role(self, name: str, *prefixes: str) -> None:
        """Add a role that may read and write all keys of these prefixes."""
        await self._do("Auth/RoleAdd", messages.AuthNameRequest(name))
        for prefix in prefixes:
            permission = messages.Permission(messages.READWRITE, *prefix_range(prefix))
            grant = messages.AuthRoleGrantPermissionRequest(name, permission)
            await self._do("Auth/RoleGrantPermission", grant)

    async def remove_role(self, name: str) -> None:
        """Remove a role from all who have it."""
        await self._do("Auth/RoleDelete", messages.AuthNameRequest(name))

    async def enable_roles(self) -> None:
        """Have etcd ask who a caller is. The user ``root`` has to be there, with the role ``root``."""
        await self._do("Auth/AuthEnable", messages.Empty())

    async def compact(self, revision: int) -> None:
        """Forget what was before a revision, and have it gone from the disk when this returns."""
        request = messages.CompactionRequest(revision, physical=True)
        await self._store.ask("KV/Compact", request, messages.Answer, changes=True)

    async def defragment(self) -> None:
        """Give back the disk that was freed, at the member that is asked; it answers nothing else meanwhile."""
        await self._store.ask("Maintenance/Defragment", messages.Empty(), messages.Answer, changes=True)

    async def disarm(self) -> None:
        """Take back the alarm that the database is full, at every member, when there is room again."""
        raised = await self._store.ask("Maintenance/Alarm", messages.AlarmRequest(), messages.AlarmResponse)
        for each in raised.alarms:
            if each.alarm == messages.NOSPACE:
                request = messages.AlarmRequest(messages.DEACTIVATE, each.member_id, messages.NOSPACE)
                await self._store.ask("Maintenance/Alarm", request, messages.AlarmResponse, changes=True)

    async def status(self) -> messages.StatusResponse:
        """Return what the member that is asked says of itself."""
        return await self._store.ask("Maintenance/Status", messages.Empty(), messages.StatusResponse)
