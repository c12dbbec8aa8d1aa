"""The operator's side of the API: one HTTP client, errors as one line. It prints nothing."""

import getpass
import os
import re
import ssl
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

import httpx

from shoal_broker.loopback import is_loopback
from shoal_fleet.access import OPERATOR_HEADER, TOKEN_FILE, URL_FILE, read_token
from shoal_fleet.api_certificate import PINNED_FILE, pinned_context
from shoal_fleet.config import DEFAULT_PORT
from shoal_fleet.errors import (
    ControllerRefusedError,
    ControllerUnreachableError,
    FleetError,
    TimedOutError,
    UsageError,
)

TIMEOUT_S: Final = 30.0
LONG_TIMEOUT_S: Final = 900.0
"""For what makes the controller work: checking a release, building a delta."""

POLL_S: Final = 20.0


_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.@+-]")


class FleetClient:
    """A connection to the controller. Use it as a context manager."""

    def __init__(self, url: str, token: str, verify: ssl.SSLContext | bool = True) -> None:  # noqa: FBT001, FBT002 - as httpx has it
        self._http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {token}", OPERATOR_HEADER: operator()},
            timeout=TIMEOUT_S,
            verify=verify,
            # The controller is asked directly, whatever proxy this machine's environment names.
            trust_env=False,
        )
        self.url = url

    @classmethod
    def at(
        cls,
        *,
        state_dir: Path,
        url: str | None = None,
        ca_file: Path | None = None,
        plaintext: bool = False,
    ) -> Self:
        """A client with the token, and unless given the address, that lie in the state directory.

        Args:
            state_dir: the controller's own, or a directory with a copy of its token.
            url: of a controller elsewhere. It is judged by `ca_file`, else by the system's authorities;
                the one of this machine by the copy of its certificate in the state directory.
            ca_file: who vouches for it.
            plaintext: the token may go to another machine in the clear.

        Raises:
            ControllerUnreachableError: no controller was ever started there, or it is not ours.
            UsageError: the token would go to another machine in the clear, or `ca_file` is none.
        """
        if url is not None and not plaintext:
            _check_encrypted(url)
        try:
            token = read_token(state_dir / TOKEN_FILE)
            is_ours = url is None
            if url is None:
                path = state_dir / URL_FILE
                url = path.read_text("utf-8").strip() if path.exists() else None
        except FileNotFoundError as exc:
            raise ControllerUnreachableError(
                f"{state_dir}: no controller's token here (start one with shoal serve, or name its"
                " directory with --state-dir)"
            ) from exc
        except OSError as exc:
            raise ControllerUnreachableError(f"{exc.filename}: {exc.strerror}") from exc
        try:
            return cls(
                url or f"http://127.0.0.1:{DEFAULT_PORT}",
                token,
                _trust(state_dir, ca_file, is_ours),
            )
        except (httpx.InvalidURL, ValueError) as exc:
            raise ControllerUnreachableError(f"{url!r} is no address: {exc}") from exc

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._http.close()

    def get(self, path: str, *, timeout_s: float = TIMEOUT_S, **params: Any) -> Any:
        """GET; parameters that are None are left out."""
        given = {key: value for key, value in params.items() if value is not None}
        return self._ask("GET", path, params=given, timeout=timeout_s)

    def post(
        self, path: str, body: Mapping[str, Any] | None = None, *, timeout_s: float = TIMEOUT_S
    ) -> Any:
        """POST a JSON body."""
        return self._ask("POST", path, json=body, timeout=timeout_s)

    def put(self, path: str, body: Mapping[str, Any], *, timeout_s: float = TIMEOUT_S) -> Any:
        """PUT a JSON body."""
        return self._ask("PUT", path, json=body, timeout=timeout_s)

    def patch(self, path: str, body: Mapping[str, Any]) -> Any:
        """PATCH a JSON body."""
        return self._ask("PATCH", path, json=body, timeout=TIMEOUT_S)

    def delete(self, path: str, **params: Any) -> Any:
        """DELETE; parameters that are None are left out."""
        given = {key: value for key, value in params.items() if value is not None}
        return self._ask("DELETE", path, params=given, timeout=TIMEOUT_S)

    def upload(self, path: str, pieces: Iterable[bytes], **query: Any) -> Any:
        """POST bytes as they come."""
        params = {name: value for name, value in query.items() if value is not None}
        return self._ask("POST", path, content=pieces, params=params, timeout=LONG_TIMEOUT_S)

    def wait_for_command(
        self, command: str, *, seen: int | None, timeout_s: float, progress: int | None = None
    ) -> Any:
        """The command once it is final, or there is news of it, or as it is then.

        News are more than `seen` history entries, and another `progress`.
        """
        wait_s = max(0.0, min(timeout_s, POLL_S))
        return self.get(
            f"/api/commands/{command}",
            wait_s=wait_s,
            seen=seen,
            progress=progress,
            timeout_s=wait_s + TIMEOUT_S,
        )

    def _ask(self, method: str, path: str, **request: Any) -> Any:
        try:
            response = self._http.request(method, path, **request)
        except httpx.TimeoutException as exc:
            if isinstance(exc, httpx.ConnectTimeout):
                raise ControllerUnreachableError(f"no controller answers at {self.url}") from exc
            raise TimedOutError(f"the controller at {self.url} did not answer in time") from exc
        except (httpx.TransportError, httpx.InvalidURL) as exc:
            if "CERTIFICATE_VERIFY_FAILED" in str(exc):
                why = str(exc).rpartition("certificate verify failed: ")[2].partition(" (_ssl")[0]
                raise ControllerUnreachableError(
                    f"the certificate of {self.url} is not accepted: {why}"
                    " (name who vouches for it with --ca-file)"
                ) from exc
            raise ControllerUnreachableError(
                f"no controller answers at {self.url} ({str(exc) or type(exc).__name__})"
            ) from exc
        return _read(response, self.url)


