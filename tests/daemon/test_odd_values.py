"""Whatever text or number is sent, in whatever place, the answer says in words what is wrong with it."""

from __future__ import annotations

import itertools
import os
import socket
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from tests import hostile_text
from tests.hostile_text import assert_safe
from tests.processes import DEADLINE

from uvmshare.daemon.documents import Problem
from uvmshare.daemon.service import Service
from uvmshare.errors import UvmshareError

from .harness import Home

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from uvmshare.daemon.client import Client

ODD = {what: text if text in ("", "..", "../..", " ") else f"/{text}" for what, text in hostile_text.ODD.items()}
ALL_OR_FEW = pytest.mark.parametrize("every", [pytest.param(True, marks=pytest.mark.long), pytest.param(False)])
"""All values in all places take a minute. These few differ in what they go through."""


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with Home.made() as made, made.running():
        made.had_vms = True
        with made.client() as client:
            client.vms.add("vm", listen=(f"unix:{made.folder}/vm.sock",))
            os.mkdir(f"{made.folder}/shared")
            client.shares.add("vm", f"{made.folder}/shared")
        yield made


CALLS: dict[str, Callable[[Client, str, str], Any]] = {
    "vm": lambda client, text, _: client.vms.get(text),
    "vm id": lambda client, text, _: client.vms.add(text, listen=("unix:/x",)),
    "listen": lambda client, text, _: client.vms.add("new", listen=(text,)),
    "listen unix": lambda client, text, _: client.vms.add("new", listen=(f"unix:/nowhere{text}",)),
    "listen tcp": lambda client, text, _: client.vms.add("new", listen=(f"tcp:{text}:0",)),
    "listen port": lambda client, text, _: client.vms.add("new", listen=(f"vsock:{text}:{text}",)),
    "compute system": lambda client, text, _: client.vms.add("new", compute_system=text),
    "socket mode": lambda client, text, _: client.vms.add("new", listen=("unix:/x",), socket_mode=text),
    "limit": lambda client, text, _: client.vms.add("new", listen=("unix:/x",), limits={text: 1}),
    "agent": lambda client, text, _: client.vms.add("new", listen=("unix:/nowhere/x",), agent=text),
    "agent unix": lambda client, text, _: client.vms.add(
        "new", listen=("unix:/nowhere/x",), agent=f"unix:/nowhere{text}"
    ),
    "agent tcp": lambda client, text, _: client.vms.add("new", listen=("unix:/nowhere/x",), agent=f"tcp:{text}:1"),
    "agent token": lambda client, text, _: client.vms.add(
        "new", listen=("unix:/nowhere/x",), agent="unix:/x", agent_token=text
    ),
    "removed vm": lambda client, text, _: client.vms.remove(text),
    "shares of": lambda client, text, _: client.shares(text),
    "path": lambda client, text, _: client.shares.add("vm", text),
    "path below": lambda client, text, folder: client.shares.add("vm", f"{folder}/{text}"),
    "only": lambda client, text, folder: client.shares.add("vm", f"{folder}/shared", only=(text,)),
    "owner": lambda client, text, folder: client.shares.add("vm", f"{folder}/shared", owner=text),
    "share": lambda client, text, _: client.shares.get("vm", text),
    "released share": lambda client, text, _: client.shares.release("vm", text),
    "releasing owner": lambda client, text, _: client.shares.release("vm", "0", owner=text),
    "guest path": lambda client, text, folder: client.mounts.map("vm", f"{folder}/shared", text),
    "mapped path": lambda client, text, _: client.mounts.map("vm", text, "/mnt"),
    "unmapped path": lambda client, text, _: client.mounts.unmap("vm", text),
    "unmapping owner": lambda client, text, _: client.mounts.unmap("vm", "/mnt", owner=text),
    "renewing owner": lambda client, text, _: client.owners.renew(text).leases,
    "renewed share": lambda client, text, _: client.owners.renew("default", vm="vm", share=text).leases,
    "owner to release": lambda client, text, _: client.owners.release(text),
    "operation": lambda client, text, _: client.operations.get(text),
    "events since": lambda client, text, _: list(client.events(text, follow=False)),
    "stats": lambda client, text, _: client.vms.stats(text),
    "guest": lambda client, text, _: client.vms.examine(text),
}


@ALL_OR_FEW
def test_a_client_is_told_in_words_what_is_wrong_with_an_odd_value(home: Home, every: bool) -> None:
    few = ("half a character", "a NUL", "dots")
    with home.client() as client:
        for place, (what, text) in itertools.product(CALLS, ODD.items()):
            if not every and what not in few:
                continue
            try:
                CALLS[place](client, text, home.folder)
            except UvmshareError as error:
                _assert_words(str(error), f"{place}: {what}")
        assert client.info().version


def _assert_words(reason: str, what: str) -> None:
    assert "defect" not in reason, (what, reason)
    assert "Error" not in reason, (what, reason)
    assert "answer to" not in reason, (what, reason)
    reason.encode()


