"""What a file server makes of owners and links: the words for it, which programs and the daemon's documents share.

What lives here: the two `Literal` types and their values, and how the attributes of mapped-xattr are called. What must
not: what they mean, which is `uvmshare.fileserver.mount.files.ownership`'s.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

__all__ = ["LINKS", "MAPPED", "SECURITY_MODELS", "Links", "SecurityModel"]

SecurityModel = Literal["mapped-xattr", "passthrough", "none"]
"""Who owns on the host what a guest makes."""
Links = Literal["mapped", "real"]
"""What a symbolic link that a guest makes under mapped-xattr is on the host: a file with an attribute, or a link."""

SECURITY_MODELS: Final[tuple[SecurityModel, ...]] = get_args(SecurityModel)
LINKS: Final[tuple[Links, ...]] = get_args(Links)
MAPPED: Final = "user.virtfs."
"""How the names of the attributes begin in which mapped-xattr keeps what a guest means; QEMU's, for its shares."""
