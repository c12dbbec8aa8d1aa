"""Where the enrolment door is, as a person writes it."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from shoal_agent.errors import IdentityError
from shoal_contract.enrolment import DEFAULT_PORT


@dataclass(frozen=True, slots=True)
class DoorAddress:
    """A host and its port."""

    host: str
    port: int

    @classmethod
    def parse(cls, url: str) -> "DoorAddress":
        """`https://host[:port]`. Raises IdentityError."""
        try:
            parts = urlsplit(url)
            port = parts.port or DEFAULT_PORT
        except ValueError as exc:
            raise IdentityError(f"{url!r} is no address: {exc}") from exc
        if parts.scheme != "https" or not parts.hostname or parts.path.strip("/") or parts.query:
            raise IdentityError(f"{url!r} is not https://host:port")
        return cls(parts.hostname, port)
