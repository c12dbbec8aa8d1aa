"""`shoal trust` from end to end: three people, a stick, and a controller's state directory."""

import json

import pytest
from typer.testing import CliRunner

from shoal_contract.release import build_manifest
from shoal_fleet import digits
from shoal_fleet.cli import app
from shoal_fleet.errors import FleetError
from shoal_fleet.release_directory import read_spec
from shoal_fleet.trust import keys


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    monkeypatch.setattr(keys, "COST", (1, 8192))


class Desk:
    """A folder with keys and the metadata; every command runs as a person would type it."""

    def __init__(self, folder) -> None:
        self.folder = folder
        self.tuf = folder / "tuf"
        (folder / "words").write_text("correct horse battery\nnot this line\n")

    def __call__(self, *words, fails=False):
        found = CliRunner().invoke(
            app, ["--state-dir", str(self.folder / "fleet"), "trust", *map(str, words)]
        )
        if fails:
            assert isinstance(found.exception, FleetError), found.output
            return str(found.exception)
        assert found.exception is None, found.output
        return found.stdout

    def key(self, name: str) -> str:
        self("key", self.folder / name, "--passphrase-file", self.folder / "words")
        return str(self.folder / name)

    def sign(self, name: str, *more, fails=False):
        words = ("--key", self.folder / name, "--passphrase-file", self.folder / "words")
        return self("sign", self.tuf, *words, *more, fails=fails)

    def status(self):
        return json.loads(self("status", self.tuf, "--json"))


@pytest.fixture
def desk(tmp_path):
    made = Desk(tmp_path)
    for name in ("a", "b", "c", "targets", "oslo"):
        made.key(name)
    made("key", tmp_path / "online", "--online")
    roots = [word for name in "abc" for word in ("--root", tmp_path / name)]
    made(
        "init", made.tuf, *roots, "--targets", tmp_path / "targets", "--online", tmp_path / "online",
        "--group", f"oslo={tmp_path / 'oslo'}",
    )  # fmt: skip
    return made


def test_a_ceremony_from_the_keys_to_the_controller(desk):
    assert [one["role"] for one in desk.status()["waiting"]] == ["group-oslo", "root", "targets"]
    desk.sign("oslo")
    desk.sign("a")
    assert "still waits for signatures" in desk("install", desk.tuf, fails=True)
    desk.sign("c")
    desk.sign("targets")
    found = desk.status()
    assert found["waiting"] == []
    assert found["alarms"] == []
    assert {one["role"]: (one["threshold"], len(one["keys"])) for one in found["roles"]} == {
        "root": (2, 3), "targets": (1, 1), "group-oslo": (1, 1),
    }  # fmt: skip
    installed = desk("install", desk.tuf, "--online-key", desk.folder / "online")
    assert installed.split() == ["1.root.json", "1.group-oslo.json", "1.targets.json"]
    assert desk("install", desk.tuf) == "nothing is new\n"
    key = desk.folder / "fleet/trust/online.key"
    assert key.stat().st_mode & 0o777 == 0o600


def test_a_release_is_listed_by_its_directory_and_taken_out_by_its_target(desk):
    for name in ("oslo", "a", "b", "targets"):
        desk.sign(name)
    directory = digits.release_dir(1)
    desk.sign("oslo", "--group", "oslo", "--add", directory)
    (role,) = [one for one in desk.status()["roles"] if one["role"] == "group-oslo"]
    (listed,) = role["targets"]
    spec = read_spec(directory)
    manifest = build_manifest(spec, {name: (directory / name).read_bytes() for name in spec.files})
    assert manifest
    assert listed.startswith("oslo/digits.")
    desk.sign("oslo", "--group", "oslo", "--remove", listed)
    (role,) = [one for one in desk.status()["roles"] if one["role"] == "group-oslo"]
    assert (role["version"], role["targets"]) == (3, [])


def test_a_key_is_rotated_and_a_group_added(desk):
    for name in ("oslo", "a", "b", "targets"):
        desk.sign(name)
    desk.key("pisa")
    desk("rotate", desk.tuf, "pisa", "--new", desk.folder / "pisa")
    desk.sign("targets")
    desk.sign("pisa")
    desk.key("d")
    desk("rotate", desk.tuf, "root", "--old", desk.folder / "a", "--new", desk.folder / "d")
    for name in ("a", "b"):
        desk.sign(name)
    (waiting,) = desk.status()["waiting"] or [None]
    assert waiting is None or waiting["role"] == "root"
    if waiting is not None:
        desk.sign("d")
    assert {one["role"]: one["version"] for one in desk.status()["roles"]} == {
        "root": 2, "targets": 2, "group-oslo": 1, "group-pisa": 1,
    }  # fmt: skip


def test_what_runs_out_soon_ends_with_1(desk):
    for name in ("a", "b", "targets"):
        desk.sign(name)
    desk.sign("oslo")
    desk.sign("oslo", "--group", "oslo", "--days", "3")
    found = CliRunner().invoke(app, ["trust", "status", str(desk.tuf)])
    assert found.exit_code == 1
    assert "runs out in 3.0 days" in found.stdout.replace("\n", " ") or "3.0" in found.stdout


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("sign", "TUF", "--key", "FOLDER/a"), "use --passphrase-file"),
        (("sign", "TUF", "--key", "FOLDER/words"), "not a key file"),
        (("sign", "TUF", "--key", "FOLDER/a", "--add", "x"), "need --group"),
        (("rotate", "TUF", "online", "--old", "nonsense"), "neither a key file nor a public key"),
        (("key", "FOLDER/a", "--online"), "never written over"),
        (("key", "FOLDER/new"), "use --passphrase-file"),
        (("status", "FOLDER"), "begin with"),
        (("install", "TUF", "--online-key", "FOLDER/a"), "is sealed"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(desk, words, reason):
    words = [
        word.replace("FOLDER", str(desk.folder)).replace("TUF", str(desk.tuf)) for word in words
    ]
    said = desk(*words, fails=True)
    assert reason in said
    assert "\n" not in said


def test_a_wrong_passphrase_signs_nothing(desk):
    (desk.folder / "words").write_text("another battery\n")
    assert "does not open it" in desk.sign("a", fails=True)
    assert all(not one["signed"] for one in desk.status()["waiting"])


def test_no_secret_comes_by_the_command_line(desk):
    """Others of the machine can read it there: every option that knows a passphrase is a file."""
    for command in ("key", "sign"):
        words = CliRunner().invoke(app, ["trust", command, "--help"], env={"COLUMNS": "200"}).stdout
        assert "--passphrase-file" in words
        assert "--passphrase " not in words
