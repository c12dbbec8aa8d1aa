"""TLS towards a broker: from the files that a configuration names to an `ssl.SSLContext`.

TLS 1.3, and the broker's certificate and name are always verified. Files are read anew for each
connection, so a renewed certificate needs no restart. OpenSSL alone judges, and
`tls_failures` says in words what it found. The embedded broker reads its own files with the same
`trust` and `identify`.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from shoal_broker.bus_errors import CertificateFactsError, TlsFilesError
from shoal_broker.certificate_facts import MAX_FILE_BYTES, read_certificate


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files: who may vouch for the broker, and, where it asks, who we are.

    `server_name` is the name in the broker's certificate where that is not the address we connect to.
    `named` is whom our certificate must name (its CN), None: anybody.
    """

    ca_file: str
    cert_file: str | None = None
    key_file: str | None = None
    server_name: str | None = None
    named: str | None = None


def configured(
    *, ca_file: str | None, cert_file: str | None, key_file: str | None, server_name: str | None
) -> TlsFiles | None:
    """What the keys of a configuration say together; None: no TLS. Reads nothing.

    Raises TlsFilesError for a key that needs another one.
    """
    if ca_file is None:
        for key, value in (
            ("cert_file", cert_file),
            ("key_file", key_file),
            ("server_name", server_name),
        ):
            if value is not None:
                raise TlsFilesError(f"{key} needs ca_file: TLS is used with it only", key=key)
        return None
    if (cert_file is None) != (key_file is None):
        given, missing = (
            ("key_file", "cert_file") if cert_file is None else ("cert_file", "key_file")
        )
        raise TlsFilesError(f"{given} needs {missing}", key=missing)
    if server_name is not None and not server_name.strip("."):
        raise TlsFilesError(f"server_name {server_name!r} is no name", key="server_name")
    return TlsFiles(
        ca_file=ca_file, cert_file=cert_file, key_file=key_file, server_name=server_name
    )


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """Read the files. Blocks for as long as the disk does. Raises TlsFilesError."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    files = _together(files)
    trust(made, files.ca_file)
    if files.cert_file is not None and files.key_file is not None:
        identify(made, files.cert_file, files.key_file)
        if files.named is not None:
            _check_named(files.cert_file, files.named)
    return made


def _together(files: TlsFiles) -> TlsFiles:
    """The same files, where they stand in one directory that is a link: all from where it leads now."""
    if files.cert_file is None or files.key_file is None:
        return files
    folder = Path(files.cert_file).parent
    if Path(files.key_file).parent != folder or not folder.is_symlink():
        return files
    there = folder.resolve()
    return replace(
        files,
        cert_file=str(there / Path(files.cert_file).name),
        key_file=str(there / Path(files.key_file).name),
    )


def trust(
    made: ssl.SSLContext, ca_file: str, *, key: str = "ca_file", what: str = "certificate"
) -> None:
    """Judge the other end's certificate by what this file holds. Raises TlsFilesError, naming `key`."""
    _check_readable(key, ca_file)
    try:
        made.load_verify_locations(cafile=ca_file)
    except OSError as exc:
        _refuse(key, ca_file, f"holds no {what} in PEM form: {_why(exc)}", exc)


def identify(made: ssl.SSLContext, cert_file: str, key_file: str) -> None:
    """Show this certificate. Raises TlsFilesError."""
    _check_readable("cert_file", cert_file)
    _check_readable("key_file", key_file)

    def no_password() -> NoReturn:
        # Without this OpenSSL would ask for it at the terminal.
        _refuse("key_file", key_file, "is encrypted, and nobody is here to give the password")

    try:
        made.load_cert_chain(cert_file, key_file, password=no_password)
    except OSError as exc:
        if isinstance(exc, ssl.SSLError) and exc.reason == "KEY_VALUES_MISMATCH":
            _refuse("key_file", key_file, f"does not belong to cert_file {cert_file}", exc)
        if not _holds_a_certificate(cert_file):
            _refuse("cert_file", cert_file, f"holds no certificate in PEM form: {_why(exc)}", exc)
        _refuse("key_file", key_file, f"holds no private key in PEM form: {_why(exc)}", exc)


def _check_named(cert_file: str, name: str) -> None:
    """A broker takes a client for whom its certificate names: as another one it would hear nothing."""
    try:
        with Path(cert_file).open("rb") as file:
            found = read_certificate(file.read(MAX_FILE_BYTES + 1)).common_name
    except CertificateFactsError as exc:
        _refuse("cert_file", cert_file, str(exc), exc)
    except OSError as exc:
        _refuse("cert_file", cert_file, f"cannot be read: {exc.strerror}", exc)
    if found != name:
        _refuse("cert_file", cert_file, f"is the certificate of {found!r}, and we are {name!r}")


def _check_readable(key: str, path: str) -> None:
    """OpenSSL does not say which of its files it could not open."""
    try:
        with Path(path).open("rb") as file:
            file.read(1)
    except (OSError, ValueError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else str(exc)
        _refuse(key, path, f"cannot be read: {why}", exc)


def _holds_a_certificate(cert_file: str) -> bool:
    """Nor which of two it could not understand."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=cert_file)
    except OSError:
        return False
    return True


def _why(exc: OSError) -> str:
    if isinstance(exc, ssl.SSLError) and exc.reason:
        return exc.reason.replace("_", " ").lower()
    return exc.strerror or str(exc)


def _refuse(key: str, path: str, problem: str, cause: Exception | None = None) -> NoReturn:
    raise TlsFilesError(f"{key} {path} {problem}", key=key, path=path) from cause
