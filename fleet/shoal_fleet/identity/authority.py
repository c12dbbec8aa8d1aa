"""The fleet's certificate authority: a directory with its key, its certificate and the list of the revoked.

It signs what it is told to sign. Whom to certify is `enrolment`'s business, whom to revoke that of `revocations`.
"""

import datetime as dt
import ipaddress
import os
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shoal_broker.durable import sync_directory, write_durably
from shoal_contract.enrolment import sha256_text
from shoal_fleet.errors import AuthorityError

KEY_FILE: Final = "ca.key"
CERTIFICATE_FILE: Final = "ca.crt"
CRL_FILE: Final = "ca.crl"
MAX_PASSPHRASE_BYTES: Final = 4096
CA_YEARS: Final = 10
CRL_DAYS: Final = 365
"""An authority's list that has run out shuts everybody out; the controller writes it anew every day."""
BACKDATED_S: Final = 300
"""Clocks of boards and brokers may be behind ours by so much, or by a tenth of a life that is shorter."""
CA_BACKDATED_S: Final = 3600

_SHA256: Final = hashes.SHA256()
_SECOND_MS: Final = 1000


@dataclass(frozen=True, slots=True)
class Revoked:
    """An entry of the list of revoked certificates."""

    serial: int
    at_ms: int


class Authority:
    """The authority in a directory. Build it with `load`, or `make` a new one.

    Attributes:
        pem: its certificate.
        pin: the sha256 of its certificate, which boards are given to know it by.
    """

    def __init__(
        self, folder: Path, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate
    ) -> None:
        self.folder = folder
        self.pem = certificate.public_bytes(serialization.Encoding.PEM)
        self.pin = pin_of(certificate)
        self._key = key
        self._certificate = certificate

    @classmethod
    def load(cls, folder: Path, *, passphrase: bytes | None = None) -> "Authority":
        """The authority that lies there.

        Raises:
            AuthorityError: it cannot be read, others may read its key, or the passphrase is wrong.
        """
        key_path = folder / KEY_FILE
        try:
            if key_path.stat().st_mode & 0o077:
                raise AuthorityError(f"{key_path}: others may read it; chmod 600 {key_path}")
            key_pem = key_path.read_bytes()
            certificate = x509.load_pem_x509_certificate((folder / CERTIFICATE_FILE).read_bytes())
        except OSError as exc:
            raise AuthorityError(
                f"{exc.filename}: {exc.strerror} (make an authority with shoal ca init)"
            ) from exc
        except (ValueError, x509.InvalidVersion) as exc:
            raise AuthorityError(f"{folder / CERTIFICATE_FILE}: is no certificate") from exc
        try:
            key = serialization.load_pem_private_key(key_pem, password=passphrase)
        except TypeError as exc:
            wanted = "is encrypted: name the file of its passphrase"
            if passphrase is not None:
                wanted = "is not encrypted, and a passphrase was given"
            raise AuthorityError(f"{key_path}: {wanted}") from exc
        except (ValueError, UnsupportedAlgorithm) as exc:
            raise AuthorityError(f"{key_path}: is damaged, or the passphrase is wrong") from exc
        if (
            not isinstance(key, ec.EllipticCurvePrivateKey)
            or key.public_key() != certificate.public_key()
        ):
            raise AuthorityError(f"{key_path}: does not belong to {CERTIFICATE_FILE} beside it")
        return cls(folder, key, certificate)

    def certify(
        self,
        public_key: ec.EllipticCurvePublicKey,
        *,
        name: str,
        hosts: Sequence[str] = (),
        uris: Sequence[str] = (),
        now_ms: int,
        life_s: float,
    ) -> x509.Certificate:
        """A certificate for clients and servers with this CN and no other name than these.

        Args:
            public_key: whom it is for.
            name: the CN.
            hosts: names or addresses of the machine, for its subjectAltName.
            uris: URIs for its subjectAltName.
            now_ms: it is valid from a little before.
            life_s: and until so long after.
        """
        names = [*map(_host, hosts), *map(x509.UniformResourceIdentifier, uris)]
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(self._certificate.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(_date(now_ms - round(min(BACKDATED_S, life_s / 10) * _SECOND_MS)))
            .not_valid_after(_date(now_ms + round(life_s * _SECOND_MS)))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(of_authority=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage(
                    [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
                ),
                critical=False,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, _SHA256)

    def write_crl(self, revoked: Iterable[Revoked], *, now_ms: int) -> None:
        """Replace the list of revoked certificates. Blocks for as long as the disk does.

        Raises:
            AuthorityError: the disk does not take it.
        """
        _write(self.folder / CRL_FILE, _crl(self._key, self._certificate, revoked, now_ms), 0o644)


def make(folder: Path, *, name: str | None, now_ms: int, passphrase: bytes | None) -> Authority:
    """A new authority in this directory.

    Raises:
        AuthorityError: there is one, or the disk does not take it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as exc:
        raise AuthorityError(f"{folder}: {exc.strerror}") from exc
    for file in (KEY_FILE, CERTIFICATE_FILE, CRL_FILE):
        if (folder / file).exists():
            raise AuthorityError(
                f"{folder / file}: there is an authority already; nothing was changed"
            )
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(name or f"Shoal authority {secrets.token_hex(4)}")
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_date(now_ms - CA_BACKDATED_S * _SECOND_MS))
        .not_valid_after(_date(now_ms) + dt.timedelta(days=CA_YEARS * 365.25))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(of_authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, _SHA256)
    )
    _write_new(folder / KEY_FILE, key_pem(key, passphrase))
    _write(folder / CERTIFICATE_FILE, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    authority = Authority(folder, key, certificate)
    authority.write_crl((), now_ms=now_ms)
    return authority


def read_pin(folder: Path) -> str:
    """The pin of the authority that lies there; its key is not needed.

    Raises:
        AuthorityError: there is none.
    """
    path = folder / CERTIFICATE_FILE
    try:
        return pin_of(x509.load_pem_x509_certificate(path.read_bytes()))
    except OSError as exc:
        raise AuthorityError(f"{path}: {exc.strerror} (make one with shoal ca init)") from exc
    except (ValueError, x509.InvalidVersion) as exc:
        raise AuthorityError(f"{path}: is no certificate") from exc


def read_passphrase(path: Path) -> bytes:
    """The first line of a file.

    Raises:
        AuthorityError: it cannot be read, or is empty.
    """
    try:
        with path.open("rb") as file:
            found = file.read(MAX_PASSPHRASE_BYTES).partition(b"\n")[0].rstrip(b"\r")
    except OSError as exc:
        raise AuthorityError(f"{path}: {exc.strerror}") from exc
    if not found:
        raise AuthorityError(f"{path}: there is no passphrase in its first line")
    return found


def key_pem(key: ec.EllipticCurvePrivateKey, passphrase: bytes | None = None) -> bytes:
    """A private key as it is kept."""
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        encryption = serialization.BestAvailableEncryption(passphrase)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )


def pin_of(certificate: x509.Certificate) -> str:
    """The sha256 of a certificate, as people write it."""
    return sha256_text(certificate.fingerprint(hashes.SHA256()))


def _crl(
    key: ec.EllipticCurvePrivateKey,
    certificate: x509.Certificate,
    revoked: Iterable[Revoked],
    now_ms: int,
) -> bytes:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(certificate.subject)
        .last_update(_date(now_ms - BACKDATED_S * _SECOND_MS))
        .next_update(_date(now_ms) + dt.timedelta(days=CRL_DAYS))
        .add_extension(x509.CRLNumber(now_ms), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
        )
    )
    for one in revoked:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder()
            .serial_number(one.serial)
            .revocation_date(_date(one.at_ms))
            .build()
        )
    return builder.sign(key, _SHA256).public_bytes(serialization.Encoding.PEM)


def _usage(*, of_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not of_authority,
        key_cert_sign=of_authority,
        crl_sign=of_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _date(at_ms: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(at_ms // _SECOND_MS, dt.UTC)


def _write_new(path: Path, content: bytes) -> None:
    """A file that nobody else may read, and that was not there."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        sync_directory(path.parent)
    except OSError as exc:
        raise AuthorityError(f"{path}: {exc.strerror}") from exc


def _write(path: Path, content: bytes, mode: int) -> None:
    try:
        write_durably(path, content, mode=mode)
    except OSError as exc:
        raise AuthorityError(f"{path}: {exc.strerror}") from exc
