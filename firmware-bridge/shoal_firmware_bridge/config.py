"""The bridge's configuration file: TOML -> frozen values. Every key is described in docs/bridge.md."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from shoal_contract import toml, topics
from shoal_contract.errors import ContractError
from shoal_firmware_bridge.errors import ConfigError

MAX_SOCKET_PATH_BYTES = 107


class DeviceTable(toml.Table, frozen=True, kw_only=True):
    """[[device]]: one microcontroller and the line to it."""

    name: str
    link: Literal["serial", "tcp"]
    path: str | None = None
    baud: Annotated[int, msgspec.Meta(ge=300, le=4_000_000)] = 115_200
    host: str | None = None
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] | None = None


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
    names = [device.name for device in config.device]
    if not names:
        raise ConfigError(f"{path}: there is no [[device]]")
    if len(set(names)) != len(names):
        raise ConfigError(f"{path}: [[device]] names must be distinct")
    for device in config.device:
        try:
            topics.check_leaf(device.name)
        except ContractError as exc:
            raise ConfigError(f"{path}: [[device]] {exc}") from exc
        _check_line(path, device)
        if len(str(config.socket(device)).encode()) > MAX_SOCKET_PATH_BYTES:
            raise ConfigError(
                f"{path}: socket_dir makes a path of more than {MAX_SOCKET_PATH_BYTES} bytes,"
                " which is the most that a Unix socket may have"
            )
    return config


def _check_line(path: Path, device: DeviceTable) -> None:
    where = f"{path}: [[device]] {device.name!r}"
    if device.link == "serial" and (device.path is None or device.host is not None):
        raise ConfigError(f'{where} with link = "serial" needs path, and no host')
    if device.link == "tcp" and (None in (device.host, device.port) or device.path is not None):
        raise ConfigError(f'{where} with link = "tcp" needs host and port, and no path')
