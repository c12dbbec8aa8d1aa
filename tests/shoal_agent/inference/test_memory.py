from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_agent.inference.memory import IDLE_S, Memory, Resident, read, to_evict

MIB = 1 << 20


def board(tmp_path: Path, **files: str) -> Path:
    names = {
        "meminfo": "proc/meminfo",
        "pressure": "proc/pressure/memory",
        "cgroup": "proc/self/cgroup",
        "limit": "sys/fs/cgroup/shoal.slice/memory.max",
        "used": "sys/fs/cgroup/shoal.slice/memory.current",
        "stat": "sys/fs/cgroup/shoal.slice/memory.stat",
        "high": "sys/fs/cgroup/shoal.slice/memory.high",
        "group_pressure": "sys/fs/cgroup/shoal.slice/memory.pressure",
        "inner_limit": "sys/fs/cgroup/shoal.slice/agent.service/memory.max",
        "inner_used": "sys/fs/cgroup/shoal.slice/agent.service/memory.current",
    }
    for name, text in files.items():
        path = tmp_path / names[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


FREE = "MemTotal:  512000 kB\nMemFree: 1 kB\nMemAvailable:  200000 kB\n"
GROUP = "0::/shoal.slice\n"
INNER = "0::/shoal.slice/agent.service\n"


@pytest.mark.parametrize(
    ("files", "free_bytes"),
    [
        ({"meminfo": FREE}, 200000 * 1024),
        ({"meminfo": FREE, "cgroup": GROUP, "limit": "max\n", "used": "7\n"}, 200000 * 1024),
        ({"meminfo": FREE, "cgroup": GROUP, "limit": "9000\n", "used": "7000\n"}, 2000),
        (
            {
                "meminfo": FREE,
                "cgroup": GROUP,
                "limit": "9000\n",
                "used": "7000\n",
                "stat": "active_file 5\ninactive_file 500\n",
            },
            2500,
        ),
        ({"cgroup": GROUP, "limit": "9000\n", "used": "9999\n"}, 0),
        ({"cgroup": GROUP, "limit": "9000\n", "high": "8000\n", "used": "7000\n"}, 1000),
        ({"cgroup": GROUP, "limit": "max\n", "high": "8000\n", "used": "7000\n"}, 1000),
        # The group is in another one, whose limit counts, too.
        (
            {
                "cgroup": INNER,
                "inner_limit": "9000\n",
                "inner_used": "100\n",
                "limit": "9000\n",
                "used": "8500\n",
            },
            500,
        ),
        ({"cgroup": INNER, "limit": "9000\n", "used": "8500\n"}, 500),
        ({"cgroup": "0::/../../etc\n", "limit": "9000\n", "used": "8500\n"}, 1 << 62),
        ({}, 1 << 62),
        ({"meminfo": "MemAvailable: many kB", "cgroup": "rubbish"}, 1 << 62),
    ],
)
def test_what_is_free_is_what_the_machine_and_the_group_both_leave(tmp_path, files, free_bytes):
    assert read(board(tmp_path, **files)).free_bytes == free_bytes


@pytest.mark.parametrize(
    ("text", "percent"),
    [
        (
            "some avg10=12.50 avg60=1.00 avg300=0.00 total=1\nfull avg10=3.00 avg60=0 total=0\n",
            12.5,
        ),
        ("full avg10=3.00 avg60=0.00\n", 0.0),
        ("some avg10=much\n", 0.0),
        ("", 0.0),
    ],
)
def test_the_pressure_is_the_share_of_time_that_somebody_waited(tmp_path, text, percent):
    assert read(board(tmp_path, pressure=text)).pressure_percent == percent


def test_who_waits_for_memory_in_the_own_group_counts_though_the_board_is_at_ease(tmp_path):
    some = "some avg10={} avg60=0 avg300=0 total=1\n".format
    files = {"cgroup": GROUP, "pressure": some(1.0), "group_pressure": some(20.0)}
    assert read(board(tmp_path, **files)).pressure_percent == 20.0


def test_this_machine_can_be_read():
    assert read().free_bytes > 0


def test_memory_is_tight_when_too_little_is_free_or_somebody_waits_for_it():
    assert Memory(9 * MIB, 0.0).is_tight(10 * MIB)
    assert Memory(99 * MIB, 10.0).is_tight(10 * MIB)
    assert not Memory(99 * MIB, 9.9).is_tight(10 * MIB)


def resident(name: bytes, idle_s: float = 60.0, size: int = MIB, load_s: float = 1.0, **more):
    return Resident(name, size, idle_s, load_s, **more)


@pytest.mark.parametrize(
    ("residents", "goes"),
    [
        ([], None),
        ([resident(b"a", idle_s=IDLE_S - 1)], None),
        ([resident(b"a", is_pinned=True)], None),
        ([resident(b"a", idle_s=60), resident(b"b", idle_s=600)], b"b"),
        ([resident(b"a", size=9 * MIB), resident(b"b")], b"a"),
        ([resident(b"a", load_s=9.0), resident(b"b")], b"b"),
    ],
)
def test_who_is_missed_least_goes(residents, goes):
    assert to_evict(residents) == goes


@given(
    st.lists(
        st.builds(
            Resident,
            st.binary(min_size=1, max_size=2),
            st.integers(0, 1 << 40),
            st.floats(0, 1e6),
            st.floats(0, 100),
            st.booleans(),
        )
    )
)
def test_nobody_in_use_and_nobody_kept_ever_goes(residents):
    chosen = to_evict(residents)
    may_go = {r.release for r in residents if r.idle_s >= IDLE_S and not r.is_pinned}
    assert chosen in may_go or (chosen is None and not may_go)
