"""What the broker reads from files when it starts and again at SIGHUP: passwords and certificates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from shoal_broker.server.config import BrokerConfig, Tls
from shoal_broker.server.passwords import Passwords
from shoal_broker.server.tls import Secured


@dataclass(frozen=True, slots=True)
class Files:
    """All of them, as they were when they were read."""

    passwords: Passwords | None
    secured: Mapping[Tls, Secured]

    @classmethod
    def read(cls, config: BrokerConfig) -> Self:
        """Blocks for as long as the disk does. Raises PasswordFileError and CertificateFileError."""
        file = config.password_file
        return cls(
            passwords=None if file is None else Passwords.read(file),
            secured={
                listener.tls: Secured.read(listener.tls)
                for listener in config.listeners
                if listener.tls is not None
            },
        )
