"""Certificates that are no board's, made on the authority's own machine: key and certificate as two files."""

from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from shoal_broker.durable import write_durably
from shoal_contract.errors import ContractError
from shoal_contract.topics import check_user
from shoal_fleet.clock import now_ms
from shoal_fleet.errors import AuthorityError, UsageError
from shoal_fleet.identity import names
from shoal_fleet.identity.authority import Authority, key_pem


def issue_files(
    folder: Path,
    name: str,
    *,
    out: Path,
    hosts: list[str],
    days: float,
    passphrase: bytes | None,
) -> dict[str, Any]:
    """Write `name`.crt (with the authority's behind it) and `name`.key into `out`; files there are replaced.

    Raises:
        UsageError: the name, or one of the hosts, cannot stand in a certificate.
        AuthorityError: a file cannot be read or written.
    """
    try:
        check_user(name)
    except ContractError as exc:
        raise UsageError(str(exc)) from exc
    authority = Authority.load(folder, passphrase=passphrase)
    names.give(folder, name)
    key = ec.generate_private_key(ec.SECP256R1())
    try:
        certificate = authority.certify(
            key.public_key(), name=name, hosts=hosts, now_ms=now_ms(), life_s=days * 86400
        )
    except ValueError as exc:
        raise UsageError(f"--host: {exc}") from exc
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    certificate_file, key_file = out / f"{name}.crt", out / f"{name}.key"
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_durably(key_file, key_pem(key))
        write_durably(certificate_file, pem + authority.pem, mode=0o644)
    except OSError as exc:
        raise AuthorityError(f"{exc.filename or out}: {exc.strerror}") from exc
    return {
        "name": name,
        "certificate": str(certificate_file),
        "key": str(key_file),
        "serial": f"{certificate.serial_number:x}",
        "until_ms": round(certificate.not_valid_after_utc.timestamp() * 1000),
    }
