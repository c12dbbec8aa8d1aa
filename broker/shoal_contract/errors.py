"""Errors of the contract, grouped by whose fault they are."""


class ContractError(Exception):
    """Root of every error this package raises."""


class DecodeError(ContractError):
    """What arrived breaks the contract: the sender's fault."""


class UnknownKindError(DecodeError):
    """A well-formed message of a kind this version does not know: count it and go on.

    Attributes:
        kind: the number it carried.
    """

    def __init__(self, kind: int) -> None:
        super().__init__(f"message kind {kind} is not known to this version")
        self.kind = kind


class FrameError(DecodeError):
    """A device frame is damaged, too long or not a frame.

    Attributes:
        reason: one of "overlong", "cobs", "crc", "cbor", "version", "shape".
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class EnvelopeError(DecodeError):
    """A message is not signed by whom it should be.

    Attributes:
        reason: one of "unsigned", "shape", "unknown_key", "bad_signature".
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class EncodeError(ContractError):
    """What was to be sent breaks the contract: our own fault."""


class TopicError(ContractError):
    """A name cannot stand in a topic, or a topic is not one of ours."""


class KeyTextError(ContractError):
    """A text that a person gave us is not a key."""


class FileFormatError(ContractError):
    """A configuration or release file is not what it should be: a person's fault.

    The message names the file and the key.
    """


class PathError(ContractError):
    """What stands for a place in a message is no path: a person's fault."""


class MisfitError(ContractError):
    """A pipeline and the release that is to serve it do not fit each other; the message says where."""
