"""Limits are for good, so each is tried in a process of its own."""

import signal
import struct
import subprocess
import sys

import pytest

from shoal_agent.inference import confinement


def run(body: str) -> subprocess.CompletedProcess:
    script = f"import os, resource, socket, threading\nfrom shoal_agent.inference import confinement\n{body}"
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=15, check=False
    )


TRIED = """
assert confinement.forbid_network_and_programs()
def tried():
    for attempt in (
        lambda: socket.socket(),
        lambda: socket.create_connection(("127.0.0.1", 9)),
        lambda: os.execv("/bin/true", ["true"]),
    ):
        try:
            attempt()
        except PermissionError:
            print("forbidden")
tried()
thread = threading.Thread(target=tried)
thread.start()
thread.join()
print(len(os.listdir("/")) > 0)
"""


def test_a_confined_process_opens_no_socket_and_starts_no_program_and_its_threads_neither():
    assert run(TRIED).stdout == "forbidden\n" * 6 + "True\n"


def test_a_confined_process_gets_no_more_memory_than_it_may():
    ended = run("confinement.limit(cpu_s=10, memory_bytes=64 << 20)\nbytearray(128 << 20)")
    assert ended.stderr.endswith("MemoryError\n")


def test_a_confined_process_writes_no_larger_file_and_leaves_no_core(tmp_path):
    body = f"""
confinement.limit(cpu_s=10, file_bytes=100)
assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
with open({str(tmp_path / "file")!r}, "wb", buffering=0) as file:
    print(file.write(bytes(100)))
    file.write(b"x")
"""
    ended = run(body)
    assert ended.stdout == "100\n"
    assert "File too large" in ended.stderr


def test_a_confined_process_that_computes_for_ever_is_ended():
    ended = run("confinement.limit(cpu_s=1)\nwhile True: pass")
    assert ended.returncode in {-signal.SIGXCPU, -signal.SIGKILL}


def test_a_limit_is_never_raised():
    body = """
confinement.limit(cpu_s=5)
confinement.limit(cpu_s=50)
print(resource.getrlimit(resource.RLIMIT_CPU))
"""
    assert run(body).stdout == "(5, 5)\n"


def test_on_a_machine_whose_calls_are_not_known_nothing_is_forbidden(monkeypatch):

    monkeypatch.setattr(confinement.platform, "machine", lambda: "riscv64")
    assert confinement.forbid_network_and_programs() is False


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_jump_of_the_filter_ends_at_a_verdict(machine):
    """A classic BPF program is run by hand over calls of this and another architecture."""

    architecture, forbidden = confinement._FORBIDDEN[machine]
    program = confinement._program(architecture, forbidden)

    def verdict(arch: int, number: int) -> int:
        return _run_filter(program, {0: number, 4: arch})

    allow, forbid = confinement._ALLOW, confinement._EPERM
    for number in range(500):
        assert verdict(architecture, number) == (forbid if number in forbidden else allow)
        assert verdict(architecture + 1, number) == forbid
        assert verdict(architecture, number | 0x40000000) == forbid


def _run_filter(program: bytes, data: dict[int, int]) -> int:

    lines = [struct.unpack_from("<HBBI", program, at) for at in range(0, len(program), 8)]
    at = accumulator = 0
    while True:
        code, if_true, if_false, value = lines[at]
        at += 1
        match code:
            case 0x20:
                accumulator = data[value]
            case 0x15:
                at += if_true if accumulator == value else if_false
            case 0x35:
                at += if_true if accumulator >= value else if_false
            case 0x06:
                return value
