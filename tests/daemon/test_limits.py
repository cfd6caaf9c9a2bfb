"""The limits of requests: those of every field, read from the OpenAPI document, and those of HTTP itself."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest
from tests.daemon.test_users import ALICE, as_user
from tests.processes import DEADLINE
from tests.root import needs_root

from uvmshare.daemon import app, connections
from uvmshare.daemon.event_kinds import EventKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.daemon.harness import Running

EXAMPLES: dict[str, Any] = {"id": "a", "path": "/tmp", "guest_path": "/mnt/a"}
"""Valid values of the fields that a request must have."""

Case = tuple[str, str, dict[str, Any]]
"""A request's name, the field that is too long or too large, and the arguments of `httpx.Client.request`."""


def too_much(schema: dict[str, Any]) -> list[Any]:
    """Return values just past each maximum of a schema. Fails where there is none."""
    if "$ref" in schema or "enum" in schema:
        return []
    found = []
    for each in schema.get("anyOf", []) + schema.get("oneOf", []):
        limits = {key: value for key, value in schema.items() if key.startswith("max")}
        found += too_much({**limits, **each})
    kind = schema.get("type")
    if kind == "string":
        found.append("a" * (schema["maxLength"] + 1))
    elif kind in ("integer", "number"):
        found.append(2 * schema["maximum"])
    elif kind == "array":
        item = "a" if schema["items"].get("type") == "string" else 0
        found.append([item] * (schema["maxItems"] + 1))
        found += [[value] for value in too_much(schema["items"])]
    elif kind == "object":
        found.append({f"k{number}": 1 for number in range(schema["maxProperties"] + 1)})
        found += [{"mounts": value} for value in too_much(schema["additionalProperties"])]
        found += [{value: 1} for value in too_much({"type": "string", **schema["propertyNames"]})]
    elif "anyOf" not in schema and "oneOf" not in schema:
        assert kind in ("boolean", "null"), f"what is this? {schema}"
    return found


