"""The head of an HTTP answer, as bytes. Pure but for the clock in `Date`."""

import math
import time
from functools import lru_cache
from http import HTTPStatus
from typing import Final

from shoal_agent.local_api.errors import ApiError
from shoal_agent.local_api.oip import Encoded

Headers = tuple[tuple[str, str], ...]

_REASONS: Final = {int(status): status.phrase for status in HTTPStatus}
_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = [
    "Jan",
    "Feb",
    "Mar",
    "Apr",
    "May",
    "Jun",
    "Jul",
    "Aug",
    "Sep",
    "Oct",
    "Nov",
    "Dec",
]


def head(status: int, answer: Encoded, more: Headers) -> bytes:
    """The status line and the headers; `more` are of our own making."""
    if answer.tensors:
        kind = "application/octet-stream"
        more = (*more, ("Inference-Header-Content-Length", str(len(answer.header))))
    else:
        kind = "application/json"
    lines = "".join([f"{name}: {value}\r\n" for name, value in more])
    return (
        f"HTTP/1.1 {status} {_REASONS.get(status, '')}\r\n"
        f"Date: {_date(int(time.time()))}\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {answer.size_bytes}\r\n{lines}\r\n"
    ).encode("ascii")


def headers_of(why: ApiError) -> Headers:
    """What a refusal says beside its status."""
    if why.retry_after_s is None:
        return why.headers
    return (*why.headers, ("Retry-After", str(max(1, math.ceil(why.retry_after_s)))))


@lru_cache(maxsize=2)
def _date(now_s: int) -> str:
    """A moment as HTTP writes it (RFC 9110, 5.6.7), whatever the locale."""
    now = time.gmtime(now_s)
    return (
        f"{_DAYS[now.tm_wday]}, {now.tm_mday:02} {_MONTHS[now.tm_mon - 1]} {now.tm_year}"
        f" {now.tm_hour:02}:{now.tm_min:02}:{now.tm_sec:02} GMT"
    )
