"""Certificates and lists of revoked ones of every kind that must be refused, by the openssl command."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from tests.shoal_broker.render.rendered_mosquitto import CURVE, Authority

CONFIGURATION: Final = """\
[ca]
default_ca = it
[it]
database = index.txt
new_certs_dir = .
default_md = sha256
serial = serial
rand_serial = yes
policy = any
unique_subject = no
[any]
commonName = supplied
"""


class Registry(Authority):
    """An authority that chooses dates, names and purposes, and can revoke again and again."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        (folder / "registry.cnf").write_text(CONFIGURATION)
        (folder / "index.txt").touch()
        self._lists = 0

    @property
    def ca_file(self) -> Path:
        return self.folder / "ca.crt"

    def certify(
        self,
        name: str,
        *,
        begins_in_s: float = -60,
        ends_in_s: float = 86_400,
        purposes: str | None = "clientAuth,serverAuth",
        names: str | None = None,
    ) -> tuple[str, str]:
        """The paths of a new certificate and its key; `names` as OpenSSL's subjectAltName has them."""
        number = len((self.folder / "index.txt").read_text().splitlines())
        stem = f"{name}-{number}"
        lines = [f"subjectAltName={names or f'DNS:{name}'}"]
        if purposes is not None:
            lines.append(f"extendedKeyUsage={purposes}")
        (self.folder / f"{stem}.ext").write_text("\n".join(lines) + "\n")
        self._openssl(
            "req", "-new", *CURVE, "-keyout", f"{stem}.key", "-out", f"{stem}.csr",
            "-subj", f"/CN={name}",
        )  # fmt: skip
        self._ca(
            "-batch", "-notext", "-in", f"{stem}.csr", "-out", f"{stem}.crt",
            "-startdate", _at(begins_in_s), "-enddate", _at(ends_in_s), "-extfile", f"{stem}.ext",
        )  # fmt: skip
        return str(self.folder / f"{stem}.crt"), str(self.folder / f"{stem}.key")

    def self_signed(self, name: str) -> tuple[str, str]:
        """Of an authority that is nobody else's."""
        stem = f"{name}-self"
        self._openssl(
            "req", "-x509", *CURVE, "-keyout", f"{stem}.key", "-out", f"{stem}.crt", "-days", "2",
            "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}",
        )  # fmt: skip
        return str(self.folder / f"{stem}.crt"), str(self.folder / f"{stem}.key")

    def revoked(
        self, *certificates: str, begins_in_s: float = -60, ends_in_s: float = 2 * 86_400
    ) -> bytes:
        """A list in which these and all that were revoked before stand."""
        for certificate in certificates:
            self._ca("-revoke", certificate)
        self._lists += 1
        out = f"list-{self._lists}.pem"
        self._ca(
            "-gencrl", "-crl_lastupdate", _at(begins_in_s), "-crl_nextupdate", _at(ends_in_s),
            "-out", out,
        )  # fmt: skip
        return (self.folder / out).read_bytes()

    def _ca(self, *arguments: str) -> None:
        self._openssl(
            "ca", "-config", "registry.cnf", "-keyfile", "ca.key", "-cert", "ca.crt", *arguments
        )

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(
            ["openssl", *arguments], cwd=self.folder, check=True, capture_output=True, timeout=20
        )


def unacceptable(registry: Registry, stranger: Registry, name: str) -> dict[str, tuple[str, str]]:
    """What nobody may let in as `name`: certificate and key by what is wrong with it.

    The one that is "revoked" stands in every later list of `registry`.
    """
    revoked = registry.certify(name)
    registry.revoked(revoked[0])
    return {
        "expired": registry.certify(name, begins_in_s=-7200, ends_in_s=-3600),
        "not yet valid": registry.certify(name, begins_in_s=3600),
        "foreign authority": stranger.certify(name),
        "self-signed": registry.self_signed(name),
        "revoked": revoked,
        "for servers only": registry.certify(name, purposes="serverAuth"),
        "for code": registry.certify(name, purposes="codeSigning"),
    }


def replace(path: Path, content: bytes) -> None:
    """As whoever renews a file does it: nobody sees half of it."""
    beside = path.with_name(path.name + ".new")
    beside.write_bytes(content)
    beside.replace(path)


def _at(in_s: float) -> str:
    return f"{datetime.now(UTC) + timedelta(seconds=in_s):%Y%m%d%H%M%SZ}"
