"""Asks a server over HTTP/1.1 from several connections at once, each again as soon as it is answered. For infer_http.py.

The requests are made beforehand and the answers read afterwards: nothing of it is in the times.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from measure import BenchError

TIMEOUT_S = 20.0
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Answered:
    """What came of it: per request, in the order asked, the body and how long it took."""

    bodies: list[bytes]
    latencies_s: list[float]
    took_s: float


def request(path: str, body: bytes) -> bytes:
    """A request as it goes on the line."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: bench\r\nAccept: */*\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def tensor_body(levels: Sequence[float]) -> bytes:
    """Open Inference Protocol's JSON for one scan."""
    part = {"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": list(levels)}
    return json.dumps({"inputs": [part]}).encode()


def ask(port: int, requests: Sequence[bytes], *, connections: int) -> Answered:
    """Ask them all. Raises BenchError when one is not answered with 200."""
    bodies: list[bytes] = [b""] * len(requests)
    latencies_s = [0.0] * len(requests)
    failures: list[str] = []

    def serve(first: int) -> None:
        try:
            with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as line:
                line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for index in range(first, len(requests), connections):
                    asked_s = time.perf_counter()
                    line.sendall(requests[index])
                    bodies[index] = _answer(line)
                    latencies_s[index] = time.perf_counter() - asked_s
        except (OSError, ValueError) as exc:
            failures.append(f"{exc or type(exc).__name__} (request {index}, connection {first})")

    threads = [threading.Thread(target=serve, args=(first,)) for first in range(connections)]
    started_s = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took_s = time.perf_counter() - started_s
    if failures:
        raise BenchError(f"a request was not answered: {failures[0]}")
    return Answered(bodies, latencies_s, took_s)


def _answer(line: socket.socket) -> bytes:
    received = b""
    while (end := received.find(b"\r\n\r\n")) < 0:
        received += _more(line)
    found = _LENGTH.search(received, 0, end)
    if not received.startswith(b"HTTP/1.1 200 ") or found is None:
        raise ValueError(received[:200].decode("latin-1"))
    body = received[end + 4 :]
    while len(body) < int(found[1]):
        body += _more(line)
    return body


def _more(line: socket.socket) -> bytes:
    data = line.recv(1 << 16)
    if not data:
        raise ConnectionResetError("the server closed the connection")
    return data
