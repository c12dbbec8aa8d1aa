"""Errors of the bridge, grouped by whose fault they are."""


class BridgeError(Exception):
    """Root of every error this package raises on purpose."""


class ConfigError(BridgeError):
    """The configuration cannot be used: a person's fault. Names the file and the key."""


class SocketError(BridgeError):
    """A Unix socket cannot be made or is another bridge's: the environment's fault."""


class LineError(BridgeError):
    """The line to a device cannot be opened or broke: try again later."""
