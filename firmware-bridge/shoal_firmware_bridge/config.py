"""The bridge's configuration file: TOML -> frozen values. Every key is described in docs/bridge.md."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from shoal_broker.loopback import is_loopback
from shoal_contract import toml, topics
from shoal_contract.errors import ContractError
from shoal_firmware_bridge.errors import ConfigError

MAX_SOCKET_PATH_BYTES = 107
DEFAULT_BAUD = 115_200


class DeviceTable(toml.Table, frozen=True, kw_only=True):
    """[[device]]: one microcontroller and the line to it.

    A serial line needs `path` (and has `baud`), a TCP line `host` and `port`; a key of the other is an error. A TCP line
    that leaves this machine has to be allowed: nothing on it is authenticated.
    """

    name: str
    link: Literal["serial", "tcp"]
    path: str | None = None
    baud: Annotated[int, msgspec.Meta(ge=300, le=4_000_000)] | None = None
    host: str | None = None
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] | None = None
    allow_unauthenticated: bool = False


class BridgeConfig(toml.Table, frozen=True, kw_only=True):
    """The whole file."""

    socket_dir: str
    device: tuple[DeviceTable, ...]

    def socket(self, device: DeviceTable) -> Path:
        """Where the agent finds this device."""
        return Path(self.socket_dir) / f"{device.name}.sock"


def load(path: Path) -> BridgeConfig:
    """Read and check a configuration file.

    Raises:
        ConfigError: one line that names the file and the key.
    """
    try:
        config = toml.decode(path.read_bytes(), BridgeConfig, source=str(path))
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}") from exc
    except ContractError as exc:
        raise ConfigError(str(exc)) from exc
    _check_socket_dir(path, config)
    names = [device.name for device in config.device]
    if not names:
        raise ConfigError(f"{path}: there is no [[device]]")
    if len(set(names)) != len(names):
        raise ConfigError(f"{path}: [[device]] name must be distinct")
    for device in config.device:
        try:
            topics.check_leaf(device.name)
        except ContractError as exc:
            raise ConfigError(f"{path}: [[device]] name: {exc}") from exc
        _check_line(f"{path}: [[device]] {device.name!r}", device)
        if len(str(config.socket(device)).encode()) > MAX_SOCKET_PATH_BYTES:
            raise ConfigError(
                f"{path}: socket_dir makes a path of more than {MAX_SOCKET_PATH_BYTES} bytes,"
                " which is the most that a Unix socket may have"
            )
    return config


def _check_socket_dir(path: Path, config: BridgeConfig) -> None:
    if not config.socket_dir or "\0" in config.socket_dir:
        raise ConfigError(f"{path}: socket_dir is no directory name")


def _check_line(where: str, device: DeviceTable) -> None:
    if device.link == "serial":
        # An absolute path, because serialx takes anything with a scheme for a URL.
        if device.path is None or not device.path.startswith("/") or "\0" in device.path:
            raise ConfigError(f'{where}: link = "serial" needs path, an absolute one')
        if device.host is not None or device.port is not None or device.allow_unauthenticated:
            raise ConfigError(f'{where}: host, port and allow_unauthenticated are for link = "tcp"')
    else:
        if not device.host or device.port is None:
            raise ConfigError(f'{where}: link = "tcp" needs host and port')
        if device.path is not None or device.baud is not None:
            raise ConfigError(f'{where}: path and baud are for link = "serial"')
        if not is_loopback(device.host) and not device.allow_unauthenticated:
            raise ConfigError(
                f"{where}: host {device.host!r} is another machine, and whoever answers there is"
                " believed: allow_unauthenticated = true, on a network of their own, or a serial line"
            )
