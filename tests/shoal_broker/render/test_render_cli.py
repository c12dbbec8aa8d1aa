"""`shoal-broker render` as people run it; what brokers make of the files is under tests/system."""

import json
import stat
from pathlib import Path

import pytest

from shoal_broker import cli

GOLDEN = Path(__file__).with_name("golden")
FULL = {
    "mosquitto": [
        "--root", "acme", "--controller", "hub-1", "--controller", "hub-2", "--operator", "alice",
        "--observer", "grafana", "--site", "site-1=a,b", "--site", "site-2",
        "--door", "homeassistant", "--upstream", "broker.example.net", "--nodes", "c",
    ],
    "emqx": [
        "--root", "acme", "--controller", "hub-1", "--controller", "hub-2", "--operator", "alice",
        "--observer", "grafana", "--site", "site-1=a,b", "--site", "site-2",
        "--door", "homeassistant",
    ],
}  # fmt: skip


def render(*arguments):
    return cli.run(["render", *arguments])


@pytest.mark.parametrize("broker", FULL)
def test_the_files_are_what_they_were(broker, tmp_path):
    assert render(broker, "--out", str(tmp_path), *FULL[broker]) == 0
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    expected = {path.name: path.read_text() for path in (GOLDEN / broker).iterdir()}
    assert written == expected


@pytest.mark.parametrize("broker", FULL)
def test_files_are_closed_to_others_and_nothing_is_left_beside_them(broker, tmp_path):
    assert render(broker, "--out", str(tmp_path / "new" / "folder")) == 0
    files = list((tmp_path / "new" / "folder").iterdir())
    assert len(files) == 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o640}


def test_a_person_is_told_what_to_do_next_on_one_screen(tmp_path, capsys):
    assert render("mosquitto", "--out", str(tmp_path), "--upstream", "up.example.net:1234") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert lines[0] == f"written   {tmp_path}/mosquitto.conf"
    assert lines[2] == f"next, in {tmp_path}:"
    assert "bridge.key" in lines[3]
    assert "up.example.net" in lines[-1]


def test_a_program_is_told_in_json(tmp_path, capsys):
    assert render("emqx", "--out", str(tmp_path), "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    assert {file["state"] for file in report["files"]} == {"written"}
    assert all(Path(file["path"]).is_file() for file in report["files"])
    assert render("emqx", "--out", str(tmp_path), "--port", "1", "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert "--force" in report["error"]


def test_the_same_again_changes_nothing(tmp_path, capsys):
    render("mosquitto", "--out", str(tmp_path))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert render("mosquitto", "--out", str(tmp_path)) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert "unchanged" in capsys.readouterr().out


def test_a_file_that_was_changed_by_hand_is_kept_and_the_others_too(tmp_path, capsys):
    acl = tmp_path / "shoal.acl"
    acl.write_text("user me\n")
    assert render("mosquitto", "--out", str(tmp_path)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["shoal.acl"]
    assert acl.read_text() == "user me\n"
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert "shoal.acl" in complaint
    assert "--force" in complaint
    assert render("mosquitto", "--out", str(tmp_path), "--force") == 0
    assert "user shoal-controller" in acl.read_text()
    assert "replaced  " in capsys.readouterr().out


def test_a_folder_that_cannot_be_made_is_one_line_and_exit_1(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert render("mosquitto", "--out", str(tmp_path / "file" / "below")) == 1
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert "cannot write" in complaint


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--root", "a b"], "--root"),
        (["--root", "a/#"], "--root"),
        (["--port", "0"], "--port"),
        (["--port", "70000"], "--port"),
        (["--bind", "not an address"], "address"),
        (["--controller", "a b"], "name"),
        (["--operator", "evil\nuser x"], "name"),
        (["--observer", "+"], "name"),
        (["--operator", 'a"}'], "name"),
        (["--operator", ""], "name"),
        (["--operator", "alice", "--observer", "alice"], "twice"),
        (["--door", "#"], "name"),
        (["--door", "alice", "--operator", "alice"], "twice"),
        (["--site", "site-1="], "--site"),
        (["--site", "site-1=Not-A-Node"], "node id"),
        (["--site", "site-1=a,,b"], "node id"),
        (["--upstream", "host:port"], "--upstream"),
        (["--upstream", "[::1]:8883"], "--upstream"),
        (["--upstream", "host:0"], "upstream"),
        (["--upstream", ":8883"], "host"),
        (["--upstream", "host\nlistener 1883:1"], "host name"),
        (["--nodes", "a"], "--upstream"),
        (["--certs-dir", "relative"], "path"),
        (["--certs-dir", "/a\nuser root"], "path"),
        (["--data-dir", "/with a space"], "path"),
        (["--save-every-s", "0"], "--save-every-s"),
    ],
)
def test_what_cannot_stand_in_a_configuration_is_usage_and_writes_nothing(
    arguments, names, tmp_path, capsys
):
    out = tmp_path / "out"
    assert render("mosquitto", "--out", str(out), *arguments) == 2
    assert not out.exists()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert names in captured.err


@pytest.mark.parametrize("arguments", [["--upstream", "up:1"], ["--save-every-s", "5"]])
def test_emqx_refuses_what_only_mosquitto_has(arguments, tmp_path, capsys):
    assert render("emqx", "--out", str(tmp_path / "out"), *arguments) == 2
    assert "osquitto" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["vernemq", "--out", "x"], ["emqx"]])
def test_wrong_arguments_are_usage(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        render(*arguments)
    assert ended.value.code == 2


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as ended:
        render("--help")
    assert ended.value.code == 0
    assert "examples:" in capsys.readouterr().out
