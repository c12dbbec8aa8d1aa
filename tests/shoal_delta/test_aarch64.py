"""The same pairs on aarch64 (qemu-user): the same delta is made, and it gives the same file.

`tools/aarch64-root` fetches an arm64 Python with numpy and zstandard; the long test does so itself, the short
one runs where that has been done (CI does). It needs qemu, Debian 12 and a mirror.
"""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import shoal_delta

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
ROOT = REPOSITORY / "build" / "aarch64-root"
QEMU = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
PAIRS = ("cnn/few-steps", "mobilenet/pruned", "gru/few-steps", "transformer/few-steps")
APPLY = """
import hashlib, pathlib, platform, sys
import shoal_delta
old, new, delta = (pathlib.Path(name).read_bytes() for name in sys.argv[1:4])
print(platform.machine(), hashlib.sha256(shoal_delta.apply(old, delta)).hexdigest(), end=" ")
"""
DIFF = (
    APPLY
    + """
print(hashlib.sha256(shoal_delta.diff(old, new, workers=1)).hexdigest())
"""
)


@pytest.fixture(scope="module")
def arm_root():
    """The root, made if it is not there."""
    if QEMU is None:
        pytest.skip("needs qemu-aarch64-static (apt-get install qemu-user-static)")
    made = subprocess.run(
        ["sh", "tools/aarch64-root"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    if made.returncode:
        reason = (made.stderr.strip().splitlines() or ["it gave no reason"])[-1]
        pytest.skip(f"no arm64 root: {reason}")


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("arm_root")
@pytest.mark.parametrize("pair", PAIRS)
def test_aarch64_makes_the_same_delta_and_the_same_file(pair, tmp_path):
    new, delta, answer = asked(DIFF, pair, tmp_path)
    machine, made, again = answer
    print(f"\n{pair}: {machine} makes {made}\n  with the delta {again}; here\n  {new}, {delta}")
    assert machine == "aarch64"
    assert [made, again] == [new, delta]


@pytest.mark.slow
@pytest.mark.optional
@pytest.mark.timeout(120)
@pytest.mark.skipif(
    QEMU is None or not (ROOT / ".ready").exists(),
    reason="needs qemu-user-static, and `sh tools/aarch64-root` before",
)
def test_aarch64_makes_the_same_file_of_a_delta_from_here(tmp_path):
    new, _, answer = asked(APPLY, PAIRS[0], tmp_path)
    assert answer == ["aarch64", new]


def asked(script, pair, folder):
    """(the new file's sha256, the delta's, what the script says on aarch64); the delta is made here."""
    new, old = HERE / "pairs" / f"{pair}.onnx", (HERE / "pairs" / pair).parent / "old.onnx"
    delta = folder / "delta"
    delta.write_bytes(shoal_delta.diff(old.read_bytes(), new.read_bytes(), workers=1))
    packages = os.pathsep.join(map(str, (ROOT / "site-packages", REPOSITORY / "broker")))
    answer = subprocess.run(
        [QEMU, "-L", ROOT, ROOT / "usr" / "bin" / "python3.11", "-c", script, old, new, delta],
        env={
            "PYTHONHOME": str(ROOT / "usr"),
            "PYTHONPATH": packages,
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    digests = (hashlib.sha256(path.read_bytes()).hexdigest() for path in (new, delta))
    return *digests, answer.stdout.split()
