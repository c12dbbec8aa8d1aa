"""Logging set-up, the same for every long-running program of Shoal.

JSON lines on boards, readable lines at a terminal; always on stderr. Also keeps the newest lines in
memory, so that an operator can ask a board for them (logs.tail) without a shell on it.
"""

import logging
import sys
from collections import deque
from collections.abc import MutableMapping
from typing import Any, Literal

import structlog

LogFormat = Literal["auto", "json", "console"]
KEPT_LINES = 1000


class RecentLines:
    """The newest log lines of this process as JSON text, oldest first."""

    def __init__(self, size: int = KEPT_LINES) -> None:
        self._lines: deque[str] = deque(maxlen=size)
        self._render = structlog.processors.JSONRenderer(default=str)

    def __call__(
        self, logger: Any, name: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        """As a structlog processor: remember the event and pass it on."""
        self._lines.append(str(self._render(logger, name, dict(event))))
        return event

    def tail(self, count: int) -> list[str]:
        """The newest `count` lines, oldest first."""
        return list(self._lines)[-count:] if count > 0 else []


def configure(*, log_format: LogFormat = "auto", verbose: bool = False) -> RecentLines:
    """Set structlog up for this process, once, from a cli.py; returns the memory of lines."""
    recent = RecentLines()
    as_json = log_format == "json" or (log_format == "auto" and not sys.stderr.isatty())
    renderer: Any = (
        structlog.processors.JSONRenderer(default=str)
        if as_json
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            recent,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.DEBUG if verbose else logging.INFO
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        # Not cached: a few microseconds a line, and who sets it up again is heard.
        cache_logger_on_first_use=False,
    )
    return recent
