"""Everything below a prefix, however many pages that is.

What lives here: `listed`. What must not: what the keys are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvmshare.etcd.protocol import Page

if TYPE_CHECKING:
    from uvmshare.etcd.protocol import Store

__all__ = ["listed"]


async def listed(store: Store, prefix: str, *, revision: int = 0) -> Page:
    """Return all keys that begin with `prefix`, at one revision, as one page. Revision 0 is the newest.

    Raises what `Store.list` raises.
    """
    page = await store.list(prefix, revision=revision)
    found, at = page.found, page.revision
    while page.more:
        page = await store.list(prefix, revision=at, after=found[-1].key)
        found += page.found
    return Page(found, at, more=False)
