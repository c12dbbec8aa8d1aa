"""Facts about the board, read from /proc and /sys. What cannot be read is None; nothing is changed."""

import os
import platform
import shutil
from pathlib import Path

from shoal_contract.messages import Hardware

_MODEL_FILES = ("proc/device-tree/model", "sys/class/dmi/id/product_name")
_INTERESTING_FLAGS = frozenset(
    [
        "asimd",
        "asimddp",
        "asimdhp",
        "i8mm",
        "bf16",
        "sve",
        "sve2",
        "fphp",
        "avx2",
        "avx512f",
        "avx512_vnni",
        "avx_vnni",
        "amx_int8",
    ]
)
_MILLI = 1000


def read(state_dir: Path, *, filesystem: Path = Path("/")) -> Hardware:
    """The facts now. `filesystem` is where /proc, /sys and /etc are looked for."""
    return Hardware(
        model=_model(filesystem),
        os=_os_name(filesystem),
        machine=platform.machine(),
        cpus=len(os.sched_getaffinity(0)),
        memory_bytes=_memory_bytes(filesystem),
        disk_free_bytes=_disk_free_bytes(state_dir),
        temperature_c=_temperature_c(filesystem),
        throttled=_throttled(filesystem),
        cpu_flags=_cpu_flags(filesystem),
    )


def _text(path: Path) -> str | None:
    try:
        return path.read_bytes()[:65536].decode("utf-8", "replace").strip("\x00\n ")
    except OSError:
        return None


def _model(filesystem: Path) -> str:
    for name in _MODEL_FILES:
        if text := _text(filesystem / name):
            return text[:100]
    return "unknown"


def _os_name(filesystem: Path) -> str:
    for line in (_text(filesystem / "etc/os-release") or "").splitlines():
        key, _, value = line.partition("=")
        if key == "PRETTY_NAME":
            return value.strip('"')[:100]
    return platform.system()


def _memory_bytes(filesystem: Path) -> int | None:
    for line in (_text(filesystem / "proc/meminfo") or "").splitlines():
        words = line.split()
        if words[:1] == ["MemTotal:"] and words[1].isdecimal():
            return int(words[1]) * 1024
    return None


def _disk_free_bytes(state_dir: Path) -> int | None:
    try:
        return shutil.disk_usage(state_dir).free
    except OSError:
        return None


def _temperature_c(filesystem: Path) -> float | None:
    readings = []
    for zone in sorted((filesystem / "sys/class/thermal").glob("thermal_zone*/temp")):
        text = _text(zone)
        if text and text.lstrip("-").isdecimal():
            readings.append(int(text) / _MILLI)
    return max(readings, default=None)


def _throttled(filesystem: Path) -> bool | None:
    """Raspberry Pi firmware's word first (bits 0 to 3: now), then any cooling device at work."""
    text = _text(filesystem / "sys/devices/platform/soc/soc:firmware/get_throttled")
    if text is not None:
        try:
            return bool(int(text, 16) & 0xF)
        except ValueError:
            return None
    states = [
        _text(path)
        for path in (filesystem / "sys/class/thermal").glob("cooling_device*/cur_state")
        if (_text(path.with_name("type")) or "").startswith(("cpufreq", "Processor"))
    ]
    known = [int(state) for state in states if state and state.isdecimal()]
    return any(known) if known else None


def _cpu_flags(filesystem: Path) -> list[str]:
    for line in (_text(filesystem / "proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in {"flags", "Features"}:
            return sorted(_INTERESTING_FLAGS.intersection(value.split()))
    return []
