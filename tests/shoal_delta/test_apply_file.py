import errno
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from tests.shoal_delta.onnx_files import network

import shoal_delta
from shoal_delta import CorruptDeltaError, StorageError, WrongBaseError, segment
from shoal_delta.container import Layout, Segment, encode_header
from shoal_delta.decoding import reader_of
from shoal_delta.operations import Kind, Operation

MIB = 1 << 20


@pytest.fixture(scope="module")
def large():
    """A pair of four segments, each with a change."""
    old = np.random.default_rng(1).bytes(4 * MIB - 17)
    changed = bytearray(old)
    for position in range(0, len(old), 100_000):
        changed[position] ^= 0xFF
    return old, bytes(changed), shoal_delta.diff(old, bytes(changed), profile="fast")


@pytest.fixture
def files(tmp_path):
    def write(old, delta):
        paths = tmp_path / "old.onnx", tmp_path / "step.delta", tmp_path / "new.onnx"
        paths[0].write_bytes(old)
        paths[1].write_bytes(delta)
        return paths

    return write


def test_the_new_file_is_in_place_and_nothing_else_is(files, large):
    old, new, delta = large
    paths = files(old, delta)
    seen = []
    shoal_delta.apply_file(*paths, progress=lambda done, total: seen.append((done, total)))
    assert paths[2].read_bytes() == new
    assert paths[0].read_bytes() == old
    assert sorted(path.name for path in paths[2].parent.iterdir()) == [
        "new.onnx",
        "old.onnx",
        "step.delta",
    ]
    assert seen[-1] == (len(new), len(new))


@pytest.mark.parametrize("kept", [0, 10, MIB - 1, MIB, 2 * MIB + 5, 4 * MIB - 17])
def test_a_torn_part_file_is_resumed_after_its_last_good_segment(files, large, kept):
    old, new, delta = large
    paths = files(old, delta)
    paths[2].with_name("new.onnx.part").write_bytes(new[:kept])
    done = []
    shoal_delta.apply_file(*paths, progress=lambda position, _: done.append(position))
    assert paths[2].read_bytes() == new
    segments = shoal_delta.inspect(delta).segments
    assert len(done) == sum(s.offset + s.size > kept for s in segments)


def test_a_part_file_with_other_or_more_content_is_overwritten(files, large):
    old, new, delta = large
    paths = files(old, delta)
    part = paths[2].with_name("new.onnx.part")
    part.write_bytes(new[: MIB + 50] + bytes(5 * MIB))
    shoal_delta.apply_file(*paths)
    assert paths[2].read_bytes() == new


def with_crc32(front: bytes, crc32: int) -> bytes:
    """`front` and four bytes that give the whole the CRC-32 that is wanted."""
    backwards = {}
    for index in range(256):
        entry = index
        for _ in range(8):
            entry = entry >> 1 ^ (0xEDB88320 if entry & 1 else 0)
        backwards[entry >> 24] = (entry << 8 & 0xFFFFFFFF) ^ index
    state = crc32 ^ 0xFFFFFFFF
    for byte in reversed((zlib.crc32(front) ^ 0xFFFFFFFF).to_bytes(4, "little")):
        state = (state << 8 & 0xFFFFFFFF) ^ backwards[state >> 24] ^ byte
    return front + state.to_bytes(4, "little")


def test_a_part_file_whose_checksums_lie_is_not_trusted(files):
    old, new = b"a" * 100, b"a" * 50 + b"b" * 50
    paths = files(old, shoal_delta.diff(old, new))
    lie = with_crc32(b"c" * 96, zlib.crc32(new))
    assert zlib.crc32(lie) == zlib.crc32(new)
    paths[2].with_name("new.onnx.part").write_bytes(lie)
    shoal_delta.apply_file(*paths)
    assert paths[2].read_bytes() == new


