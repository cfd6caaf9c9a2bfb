"""Who is let in: every request is decided by its head, and only the link's and the cookie's secrets open the door."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uvmshare.dashboard.door import Door, Exchange, Refusal

HOST = (b"host", b"127.0.0.1:4711")
Headers = list[tuple[bytes, bytes]]


def token_of(door: Door) -> bytes:
    return door.link.partition("/?")[2].encode()


def entered(door: Door) -> Headers:
    """Use the link, and return the headers of the browser that has the cookie."""
    found = door.decide("GET", "/", token_of(door), [HOST])
    assert isinstance(found, Exchange)
    return [HOST, (b"cookie", found.cookie.partition(";")[0].encode())]


def status(found: Refusal | Exchange | None) -> int:
    assert isinstance(found, Refusal), found
    return found.status


def test_the_link_is_exchanged_for_a_cookie_that_scripts_and_other_sites_do_not_have() -> None:
    door = Door(4711)
    assert re.fullmatch(r"http://127\.0\.0\.1:4711/\?token=[\w-]{43}", door.link)
    found = door.decide("GET", "/", token_of(door), [HOST])
    assert isinstance(found, Exchange)
    assert re.fullmatch(r"uvmshare-4711=[\w-]{43}; Path=/; HttpOnly; SameSite=Strict", found.cookie)
    assert token_of(door).decode().partition("=")[2] not in found.cookie


def test_the_link_works_once() -> None:
    door = Door(4711)
    headers = entered(door)
    assert status(door.decide("GET", "/", token_of(door), [HOST])) == 403
    assert door.decide("GET", "/", b"", headers) is None
    # The browser that is in may open it again, and stays in.
    assert isinstance(door.decide("GET", "/", token_of(door), headers), Exchange)


@pytest.mark.parametrize("path", ["/page.js", "/stream", "/nowhere", "//"])
def test_the_token_counts_at_the_pages_own_path_alone(path: str) -> None:
    door = Door(4711)
    assert status(door.decide("GET", path, token_of(door), [HOST])) == 403
    assert isinstance(door.decide("GET", "/", token_of(door), [HOST]), Exchange)


@given(st.binary(max_size=80), st.binary(max_size=80))
def test_nobody_gets_in_by_guessing(query: bytes, cookie: bytes) -> None:
    door = Door(4711)
    for each in (query, b"token=" + query, token_of(door)[:-1], token_of(door) + b"x", token_of(door)[:6]):
        assert status(door.decide("GET", "/", each, [HOST])) == 403
    for pair in (cookie, b"uvmshare-4711=" + cookie, b"uvmshare-4711=", b";;=;"):
        assert status(door.decide("GET", "/", b"", [HOST, (b"cookie", pair)])) == 403
    assert isinstance(door.decide("GET", "/", token_of(door), [HOST]), Exchange), "a wrong one uses nothing up"


def test_another_dashboards_cookie_opens_nothing_and_is_no_harm_beside_ones_own() -> None:
    first, second = Door(4711), Door(4712)
    of_first, of_second = entered(first), entered(second)
    assert status(second.decide("GET", "/", b"", of_first)) == 403
    both = [HOST, (b"cookie", of_first[1][1] + b"; " + of_second[1][1])]
    assert first.decide("GET", "/", b"", both) is None
    assert second.decide("GET", "/", b"", both) is None
    assert status(Door(4711).decide("GET", "/", b"", of_first)) == 403, "one that was started again is another"


@pytest.mark.parametrize(
    "hosts",
    [
        [],
        [b""],
        [b"evil.example"],
        [b"evil.example:4711"],
        [b"127.0.0.1.evil.example:4711"],
        [b"localhost.evil.example"],
        [b"127.0.0.1@evil.example"],
        [b"evil.example@127.0.0.1"],
        [b"0.0.0.0:4711"],
        [b"192.168.0.1:4711"],
        [b"[::2]:4711"],
        [b"127.0.0.1:4711 "],
        [b"127.0.0.1:123456"],
        [b"127.0.0.1:4711", b"evil.example"],
        [b"127.0.0.1:4711", b"127.0.0.1:4711"],
    ],
)
def test_a_page_whose_name_was_made_to_lead_here_gets_nothing_whatever_it_has(hosts: list[bytes]) -> None:
    door = Door(4711)
    named = [(b"host", host) for host in hosts]
    assert status(door.decide("GET", "/", token_of(door), named)) == 421
    _, cookie = entered(door)
    assert status(door.decide("GET", "/", b"", [*named, cookie])) == 421


@pytest.mark.parametrize("host", [b"127.0.0.1", b"127.0.0.1:9000", b"localhost:9000", b"LocalHost:1", b"[::1]:80"])
def test_loopback_may_have_another_port_at_the_other_end_of_a_tunnel(host: bytes) -> None:
    door = Door(4711)
    _, cookie = entered(door)
    assert door.decide("GET", "/", b"", [(b"host", host), cookie]) is None


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "CONNECT", "get"])
def test_nothing_but_get_is_taken_and_no_other_method_uses_the_link_up(method: str) -> None:
    door = Door(4711)
    assert status(door.decide(method, "/", token_of(door), [HOST])) == 405
    headers = entered(door)
    assert status(door.decide(method, "/", b"", headers)) == 405


@pytest.mark.parametrize(
    "header",
    [
        (b"sec-fetch-site", b"cross-site"),
        (b"sec-fetch-site", b"same-site"),
        (b"sec-fetch-site", b"SAME-ORIGIN"),
        (b"origin", b"http://evil.example"),
        (b"origin", b"http://127.0.0.1:4712"),
        (b"origin", b"https://127.0.0.1:4711"),
        (b"origin", b"null"),
    ],
)
def test_a_page_of_another_site_or_port_gets_nothing_with_the_browsers_cookie(header: tuple[bytes, bytes]) -> None:
    door = Door(4711)
    headers = entered(door)
    assert status(door.decide("GET", "/stream", b"", [*headers, header])) == 403


@pytest.mark.parametrize(
    "header", [(b"sec-fetch-site", b"same-origin"), (b"sec-fetch-site", b"none"), (b"origin", b"http://127.0.0.1:4711")]
)
def test_the_page_itself_and_the_users_own_word_are_let_in(header: tuple[bytes, bytes]) -> None:
    door = Door(4711)
    headers = entered(door)
    assert door.decide("GET", "/stream", b"", [*headers, header]) is None


def test_the_link_may_be_opened_from_a_terminal_that_is_itself_a_page() -> None:
    door = Door(4711)
    assert isinstance(door.decide("GET", "/", token_of(door), [HOST, (b"sec-fetch-site", b"cross-site")]), Exchange)


def test_secrets_are_compared_in_a_time_that_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(given: bytes, secret: bytes) -> bool:
        compared.append((given, secret))
        return False

    monkeypatch.setattr("hmac.compare_digest", compare)
    door = Door(4711)
    door.decide("GET", "/", b"token=x", [HOST, (b"cookie", b"uvmshare-4711=y")])
    assert [given for given, _ in compared] == [b"y", b"x"]
    assert len({secret for _, secret in compared}) == 2
