"""The certificates of a fleet: what they say, where they lie, and that what is there stays."""

from __future__ import annotations

import os
import ssl
from typing import TYPE_CHECKING

import pytest
from cryptography import x509

from uvmshare.errors import DaemonError, InvalidOptions
from uvmshare.fleet.certificates import Authority

if TYPE_CHECKING:
    from pathlib import Path


def test_an_authority_is_made_once_and_its_key_is_its_owners_alone(tmp_path: Path) -> None:
    folder = str(tmp_path / "fleet")
    made = Authority(folder, "ca")
    assert Authority(folder, "ca").pem == made.pem
    assert os.stat(made.files.key).st_mode & 0o777 == 0o600
    assert os.stat(folder).st_mode & 0o777 == 0o700
    assert sorted(os.listdir(folder)) == ["ca.key", "ca.pem"]


def test_what_was_signed_stays_when_it_is_asked_for_again(tmp_path: Path) -> None:
    authority = Authority(str(tmp_path), "ca")
    first = authority.sign_files(str(tmp_path), "gate", "gate", ["gate.example"])
    with open(first.certificate, "rb") as file:
        before = file.read()
    authority.sign_files(str(tmp_path), "gate", "gate", ["gate.example"])
    with open(first.certificate, "rb") as file:
        assert file.read() == before
    assert os.stat(first.key).st_mode & 0o777 == 0o600


def test_a_certificate_is_a_servers_only_with_addresses(tmp_path: Path) -> None:
    authority = Authority(str(tmp_path), "ca")
    host = x509.load_pem_x509_certificate(authority.sign("h1")[0])
    gate = x509.load_pem_x509_certificate(authority.sign("gate", addresses=["gate.example", "[::1]", "10.0.0.1"])[0])
    names = gate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["gate.example"]
    assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == ["::1", "10.0.0.1"]
    server = x509.oid.ExtendedKeyUsageOID.SERVER_AUTH
    assert server in gate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert server not in host.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value


def test_a_bundle_is_a_file_that_tls_takes_whole(tmp_path: Path) -> None:
    fleet, callers = Authority(str(tmp_path), "ca"), Authority(str(tmp_path), "callers")
    path = callers.sign_bundle(str(tmp_path / "tenants" / "ann.pem"), "ann", "acme", fleet.pem)
    context = ssl.create_default_context(cafile=path)
    context.load_cert_chain(path)
    with open(path, "rb") as file:
        subject = x509.load_pem_x509_certificate(file.read()).subject.rfc4514_string()
    assert subject == "O=acme,CN=ann"
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_names_that_no_certificate_can_have_are_refused(tmp_path: Path) -> None:
    authority = Authority(str(tmp_path), "ca")
    for name in ("", "x" * 65):
        with pytest.raises(InvalidOptions, match="characters"):
            authority.sign(name)
    with pytest.raises(InvalidOptions, match="no name"):
        authority.sign("gate", addresses=["gäte.example"])


def test_files_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    Authority(str(tmp_path), "ca")
    (tmp_path / "ca.key").write_bytes(b"no key")
    with pytest.raises(DaemonError, match="restore them"):
        Authority(str(tmp_path), "ca")
    (tmp_path / "folder.pem").mkdir()
    with pytest.raises(DaemonError, match=r"folder\.pem"):
        Authority(str(tmp_path), "folder")
