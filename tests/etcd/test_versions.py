"""Which versions of etcd are refused and warned of, and what is no endpoint."""

from __future__ import annotations

import pytest

from uvmshare.errors import InvalidOptions, StoreUnsuitable
from uvmshare.etcd.endpoints import Certificates, Endpoints
from uvmshare.etcd.versions import judge


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("3.3.27", "too old"),
        ("2.3.8", "too old"),
        ("3.5.0", "can lose data"),
        ("3.5.1", "can lose data"),
        ("3.5.2", "can lose data"),
        ("3.5.2-rc.1", "can lose data"),
        ("", "none of etcd's"),
        ("new", "none of etcd's"),
    ],
)
def test_versions_that_lose_data_are_refused_with_the_way_out(version: str, words: str) -> None:
    with pytest.raises(StoreUnsuitable, match=f"{words}.*run 3.5.13 or later, or 3.6"):
        judge(version, "e1:2379")


@pytest.mark.parametrize("version", ["3.4.0", "3.4.23", "3.4.30", "3.5.3", "3.5.12"])
def test_versions_that_let_leases_of_the_living_end_are_warned_of(version: str) -> None:
    judged = judge(version, "e1:2379")
    assert "its leader stands still" in judged.warning
    assert not judged.progress


@pytest.mark.parametrize("version", ["3.4.31", "3.4.40", "3.5.13", "3.6.0", "3.10.1", "4.0.0"])
def test_of_other_versions_nothing_is_said(version: str) -> None:
    assert not judge(version, "e1:2379").warning


@pytest.mark.parametrize(
    "urls",
    [(), ("etcd-1:2379",), ("https://etcd-1:2379",), ("http://etcd-1",), ("http://etcd-1:2379", "ftp://etcd-2:1")],
)
def test_an_endpoint_without_a_scheme_or_port_or_certificates_is_refused(urls: tuple[str, ...]) -> None:
    with pytest.raises(InvalidOptions, match="endpoint"):
        Endpoints(urls)


def test_with_certificates_an_endpoint_is_https_and_no_key_is_shown() -> None:
    certificates = Certificates(b"ca", b"certificate", b"the-key-itself")
    with pytest.raises(InvalidOptions, match="https://HOST:PORT"):
        Endpoints(("http://etcd-1:2379",), certificates)
    endpoints = Endpoints(("https://etcd-1:2379/", "https://[::1]:2379"), certificates)
    assert endpoints.targets == ("etcd-1:2379", "[::1]:2379")
    assert "the-key-itself" not in repr(endpoints)
