"""Stops a run of ONNX Runtime that takes too long, from a thread of its own.

The thread sleeps until the run that it saw last would be late, so that short runs cost it nothing, and for ever
when nothing runs.
"""

import threading
import time
from typing import Protocol


class Stoppable(Protocol):
    """ort.RunOptions, as far as it is used here."""

    terminate: bool


class Watchdog:
    """Guards one run at a time.

    Attributes:
        barked: whether the run that ended last had been told to stop.
    """

    def __init__(self) -> None:
        self.barked = False
        self._run: tuple[Stoppable, float] | None = None
        self._is_idle = False
        self._lock = threading.Lock()
        self._wake = threading.Event()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def begin(self, run: Stoppable, timeout_s: float) -> None:
        """From now on it has so long."""
        self.barked = False
        self._run = (run, time.monotonic() + timeout_s)
        if self._is_idle:
            self._wake.set()

    def end(self) -> None:
        """It ended."""
        with self._lock:
            self._run = None

    def _watch(self) -> None:
        while True:
            self._is_idle = True
            if self._run is None:
                self._wake.wait()
            self._wake.clear()
            self._is_idle = False
            while (current := self._run) is not None:
                run, until = current
                left_s = until - time.monotonic()
                if left_s > 0:
                    time.sleep(left_s)
                    continue
                with self._lock:
                    if self._run is current:
                        run.terminate = self.barked = True
                        self._run = None
