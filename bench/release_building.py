"""`shoal release build` as the benchmarks call it: for the processor that they run on."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path

from measure import BenchError
from shoal_fleet.errors import ReleaseBuildError
from shoal_fleet.release_build.builder import Request, build_release
from shoal_fleet.release_build.presets import Preset, preset_for


def build(request: Request, folder: Path, say: Callable[[str], None]) -> str:
    """Build it into `request.out`; the way that the recipe took. Raises BenchError."""
    try:
        facts = build_release(
            request, state_dir=folder / "state", progress=lambda step, *_: say(step)
        )
    except ReleaseBuildError as exc:
        raise BenchError(f"{request.source} was not made small: {exc}") from exc
    return str(facts["way"])


def preset() -> Preset:
    """What suits this processor."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        text = ""
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return preset_for(platform.machine(), flags.split())
