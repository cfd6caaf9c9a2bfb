"""Requests that cannot be meant, made of an OpenAPI document: for each route what is wrong with path, query and body.

What lives here: the requests, and what holds of the answer to each. What must not: what a daemon or a gate has (their
tests).
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.for_people import assert_for_people

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import httpx

__all__ = ["assert_all_refused"]

METHODS = ("GET", "PUT", "POST", "DELETE", "PATCH")
JSON = {"Content-Type": "application/json"}


class Wrong(NamedTuple):
    """One request, and what is wrong with it."""

    what: str
    method: str
    path: str
    headers: Mapping[str, str] = {}
    content: bytes = b""


def assert_all_refused(
    http: httpx.Client, parts: Mapping[str, str], bodies: Mapping[str, Mapping[str, Any]], base: str = ""
) -> None:
    """Send every wrong request, and see that each is refused, with thing, reason and remedy in words."""
    document = http.get(f"{base}/v1/openapi.json").json()
    count = 0
    for wrong in _wrong_requests(document, parts, bodies):
        count += 1
        answer = http.request(wrong.method, base + wrong.path, content=wrong.content, headers=dict(wrong.headers))
        said = f"{wrong.method} {wrong.path[:80]}, {wrong.what}: {answer.status_code} {answer.text[:300]}"
        assert 400 <= answer.status_code < 500, said
        assert answer.headers["Content-Type"].startswith("application/problem+json"), said
        problem = answer.json()
        for part in ("thing", "reason", "remedy"):
            assert problem[part], said
            assert "\n" not in problem[part], said
            assert_for_people(problem[part])
        assert problem["status"] == answer.status_code, said
    assert count > 600


def _wrong_requests(
    document: Mapping[str, Any], parts: Mapping[str, str], bodies: Mapping[str, Mapping[str, Any]]
) -> Iterator[Wrong]:
    """Give the requests. `parts` are what paths are filled in with, `bodies` documents by the name of their schema.

    A document of `bodies` has the right form, and something in it that is refused for another reason: so nothing is
    done whatever is put into one of its other fields.
    """
    schemas = document["components"]["schemas"]
    for path, operations in document["paths"].items():
        where = path.format_map(parts)
        for method in METHODS:
            if method.lower() not in operations:
                yield Wrong("a method that is not there", method, where)
        for name, operation in operations.items():
            method = name.upper()
            body = operation.get("requestBody")
            right, headers = b"", {}
            if body is not None:
                named = body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
                right, headers = json.dumps(bodies[named]).encode(), JSON
                yield from _bodies(method, where, bodies[named], schemas[named], schemas)
            else:
                yield Wrong("a document that nobody reads", method, where, JSON, b"{}")
            for part in re.findall(r"\{(\w+)\}", path):
                for value in ("", "%2F", "..%2F..", "x" * 300):
                    there = path.format_map({**parts, part: value})
                    yield Wrong(f"{part} is {value[:9]!r}", method, there, headers, right)
            yield Wrong("an unknown parameter", method, f"{where}?surprise=1", headers, right)
            for parameter in operation.get("parameters", ()):
                if parameter["in"] != "query":
                    continue
                key, schema = parameter["name"], parameter["schema"]
                yield Wrong(f"{key} twice", method, f"{where}?{key}=1&{key}=1", headers, right)
                for value in _values(schema):
                    yield Wrong(f"{key} is {value[:9]!r}", method, f"{where}?{key}={value}", headers, right)


def _values(schema: Mapping[str, Any]) -> Iterator[str]:
    """Give texts that no parameter of this schema is."""
    kinds = [schema, *schema.get("anyOf", ()), *schema.get("oneOf", ())]
    types = {each.get("type") for each in kinds}
    if "boolean" in types:
        yield from ("", "perhaps", "2", "%00", "%FF", "9" * 400)
    elif "integer" in types:
        yield from ("", "me", "-1", "1.5", "%00", "%FF", "9" * 400)
    for each in kinds:
        if "maxLength" in each:
            yield "x" * (each["maxLength"] + 1)
        if each.get("minLength"):
            yield "x" * (each["minLength"] - 1)
        if "pattern" in each:
            yield from ("a%20b", "%00", "%FF", "a%0A", "..")


def _bodies(
    method: str, where: str, right: Mapping[str, Any], schema: Mapping[str, Any], schemas: Mapping[str, Any]
) -> Iterator[Wrong]:
    text = json.dumps(right).encode()
    for kind in ("", "text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1", "{}"):
        yield Wrong(f"Content-Type {kind!r}", method, where, {"Content-Type": kind} if kind else {}, text)
    broken = (b"", b"{", text[:-1], text + b"x", b"\xff", b'{"\xff": 1}', b"[" * 100_000, b"NaN", b'"\\ud800"')
    for each in (*broken, b"null", b"[]", b"7", b'"x"', b"true"):
        yield Wrong(f"the document is {each[:9]!r}", method, where, JSON, each)
    yield Wrong("an unknown field", method, where, JSON, json.dumps({**right, "surprise": 1}).encode())
    for field in schema.get("required", ()):
        less = {name: value for name, value in right.items() if name != field}
        yield Wrong(f"{field} is missing", method, where, JSON, json.dumps(less).encode())
    for field, its in schema["properties"].items():
        for value in _wrong_fields(its, schemas):
            content = json.dumps({**right, field: value}).encode()
            yield Wrong(f"{field} is {value!r:.30}", method, where, JSON, content)


def _wrong_fields(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Iterator[Any]:
    """Give values that break a schema, and some that may be right in form."""
    if "$ref" in schema:
        schema = schemas[schema["$ref"].rpartition("/")[2]]
    yield from ({"surprise": 1}, [[7]], 7.5, -1, 10**30, True, None, "\n", "", "a\0b", "\ud800", "../..", [], {})
    if "maxLength" in schema:
        yield "x" * (schema["maxLength"] + 1)
    if "maxItems" in schema:
        yield ["x"] * (schema["maxItems"] + 1)
    if "maxProperties" in schema:
        yield {str(each): 1 for each in range(schema["maxProperties"] + 1)}
    for bound, step in (("minimum", -1), ("maximum", 1), ("exclusiveMinimum", 0)):
        if bound in schema:
            yield schema[bound] + step
    if isinstance(schema.get("items"), dict):
        for each in _wrong_fields(schema["items"], schemas):
            yield [each]
    if isinstance(schema.get("additionalProperties"), dict):
        for each in _wrong_fields(schema["additionalProperties"], schemas):
            yield {"x": each}
    for part in schema.get("anyOf", ()):
        yield from _wrong_fields(part, schemas)