PLACES = (
    "GET /v1/vms/{}",
    "GET /v1/vms/vm/shares/{}",
    "DELETE /v1/vms/vm/shares/0?owner={}",
    "DELETE /v1/vms/vm/shares/0?uid={}",
    "DELETE /v1/vms/vm/mounts?guest_path={}",
    "DELETE /v1/vms/vm/mounts?guest_path=/mnt&{}",
    "PUT /v1/leases/{} {{}}",
    "DELETE /v1/owners/{}",
    "GET /v1/operations/{}",
    "GET /v1/operations/{}?wait={}",
    "GET /v1/events?follow=false&since={}",
    "GET /v1/{}",
    "GET {}",
    "{} /v1/info",
)
SEGMENTS = (
    b"%FF",
    b"%ED%A0%80",
    b"%00",
    b"%0A",
    b"%",
    b"%zz",
    b"\xff\xfe",
    b"%2e%2e",
    b"%2F%2F",
    b"9" * 5000,
    b"x" * 20_000,
    b"-1",
    b"1e999",
    b"%C2%85%E2%80%AE",
)


@ALL_OR_FEW
def test_odd_bytes_in_a_request_are_answered_in_words(home: Home, every: bool) -> None:
    for place, segment in itertools.product(PLACES, SEGMENTS if every else SEGMENTS[:3]):
        line, _, body = place.partition(" {{")
        method, _, target = line.encode().replace(b"{}", segment).partition(b" ")
        status, content = _raw(home, method, target, b"{}" if body else b"")
        _assert_answer(status, content, segment)


BODIES = (
    rb'"\ud800"',
    rb'"\udfff\ud800"',
    b'"\xff"',
    b'"\xed\xa0\x80"',
    rb'"\u0000"',
    rb'"/\u0000"',
    rb'"/x\u0085\u202e\n"',
    b'""',
    b'"' + b"/x" * 5000 + b'"',
    b"1" + b"0" * 5000,
    b"-1",
    b"1e400",
    b"NaN",
    b"[" * 100_000,
    b"[[]]",
    b"{}",
    b"null",
    b"true",
    rb'["\ud800"]',
    rb'{"mounts":' + b"9" * 400 + b"}",
    rb'{"mounts":1e308}',
    rb'{"\u0000\u001b":1}',
)
DOCUMENTS = {
    "POST /v1/vms": (
        b'{"id":%b,"listen":["unix:/nowhere/x"]}',
        b'{"id":"new","listen":[%b]}',
        b'{"id":"new","listen":["unix:/nowhere/x"],"limits":%b}',
        b'{"id":"new","listen":["unix:/nowhere/x"],"limits":{"mounts":%b}}',
        b'{"id":"new","listen":["unix:/nowhere/x"],"agent":%b}',
        b'{"id":"new","listen":["unix:/nowhere/x"],"agent":"unix:/x","agent_token":%b}',
        b'{"id":"new","compute_system":%b}',
        b'{"id":"new",%b:1}',
    ),
    "POST /v1/vms/vm/shares": (b'{"path":%b}', b'{"path":"/","only":[%b]}', b'{"path":"/nowhere","lease":%b}', b"%b"),
    "POST /v1/vms/vm/mounts": (b'{"path":"/","guest_path":%b}', b'{"path":"/","guest_path":"/mnt","msize":%b}'),
    "PUT /v1/leases/default": (b'{"lease":%b}',),
}


@ALL_OR_FEW
def test_odd_values_in_a_document_are_answered_in_words(home: Home, every: bool) -> None:
    few = (rb'"\ud800"', b'"\xff"', rb'"\u0000"', b"1" + b"0" * 5000)
    for request, forms in DOCUMENTS.items():
        method, _, target = request.encode().partition(b" ")
        for form, value in itertools.product(forms, BODIES if every else few):
            status, content = _raw(home, method, target, form % value)
            _assert_answer(status, content, form % value[:60])
    status, content = _raw(home, b"POST", b"/v1/vms", b"[" * 100_000)
    _assert_answer(status, content, b"[...")


@pytest.mark.parametrize("error", [UnicodeDecodeError("utf-8", b"x", 0, 1, "no reason"), RecursionError("too deep")])
def test_what_an_odd_document_raises_is_a_defect_when_anything_else_raises_it(
    home: Home, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(Service, "visible", fail)
    status, content = _raw(home, b"GET", b"/v1/vms", b"")
    assert status == 500
    assert b"defect" in content


def _raw(home: Home, method: bytes, target: bytes, body: bytes) -> tuple[int, bytes]:
    """Send a request as it is, and return the status and the body of the answer."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(DEADLINE)
        connection.connect(home.settings.socket_path)
        head = b"%b %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n" % (
            method,
            target,
        )
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    first, _, content = answer.partition(b"\r\n\r\n")
    return int(first.split()[1]), content


def _assert_answer(status: int, content: bytes, sent: bytes) -> None:
    text = content.decode()
    assert status != 500, (sent[:100], text)
    if status >= 400 and content.startswith(b"{"):
        problem = msgspec.json.decode(content, type=Problem)
        _assert_words(problem.reason + problem.remedy, repr(sent[:100]))
        assert_safe(problem.reason + problem.thing)


@pytest.mark.parametrize("header", [b"\xff\xfe", b"9" * 5000, b"%FF", b"-", b"x-99999999999999999999"])
def test_an_odd_id_of_an_event_is_one_that_is_not_known(home: Home, header: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(DEADLINE)
        connection.connect(home.settings.socket_path)
        head = b"GET /v1/events?follow=false HTTP/1.1\r\nHost: x\r\nConnection: close\r\nLast-Event-ID: %b\r\n\r\n"
        connection.sendall(head % header)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert b" 500 " not in answer.splitlines()[0]
    answer.decode()
