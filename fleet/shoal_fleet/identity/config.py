"""`[identity]` of the controller's configuration: the authority and the enrolment door."""

from typing import Annotated, Final

import msgspec

from shoal_contract import toml
from shoal_contract.enrolment import DEFAULT_PORT
from shoal_fleet.errors import ConfigError

CA_FOLDER: Final = "ca"
"""Where the authority lies below the state directory, unless it lies elsewhere."""
MAX_NAME: Final = 253
_MAX_PORT: Final = 65535


class IdentityTable(toml.Table, frozen=True, kw_only=True):
    """[identity]: without the table nobody can enrol or be revoked.

    `ca_dir`: the authority that `shoal ca init` made, by default in the state directory; `passphrase_file`: where its key is encrypted. `listen`: the
    door's address; port 0 takes a free one. `names`: by which boards reach it. `certificate_days`: how long a
    node's certificate is good. `reserved`: ids that no node may have. `reload_command`: makes the broker read the
    list of revoked certificates again, where it does not watch it; a program and its arguments, no shell.
    """

    ca_dir: str | None = None
    passphrase_file: str | None = None
    listen: str = f"0.0.0.0:{DEFAULT_PORT}"
    names: tuple[str, ...]
    certificate_days: Annotated[float, msgspec.Meta(gt=0, le=398)] = 30.0
    reserved: tuple[str, ...] = ()
    reload_command: tuple[str, ...] = ()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port to listen on. Raises ValueError."""
        host, colon, port = self.listen.rpartition(":")
        if not colon or not host or not port.isdecimal() or int(port) > _MAX_PORT:
            raise ValueError(self.listen)
        return host.strip("[]"), int(port)


def check(table: IdentityTable) -> None:
    """Raise ConfigError, naming the key, unless its values can be used."""
    try:
        _ = table.address
    except ValueError as exc:
        raise ConfigError(f"[identity] listen {table.listen!r} is not host:port") from exc
    if not table.names:
        raise ConfigError("[identity] names: name the host by which boards reach the door")
    for name in table.names:
        if not name or len(name) > MAX_NAME or not name.isascii() or not name.isprintable():
            raise ConfigError(f"[identity] names: {name[:80]!r} is no host name or address")
