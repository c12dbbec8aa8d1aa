"""The lookup `release_tree`: what an archive says of itself, and archives that are none."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest
from tests.deploy import ansible_venv
from tests.deploy.ansible_venv import needs_ansible

pytestmark = needs_ansible

ABOUT = {"version": "0.1.0", "arch": "aarch64", "python": "3.11", "roles": ["agent"], "files": {}}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("lookup")
    ansible_venv.install_collection(home)
    return home


def archive(path: Path, name: str = "0.1.0/release.json", text: bytes | None = None) -> Path:
    content = json.dumps(ABOUT).encode() if text is None else text
    with tarfile.open(path, "w:gz") as packed:
        for entry_name, data in (("0.1.0/bin/shoal-agent", b"#!"), (name, content)):
            entry = tarfile.TarInfo(entry_name)
            entry.size = len(data)
            packed.addfile(entry, io.BytesIO(data))
    return path


def look(home: Path, *paths: Path):
    terms = ", ".join(f"'{path}'" for path in paths)
    message = f"{{{{ query('shoal.edge.release_tree', {terms}) }}}}"
    return ansible_venv.run(
        *(
            "ansible",
            "localhost",
            "-m",
            "ansible.builtin.debug",
            "-a",
            json.dumps({"msg": message}),
        ),
        home=home,
    )


def test_an_archive_says_what_it_is_for(home, tmp_path):
    path = archive(tmp_path / "board.tar.gz")
    done = look(home, path)
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout.partition(" => ")[2])["msg"] == [
        {
            "id": "0.1.0",
            "machine": "aarch64",
            "python": "3.11",
            "roles": ["agent"],
            "sha256": hashlib.sha256(json.dumps(ABOUT).encode()).hexdigest(),
            "archive": str(path),
        }
    ]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("0.1.0/other.json", None, "is no release tree"),
        ("0.2.0/release.json", None, "is not what release.json calls the release"),
        ("../release.json", None, "is not what release.json calls the release"),
        ("0.1.0/release.json", b"[]", "is no object"),
        ("0.1.0/release.json", b"{", "Expecting"),
        ("0.1.0/release.json", b'{"version": "0.1.0"}', "does not say"),
    ],
)
def test_an_archive_that_is_none_is_refused(home, tmp_path, name, text, said):
    done = look(home, archive(tmp_path / "board.tar.gz", name, text))
    assert done.returncode != 0
    assert said in done.stdout + done.stderr


def test_a_file_that_is_no_archive_is_refused(home, tmp_path):
    (tmp_path / "board.tar.gz").write_bytes(b"not packed")
    done = look(home, tmp_path / "board.tar.gz", tmp_path / "missing.tar.gz")
    assert done.returncode != 0
    assert "board.tar.gz" in done.stdout + done.stderr