def cases(document: dict[str, Any]) -> Iterator[Case]:
    """Return a request for each field of each request, with that field just past its maximum."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parameters = operation.get("parameters", [])
            values = {
                each["name"]: "vm" if each["name"] == "vm" else "1" for each in parameters if each["in"] == "path"
            }
            query = {
                each["name"]: EXAMPLES[each["name"]]
                for each in parameters
                if each["in"] == "query" and each["required"]
            }
            body: dict[str, Any] | None = None
            if "requestBody" in operation:
                (content,) = operation["requestBody"]["content"].values()
                schema = document["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
                assert schema["additionalProperties"] is False
                body = {name: EXAMPLES[name] for name in schema.get("required", [])}
            base = {
                "method": method.upper(),
                "url": path.format(**values),
                "params": query,
                "json": body,
                "headers": {},
            }
            for each in parameters:
                for value in too_much(each["schema"]):
                    case = {**base}
                    if each["in"] == "path":
                        case["url"] = path.format(**{**values, each["name"]: value})
                    else:
                        place = "params" if each["in"] == "query" else "headers"
                        case[place] = {**case[place], each["name"]: str(value)}
                    yield f"{method} {path}", each["name"], case
            if body is not None:
                for name, field in schema["properties"].items():
                    for value in too_much(field):
                        yield f"{method} {path}", name, {**base, "json": {**body, name: value}}


def test_every_field_of_every_request_has_a_limit_that_holds(shared: Running) -> None:
    with shared.home.http() as http:
        document = http.get("/v1/openapi.json").json()
        tried = set()
        for request, field, case in cases(document):
            answer = http.request(**case)
            assert 400 <= answer.status_code < 500, f"{request}: {field} is taken"
            reason = answer.json()["reason"]
            assert field.lower().replace("-", "_") in reason, f"{request}: {reason} does not name {field}"
            assert not set("`$\\") & set(reason), f"{request}: {reason} is not in words"
            tried.add((request, field))
    assert len(tried) > 40
    assert ("post /v1/vms", "limits") in tried
    assert {"413", "414", "408", "429", "431"} <= document["paths"]["/v1/vms"]["post"]["responses"].keys()


# HTTP itself. What is sent is raw, as no client library sends it.

HEAD = b"Host: daemon\r\nContent-Type: application/json\r\n"
BODY = b'{"id": "a"}'
LENGTH = b"Content-Length: 11\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"

HOSTILE = {
    "a host that is none": (b"GET /v1/info HTTP/1.1\r\nHost: [\r\n\r\n", {400}),
    "a host with a space": (b"GET /v1/info HTTP/1.1\r\nHost: a b\r\n\r\n", {400}),
    "a host with a path": (b"GET /nowhere HTTP/1.1\r\nHost: a/b?c\r\n\r\n", {400}),
    "a port that is none": (b"GET /nowhere HTTP/1.1\r\nHost: a:99999999\r\n\r\n", {400}),
    "a host that is not ASCII": (b"GET /v1/info HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n", {400}),
    "two hosts": (b"GET /v1/info HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", {400}),
    "no host": (b"GET /v1/info HTTP/1.1\r\n\r\n", {400}),
    "length and chunks": (b"POST /v1/vms HTTP/1.1\r\n" + HEAD + LENGTH + CHUNKED + b"\r\n0\r\n\r\n", {400}),
    "chunks and length": (b"POST /v1/vms HTTP/1.1\r\n" + HEAD + CHUNKED + LENGTH + b"\r\n0\r\n\r\n", {400}),
    "two lengths": (b"POST /v1/vms HTTP/1.1\r\n" + HEAD + LENGTH + b"Content-Length: 3\r\n\r\n" + BODY, {400}),
    "a list of lengths": (b"POST /v1/vms HTTP/1.1\r\n" + HEAD + b"Content-Length: 11, 3\r\n\r\n" + BODY, {400}),
    "a length with a sign": (b"POST /v1/vms HTTP/1.1\r\n" + HEAD + b"Content-Length: +11\r\n\r\n" + BODY, {400}),
    "a negative length": (b"POST /v1/vms HTTP/1.1\r\n" + HEAD + b"Content-Length: -1\r\n\r\n", {400}),
    "a long length": (
        b"POST /v1/vms HTTP/1.1\r\n" + HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
        {400, 413},
    ),
    "a body that is too large": (b"POST /v1/vms HTTP/1.1\r\n" + HEAD + b"Content-Length: 1048577\r\n\r\n", {413}),
    "chunks that are too large": (
        b"POST /v1/vms HTTP/1.1\r\n" + HEAD + CHUNKED + b"\r\n200000\r\n" + b" " * (1 << 21),
        {413},
    ),
    "chunks that are too many": (
        b"POST /v1/vms HTTP/1.1\r\n" + HEAD + CHUNKED + b"\r\n" + b"1\r\n \r\n" * 2000,
        {413},
    ),
    "a chunk's size that is none": (b"POST /v1/vms HTTP/1.1\r\n" + HEAD + CHUNKED + b"\r\nxyz\r\n", {400}),
    "a chunk's size that is huge": (
        b"POST /v1/vms HTTP/1.1\r\n" + HEAD + CHUNKED + b"\r\n" + b"f" * 40 + b"\r\n",
        {400},
    ),
    "a chunk that does not end": (b"POST /v1/vms HTTP/1.1\r\n" + HEAD + CHUNKED + b"\r\n1\r\nab\r\n", {400}),
    "another encoding": (b"POST /v1/vms HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n", {400, 501}),
    "chunks in HTTP/1.0": (b"POST /v1/vms HTTP/1.0\r\n" + HEAD + CHUNKED + b"\r\n0\r\n\r\n", {400}),
    "a space before a colon": (b"GET /v1/info HTTP/1.1\r\nHost : a\r\n\r\n", {400}),
    "a header without a colon": (b"GET /v1/info HTTP/1.1\r\nHost: a\r\nnothing\r\n\r\n", {400}),
    "a NUL in a header": (b"GET /v1/info HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", {400}),
    "a folded header": (b"GET /v1/info HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\nConnection: close\r\n\r\n", {200, 400}),
    "a folded first line": (b"GET /v1/info HTTP/1.1\r\n Host: a\r\n\r\n", {400}),
    "bare line feeds": (b"GET /v1/info HTTP/1.1\nHost: a\nConnection: close\n\n", {200, 400}),
    "bare carriage returns": (b"GET /v1/info HTTP/1.1\rHost: a\r\r\n\r\n", {400}),
    "no HTTP at all": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", {400}),
    "another HTTP": (b"GET /v1/info HTTP/9.9\r\nHost: a\r\nConnection: close\r\n\r\n", {200, 400, 505}),
    "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400}),
    "HTTP/1.0 that would go on": (b"GET /v1/info HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", {200}),
    "an upgrade": (
        b"GET /v1/info HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n",
        {200},
    ),
    "an upgrade to HTTP/2": (
        b"GET /v1/info HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nConnection: close\r\nUpgrade: h2c\r\n\r\n",
        {200},
    ),
    "an absolute path": (b"GET http://a/v1/info HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", {200}),
    "an absolute path without a path": (b"GET http://a?b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", {404}),
    "no path": (b"GET v1/info HTTP/1.1\r\nHost: a\r\n\r\n", {400}),
    "all paths": (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", {400}),
    "a tunnel": (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", {400}),
    "an unknown method": (b"NONSENSE /v1/info HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", {405}),
    "an unknown method in small letters": (b"get /v1/info HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", {405}),
    "headers alone": (b"HEAD /v1/info HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", {405}),
    "headers alone of a bad host": (b"HEAD /v1/info HTTP/1.1\r\nHost: [\r\n\r\n", {400}),
    "a NUL in a path": (b"GET /v1/vms/%00 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", {404}),
    "a path that is not UTF-8": (b"GET /v1/vms/%ff%fe HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", {404}),
    "a path that is escaped wrongly": (b"GET /v1/vms/%zz%1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", {404}),
    "a slash in a name": (b"GET /v1/vms/a%2fb HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", {404}),
    "the directory above": (b"GET /v1/../metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", {404}),
    "a query that says a thing twice": (
        b"DELETE /v1/vms/none?force=true&force=false HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        {400, 404},
    ),
    "a query that is not UTF-8": (
        b"GET /v1/events?since=%ff&follow=false HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        {200},
    ),
    "a query of signs": (b"GET /v1/info?&&==&;%&=%00 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", {400}),
    "a path that is too long": (b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", {414}),
    "headers that are too large": (b"GET /v1/info HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 40000 + b"\r\n\r\n", {431}),
    "headers that do not end": (b"GET /v1/info HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 400000, {431}),
    "headers that are too many": (b"GET /v1/info HTTP/1.1\r\nHost: a\r\n" + b"X: a\r\n" * 200 + b"\r\n", {431}),
    "a body in another encoding": (
        b"POST /v1/vms HTTP/1.1\r\n" + HEAD + LENGTH + b"Content-Encoding: gzip\r\nConnection: close\r\n\r\n" + BODY,
        {400, 415, 422},
    ),
    "a form": (
        b"POST /v1/vms HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
        + LENGTH
        + b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        + BODY,
        {400, 415, 422},
    ),
    "a body where none belongs": (
        b"GET /v1/info HTTP/1.1\r\n" + HEAD + LENGTH + b"Connection: close\r\n\r\n" + BODY,
        {400},
    ),
    "more behind what cannot be read": (b"nonsense\r\n\r\nGET /v1/info HTTP/1.1\r\nHost: a\r\n\r\n", {400}),
    "a second one that cannot be read": (
        b"GET /v1/info HTTP/1.1\r\nHost: a\r\n\r\nGET /v1/info HTTP/1.1\r\nHost: [\r\n\r\n",
        {200},
    ),
}


def connected(daemon: Running) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(DEADLINE)
    connection.connect(daemon.home.settings.socket_path)
    return connection


def said(connection: socket.socket) -> bytes:
    """Return all that comes until the connection ends."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65536):
            found += data
    return found


