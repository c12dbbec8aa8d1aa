"""Who may use the local API: programs of this machine, or those that know the token. Pure but for `read_token`."""

import hmac
import os
import stat
from collections.abc import Mapping
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from shoal_agent.errors import ConfigError
from shoal_agent.local_api.errors import FORBIDDEN, UNAUTHORIZED, ApiError

MIN_TOKEN: Final = 16
CREDENTIALS: Final = Path("/run/credentials")
"""Where systemd lays the credentials of services: nobody else gets into a service's folder there, and the mode
of a file shows the mask of its access list in the place of the group's rights (systemd 254 and later)."""
_MAX_TOKEN_FILE_BYTES: Final = 4096
_CHALLENGE: Final = (("WWW-Authenticate", "Bearer"),)


class Access:
    """The rules of one API. `token` is None on loopback, where every program may ask."""

    def __init__(self, *, host: str, token: str | None) -> None:
        self._on_loopback = is_loopback(host)
        self._token = None if token is None else token.encode()

    def check(self, headers: Mapping[bytes, bytes], *, needs_token: bool) -> None:
        """Let a request pass, its headers by their lower-case names, or raise ApiError (401, 403).

        A page in a browser may not ask: any page can reach loopback, under a name of its own, too.
        """
        host = headers.get(b"host", b"").decode("latin-1")
        name = _hostname(f"//{host}")
        if self._on_loopback and name and not is_loopback(name):
            raise ApiError(FORBIDDEN, "asked under a name that is not this machine's loopback")
        origin = headers.get(b"origin")
        if origin is not None:
            page = origin.decode("latin-1")
            if not name or _netloc(page) != host.lower():
                raise ApiError(FORBIDDEN, "pages of other origins may not ask")
        if needs_token and self._token is not None:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            right = scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), self._token)
            if not right:
                raise ApiError(
                    UNAUTHORIZED, "Authorization: Bearer TOKEN is missing", headers=_CHALLENGE
                )


@lru_cache(maxsize=64)
def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach it."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def read_token(path: Path) -> str:
    """The token in a file that its owner alone may read. Raises ConfigError."""
    where = f"[local_api] token_file {path}"
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(_MAX_TOKEN_FILE_BYTES)
    except OSError as exc:
        raise ConfigError(f"{where} cannot be read: {exc.strerror}") from exc
    others = 0o007 if path.is_relative_to(CREDENTIALS) else 0o077
    if not stat.S_ISREG(mode) or mode & others:
        raise ConfigError(f"{where} must be a file that its owner alone may read: chmod 600 it")
    try:
        token = text.decode("ascii").strip()
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{where} is not ASCII") from exc
    if len(token) < MIN_TOKEN or not token.isprintable() or " " in token:
        raise ConfigError(f"{where} must hold one word of {MIN_TOKEN} characters or more")
    return token


def _netloc(url: str) -> str:
    """Host and port of an address, lower-case; empty when it is none."""
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:
        return ""


@lru_cache(maxsize=64)
def _hostname(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
