"""What the clock of this machine says about our own certificate: for alarms. It judges nothing.

A board without a battery-backed clock begins in 1970, and every certificate seems to begin in the
future then. OpenSSL says "not yet valid" and no date; the broker says less.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from shoal_broker.bus_errors import CertificateFactsError
from shoal_broker.certificate_facts import MAX_FILE_BYTES, CertificateFacts, read_certificate
from shoal_broker.tls import TlsFiles


def our_clock(wall_s: Callable[[], float] = time.time) -> str:
    """For people: "our clock is 1970-01-01 00:03:10 UTC"."""
    return f"our clock is {_told(datetime.fromtimestamp(wall_s(), UTC))}"


def against_the_clock(tls: TlsFiles, wall_s: Callable[[], float] = time.time) -> str | None:
    """In words, when our own certificate (or the authority's) is not for the time that we have.

    None: it is, or it cannot be told. Reads a small file.
    """
    path, whose = (
        (tls.ca_file, "the authority's certificate")
        if tls.cert_file is None
        else (tls.cert_file, "our certificate")
    )
    facts = _facts(path)
    if facts is None:
        return None
    now = datetime.fromtimestamp(wall_s(), UTC)
    if now < facts.begins:
        return f"{our_clock(wall_s)}, and {whose} begins {_told(facts.begins)}: set the clock"
    if now > facts.ends:
        return f"{our_clock(wall_s)}, and {whose} ended {_told(facts.ends)}"
    return None


def _facts(path: str) -> CertificateFacts | None:
    try:
        with Path(path).open("rb") as file:
            return read_certificate(file.read(MAX_FILE_BYTES + 1))
    except (OSError, ValueError, CertificateFactsError):
        return None


def _told(when: datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M:%S} UTC"
