"""Where the controller's database is, and how to speak to it: a file of SQLite, or a PostgreSQL."""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from sqlalchemy import URL
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from shoal_fleet.errors import ConfigError, StateError

DRIVER: Final = "postgresql+asyncpg"
CONNECT_TIMEOUT_S: Final = 10.0
MAX_PASSWORD_BYTES: Final = 4096
COMMAND_TIMEOUT_S: Final = 120.0
"""No statement of ours takes so long: a server that is silent for longer is gone."""


@dataclass(frozen=True, slots=True)
class DatabaseAddress:
    """`ca_file`: who vouches for the server; the connection is TLS then. Not for files."""

    url: URL
    ca_file: Path | None = None

    @classmethod
    def file(cls, path: Path) -> Self:
        """A file of SQLite."""
        return cls(URL.create("sqlite+aiosqlite", database=str(path)))

    @property
    def is_file(self) -> bool:
        """Whether it is a file of SQLite."""
        return self.url.get_backend_name() == "sqlite"

    @property
    def path(self) -> Path:
        """Of a file."""
        return Path(str(self.url.database))

    @property
    def name(self) -> str:
        """For people and logs: without the password."""
        return str(self.path) if self.is_file else self.url.render_as_string(hide_password=True)

    @property
    def faults(self) -> tuple[type[Exception], ...]:
        """What an engine raises for reasons that lie in the database or on the way to it."""
        if self.is_file:
            return (DBAPIError, PoolTimeoutError)
        asyncpg = _driver()
        # What goes wrong while a connection is made SQLAlchemy does not translate.
        return (
            DBAPIError,
            PoolTimeoutError,
            OSError,
            asyncpg.PostgresError,
            asyncpg.InterfaceError,
        )

    def engine(self, *, wait_s: float, **options: Any) -> AsyncEngine:
        """An engine. `wait_s`: how long SQLite waits for another writer.

        Raises:
            StateError: the file of authorities cannot be read.
        """
        if self.is_file:
            return create_async_engine(self.url, connect_args={"timeout": wait_s}, **options)
        _driver()
        arguments: dict[str, Any] = {
            "timeout": CONNECT_TIMEOUT_S,
            "command_timeout": COMMAND_TIMEOUT_S,
            # A controller whose machine lost its power must not be taken to be there for two hours.
            "server_settings": {
                "application_name": "shoal",
                "tcp_keepalives_idle": "5",
                "tcp_keepalives_interval": "2",
                "tcp_keepalives_count": "3",
            },
        }
        if self.ca_file is not None:
            try:
                arguments["ssl"] = ssl.create_default_context(cafile=str(self.ca_file))
            except OSError as exc:
                raise StateError(f"[database] ca_file {self.ca_file}: {exc}") from exc
        return create_async_engine(self.url, connect_args=arguments, **options)


def reason(exc: Exception, *, waited_s: float) -> str:
    """One line on a fault, without the statement."""
    if isinstance(exc, DBAPIError):
        return str(exc.orig)
    if isinstance(exc, PoolTimeoutError):
        return f"every connection to it was in use for {waited_s:g} s"
    return str(exc) or type(exc).__name__


def parse(text: str) -> URL:
    """The address of a PostgreSQL.

    Raises:
        ConfigError: it is something else. Does not quote it: there may be a password in it.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as exc:
        raise ConfigError(
            f"[database] url is not an address like {DRIVER}://user@host/shoal"
        ) from exc
    if url.drivername in {"postgresql", "postgres"}:
        url = url.set(drivername=DRIVER)
    if url.drivername != DRIVER:
        raise ConfigError(
            f"[database] url begins with {url.drivername}://; a controller knows {DRIVER}://"
            " (for SQLite leave it out)"
        )
    if not url.database:
        raise ConfigError("[database] url names no database (…/shoal)")
    return url


def configured(
    url: str, *, password_file: str | None = None, ca_file: str | None = None
) -> DatabaseAddress:
    """The PostgreSQL of a configuration. The password is the first line of its file.

    Raises:
        ConfigError: it is no address, or the file cannot be read.
    """
    parsed = parse(url)
    if password_file is not None:
        try:
            with Path(password_file).open("rb") as file:
                text = file.read(MAX_PASSWORD_BYTES).decode("utf-8")
        except OSError as exc:
            raise ConfigError(
                f"[database] password_file {password_file} cannot be read: {exc.strerror}"
            ) from exc
        except UnicodeDecodeError as exc:
            raise ConfigError(
                f"[database] password_file {password_file} is not UTF-8 text"
            ) from exc
        parsed = parsed.set(password=text.partition("\n")[0].rstrip("\r"))
    return DatabaseAddress(parsed, None if ca_file is None else Path(ca_file))


def _driver() -> Any:
    try:
        import asyncpg  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as exc:
        raise StateError("PostgreSQL needs its driver: pip install 'shoal[postgres]'") from exc
    return asyncpg
