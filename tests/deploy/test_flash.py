"""`flash.yml` as a person runs it, on a stock image of 12 MiB; booting such an image is tests/board's."""

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.deploy import ansible_venv
from tests.deploy.ansible_venv import COLLECTION, needs_ansible
from tests.deploy.collection_modules import module_utils

disk = module_utils("board_disk")

ROLE = COLLECTION / "roles/board_image"
MIB = 2**20
TOKENS = {"press-4": "A" * 43, "press-5": "B" * 43}

pytestmark = [
    needs_ansible,
    pytest.mark.skipif(
        bool(disk.missing_tools()), reason=f"not installed: {' '.join(disk.missing_tools())}"
    ),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ansible_venv.install_collection(tmp_path)
    stock = tmp_path / "stock.img"
    stock.write_bytes(bytes(12 * MIB))
    table = "label: gpt\nstart=2048, size=16384, type=linux\n"
    sfdisk = shutil.which("sfdisk", path="/usr/sbin:/sbin:/usr/bin") or "sfdisk"
    subprocess.run([sfdisk, "--quiet", stock], input=table, text=True, check=True)
    rows = [f"{node},{token}" for node, token in TOKENS.items()]
    (tmp_path / "boards.csv").write_text("\n".join(["node,token", *rows]))
    (tmp_path / "tree.tar.gz").write_bytes(b"tree" * 1000)
    return tmp_path


def flash(folder: Path, *options: str, **given: object) -> subprocess.CompletedProcess[str]:
    stock = folder / "stock.img"
    settings = {
        "shoal_flash_image": str(stock),
        "shoal_flash_checksum": hashlib.sha256(stock.read_bytes()).hexdigest(),
        "shoal_flash_boards": str(folder / "boards.csv"),
        "shoal_flash_release": str(folder / "tree.tar.gz"),
        "shoal_flash_out": str(folder / "images"),
        "shoal_flash_broker_host": "broker.example.net",
        "shoal_flash_enrol_url": "https://controller.example.net:8884",
        "shoal_flash_ca_pin": "sha256:5f",
        "shoal_flash_wifi_ssid": "shop",
        "shoal_flash_wifi_password": "not to be printed",
        **given,
    }
    return ansible_venv.run(
        *("ansible-playbook", "shoal.edge.flash", "--inventory", "localhost,", *options),
        *("--extra-vars", json.dumps(settings), "-vvv"),
        home=folder,
    )


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_every_board_gets_its_image_and_a_second_run_changes_nothing(folder: Path) -> None:
    looked = flash(folder, "--check")
    assert looked.returncode == 0, looked.stdout
    assert "changed=1 " in looked.stdout
    assert not (folder / "images").exists()

    for changed in (1, 0):
        done = flash(folder)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"changed={changed} " in done.stdout
        assert "not to be printed" not in done.stdout + done.stderr
    images = folder / "images"
    assert sorted(path.name for path in images.iterdir()) == ["press-4.img", "press-5.img"]
    assert images.stat().st_mode & 0o777 == 0o700
    for node, token in TOKENS.items():
        image = images / f"{node}.img"
        start = disk.seed_partition(image)
        disk.check(
            image,
            start,
            {"shoal/token": f"{token}\n".encode()},
            {"shoal/release.tar.gz": folder / "tree.tar.gz"},
        )
        content = image.read_bytes()
        others = [other for other in TOKENS.values() if other != token]
        assert not any(other.encode() in content for other in others)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"shoal_flash_checksum": "0" * 64}, "fetch it again"),
        ({"shoal_flash_only": ["press-6"]}, "there is no node press-6"),
        ({"shoal_flash_only": ["press-4"], "shoal_flash_device": "/dev/null"}, "no block device"),
        ({"shoal_flash_device": "/dev/null"}, "a device is one board, not 2"),
        ({"shoal_flash_release": "/none"}, "/none: No such file"),
        ({"shoal_flash_size_bytes": MIB}, "are too small"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(folder: Path, given: dict, says: str) -> None:
    done = flash(folder, **given)
    assert done.returncode != 0
    assert says in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    images = folder / "images"
    left = list(images.iterdir()) if images.exists() else []
    assert not [path for path in left if path.name.endswith(".part")]


def test_every_variable_is_described_with_its_default_and_named_in_the_readme() -> None:
    loaded = ansible_venv.load_yaml(ROLE / "defaults/main.yml", ROLE / "meta/argument_specs.yml")
    defaults = loaded[ROLE / "defaults/main.yml"]
    options = loaded[ROLE / "meta/argument_specs.yml"]["argument_specs"]["main"]["options"]
    described = {name: option["default"] for name, option in options.items() if "default" in option}
    assert described == defaults
    assert all(option.get("required") for name, option in options.items() if name not in defaults)
    readme = (ROLE / "README.md").read_text()
    assert set(re.findall(r"^\| `(shoal_flash_\w+)`", readme, re.MULTILINE)) == set(options)


def test_ansible_shows_the_documentation_of_module_and_role(folder: Path) -> None:
    for kind in ("module", "role"):
        shown = ansible_venv.run("ansible-doc", "-t", kind, "shoal.edge.board_image", home=folder)
        assert shown.returncode == 0, shown.stderr
        assert "BOARD_IMAGE" in shown.stdout.upper()
