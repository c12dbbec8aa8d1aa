"""What is shipped: every pin of every role in the SBOM, and checksums that hold."""

import hashlib
import json
import re
import subprocess
from pathlib import Path

import pytest
from tests.deploy.ansible_venv import REPOSITORY, needs_ansible

from tools import dist, sbom

HASH = "a" * 64


def test_the_sbom_names_every_pin_of_every_role_that_is_shipped():
    made = sbom.of_checkout(REPOSITORY, "1.2.3")
    named = {(one["name"], one["version"]) for one in made["components"]}
    for role in sbom.ROLES:
        text = (REPOSITORY / f"requirements/{role}.txt").read_text()
        pins = set(re.findall(r"^([a-z0-9._-]+)==([^\s;]+)", text, re.MULTILINE))
        assert pins
        assert pins <= named
    for one in made["components"]:
        assert one["purl"] == f"pkg:pypi/{one['name']}@{one['version']}"
        kinds = {entry["name"] for entry in one["properties"]}
        assert {"shoal:role", "shoal:wheel-sha256"} <= kinds
    assert made["bomFormat"] == "CycloneDX"
    assert made["metadata"]["component"]["version"] == "1.2.3"
    assert len({one["bom-ref"] for one in made["components"]}) == len(made["components"])


def test_the_same_locks_give_the_same_document():
    locks = {"agent": f"numpy==2.4.0 \\\n    --hash=sha256:{HASH}\n"}
    assert sbom.document("1", locks) == sbom.document("1", dict(locks))
    assert sbom.document("1", locks)["serialNumber"] != sbom.document("2", locks)["serialNumber"]


@pytest.mark.parametrize(
    "text",
    [
        "numpy\n",
        "numpy>=2\n",
        f"--hash=sha256:{HASH}\n",
        "numpy==2.4.0\n",
        f"numpy==2.4.0 \\\n    --hash=md5:{HASH}\n",
        "-r other.txt\n",
    ],
)
def test_a_lock_that_is_none_is_refused(text):
    with pytest.raises(sbom.LockError):
        sbom.document("1", {"agent": text})


@needs_ansible
@pytest.mark.packaging
@pytest.mark.timeout(180)
def test_everything_that_is_shipped_is_built_with_its_checksum(tmp_path: Path):
    names = [path.name for path in dist.build(tmp_path)]
    version = re.search(
        r"^version = \"(.*)\"", (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE
    )[1]
    assert sorted(names) == sorted(
        [
            f"shoal-{version}-py3-none-any.whl",
            f"shoal-{version}.tar.gz",
            f"shoal-edge-{version}.tar.gz",
            f"shoal-{version}.cdx.json",
            "SHA256SUMS",
        ]
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    for line in (tmp_path / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
    json.loads((tmp_path / f"shoal-{version}.cdx.json").read_text())
    listed = subprocess.run(
        ["tar", "--list", "--file", tmp_path / f"shoal-edge-{version}.tar.gz"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "plugins/inventory/fleet.py" in listed
    assert "playbooks/upgrade.yml" in listed
