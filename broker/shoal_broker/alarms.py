"""The alarms of a session: what waiting alone does not cure, counted and logged. It decides nothing."""

from __future__ import annotations

import structlog

from shoal_broker.bus_errors import (
    BrokerNotTrustedError,
    IdentityRefusedError,
    TlsFilesError,
    TrustError,
)

log = structlog.get_logger(__name__)


class Alarms:
    """Counters since the session opened; one is raised at every attempt that meets its cause."""

    def __init__(self) -> None:
        self.identity_refused = 0
        self.broker_not_trusted = 0
        self.tls_files_unusable = 0

    def sound(self, error: TrustError, *, broker: str) -> None:
        """Count it and say it."""
        match error:
            case IdentityRefusedError():
                self.identity_refused += 1
                log.error(
                    "identity refused",
                    broker=broker,
                    error=str(error),
                    reason_code=error.reason_code,
                    alert=error.alert,
                )
            case BrokerNotTrustedError():
                self.broker_not_trusted += 1
                log.error("broker not trusted", broker=broker, error=str(error))
            case TlsFilesError():
                self.tls_files_unusable += 1
                log.error("tls files unusable", broker=broker, error=str(error))
