"""The certificates of a fleet: two authorities, and what each signs. They are files in the administrator's folder.

    FOLDER/ca.pem, ca.key              signs members of etcd, hosts and gates; etcd takes the common name as its user
    FOLDER/callers.pem, callers.key    signs tenants' users and administrators, whom gates take

What lives here: how certificates are made and where they lie. What must not: etcd, or who may do what there.

There are two authorities because etcd trusts every certificate that its own authority signed: a tenant's user who is
named ``root`` would be etcd's administrator. Keys are NIST P-256, and only their owner may read the files. An existing
file is never changed, so every step may be repeated.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from uvmshare.errors import DaemonError, InvalidOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Authority", "Credentials", "read_file", "write_file"]

_AUTHORITY_DAYS: Final = 3650
_DAYS: Final = 825
_LATE: Final = dt.timedelta(hours=1)
"""How far behind the clock of another machine may be."""

_LONGEST_NAME: Final = 64
"""Characters of a common name (X.520, ub-common-name)."""


class Credentials:
    """A certificate and its key, as two files."""

    def __init__(self, folder: str, name: str) -> None:
        self.certificate = os.path.join(folder, f"{name}.pem")
        self.key = os.path.join(folder, f"{name}.key")

    @property
    def exist(self) -> bool:
        """Whether both files are there."""
        return os.path.exists(self.certificate) and os.path.exists(self.key)


class Authority:
    """An authority whose certificate and key are two files of a folder. They are made when they are not there."""

    def __init__(self, folder: str, name: str) -> None:
        """Read it, or make it. Raises `DaemonError` for files that cannot be read or written."""
        make_folder(folder)
        self.files = Credentials(folder, name)
        if not self.files.exist:
            self._make(name)
        self.pem = read_file(self.files.certificate)
        try:
            self._certificate = x509.load_pem_x509_certificate(self.pem)
            key = serialization.load_pem_private_key(read_file(self.files.key), None)
        except ValueError as error:
            msg = (
                f"{self.files.certificate} and {self.files.key} are no certificate and key in PEM: restore them, or "
                "begin in a new folder"
            )
            raise DaemonError(msg) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            msg = f"{self.files.key} is no key of an elliptic curve: restore the one that uvmshare wrote"
            raise DaemonError(msg)
        self._key = key

    def _make(self, name: str) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"uvmshare {name}")])
        certificate = (
            _builder(subject, subject, key.public_key(), _AUTHORITY_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(authority=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        write_file(self.files.key, _private(key))
        write_file(self.files.certificate, _pem(certificate), mode=0o644)

    def sign(
        self, name: str, *, organisation: str | None = None, addresses: Sequence[str] = (), bundled: bytes = b""
    ) -> tuple[bytes, bytes]:
        """Return a certificate for a common name, and its key, both as PEM.

        With `addresses`, names and numbers of the machine, it is a server's too. `bundled` is written behind it.
        Raises `InvalidOptions` for a name that no certificate can have.
        """
        if not 1 <= len(name) <= _LONGEST_NAME:
            msg = f"{name!r} has {len(name)} characters: a certificate's name has at most {_LONGEST_NAME}"
            raise InvalidOptions(msg)
        key = ec.generate_private_key(ec.SECP256R1())
        parts = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
        if organisation is not None:
            parts.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation))
        purposes = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if addresses else [])]
        builder = (
            _builder(x509.Name(parts), self._certificate.subject, key.public_key(), _DAYS)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if addresses:
            names = [_address(each) for each in addresses]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return _pem(builder.sign(self._key, hashes.SHA256())) + bundled, _private(key)

    def sign_files(self, folder: str, file: str, name: str, addresses: Sequence[str] = ()) -> Credentials:
        """Write a certificate and its key as ``file.pem`` and ``file.key``, unless they are there."""
        found = Credentials(folder, file)
        if not found.exist:
            make_folder(folder)
            certificate, key = self.sign(name, addresses=addresses)
            write_file(found.key, key)
            write_file(found.certificate, certificate, mode=0o644)
        return found

    def sign_bundle(self, path: str, name: str, organisation: str, trusted: bytes) -> str:
        """Write a certificate, its key and whom its owner is to trust into one file, unless it is there."""
        if not os.path.exists(path):
            make_folder(os.path.dirname(path))
            certificate, key = self.sign(name, organisation=organisation)
            write_file(path, certificate + key + trusted)
        return path


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _LATE)
        .not_valid_after(now + dt.timedelta(days=days))
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _address(address: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(address.strip("[]")))
    except ValueError:
        pass
    try:
        return x509.DNSName(address)
    except ValueError as error:
        msg = f"{address!r} is no name and no number of a machine: give one, such as gate.example or 192.0.2.1"
        raise InvalidOptions(msg) from error


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def read_file(path: str) -> bytes:
    """Return what a file has. Raises `DaemonError`."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        msg = f"{path}: {error.strerror}: restore it, or make it readable to the user who runs this"
        raise DaemonError(msg) from error


def make_folder(path: str) -> None:
    """Make a folder, for this user alone, unless it is there. Raises `DaemonError`."""
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError as error:
        msg = f"the folder {path} cannot be made: {error.strerror}: choose another"
        raise DaemonError(msg) from error


def write_file(path: str, content: bytes, *, mode: int = 0o600) -> None:
    """Write a file whole, and only then under its name. Raises `DaemonError`."""
    new = f"{path}.new"
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(new, path)
    except OSError as error:
        msg = f"{path} cannot be written: {error.strerror}: mend that, or choose another folder"
        raise DaemonError(msg) from error
