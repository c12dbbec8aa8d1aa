"""`[broker]` of a role's configuration file: where the broker is, and who we are there.

One table for every role, and one way from it to a SessionConfig. It reads files when it is asked to,
never the environment; each role names its own defaults and raises its own ConfigError.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

import msgspec

from shoal_broker.bus_errors import BrokerTableError, TlsFilesError
from shoal_broker.link import KEEPALIVE_S, SessionConfig, Transport
from shoal_broker.tls import TlsFiles, client_context, configured
from shoal_contract import toml

MAX_PASSWORD_BYTES = 4096


class BrokerTable(toml.Table, frozen=True, kw_only=True):
    """The keys; `ca_file` switches TLS on. The password is the first line of its file.

    `keepalive_s`: a quiet line is tried after three quarters of it, and given up after one and a half.
    """

    table: ClassVar[str] = "broker"
    """What it is called in the file."""

    host: str
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 1883
    username: str | None = None
    password_file: str | None = None
    transport: Transport = "aiomqtt"
    keepalive_s: Annotated[int, msgspec.Meta(ge=5, le=1160)] = KEEPALIVE_S
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    server_name: str | None = None

    def tls(self) -> TlsFiles | None:
        """None: a plain connection. Reads nothing. Raises BrokerTableError for keys that need others."""
        try:
            return configured(
                ca_file=self.ca_file,
                cert_file=self.cert_file,
                key_file=self.key_file,
                server_name=self.server_name,
            )
        except TlsFilesError as exc:
            raise BrokerTableError(f"[{self.table}] {exc}") from exc

    def session(self, client_id: str) -> SessionConfig:
        """The session to open, once all files that it needs were read.

        Raises BrokerTableError: one of them cannot be used; names the key.
        """
        tls = self.tls()
        if tls is not None:
            try:
                client_context(tls)
            except TlsFilesError as exc:
                raise BrokerTableError(f"[{self.table}] {exc}") from exc
        return SessionConfig(
            host=self.host,
            port=self.port,
            client_id=client_id,
            username=self.username,
            password=self._password(),
            transport=self.transport,
            keepalive_s=self.keepalive_s,
            tls=tls,
        )

    def _password(self) -> str | None:
        name = self.password_file
        if name is None:
            return None
        try:
            with Path(name).open("rb") as file:
                text = file.read(MAX_PASSWORD_BYTES).decode("utf-8")
        except OSError as exc:
            why = f"[{self.table}] password_file {name} cannot be read: {exc.strerror}"
            raise BrokerTableError(why) from exc
        except UnicodeDecodeError as exc:
            raise BrokerTableError(
                f"[{self.table}] password_file {name} is not UTF-8 text"
            ) from exc
        return text.partition("\n")[0].rstrip("\r")