def test_a_killed_apply_is_resumed_to_the_exact_file(files, large):
    old, new, delta = large
    paths = files(old, delta)
    program = (
        "import os, signal, sys, shoal_delta\n"
        "def stop(done, total):\n"
        "    if done >= total // 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "shoal_delta.apply_file(*sys.argv[1:], progress=stop)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, *map(str, paths)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not paths[2].exists()
    part = paths[2].with_name("new.onnx.part")
    assert 0 < part.stat().st_size < len(new)
    done = []
    shoal_delta.apply_file(*paths, progress=lambda position, _: done.append(position))
    assert len(done) < len(shoal_delta.inspect(delta).segments)
    assert paths[2].read_bytes() == new
    assert paths[0].read_bytes() == old


KILLER = """
import os, random, signal, sys, time
import shoal_delta
draw, count = random.Random(24), int(sys.argv[4])
expected = open(sys.argv[5], "rb").read()
killed = 0
for number in range(count):
    child = os.fork()
    if child == 0:
        shoal_delta.apply_file(*sys.argv[1:4])
        os._exit(0)
    time.sleep(draw.uniform(0, float(sys.argv[6])))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    killed += os.WIFSIGNALED(status)
    if os.path.exists(sys.argv[3]):
        # There whole or not at all, whenever the kill came.
        assert open(sys.argv[3], "rb").read() == expected, number
    # Of every other kill the next attempt is killed too.
    if number % 2:
        shoal_delta.apply_file(*sys.argv[1:4])
        assert open(sys.argv[3], "rb").read() == expected, number
        os.unlink(sys.argv[3])
print(killed)
"""


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param(12, marks=[pytest.mark.slow, pytest.mark.timeout(120)]),
        pytest.param(200, marks=[pytest.mark.long, pytest.mark.timeout(1800)]),
    ],
)
def test_kills_at_random_moments_all_end_in_the_exact_file(files, large, kills):
    old, new, delta = large
    paths = files(old, delta)
    started_s = time.perf_counter()
    shoal_delta.apply_file(*paths)
    took_s = time.perf_counter() - started_s
    paths[2].unlink()
    expected = paths[2].with_name("expected")
    expected.write_bytes(new)
    arguments = [*map(str, paths), str(kills), str(expected), str(took_s)]
    done = subprocess.run(
        [sys.executable, "-c", KILLER, *arguments], check=True, capture_output=True, text=True
    )
    print(f"{done.stdout.strip()} of {kills} were killed before they were done")
    assert int(done.stdout) > kills // 4
    assert paths[0].read_bytes() == old


def test_a_wrong_base_writes_nothing(files, large):
    old, _, delta = large
    paths = files(old[:-1] + b"?", delta)
    with pytest.raises(WrongBaseError, match="old"):
        shoal_delta.apply_file(*paths)
    assert not list(paths[2].parent.glob("new.onnx*"))


def test_a_damaged_delta_leaves_no_file_and_the_old_one_intact(files):
    old, new = network(1), network(2, drift=0.003)
    delta = bytearray(shoal_delta.diff(old, new))
    delta[-40] ^= 0x10
    paths = files(old, bytes(delta))
    paths[2].write_bytes(b"what was there before")
    with pytest.raises(CorruptDeltaError):
        shoal_delta.apply_file(*paths)
    assert paths[0].read_bytes() == old
    assert paths[2].read_bytes() == b"what was there before"
    assert not paths[2].with_name("new.onnx.part").exists()


def test_the_old_file_and_the_delta_are_never_the_target(files, large):
    old, _, delta = large
    paths = files(old, delta)
    paths[2].symlink_to(paths[0])
    for target in (paths[0], paths[1], paths[2]):
        with pytest.raises(StorageError, match="choose another name"):
            shoal_delta.apply_file(paths[0], paths[1], target)
    assert paths[0].read_bytes() == old


def test_a_part_file_that_leads_elsewhere_is_not_followed(files, large, tmp_path):
    old, _, delta = large
    paths = files(old, delta)
    part = paths[2].with_name("new.onnx.part")
    part.symlink_to(paths[0])
    with pytest.raises(StorageError):
        shoal_delta.apply_file(*paths)
    part.unlink()
    part.hardlink_to(paths[0])
    with pytest.raises(StorageError, match="not a file of our own"):
        shoal_delta.apply_file(*paths)
    assert paths[0].read_bytes() == old


def test_two_applies_of_one_target_do_not_meet(files, large):
    old, _, delta = large
    paths = files(old, delta)
    with paths[2].with_name("new.onnx.part").open("wb") as part:
        fcntl.flock(part, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match="another apply"):
            shoal_delta.apply_file(*paths)


