"""Remembers how fast a release is on this kind of board and what it took there, so that a restart does not measure again.

One small JSON file; a file that cannot be read is as good as none, and is written anew.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import structlog

from shoal_agent.inference.pace import Point
from shoal_agent.inference.served import Admission
from shoal_agent.inference.settings import WorkerSettings
from shoal_contract.messages import Hardware

log = structlog.get_logger()

MAX_RELEASES: Final = 64
_MAX_FILE_BYTES: Final = 1 << 20


class _Calibration(msgspec.Struct, omit_defaults=True):
    """Of one release; `hardware` is what it was measured on. `admission`: how its trial went there."""

    hardware: str
    points: list[tuple[int, int]]
    admission: Admission | None = None


class Calibrations:
    """Points by release.

    Args:
        path: the file; its directory exists. None: nothing outlives the process.
        hardware: names the hardware and what else the times depend on; points of another are not used.
    """

    def __init__(self, path: Path | None, *, hardware: str) -> None:
        self._path = path
        self._hardware = hardware
        self._known = _read(path) if path is not None else {}

    def get(self, release: bytes) -> tuple[Point, ...]:
        """What was measured on this hardware; empty: nothing."""
        return tuple(self._of(release).points)

    def put(self, release: bytes, points: Sequence[Point]) -> None:
        """Remember; a disk that does not take it costs the memory of it, and nothing else."""
        self._put(release, _Calibration(self._hardware, list(points), self._of(release).admission))

    def admission(self, release: bytes) -> Admission:
        """How the trial on this hardware went; zeros: there was none."""
        return self._of(release).admission or Admission()

    def put_admission(self, release: bytes, admission: Admission) -> None:
        """Remember; see `put`."""
        self._put(release, _Calibration(self._hardware, self._of(release).points, admission))

    def _of(self, release: bytes) -> _Calibration:
        found = self._known.get(release.hex())
        if found is None or found.hardware != self._hardware:
            return _Calibration(self._hardware, [])
        return found

    def _put(self, release: bytes, calibration: _Calibration) -> None:
        key = release.hex()
        self._known.pop(key, None)
        self._known[key] = calibration
        while len(self._known) > MAX_RELEASES:
            del self._known[next(iter(self._known))]
        if self._path is None:
            return
        plain = {name: msgspec.to_builtins(known) for name, known in self._known.items()}
        new = self._path.with_suffix(".new")
        try:
            # Not synced: what a power cut takes is measured again.
            new.write_text(json.dumps(plain), encoding="ascii")
            new.replace(self._path)
        except OSError as exc:
            log.warning("calibration is not remembered", reason=exc.strerror)


def hardware_key(hardware: Hardware, settings: WorkerSettings) -> str:
    """What a board has in common with others that are as fast."""
    flags = " ".join(hardware.cpu_flags)
    return (
        f"{hardware.model}; {hardware.machine}; {hardware.cpus} cores; {flags}; threads {settings.threads};"
        f" {' '.join(settings.providers)}"
    )


def _read(path: Path) -> dict[str, _Calibration]:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            return {}
        return msgspec.json.decode(path.read_bytes(), type=dict[str, _Calibration])
    except (OSError, msgspec.MsgspecError):
        return {}
