"""What can go wrong in the embedded broker, grouped by whose fault it is. No behaviour.

What can go wrong on the client's side of the bus is in `bus_errors`.
"""


class BrokerError(Exception):
    """Root of everything that the embedded broker and its codec raise on purpose."""


# --- the peer


class ProtocolError(BrokerError):
    """The other end broke MQTT 5; `reason_code` (0x80 and up) is what to tell it.

    `protocol_level` is set when it asked for another version of MQTT than 5.
    """

    def __init__(
        self, reason_code: int, message: str, *, protocol_level: int | None = None
    ) -> None:
        super().__init__(message)
        self.reason_code = reason_code
        self.protocol_level = protocol_level


# --- us


class EncodeError(BrokerError):
    """A packet that MQTT 5 cannot carry was to be written."""


# --- the environment


class ListenError(BrokerError):
    """The broker cannot listen on `host`:`port`."""

    def __init__(self, message: str, *, host: str, port: int) -> None:
        super().__init__(message)
        self.host = host
        self.port = port


class DurabilityError(BrokerError):
    """What a durable broker keeps at `path` cannot be read or written."""

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(message)
        self.path = path


class BridgeError(BrokerError):
    """The bridge called `name` cannot be built on this machine."""

    def __init__(self, message: str, *, name: str) -> None:
        super().__init__(message)
        self.name = name


class PasswordFileError(BrokerError):
    """The password file cannot be read or written, or `line` of it is no `user:hash`."""

    def __init__(self, message: str, *, path: str, line: int | None = None) -> None:
        super().__init__(message)
        self.path = path
        self.line = line


class CertificateFileError(BrokerError):
    """A file for TLS cannot be read, or does not hold what it should; the message names it."""


class ConfigError(BrokerError):
    """A setting of the broker is out of its range, or an open door was not asked for."""
