"""Errors of the bridge."""


class BridgeError(Exception):
    """Root of every error this package raises on purpose."""


class ConfigError(BridgeError):
    """The configuration cannot be used: a person's fault. Names the file and the key."""


class SocketError(BridgeError):
    """A Unix socket cannot be made: the environment's fault."""
