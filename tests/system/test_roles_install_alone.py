"""Each role imports with only its own extra installed: the wheel, and the hashed file of that role."""

import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

IMPORT_ALL = """
import importlib, pkgutil, sys
for package in sys.argv[1].split(","):
    root = importlib.import_module(package)
    for module in pkgutil.walk_packages(getattr(root, "__path__", ()), package + "."):
        if not module.name.endswith("__main__") and module.name not in sys.argv[2].split(","):
            importlib.import_module(module.name)
print("imported")
"""

# Modules of the release builder's worker: they need onnx.
WORKERS = (
    *("float_source", "making", "node_noise", "old_release", "quantisers", "rescale", "running"),
    *("trial", "worker"),
)
PICTURES = ("camera_child", "images_child", "preparing")
# Role -> packages of ours that it uses, and modules in them that need another role's extra.
ROLES = {
    "agent": (
        "shoal_contract,shoal_delta,shoal_agent,shoal_broker.session,shoal_broker.cli",
        # Pictures and cameras have extras of their own.
        ",".join(f"shoal_agent.pipelines.{name}" for name in PICTURES),
    ),
    "bridge": ("shoal_contract,shoal_firmware_bridge", "shoal_contract.signatures"),
    "fleet": (
        "shoal_contract,shoal_delta,shoal_fleet,shoal_broker",
        # Alembic alone runs what stands around the revisions.
        "shoal_broker.server.websocket,shoal_fleet.migrations.env,"
        + ",".join(f"shoal_fleet.release_build.{name}" for name in WORKERS),
    ),
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT],
        check=True,
        capture_output=True,
    )
    return next(out.glob("shoal-*.whl"))


@pytest.mark.packaging
@pytest.mark.timeout(240)
@pytest.mark.parametrize("role", ROLES)
def test_a_role_imports_with_only_its_own_extra(role, wheel, tmp_path):
    packages, elsewhere = ROLES[role]
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True, symlinks=True)
    python = environment / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pins = ROOT / "requirements" / f"{role}.txt"
    subprocess.run([*pip, "--require-hashes", "-r", pins], check=True, capture_output=True)
    subprocess.run([*pip, "--no-deps", wheel], check=True, capture_output=True)
    result = subprocess.run(
        [python, "-I", "-c", IMPORT_ALL, packages, elsewhere],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert result.stdout.strip() == "imported", result.stderr
    checked = subprocess.run(
        [python, "-m", "pip", "check", "--disable-pip-version-check"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout


@pytest.mark.packaging
@pytest.mark.timeout(60)
def test_the_wheel_carries_the_demonstration_models_and_the_licences(wheel):
    listing = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", wheel], check=True, capture_output=True, text=True
    ).stdout
    for name in (
        "v1/model.onnx",
        "v2/model.onnx",
        "optdigits.csv",
        "v1/golden.npz",
        "v2/release.toml",
    ):
        assert f"shoal_fleet/digits/{name}" in listing
    assert "licenses/LICENSE" in listing