@pytest.fixture
def complaints(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """What asyncio, uvicorn and the daemon itself took for a defect; there must be nothing in it at the end."""
    found: list[str] = []

    def defect(*args: Any, **more: Any) -> None:
        found.append(f"{args} {more}")

    monkeypatch.setattr(app, "report_defect", defect)
    yield found
    assert found == []
    assert [record.getMessage() for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")] == []


@pytest.mark.usefixtures("complaints")
@pytest.mark.parametrize("what", HOSTILE)
def test_whatever_a_client_says_is_answered_and_its_connection_ends(shared: Running, what: str) -> None:
    sent, statuses = HOSTILE[what]
    with connected(shared) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(sent)
        answer = said(connection)
    assert answer.startswith(b"HTTP/1.1 "), answer
    assert int(answer.split()[1]) in statuses, answer
    if what.startswith("a second"):
        assert answer.count(b"HTTP/1.1 ") == 2
        assert b"HTTP/1.1 400" in answer
        return
    assert len(re.findall(rb"HTTP/1\.1 \d{3} ", answer)) == 1, "what came behind it is no request"
    head, _, body = answer.partition(b"\r\n\r\n")
    if int(answer.split()[1]) >= 400 and not what.startswith("headers alone"):
        assert b"content-type: application/problem+json" in head.lower()
        assert json.loads(body)["remedy"]


@pytest.mark.usefixtures("complaints")
@pytest.mark.parametrize("begun", [b"", b"GET /v1/in", b"POST /v1/vms HTTP/1.1\r\n" + HEAD + LENGTH + b"\r\n{"])
def test_a_request_that_does_not_come_to_its_end_is_cut(
    shared: Running, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    monkeypatch.setattr(connections, "READ_SECONDS", 0.05)
    with connected(shared) as connection:
        connection.sendall(begun)
        answer = said(connection)
    assert (answer[:12], b"did not come to its end" in answer) == ((b"HTTP/1.1 408", True) if begun else (b"", False))


@pytest.mark.usefixtures("complaints")
def test_a_second_request_that_does_not_come_to_its_end_is_cut(
    shared: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "READ_SECONDS", 0.05)
    with connected(shared) as connection:
        connection.sendall(b"GET /v1/info HTTP/1.1\r\nHost: a\r\n\r\nGET /v1")
        answer = said(connection)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"HTTP/1.1 408" in answer


@pytest.mark.usefixtures("complaints")
def test_an_answer_that_nobody_takes_is_cut(daemon: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    assert daemon.daemon is not None
    cut, lost = threading.Event(), connections.ClientConnection.connection_lost

    def note(connection: connections.ClientConnection, error: Exception | None) -> None:
        lost(connection, error)
        cut.set()

    monkeypatch.setattr(connections.ClientConnection, "connection_lost", note)
    monkeypatch.setattr(connections, "TAKE_SECONDS", 0.05)
    events = daemon.daemon.service.events

    async def flood() -> None:
        for _ in range(500):
            events.emit(EventKind.VM_FAILED, (0, "vm"), reason="a" * 4000)

    with connected(daemon) as connection:
        connection.sendall(b"GET /v1/events?since=0 HTTP/1.1\r\nHost: a\r\n\r\n")
        daemon.call(flood)
        assert cut.wait(DEADLINE)
        assert b"vm.failed" in said(connection)


@needs_root
@pytest.mark.usefixtures("complaints")
def test_requests_that_are_not_answered_yet_take_only_so_much_memory(
    shared: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "USER_BYTES", 4 << 20)
    begun = b"POST /v1/vms HTTP/1.1\r\n" + HEAD + b"Content-Length: 1000000\r\n\r\n" + b" " * 900_000

    def open_many() -> list[bytes]:
        answers = []
        with contextlib.ExitStack() as stack:
            for _ in range(20):
                connection = stack.enter_context(connected(shared))
                connection.sendall(begun)
                # What is taken is taken before the next begins: the daemon answers this one only behind it.
                with connected(shared) as other, contextlib.suppress(BrokenPipeError):
                    other.sendall(b"GET /v1/info HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                    said(other)
                connection.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    answers.append(connection.recv(12))
                connection.settimeout(DEADLINE)
        return answers

    answers = as_user(ALICE, open_many)
    assert set(answers) == {b"HTTP/1.1 429"}
    assert len(answers) >= 15
    with shared.home.http() as http:
        assert http.get("/v1/info").status_code == 200
