"""Which transport a session runs on: imported when it is wanted, for each brings a library of its own."""

from __future__ import annotations

from typing import assert_never

from shoal_broker.bus_errors import TransportMissingError
from shoal_broker.link import Connect, Transport


def connect_with(transport: Transport) -> Connect:
    """The transport's `Connect`. Raises TransportMissingError when its library is not installed."""
    match transport:
        case "aiomqtt":
            try:
                from shoal_broker import aiomqtt_transport  # noqa: PLC0415 - only who wants it pays
            except ModuleNotFoundError as exc:
                raise _missing(transport, exc, extra="agent") from exc
            return aiomqtt_transport.connect
        case "codec":
            try:
                from shoal_broker import codec_transport  # noqa: PLC0415 - mqtt5 is not in every role
            except ModuleNotFoundError as exc:
                raise _missing(transport, exc, extra="broker") from exc
            return codec_transport.connect
    assert_never(transport)


def _missing(transport: str, exc: ModuleNotFoundError, *, extra: str) -> TransportMissingError:
    return TransportMissingError(
        f"[broker] transport {transport!r} needs the package {exc.name}: pip install 'shoal[{extra}]'",
        transport=transport,
    )
