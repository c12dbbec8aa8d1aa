"""Asks neighbours over TCP: one kept-open connection each, several requests under way. Whom to ask is the router's matter."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Self
from weakref import WeakValueDictionary

import msgspec

from shoal_agent.background import Background
from shoal_agent.peers import wire
from shoal_agent.peers.credentials import (
    HANDSHAKE_TIMEOUT_S,
    Credentials,
    check_named,
    explain,
)
from shoal_agent.peers.errors import PeerBusyError, PeerError, PeerUnreachableError, WireError
from shoal_agent.peers.peer import Peer
from shoal_broker.bus_errors import TlsFilesError
from shoal_contract import messages
from shoal_contract.errors import ContractError
from shoal_contract.messages import ChunkReply, ChunkRequest, InferReply, InferRequest

Request = InferRequest | ChunkRequest
Reply = InferReply | ChunkReply

MAX_CONNECTIONS: Final = 32
MAX_UNDER_WAY: Final = 16
_BUFFER_BYTES: Final = 1 << 17
_KEEP_S: Final = 60.0
"""An idle connection is closed after this: well before the server would."""


@dataclass(slots=True, eq=False)
class _Link:
    """An open connection and what is under way on it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    replies: dict[bytes, asyncio.Future[Reply]] = field(default_factory=dict)
    calls: int = 0
    last_heard: float = 0.0

    @property
    def is_open(self) -> bool:
        return not self.writer.is_closing()

    def close(self, reason: str) -> None:
        """Whoever waits is told the reason."""
        self.writer.transport.abort()
        for reply in self.replies.values():
            if not reply.done():
                reply.set_exception(PeerUnreachableError(reason))