def operator() -> str:
    """Who asks: `SHOAL_OPERATOR`, else this machine's user; in the letters that the controller takes."""
    name = os.environ.get("SHOAL_OPERATOR", "")
    if not name:
        try:
            name = getpass.getuser()
        except (KeyError, OSError):
            # A user id without a name: containers.
            name = ""
    return _NOT_IN_NAMES.sub("_", name)[:64]


def _check_encrypted(url: str) -> None:
    try:
        parts = urlsplit(url)
        is_plain = parts.scheme == "http" and not is_loopback(parts.hostname or "")
    except ValueError:
        return
    if is_plain:
        raise UsageError(
            f"the token would go to {parts.hostname} in the clear: say https://, or --plaintext"
        )


def _trust(state_dir: Path, ca_file: Path | None, is_ours: bool) -> ssl.SSLContext:  # noqa: FBT001 - see `at`
    """How the controller's certificate is judged."""
    pinned = state_dir / PINNED_FILE
    try:
        if ca_file is None and is_ours and pinned.exists():
            return pinned_context(pinned)
        # Not create_default_context: from Python 3.13 on that refuses authorities that OpenSSL accepts.
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        made.minimum_version = ssl.TLSVersion.TLSv1_3
        if ca_file is None:
            made.load_default_certs()
        else:
            made.load_verify_locations(cafile=ca_file)
    except OSError as exc:
        raise UsageError(f"{ca_file or pinned} holds no certificate: {exc}") from exc
    return made


def _read(response: httpx.Response, url: str) -> Any:
    try:
        answer = response.json()
    except ValueError as exc:
        raise FleetError(f"{url} is not a Shoal controller: its answer is not JSON") from exc
    if response.is_success:
        return answer
    reason = answer.get("error") if isinstance(answer, dict) else None
    raise ControllerRefusedError(
        str(reason or f"HTTP status {response.status_code}"), status=response.status_code
    )
