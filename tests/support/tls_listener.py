"""Mosquitto with TLS 1.3 and client certificates but without names and rights, and what reaches it."""

from __future__ import annotations

import os

from tests.shoal_broker.render.rendered_mosquitto import Authority

from shoal_broker.tls import TlsFiles


def tls_listener(
    authority: Authority, *, trusting: Authority | None = None, certificate: str = "broker"
) -> str:
    """Lines for `Mosquitto.open(extra=...)`; `trusting` is whose clients it takes."""
    broker_cert, broker_key = authority.issue("localhost", certificate)
    lines = [
        f"cafile {(trusting or authority).folder}/ca.crt",
        f"certfile {broker_cert}",
        f"keyfile {broker_key}",
        "tls_version tlsv1.3",
        "require_certificate true",
        "allow_anonymous true",
    ]
    if os.geteuid() == 0:
        # Else it becomes the user mosquitto, who may not look into a folder of a test.
        lines.append("user root")
    return "\n".join(lines)


def client_files(authority: Authority, name: str = "client", **given: str | None) -> TlsFiles:
    """What a client of this authority is configured with, and what a test says instead."""
    cert_file, key_file = authority.issue(name)
    known = {
        "ca_file": str(authority.folder / "ca.crt"),
        "cert_file": cert_file,
        "key_file": key_file,
    }
    return TlsFiles(**known | given)