class PeerClient:
    """Keeps at most 32 connections; the one unused for longest makes room."""

    def __init__(
        self, me: wire.Greeting, tasks: Background, credentials: Credentials | None
    ) -> None:
        self._me = me
        self._tasks = tasks
        self._credentials = credentials
        self._links: dict[Peer, _Link] = {}
        self._locks: WeakValueDictionary[Peer, asyncio.Lock] = WeakValueDictionary()
        self._clock = asyncio.get_running_loop().time

    @classmethod
    @asynccontextmanager
    async def open(
        cls, *, root: str, node: str, credentials: Credentials | None = None
    ) -> AsyncIterator[Self]:
        """A client without connections; they are made when asked for and closed with the block.

        Args:
            root: the fleet's topic root.
            node: who we are.
            credentials: for mutual TLS; None: in the clear, and everybody is believed.
        """
        async with Background.open() as tasks:
            client = cls(wire.Greeting(root, node), tasks, credentials)
            try:
                yield client
            finally:
                for link in client._links.values():
                    link.close("this node is stopping")

    async def ask(self, peer: Peer, request: InferRequest, timeout_s: float) -> InferReply:
        """The neighbour's reply, which may be a refusal with a reason.

        Args:
            peer: whom; an empty `node` takes whoever answers there.
            request: its id need not be unique.
            timeout_s: for everything, connecting too.

        Raises:
            PeerUnreachableError: no reply within the time, or not in our protocol.
            PeerBusyError: too many requests are under way to it.
        """
        reply = await self._asked(peer, request, timeout_s)
        if not isinstance(reply, InferReply):
            raise PeerUnreachableError("it answers something else")
        return reply

    async def ask_for_chunk(
        self, peer: Peer, request: ChunkRequest, timeout_s: float
    ) -> ChunkReply:
        """The bytes, not checked, or the neighbour's reason. Arguments and errors as for `ask`."""
        reply = await self._asked(peer, request, timeout_s)
        if not isinstance(reply, ChunkReply):
            raise PeerUnreachableError("it answers something else")
        return reply

    async def _asked(self, peer: Peer, request: Request, timeout_s: float) -> Reply:
        # The same connection to a node, whatever models it announces at the moment.
        peer = Peer(peer.node, peer.host, peer.port)
        link: _Link | None = None
        started = self._clock()
        try:
            async with asyncio.timeout(timeout_s):
                kept = self._links.get(peer)
                link = await self._link(peer)
                try:
                    return await self._ask_on(link, request)
                except PeerUnreachableError:
                    if link is not kept:
                        raise
                # The server may close a kept connection at the moment we use it.
                link = await self._link(peer)
                return await self._ask_on(link, request)
        except TimeoutError as exc:
            if link is not None and link.last_heard < started:
                link.close("it went silent")
            raise PeerUnreachableError(f"no answer within {timeout_s:.3g} s") from exc
        except (OSError, EOFError, WireError, TlsFilesError) as exc:
            raise PeerUnreachableError(_why(exc)) from exc
        except ContractError as exc:
            raise PeerError(f"the request cannot be sent: {exc}") from exc

    async def _ask_on(self, link: _Link, request: Request) -> Reply:
        if len(link.replies) >= MAX_UNDER_WAY:
            raise PeerBusyError(f"{MAX_UNDER_WAY} requests are under way to it already")
        link.calls += 1
        call = link.calls.to_bytes(8, "big")
        body = messages.encode(msgspec.structs.replace(request, id=call))
        link.replies[call] = reply = asyncio.get_running_loop().create_future()
        try:
            link.writer.write(wire.frame(body))
            await link.writer.drain()
            answer: Reply = await reply
            return msgspec.structs.replace(answer, id=request.id)
        finally:
            del link.replies[call]
            if reply.done() and not reply.cancelled():
                reply.exception()  # looked at, also when `drain` failed first

    async def _link(self, peer: Peer) -> _Link:
        """The open connection to a peer, made if there is none."""
        async with self._locks.setdefault(peer, asyncio.Lock()):
            link = self._links.get(peer)
            if link is not None and link.is_open:
                return link
            self._make_room()
            reader, writer = await self._connect(peer)
            try:
                writer.write(wire.greeting_frame(self._me))
                greeting = await wire.read_greeting(reader, root=self._me.root)
                if self._credentials is not None:
                    check_named(greeting.node, writer.get_extra_info("peercert"))
            except BaseException:
                writer.transport.abort()
                raise
            if peer.node not in {"", greeting.node}:
                writer.transport.abort()
                raise PeerUnreachableError(f"another node answers there: {greeting.node}")
            link = self._links[peer] = _Link(reader, writer, last_heard=self._clock())
            self._tasks.start(self._read(peer, link), name="peers.replies")
            return link

    async def _connect(self, peer: Peer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._credentials is None:
            return await asyncio.open_connection(peer.host, peer.port, limit=_BUFFER_BYTES)
        contexts = await self._credentials.contexts()
        return await asyncio.open_connection(
            peer.host,
            peer.port,
            limit=_BUFFER_BYTES,
            ssl=contexts.asking if peer.node else contexts.asking_anybody,
            server_hostname=peer.node or peer.host,
            ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
        )

    def _make_room(self) -> None:
        if len(self._links) < MAX_CONNECTIONS:
            return
        idle = [peer for peer, link in self._links.items() if not link.replies]
        if not idle:
            raise PeerBusyError(f"{MAX_CONNECTIONS} connections are in use already")
        oldest = min(idle, key=lambda peer: self._links[peer].last_heard)
        self._links.pop(oldest).close("another connection was needed")

    async def _read(self, peer: Peer, link: _Link) -> None:
        reason = "it hung up"
        try:
            while True:
                async with asyncio.timeout(_KEEP_S):
                    body = await wire.read_frame(link.reader)
                reply = messages.decode(body)
                if not isinstance(reply, InferReply | ChunkReply):
                    raise WireError(f"a {type(reply).__name__} where a reply belongs")
                link.last_heard = self._clock()
                waiting = link.replies.get(reply.id)
                if waiting is not None and not waiting.done():
                    waiting.set_result(reply)
        except (PeerError, ContractError) as exc:
            reason = f"it broke the protocol: {exc}"
        except (OSError, EOFError):
            pass
        finally:
            link.close(reason)
            if self._links.get(peer) is link:
                del self._links[peer]


def _why(exc: OSError | EOFError | WireError | TlsFilesError) -> str:
    match exc:
        case ssl.SSLError():
            return explain(exc)
        case TlsFilesError():
            return f"we cannot say who we are: {exc}"
        case OSError():
            return exc.strerror or type(exc).__name__
        case EOFError():
            return "it hung up"
        case _:
            return str(exc)
