"""What went wrong with TLS, in words for a person: OpenSSL's errors to the bus's own. Opens nothing.

In TLS 1.3 a broker judges our certificate after our half of the handshake is done: its refusal is an
alert on the first read. Alerts: RFC 8446, section 6.2.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from shoal_broker.bus_errors import (
    BrokerNotTrustedError,
    IdentityRefusedError,
    LinkError,
    TlsFilesError,
)
from shoal_broker.tls import TlsFiles
from shoal_broker.tls_dates import against_the_clock, our_clock

_ALERT = re.compile(r"alert[ _]([a-z_ ]+)", re.IGNORECASE)

# Alerts that are about our certificate, and what a person can do.
IDENTITY_ALERTS: Final = {
    "bad certificate": "it is damaged, or has another name or purpose than the broker wants",
    "unsupported certificate": "it is not for clients, or of a kind that the broker does not know",
    "certificate revoked": "the client needs a new one",
    "certificate expired": "renew it",
    "certificate unknown": "the broker's log may say why",
    "unknown ca": "the broker does not know the authority that signed it",
    "access denied": "the broker's rules exclude it",
    "decrypt error": "its key did not prove it",
    "certificate required": "the broker wants one: set cert_file and key_file",
}
# What OpenSSL calls bytes that are none of TLS.
_NOT_TLS: Final = frozenset(
    {
        "BAD_RECORD_TYPE",
        "HTTP_REQUEST",
        "PACKET_LENGTH_TOO_LONG",
        "RECORD_LAYER_FAILURE",
        "UNEXPECTED_MESSAGE",
        "WRONG_VERSION_NUMBER",
    }
)
_NOT_YET_VALID: Final = 9
_EXPIRED: Final = 10
_WRONG_NAME: Final = (62, 64)
# What we think of the broker's certificate (X509_V_ERR_...), and what a person can do.
_ADVICE: Final = {
    _NOT_YET_VALID: "is the clock of this machine right?",
    _EXPIRED: "the broker needs a new one; or is the clock of this machine wrong?",
    18: "it is self-signed, and ca_file does not hold it",
    19: "ca_file does not hold the authority that signed it",
    20: "ca_file does not hold the authority that signed it",
    21: "ca_file does not hold the authority that signed it",
    62: "connect to a name that is in it, or set server_name",
    64: "connect to an address that is in it, or set server_name",
}


@asynccontextmanager
async def handshake_within(timeout_s: float, tls: TlsFiles) -> AsyncIterator[None]:
    """Bound a handshake, and raise the LinkError for whatever it dies of."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError as exc:
        raise LinkError(f"no end of the TLS handshake within {timeout_s:g} s") from exc
    except ConnectionError as exc:
        raise hung_up() from exc
    except OSError as exc:
        raise explain(exc, tls) from exc
    except ValueError as exc:
        raise TlsFilesError(f"no name to verify the broker by: {exc}", key="server_name") from exc


def explain(exc: OSError, tls: TlsFiles) -> LinkError:
    """The error to raise for what the connection, in or after its handshake, died of.

    IdentityRefusedError: the broker does not take us. BrokerNotTrustedError: we do not take it.
    """
    if isinstance(exc, ssl.SSLCertVerificationError):
        advice = _advice(exc.verify_code, tls)
        return BrokerNotTrustedError(
            f"we do not accept the broker's certificate: {exc.verify_message}"
            + (f" ({advice})" if advice else ""),
            reason=exc.verify_message,
        )
    if not isinstance(exc, ssl.SSLError):
        return LinkError(f"the connection is gone: {str(exc) or type(exc).__name__}")
    alert = alert_in(exc)
    if alert in IDENTITY_ALERTS:
        whose = tls.cert_file or "none is configured"
        return IdentityRefusedError(
            f"the broker refuses our certificate: {alert} ({whose}: {IDENTITY_ALERTS[alert]}"
            f"{_by_the_clock(alert, tls)})",
            alert=alert,
        )
    if alert == "protocol version" or _reason(exc) == "UNSUPPORTED_PROTOCOL":
        return BrokerNotTrustedError("the broker does not speak TLS 1.3", reason="protocol version")
    if alert is not None:
        return LinkError(f"the broker ended TLS: {alert}")
    if _reason(exc) in _NOT_TLS:
        return LinkError("the other end does not speak TLS: is this the broker's TLS port?")
    if isinstance(exc, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        return hung_up()
    return LinkError(f"TLS failed: {_plain(exc)}")


def without_tls(exc: LinkError) -> LinkError:
    """The error for a connection without TLS that was lost before the CONNACK."""
    told = LinkError(f"{exc}, before its CONNACK: does this port want TLS ([broker] ca_file)?")
    told.__cause__ = exc.__cause__
    return told


def explain_client(exc: ssl.SSLError) -> str:
    """What a client's connection, in or after its handshake, died of: for the log of a broker."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"the client's certificate is not accepted: {exc.verify_message}"
    if _reason(exc) == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return "the client has no certificate"
    if _reason(exc) == "UNSUPPORTED_PROTOCOL":
        return "the client does not speak TLS 1.3"
    alert = alert_in(exc)
    if alert is not None:
        return f"the client ended TLS: {alert}"
    if _reason(exc) in _NOT_TLS:
        return "the client does not speak TLS"
    return f"TLS failed: {_plain(exc)}"


def alert_in(exc: ssl.SSLError) -> str | None:
    """The alert that the other end sent, as RFC 8446 spells it but with blanks; None: no alert."""
    found = _ALERT.search(_reason(exc)) or _ALERT.search(str(exc))
    return None if found is None else found[1].replace("_", " ").strip().lower()


def hung_up() -> LinkError:
    """The error for an end in the middle of the handshake about which nothing was said."""
    return LinkError(
        "the other end closed the connection in the TLS handshake: is this the broker's TLS port?"
    )


def _by_the_clock(alert: str, tls: TlsFiles) -> str:
    """What our certificate's dates say about a refusal."""
    dates = against_the_clock(tls)
    if dates is not None:
        return f"; {dates}"
    if alert == "certificate expired":
        # OpenSSL has no other alert for a list that has ended.
        return (
            "; by our clock it is good: the broker's is wrong,"
            " or its list of revoked certificates has ended"
        )
    return ""


def _advice(verify_code: int, tls: TlsFiles) -> str | None:
    advice = _ADVICE.get(verify_code)
    if verify_code in (_NOT_YET_VALID, _EXPIRED):
        return against_the_clock(tls) or f"{our_clock()}; {advice}"
    return advice


def _plain(exc: ssl.SSLError) -> str:
    return _reason(exc).replace("_", " ").lower() or str(exc)


def _reason(exc: ssl.SSLError) -> str:
    # Python has no word for every one of OpenSSL's, and its own errors have none.
    return getattr(exc, "reason", None) or ""
