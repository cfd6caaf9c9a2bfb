"""What is refused of a request before its route sees it, whichever route that is.

What lives here: a path with an empty part or a slash in a part, a parameter that the route does not have or that is
there twice, a document that is not said to be JSON, and one where none is read. Each is most likely a slip
(``/vms/$VM/shares`` with nothing in VM, ``?forse=true``), and the rest of the request would do something else than was
meant. What must not: the values of parameters and documents, which the routes' types say (`app`).

A document has to say that it is JSON for one more reason: a page of a browser can send other types to a gate, with the
certificate of the browser's user, and is not asked whether it may (Fetch, "CORS-safelisted request-header").
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote

from litestar.exceptions import ClientException, HTTPException, NotFoundException
from litestar.params import BodyKwarg, QueryParameter

if TYPE_CHECKING:
    from litestar import Request
    from litestar.handlers import BaseRouteHandler

__all__ = ["require_well_formed"]

_LONGEST_NAME = 100


def require_well_formed(request: Request[Any, Any, Any]) -> None:
    """Refuse what cannot be meant, whatever is asked for. Raises `HTTPException`."""
    for part in request.scope["raw_path"].decode("latin-1").split("/")[1:]:
        if not part or "/" in unquote(part):  # the router takes both for the path without it
            raise NotFoundException
    names, has_document = _asked_for(request.route_handler)
    given = Counter(
        name for name, _ in parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True)
    )
    for name, count in given.items():
        if name not in names:
            there = ", ".join(sorted(names))
            have = f"this path and method have {there}" if there else "this path and method have none"
            msg = f"there is no parameter {name[:_LONGEST_NAME]!r}; {have}"
            raise ClientException(msg)
        if count > 1:
            msg = f"{name}: it is given {count} times; give it once"
            raise ClientException(msg)
    if has_document:
        _require_json(request.headers.get("content-type", ""))
    elif request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers:
        msg = "a document was sent, and this path and method read none; give parameters in the query"
        raise ClientException(msg)


@cache
def _asked_for(handler: BaseRouteHandler) -> tuple[frozenset[str], bool]:
    """Return the names of the query that a route reads, and whether it reads a document."""
    kinds = {name: field.kwarg_definition for name, field in handler.parsed_fn_signature.parameters.items()}
    names = frozenset(name for name, kind in kinds.items() if isinstance(kind, QueryParameter))
    return names, any(isinstance(kind, BodyKwarg) for kind in kinds.values())


def _require_json(content_type: str) -> None:
    kind, _, options = content_type.partition(";")
    charset = options.strip().lower().removeprefix("charset=").strip('"')
    if kind.strip().lower() != "application/json" or charset not in ("", "utf-8"):
        what = repr(content_type[:_LONGEST_NAME]) if content_type else "missing"
        msg = f"the header Content-Type is {what}; send JSON in UTF-8, and say application/json"
        raise HTTPException(detail=msg, status_code=415)