def test_missing_files_directories_and_a_full_disk_are_storage_errors(files, large, monkeypatch):
    old, _, delta = large
    paths = files(old, delta)
    folder = paths[0].parent
    for arguments in (
        (folder / "none", paths[1], paths[2]),
        (paths[0], folder / "none", paths[2]),
        (paths[0], paths[1], folder / "none" / "new"),
        (folder, paths[1], paths[2]),
    ):
        with pytest.raises(StorageError):
            shoal_delta.apply_file(*arguments)
    full = os.statvfs_result((4096, 4096, 10, 0, 0, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "fstatvfs", lambda _descriptor: full)
    with pytest.raises(StorageError, match="No space left"):
        shoal_delta.apply_file(*paths)


def test_a_disk_that_fills_up_at_any_write_leaves_what_was_written_for_the_next_attempt(
    files, large, monkeypatch
):
    old, new, delta = large
    paths = files(old, delta)
    part = paths[2].with_name("new.onnx.part")
    real, fail_at, writes = os.pwrite, 0, 0

    def pwrite(target, view, position):
        nonlocal writes
        writes += 1
        if writes > fail_at:
            # A full disk takes what still fits, and then nothing more.
            if writes == fail_at + 1:
                return real(target, view[: len(view) // 2], position)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(target, view, position)

    while True:
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", pwrite)
            writes = 0
            try:
                shoal_delta.apply_file(*paths)
            except StorageError:
                pass
            else:
                break
        assert not paths[2].exists()
        assert paths[0].read_bytes() == old
        kept = part.read_bytes()
        assert kept == new[: len(kept)]
        part.unlink()
        fail_at += 1
    print(f"full at {fail_at} writes")
    assert fail_at == len(shoal_delta.inspect(delta).segments)
    assert paths[2].read_bytes() == new


@pytest.mark.parametrize("call", ["fsync", "ftruncate", "replace"])
def test_a_disk_that_fails_at_the_end_leaves_no_new_file(files, large, monkeypatch, call):
    old, new, delta = large
    paths = files(old, delta)

    def fail(*_arguments):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(StorageError, match="Input/output error"):
            shoal_delta.apply_file(*paths)
    assert not paths[2].exists()
    assert paths[0].read_bytes() == old
    shoal_delta.apply_file(*paths)
    assert paths[2].read_bytes() == new


def subtracted(old: bytes, new: bytes) -> bytes:
    """The delta of two files of whole mebibytes: a segment for each, quickly packed."""
    bodies, entries = [], []
    for start in range(0, len(new), MIB):
        piece = new[start : start + MIB]
        plan = [Operation(Kind.SUBTRACT, MIB, start)]
        bodies.append(segment.encode(plan, piece, start, read=reader_of(old), is_quick=True))
        entries.append(Segment(MIB, zlib.crc32(piece), len(bodies[-1])))
    header = encode_header(
        Layout.SEGMENTED,
        sizes=(len(old), len(new)),
        sha256=(hashlib.sha256(old).digest(), hashlib.sha256(new).digest()),
        segments=entries,
    )
    return header + b"".join(bodies)


def test_applying_takes_no_more_memory_for_more_segments(files):
    peaks = []
    for size in (2 * MIB, 9 * MIB):
        old = np.random.default_rng(3).bytes(size)
        new = bytearray(old)
        new[::500] = bytes(len(new[::500]))
        paths = files(old, subtracted(old, bytes(new)))
        tracemalloc.start()
        shoal_delta.apply_file(*paths)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        paths[2].unlink()
    assert peaks[1] < 1.02 * peaks[0]
    # Seven megabyte arrays while a segment is made, and nothing of the last one.
    assert peaks[1] < 7.5 * MIB


def test_apply_needs_little_memory_beyond_the_interpreter(files):
    old = np.random.default_rng(2).bytes(24 * MIB)
    new = bytearray(old)
    new[::1_000_003] = bytes(len(new[::1_000_003]))
    paths = files(old, shoal_delta.diff(old, bytes(new)))
    program = (
        "import resource, sys, shoal_delta\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "shoal_delta.apply_file(*sys.argv[1:])\n"
        "print(peak() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, paths)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert int(done.stdout) < 32 * 1024
