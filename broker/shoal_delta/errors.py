"""Errors of the delta, grouped by whose fault they are. All of them are a `DeltaError`."""


class DeltaError(Exception):
    """Root of every error this package raises."""


class CorruptDeltaError(DeltaError):
    """The delta is damaged, truncated or not a delta: whoever sent it must send it again."""


class UnknownVersionError(CorruptDeltaError):
    """The delta is of a format version this code does not read.

    Attributes:
        version: the version it carries.
    """

    def __init__(self, version: int) -> None:
        super().__init__(
            f"delta format version {version} is not known here: "
            "make the delta anew, or update shoal-delta"
        )
        self.version = version


class LimitError(DeltaError):
    """The delta asks for more than this machine was told to give (size, segments, expansion)."""


class WrongBaseError(DeltaError):
    """The old file is not the one the delta was made from."""


class StorageError(DeltaError):
    """A file could not be read or written: disk full, no permission, another apply at work."""


class EncodeError(DeltaError):
    """A delta that was just made does not give the new file back: our own fault."""
