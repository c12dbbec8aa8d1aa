from pathlib import Path

import pytest

from shoal_agent import hardware


@pytest.fixture
def pi(tmp_path):
    """A Raspberry Pi's /proc, /sys and /etc, as far as they are read."""
    files = {
        "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\x00",
        "etc/os-release": 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
        "proc/meminfo": "MemTotal:        1893212 kB\nMemFree: 1 kB\n",
        "sys/class/thermal/thermal_zone0/temp": "48312\n",
        "sys/devices/platform/soc/soc:firmware/get_throttled": "50000\n",
        "proc/cpuinfo": "processor : 0\nFeatures : fp asimd evtstrm crc32 cpuid\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_a_raspberry_pi_is_described(pi):
    facts = hardware.read(pi, filesystem=pi)
    assert facts.model == "Raspberry Pi 4 Model B Rev 1.4"
    assert facts.os == "Debian GNU/Linux 12 (bookworm)"
    assert facts.memory_bytes == 1893212 * 1024
    assert facts.temperature_c == 48.312
    assert facts.cpu_flags == ["asimd"]
    assert facts.disk_free_bytes is not None


@pytest.mark.parametrize(("bits", "throttled"), [("50000", False), ("50005", True), ("0", False)])
def test_throttling_is_what_the_firmware_says_now_not_what_was(pi, bits, throttled):
    (pi / "sys/devices/platform/soc/soc:firmware/get_throttled").write_text(bits)
    assert hardware.read(pi, filesystem=pi).throttled is throttled


def test_what_cannot_be_read_is_none(tmp_path):
    facts = hardware.read(tmp_path / "gone", filesystem=tmp_path)
    assert facts.model == "unknown"
    assert facts.temperature_c is None
    assert facts.throttled is None
    assert facts.disk_free_bytes is None


def test_this_very_machine_can_be_read(tmp_path):
    facts = hardware.read(tmp_path)
    assert facts.cpus >= 1
    assert facts.memory_bytes > 1 << 20
    assert Path("/proc/cpuinfo").exists()
