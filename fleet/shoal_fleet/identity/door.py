"""The enrolment door: an HTTPS listener with nothing behind it but enrolment. TLS 1.3; every wait has an end.

What it answers: the authority's certificate, which a board knows by its pin, and requests for certificates. A
connection is one request. Whom to certify is `enrolment`'s business.
"""

import asyncio
import contextlib
import math
import socket
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Final, Self

import structlog

from shoal_contract import enrolment as wire
from shoal_contract.enrolment import EnrolRefusal, EnrolRequest
from shoal_contract.errors import ContractError
from shoal_fleet.clock import now_ms
from shoal_fleet.errors import EnrolmentRefusedError, StateError
from shoal_fleet.identity import door_http
from shoal_fleet.identity.door_http import Answered, Asked
from shoal_fleet.identity.enrolment import Enrolment
from shoal_fleet.identity.rates import Rates

log = structlog.get_logger(__name__)

HANDSHAKE_S: Final = 5.0
REQUEST_S: Final = 10.0
MAX_CONNECTIONS: Final = 256
MAX_OF_ADDRESS: Final = 64
PER_ADDRESS_S: Final = 10.0
BURST: Final = 100.0
ALL_PER_S: Final = 200.0
ALL_BURST: Final = 1000.0
BACKLOG: Final = 128
BUSY_RETRY_S: Final = 30.0


class Door:
    """A listening door. Build it with `Door.open`.

    Attributes:
        port: where.
        answers: by HTTP status; 0: the other end hung up.
        turned_away: connections that were too many, or came too often.
        failed: connections without a request: no TLS 1.3, or too slow.
    """

    def __init__(
        self, listener: socket.socket, context: ssl.SSLContext, enrolment: Enrolment, ca_pem: bytes
    ) -> None:
        self.port: int = listener.getsockname()[1]
        self.answers: Counter[int] = Counter()
        self.turned_away = 0
        self.failed = 0
        self._listener = listener
        self._context = context
        self._enrolment = enrolment
        self._ca_pem = ca_pem
        self._open: Counter[str] = Counter()
        self._rates = Rates(per_s=PER_ADDRESS_S, burst=BURST)
        self._all = Rates(per_s=ALL_PER_S, burst=ALL_BURST)

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        listener: socket.socket,
        context: ssl.SSLContext,
        enrolment: Enrolment,
        *,
        ca_pem: bytes,
    ) -> AsyncIterator[Self]:
        """Answer on this socket until the block is left. `context` may get another certificate meanwhile."""
        listener.setblocking(False)
        # Accepted connections inherit it.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        door = cls(listener, context, enrolment, ca_pem)
        async with asyncio.TaskGroup() as tasks:
            accepting = tasks.create_task(door._accept(tasks), name="door.accept")
            try:
                yield door
            finally:
                accepting.cancel()

    async def _accept(self, tasks: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        open_tasks: set[asyncio.Task[None]] = set()
        try:
            while True:
                try:
                    accepted, where = await loop.sock_accept(self._listener)
                except OSError as exc:
                    log.error("door cannot accept", reason=exc.strerror)  # noqa: TRY400 - the message says it all
                    await asyncio.sleep(1.0)
                    continue
                address = str(where[0])
                if not self._has_room(address):
                    self.turned_away += 1
                    accepted.close()
                    continue
                self._open[address] += 1
                task = tasks.create_task(self._serve(accepted, address), name="door.request")
                open_tasks.add(task)
                task.add_done_callback(open_tasks.discard)
        finally:
            for task in open_tasks:
                task.cancel()

    def _has_room(self, address: str) -> bool:
        at_s = time.monotonic()
        return (
            self._open.total() < MAX_CONNECTIONS
            and self._open[address] < MAX_OF_ADDRESS
            and self._all.take("", at_s)
            and self._rates.take(address, at_s)
        )

    async def _serve(self, accepted: socket.socket, address: str) -> None:
        try:
            async with asyncio.timeout(HANDSHAKE_S + REQUEST_S):
                await self._converse(accepted, address)
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as exc:
            # What strangers do to a door is no news: counted, and told to who looks closely.
            self.failed += 1
            log.debug("door connection failed", address=address, reason=str(exc) or repr(exc))
        except Exception:
            self.failed += 1
            log.exception("door request failed", address=address)
        finally:
            self._open[address] -= 1
            if not self._open[address]:
                del self._open[address]

    async def _converse(self, accepted: socket.socket, address: str) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=1 << 14)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol,
            accepted,
            ssl=self._context,
            ssl_handshake_timeout=HANDSHAKE_S,
            ssl_shutdown_timeout=1.0,
        )
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        try:
            async with asyncio.timeout(REQUEST_S):
                status = await door_http.converse(
                    reader,
                    writer,
                    lambda asked: self._respond(asked, address),
                    max_body_bytes=wire.MAX_REQUEST_BYTES,
                    plain_error=_refusal,
                )
            self.answers[status] += 1
        finally:
            writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await writer.wait_closed()
            transport.abort()

    async def _respond(self, asked: Asked, address: str) -> Answered:
        match asked.method, asked.path:
            case "GET", wire.CA_PATH:
                return Answered(HTTPStatus.OK, self._ca_pem, "application/x-pem-file")
            case "POST", wire.ENROL_PATH:
                return await self._enrol(asked.body, address)
            case _, (wire.CA_PATH | wire.ENROL_PATH):
                return _refusal(HTTPStatus.METHOD_NOT_ALLOWED, "not with this method")
        return _refusal(HTTPStatus.NOT_FOUND, "there is nothing here but enrolment")

    async def _enrol(self, body: bytes, address: str) -> Answered:
        try:
            request = wire.decode(body, EnrolRequest, max_bytes=wire.MAX_REQUEST_BYTES)
            answer = await self._enrolment.ask(request, address=address)
        except ContractError as exc:
            return _refusal(HTTPStatus.BAD_REQUEST, str(exc), why="malformed")
        except EnrolmentRefusedError as exc:
            return _refusal(exc.status, str(exc), why=exc.why, retry_s=exc.retry_s)
        except StateError as exc:
            log.error("enrolment cannot be kept", reason=str(exc))  # noqa: TRY400 - the message says it all
            return _refusal(
                HTTPStatus.SERVICE_UNAVAILABLE, "not now", why="busy", retry_s=BUSY_RETRY_S
            )
        status = HTTPStatus.OK if answer.state == "issued" else HTTPStatus.ACCEPTED
        return Answered(status, wire.encode(answer))


def _refusal(status: int, text: str, *, why: str = "", retry_s: float = 0.0) -> Answered:
    body = wire.encode(EnrolRefusal(error=text, why=why, at_ms=now_ms(), retry_s=retry_s))
    headers = (("Retry-After", str(math.ceil(retry_s))),) if retry_s else ()
    return Answered(status, body, headers=headers)
