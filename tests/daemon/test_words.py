"""What the HTTP API says of a request that it does not take is for people: no validator's text is in it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from tests.for_people import assert_for_people

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.daemon.harness import Running

NAME = "it has to be letters, digits and . _ @ - alone, and begin with a letter or digit"
VM = {"id": "x", "listen": ["unix:/x"]}
SHARE = {"path": "/tmp"}
MOUNT = {"path": "/tmp", "guest_path": "/mnt/x"}
TABLE: list[tuple[str, str, Any, str]] = [
    ("POST", "/v1/vms", VM | {"id": "a b"}, f"id: {NAME}"),
    ("POST", "/v1/vms", VM | {"id": ""}, "id: it is empty"),
    ("POST", "/v1/vms", VM | {"id": "x" * 65}, "id: it has more than 64 characters"),
    ("POST", "/v1/vms", VM | {"id": 7}, "id: it is a whole number, and has to be a text"),
    ("POST", "/v1/vms", {"listen": ["unix:/x"]}, "the document: the field id is missing"),
    ("POST", "/v1/vms", VM | {"listn": 1}, "the document: there is no field listn"),
    ("POST", "/v1/vms", VM | {"listen": "unix:/x"}, "listen: it is a text, and has to be a list"),
    ("POST", "/v1/vms", VM | {"listen": [""]}, "listen[0]: it is empty"),
    ("POST", "/v1/vms", VM | {"listen": ["unix:/x"] * 17}, "listen: it has more than 16 items"),
    ("POST", "/v1/vms", VM | {"socket_mode": "rw"}, "socket_mode: it has to be three octal digits, such as 660"),
    ("POST", "/v1/vms", VM | {"security_model": "all"}, "security_model: 'all' is none of the values that it may have"),
    ("POST", "/v1/vms", VM | {"limits": {"mounts": "x"}}, "limits[...]: it is a text, and has to be"),
    ("POST", "/v1/vms", VM | {"limits": {"mounts": 0}}, "limit mounts is 0: it is less than 1"),
    ("POST", "/v1/vms", VM | {"limits": {"mount": 1}}, "there is no limit 'mount'; there are connections, "),
    ("POST", "/v1/vms", VM | {"limits": {"": 1}}, "limits: it is empty"),
    ("POST", "/v1/vms", VM | {"allow_uids": [-1]}, "allow_uids[0]: it is less than 0"),
    ("POST", "/v1/vms", [], "the document: it is a list, and has to be an object"),
    ("POST", "/v1/vms", "", "the document: it is missing"),
    ("POST", "/v1/vms", b"\xff", "it is no JSON"),
    ("POST", "/v1/vms", b'{"id": "\xff"}', "the document is not UTF-8"),
    ("POST", "/v1/vms", b"[" * 100_000, "the document is nested too deeply"),
    ("POST", "/v1/vms", None, "it is missing"),
    ("POST", "/v1/vms/vm/shares", SHARE | {"owner": "a/b"}, f"owner: {NAME}"),
    ("POST", "/v1/vms/vm/shares", SHARE | {"lease": 0}, "lease: it is not more than 0; give seconds"),
    ("POST", "/v1/vms/vm/shares", SHARE | {"lease": 1e9}, "lease: it is more than 31536000; give seconds"),
    ("POST", "/v1/vms/vm/shares", SHARE | {"lease": "5m"}, "lease: it is a text, and has to be a number or null; give"),
    ("POST", "/v1/vms/vm/shares", SHARE | {"map_owner": "me:0"}, "map_owner: it has to be HOST:GUEST in numbers"),
    ("POST", "/v1/vms/vm/shares", SHARE | {"hide": [""]}, "hide[0]: it is empty"),
    ("POST", "/v1/vms/vm/mounts", MOUNT | {"guest_path": "/"}, "guest_path: it has fewer than 2 characters; give an "),
    ("POST", "/v1/vms/vm/mounts", MOUNT | {"msize": 1}, "msize: it is less than 4096; give bytes"),
    ("POST", "/v1/vms/vm/mounts", MOUNT | {"cache": "all"}, "cache: 'all' is none of the values that it may have"),
    ("PUT", "/v1/leases/a%20b", {}, f"owner: {NAME}"),
    ("DELETE", "/v1/vms/vm/shares/0?owner=", None, "owner: it is empty"),
    ("DELETE", "/v1/vms/vm/shares/0?uid=me", None, "uid: it is a text, and has to be a whole number or null"),
    ("DELETE", "/v1/vms/vm/shares/0?force=perhaps", None, "force: it is a text, and has to be true or false"),
    ("DELETE", "/v1/vms/vm/mounts", None, "guest_path is missing"),
    ("GET", "/v1/nothing", None, "there is no such path; /v1/openapi.json lists"),
    ("PATCH", "/v1/vms", None, "this path has no PATCH; /v1/openapi.json lists"),
]


@pytest.mark.parametrize(("method", "path", "body", "said"), TABLE, ids=[f"{row[1]} {row[3][:30]}" for row in TABLE])
def test_what_is_wrong_with_a_request_is_said_in_words(
    shared: Running, method: str, path: str, body: Any, said: str
) -> None:
    content = body if isinstance(body, bytes) else b"" if body in (None, "") else json.dumps(body).encode()
    with shared.home.http() as http:
        answer = http.request(method, path, content=content, headers={"Content-Type": "application/json"})
    assert 400 <= answer.status_code < 500 or "limit" in said
    reason = answer.json()["reason"]
    assert said in reason
    assert_for_people(reason)


def _wrong(schema: dict[str, Any], schemas: dict[str, Any]) -> Iterator[Any]:
    """Give values that break a schema, one for each thing that it asks for."""
    if "$ref" in schema:
        schema = schemas[schema["$ref"].rpartition("/")[2]]
    yield from ({"surprise": 1}, [[7]], 7.5, True, "\n", "")
    if "maxLength" in schema:
        yield "x" * (schema["maxLength"] + 1)
    if schema.get("minLength", 0) > 1:
        yield "x" * (schema["minLength"] - 1)
    for bound, step in (("minimum", -1), ("maximum", 1), ("exclusiveMinimum", 0)):
        if bound in schema:
            yield schema[bound] + step
    if "maxItems" in schema:
        yield ["x"] * (schema["maxItems"] + 1)
    if "maxProperties" in schema:
        yield {str(each): 1 for each in range(schema["maxProperties"] + 1)}
    if isinstance(schema.get("items"), dict):
        for each in _wrong(schema["items"], schemas):
            yield [each]
    if isinstance(schema.get("additionalProperties"), dict):
        for each in _wrong(schema["additionalProperties"], schemas):
            yield {"x": each}
    for part in schema.get("anyOf", ()):
        yield from _wrong(part, schemas)


def test_whatever_limit_of_a_field_is_broken_is_said_in_words(shared: Running) -> None:
    """Every limit of every field of every document, as the OpenAPI document has them: new ones too."""
    refused = 0
    with shared.home.http() as http:
        document = http.get("/v1/openapi.json").json()
        schemas = document["components"]["schemas"]
        for path, name, right in (
            ("/v1/vms", "NewVm", VM | {"id": "vm"}),
            ("/v1/vms/vm/shares", "NewShare", {"path": "/nowhere"}),
            ("/v1/vms/vm/mounts", "NewMount", MOUNT | {"path": "/nowhere"}),
        ):
            for field, schema in schemas[name]["properties"].items():
                for value in _wrong(schema, schemas):
                    answer = http.post(path, json=right | {field: value})
                    if answer.status_code >= 400:
                        refused += 1
                        assert answer.status_code < 500 or answer.status_code in {501, 502}, answer.text
                        assert_for_people(answer.json()["reason"])
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                for parameter in operation.get("parameters", ()):
                    if parameter["in"] != "query" or parameter["name"] in {"follow", "wait"}:
                        continue  # what is no word for true is false
                    for value in _wrong(parameter["schema"], schemas):
                        where = path.format(vm="none", share="0", owner="o", operation="0")
                        answer = http.request(
                            method, where, params={parameter["name"]: str(value), "follow": "false"}, json={}
                        )
                        if answer.status_code >= 400:
                            refused += 1
                            assert_for_people(answer.json()["reason"])
    assert refused > 200
