"""`[broker]` of a role's configuration file: where the broker is, and who we are there.

One table for every role, and one way from it to a SessionConfig. It reads files when it is asked to,
never the environment; each role names its own defaults and raises its own ConfigError.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar

import msgspec
import structlog

from shoal_broker.bus_errors import BrokerTableError, PlaintextError, TlsFilesError
from shoal_broker.link import KEEPALIVE_S, SessionConfig, Transport
from shoal_broker.loopback import check_encrypted, is_loopback
from shoal_broker.tls import TlsFiles, client_context, configured
from shoal_contract import toml

MAX_PASSWORD_BYTES = 4096

log = structlog.get_logger(__name__)


class BrokerTable(toml.Table, frozen=True, kw_only=True):
    """The keys; `ca_file` switches TLS on, `plaintext` allows to do without to other machines.

    The password is the first line of its file.

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
    plaintext: bool = False

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

    def check_encrypted(self) -> None:
        """Raise BrokerTableError where a plain connection would leave this machine, without a word about it."""
        try:
            check_encrypted(
                self.host,
                has_tls=self.ca_file is not None,
                plaintext=self.plaintext,
                say="set ca_file (TLS), or plaintext = true",
            )
        except PlaintextError as exc:
            raise BrokerTableError(f"[{self.table}] {exc}") from exc

    def session(
        self, client_id: str, *, named: str | None = None, tls: TlsFiles | None = None
    ) -> SessionConfig:
        """The session to open, once all files that it needs were read.

        `named`: our certificate must name this. `tls`: these files in place of the table's; they are read
        by each connection, not now, and may come later.

        Raises BrokerTableError: one of them cannot be used; names the key. That nothing leaves this
        machine in the clear unless `plaintext` allows it, Session.open sees to.
        """
        if tls is None:
            tls = self._read(named)
        if tls is None and not is_loopback(self.host):
            log.warning("broker is spoken to in the clear", broker=f"{self.host}:{self.port}")
        return SessionConfig(
            host=self.host,
            port=self.port,
            client_id=client_id,
            username=self.username,
            password=self._password(),
            transport=self.transport,
            keepalive_s=self.keepalive_s,
            tls=tls,
            plaintext=self.plaintext,
        )

    def _read(self, named: str | None) -> TlsFiles | None:
        tls = self.tls()
        if tls is None:
            return None
        tls = replace(tls, named=named)
        try:
            client_context(tls)
        except TlsFilesError as exc:
            raise BrokerTableError(f"[{self.table}] {exc}") from exc
        return tls

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
