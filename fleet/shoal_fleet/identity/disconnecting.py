"""Ends the connection of a node that was revoked, on any broker: by taking its session over.

MQTT 5 (3.1.4) has a broker close the connection whose client id connects anew. We connect as the node,
with a certificate that was issued for that a moment ago, and stay for a while: if the node comes back
it takes the session from us in turn, and we know that the broker does not go by the new list of
revoked certificates yet. Brokers that read it only when told are told by a command before.
What is in the list, and who issues the certificate, is not decided here.
"""

import asyncio
import contextlib
import os
import signal
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import structlog

from shoal_broker.bus_errors import IdentityRefusedError, LinkError, TlsFilesError
from shoal_broker.link import Link, SessionConfig
from shoal_broker.transports import connect_with
from shoal_fleet.errors import FleetError

log = structlog.get_logger(__name__)

RELOAD_TIMEOUT_S: Final = 20.0
WITHIN_S: Final = 60.0
HOLD_S: Final = 3.0
"""A session of Shoal whose connection was good comes back within less, if it can."""
RETRY_S: Final = 0.25
_MAX_COMPLAINT: Final = 300


class DisconnectError(FleetError):
    """The node may still be connected; the message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Certified:
    """A certificate whose CN is the node, good for a minute, and its key: PEM."""

    certificate: bytes
    key: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeOver:
    """Disconnects nodes from one broker. Calling it returns when nothing more can be done; the log says what was.

    Args:
        broker: the controller's own way to it.
        certify: issues for a node; None on a broker without client certificates.
        reload_command: makes the broker read its list again, as a list of arguments; no shell.
    """

    broker: SessionConfig
    certify: Callable[[str], Awaitable[Certified]] | None
    reload_command: Sequence[str] = ()

    async def __call__(self, node: str) -> None:
        """Cut this node off."""
        try:
            certified = None if self.certify is None else await self.certify(node)
            times = await disconnect(
                node, self.broker, certified, reload_command=self.reload_command
            )
        except FleetError as exc:
            log.error("node may still be connected", node=node, reason=str(exc))  # noqa: TRY400 - the message says it all
        else:
            log.info("node disconnected", node=node, taken_over=times)


async def disconnect(
    node: str,
    broker: SessionConfig,
    certified: Certified | None,
    *,
    reload_command: Sequence[str] = (),
    within_s: float = WITHIN_S,
    hold_s: float | None = None,
) -> int:
    """End the node's connection, once the list in which it stands is written.

    Args:
        node: its id, which is its client id and the CN of its certificates.
        broker: where, and by whom we know it: our own TLS files or password.
        certified: what we show there instead of our own certificate.
        reload_command: run first; bounded by RELOAD_TIMEOUT_S.
        within_s: how long to try.
        hold_s: the node has to stay away for so long.

    Returns:
        how often the session was taken over; more than once: the node had come back.

    Raises:
        DisconnectError: the command failed, the broker does not take us, or the node comes back.
    """
    complaint = await _reload(reload_command) if reload_command else None
    times = 0
    with tempfile.TemporaryDirectory(prefix="shoal-take-over-") as folder:
        config = _as_node(node, broker, certified, Path(folder))
        try:
            async with asyncio.timeout(within_s):
                while True:
                    times += 1
                    if await _stays_away(config, HOLD_S if hold_s is None else hold_s):
                        break
        except TimeoutError as exc:
            raise DisconnectError(
                complaint
                or f"the broker lets {node} in again: does it read the list of revoked certificates,"
                " and is there a command that makes it?"
            ) from exc
    if complaint is not None:
        raise DisconnectError(complaint)
    return times


async def _stays_away(config: SessionConfig, hold_s: float) -> bool:
    """Take the session over, and see whether it is taken back."""
    try:
        async with connect_with(config.transport)(config, None) as link:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(hold_s):
                    await _until_lost(link)
                    return False
            with contextlib.suppress(LinkError):
                await link.disconnect()
    except (IdentityRefusedError, TlsFilesError) as exc:
        raise DisconnectError(f"the broker does not let us be {config.client_id}: {exc}") from exc
    except LinkError as exc:
        # It may be starting anew.
        log.debug("broker not reached", error=str(exc))
        await asyncio.sleep(RETRY_S)
        return False
    return True


async def _until_lost(link: Link) -> None:
    with contextlib.suppress(LinkError):
        while True:
            # Nothing is subscribed to; whatever comes all the same is not ours.
            await link.receive()


def _as_node(
    node: str, broker: SessionConfig, certified: Certified | None, folder: Path
) -> SessionConfig:
    """Blocks for two small files."""
    tls = broker.tls
    if tls is not None and certified is not None:
        for name, content in (("cert.pem", certified.certificate), ("key.pem", certified.key)):
            file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(file, "wb") as written:
                written.write(content)
        tls = replace(tls, cert_file=f"{folder}/cert.pem", key_file=f"{folder}/key.pem", named=None)
    # Nothing of the node's session is to be left, nor of ours.
    return replace(broker, client_id=node, tls=tls, clean_start=True, session_expiry_s=0)


async def _reload(command: Sequence[str]) -> str | None:
    """Run it; what went wrong, in words. The connection is worth ending all the same."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    except (OSError, ValueError) as exc:
        return f"reload_command {command[0]} cannot be started: {exc}"
    try:
        async with asyncio.timeout(RELOAD_TIMEOUT_S):
            _, stderr = await process.communicate()
    except TimeoutError:
        return f"reload_command {command[0]} took longer than {RELOAD_TIMEOUT_S:g} s"
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if process.returncode:
        said = stderr.decode("utf-8", "replace").strip()[-_MAX_COMPLAINT:]
        return f"reload_command {command[0]} ended with {process.returncode}: {said}"
    return None
