"""Answers neighbours' requests over TCP. What the answer is, is the given functions' matter.

Everybody on the network may connect; with credentials only a node of the fleet gets any further, and
without them everybody is believed. Connections, handshakes, frames, requests under way and idle time are
bounded, what breaks the protocol is closed, and whatever happens on a connection ends that one alone.
"""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Self, cast

import structlog

from shoal_agent.background import Background
from shoal_agent.peers import wire
from shoal_agent.peers.complaints import Complaints
from shoal_agent.peers.credentials import Credentials, check_named, explain
from shoal_agent.peers.errors import PeerError, WireError
from shoal_broker.bus_errors import TlsFilesError
from shoal_contract import messages
from shoal_contract.errors import ContractError
from shoal_contract.messages import ChunkReply, ChunkRequest, InferReply, InferRequest

log = structlog.get_logger()

Answer = Callable[[InferRequest], Awaitable[InferReply]]
Share = Callable[[ChunkRequest], Awaitable[ChunkReply]]

MAX_CONNECTIONS: Final = 32
MAX_UNDER_WAY: Final = 16
MAX_CHUNKS_SENT: Final = 4
"""At a time, to all: so much memory slow neighbours may hold."""
GREETING_TIMEOUT_S: Final = 5.0
IDLE_TIMEOUT_S: Final = 120.0
WRITE_TIMEOUT_S: Final = 10.0


@dataclass(slots=True)
class ServerStats:
    """Counters since the start."""

    connections: int = 0
    requests: int = 0
    refused: int = 0
    malformed: int = 0
    untrusted: int = 0


class PeerServer:
    """Listens until its block is left.

    Attributes:
        port: where.
        stats: counters since the start.
    """

    def __init__(
        self,
        answer: Answer,
        me: wire.Greeting,
        tasks: Background,
        credentials: Credentials | None,
        share: Share | None = None,
    ) -> None:
        self.port = 0
        self.stats = ServerStats()
        self._answer = answer
        self._me = me
        self._tasks = tasks
        self._credentials = credentials
        self._share = share
        self._sending = 0
        self._open: set[asyncio.StreamWriter] = set()
        self._complaints = Complaints(time.monotonic)

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        host: str,
        port: int,
        answer: Answer,
        *,
        root: str,
        node: str,
        credentials: Credentials | None = None,
        share: Share | None = None,
    ) -> AsyncIterator[Self]:
        """Listen.

        Args:
            host: the address to listen on.
            port: 0 for any; see `port`.
            answer: turns a request into its reply; does not raise.
            root: the fleet's topic root; others are sent away.
            node: who we are.
            credentials: for mutual TLS; None: in the clear, and everybody is believed.
            share: answers a request for a chunk; does not raise; None: nothing is shared.

        Raises:
            OSError: the address cannot be used.
        """
        async with Background.open() as tasks:
            server = cls(answer, wire.Greeting(root, node), tasks, credentials, share)
            listening = await asyncio.start_server(server._connected, host, port, limit=1 << 17)
            try:
                server.port = listening.sockets[0].getsockname()[1]
                yield server
            finally:
                listening.close()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= MAX_CONNECTIONS:
            self.stats.refused += 1
            writer.transport.abort()
            return
        self.stats.connections += 1
        self._open.add(writer)
        if self._credentials is not None:
            # What comes now is TLS, and not for the reader.
            cast("asyncio.Transport", writer.transport).pause_reading()
        self._tasks.start(self._serve(reader, writer), name="peers.connection")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address = writer.get_extra_info("peername")
        try:
            async with asyncio.timeout(GREETING_TIMEOUT_S):
                peer = await self._greeted(reader, writer)
            writer.write(wire.greeting_frame(self._me))
            async with Background.open() as replies:
                await self._read_requests(peer.node, reader, writer, replies)
        except (WireError, ContractError) as exc:
            self.stats.malformed += 1
            self._complaints.warn("neighbour broke the protocol", address=address, reason=str(exc))
        except ssl.SSLError as exc:
            self.stats.untrusted += 1
            self._complaints.warn("neighbour not trusted", address=address, reason=explain(exc))
        except PeerError as exc:
            self.stats.untrusted += 1
            self._complaints.warn("neighbour not trusted", address=address, reason=str(exc))
        except TlsFilesError as exc:
            self._complaints.warn("tls files unusable", reason=str(exc))
        except (OSError, EOFError):
            pass  # it hung up, or was idle for too long (TimeoutError)
        except Exception:
            # One neighbour's connection must not end the service, and with it the agent.
            log.exception("a neighbour's connection failed", address=address)
        finally:
            self._open.discard(writer)
            writer.transport.abort()

    async def _greeted(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> wire.Greeting:
        """The neighbour, and, with credentials, its proof."""
        if self._credentials is None:
            return await wire.read_greeting(reader, root=self._me.root)
        contexts = await self._credentials.contexts()
        await writer.start_tls(contexts.accepting, ssl_handshake_timeout=GREETING_TIMEOUT_S)
        peer = await wire.read_greeting(reader, root=self._me.root)
        check_named(peer.node, writer.get_extra_info("peercert"))
        return peer

    async def _read_requests(
        self,
        node: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        replies: Background,
    ) -> None:
        room = asyncio.Semaphore(MAX_UNDER_WAY)
        while True:
            async with asyncio.timeout(IDLE_TIMEOUT_S):
                await room.acquire()  # no room: the client is not read from until there is
                body = await wire.read_frame(reader)
            request = messages.decode(body)
            if not isinstance(request, InferRequest | ChunkRequest):
                raise WireError(f"a {type(request).__name__} where a request belongs")
            self.stats.requests += 1
            replies.start(self._reply(node, request, writer, room), name="peers.reply")

    async def _reply(
        self,
        node: str,
        request: InferRequest | ChunkRequest,
        writer: asyncio.StreamWriter,
        room: asyncio.Semaphore,
    ) -> None:
        if isinstance(request, ChunkRequest):
            await self._send_chunk(node, request, writer, room)
            return
        try:
            body = messages.encode(await self._answer(request))
        except Exception:
            # One neighbour's request must not end the service for all: say so and go on.
            log.exception("a neighbour's request failed", peer=node, model=request.model)
            reason = "internal error"
            body = messages.encode(InferReply(request.id, self._me.node, b"", [], reason))
        finally:
            room.release()
        await _written(writer, body)

    async def _send_chunk(
        self,
        node: str,
        request: ChunkRequest,
        writer: asyncio.StreamWriter,
        room: asyncio.Semaphore,
    ) -> None:
        reply = ChunkReply(request.id, b"", "busy")
        is_sent = self._share is not None and self._sending < MAX_CHUNKS_SENT
        self._sending += is_sent
        try:
            if self._share is None:
                reply = ChunkReply(request.id, b"", "nothing is shared here")
            elif is_sent:
                reply = await self._share(request)
            await _written(writer, messages.encode(reply))
        except Exception:
            log.exception("a neighbour's request failed", peer=node, blob=request.blob.hex()[:12])
            reply = ChunkReply(request.id, b"", "internal error")
            await _written(writer, messages.encode(reply))
        finally:
            self._sending -= is_sent
            room.release()


async def _written(writer: asyncio.StreamWriter, body: bytes) -> None:
    writer.write(wire.frame(body))
    try:
        async with asyncio.timeout(WRITE_TIMEOUT_S):
            await writer.drain()
    except OSError:
        # It takes nothing (TimeoutError), or is gone.
        writer.transport.abort()
