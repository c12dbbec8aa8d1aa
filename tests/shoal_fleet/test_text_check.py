"""What the controller says of releases that take texts, before it offers them to anybody."""

import json

import numpy as np
import pytest
from tests.shoal_agent.inference import text_release as words
from tests.shoal_fleet.test_cli import shoal
from typer.testing import CliRunner

from shoal_contract.release import parse_spec
from shoal_fleet import cli
from shoal_fleet.errors import ReleaseError, UsageError
from shoal_fleet.quality_gate import signature_change
from shoal_fleet.release_check import check_directory

pytest.importorskip("tokenizers")


def test_golden_texts_are_run_one_by_one_and_compared(tmp_path):
    words.write(tmp_path)
    facts = check_directory(tmp_path)
    assert facts["golden_items"] == len(words.TEXTS)
    assert facts["deviation"] < 1e-5


@pytest.mark.parametrize(
    ("inputs", "outputs", "reason"),
    [
        (["hot", "cold"], words.expected(["hot", "hot"]), "the golden outputs differ by"),
        ([1, 2], words.expected(["hot", "hot"]), r"golden.npz: inputs are int64 \[2\], not str"),
        (["hot"], words.expected(["hot"])[:, :5], r"golden.npz: outputs are float32 \[1, 5\]"),
        (["x" * 201], words.expected(["x"]), "text 0 is longer than max_bytes = 200"),
        (["hot"], words.expected(["hot"]) * np.nan, "the golden outputs differ by inf"),
    ],
)
def test_golden_texts_that_are_wrong_are_named(tmp_path, inputs, outputs, reason):
    words.write(tmp_path)
    arrays = {"inputs.text": np.array(inputs), "outputs.hidden": outputs}
    np.savez(tmp_path / "golden.npz", **arrays)
    with pytest.raises(ReleaseError, match=reason):
        check_directory(tmp_path)


@pytest.mark.parametrize("tokens", [b"{}", b"\xff"])
def test_a_tokenizer_that_does_not_load_is_refused(tmp_path, tokens):
    words.write(tmp_path, tokens=tokens)
    with pytest.raises(ReleaseError, match=r"tokenizer.json: is no tokenizer that loads"):
        check_directory(tmp_path)


def test_a_golden_text_at_which_the_tokenizer_breaks_is_named(tmp_path):
    words.write(tmp_path, tokens=words.bomb())
    arrays = {"inputs.text": np.array(["a" * 60 + "b"]), "outputs.hidden": words.expected(["a"])}
    np.savez(tmp_path / "golden.npz", **arrays)
    with pytest.raises(
        ReleaseError, match=r"tokenizer.json: fails on golden text 0: .*retry-limit"
    ):
        check_directory(tmp_path)


async def test_the_controller_takes_it_in_with_its_tokenizer(site, tmp_path):
    words.write(tmp_path / "words")
    code, said, error = await shoal(site, "release", "add", tmp_path / "words")
    assert (code, error) == (0, "")
    assert said.startswith("words@1.0.0")
    (release,) = await site.controller.releases.list_all()
    assert {entry.name for entry in release.files} == {
        "release.toml",
        "model.onnx",
        "golden.npz",
        "tokenizer.json",
    }


def test_another_name_of_the_text_is_another_signature(tmp_path):
    words.write(tmp_path / "a")
    words.write(tmp_path / "b", spec={"max_bytes = 200": 'max_bytes = 200\nname = "note"'})
    old, new = (parse_spec((tmp_path / n / "release.toml").read_bytes()) for n in "ab")
    assert signature_change(old, old) is None
    assert signature_change(old, new) == "input 'note' is new"


def command(*arguments):
    return CliRunner().invoke(cli.app, ["release", "golden", *map(str, arguments)])


def test_the_golden_file_of_a_release_of_texts_is_written_by_a_command(tmp_path):
    release, texts = tmp_path / "words", tmp_path / "texts.txt"
    words.write(release)
    (release / "golden.npz").unlink()
    texts.write_text("the pump leaks\n\nzu heiß\n", "utf-8")
    said = command(release, texts)
    assert said.exit_code == 0
    assert "golden.npz: 2 golden texts" in said.stdout
    with np.load(release / "golden.npz") as golden:
        assert golden["inputs.text"].tolist() == ["the pump leaks", "zu heiß"]
        wanted = words.expected(["the pump leaks", "zu heiß"])
        assert golden["outputs.hidden"] == pytest.approx(wanted, abs=1e-5)
    assert check_directory(release)["golden_items"] == 2
    told = json.loads(command(release, texts, "--json").stdout)
    assert told == {"file": str(release / "golden.npz"), "texts": 2}


@pytest.mark.parametrize(
    ("content", "reason"), [(b"\xff", "is not UTF-8"), (b"\n", "has 0 texts"), (None, "No such")]
)
def test_a_file_of_texts_that_cannot_be_used_is_named(tmp_path, content, reason):
    words.write(tmp_path / "words")
    texts = tmp_path / "texts.txt"
    if content is not None:
        texts.write_bytes(content)
    failure = command(tmp_path / "words", texts).exception
    assert isinstance(failure, UsageError)
    assert "texts.txt" in str(failure)
    assert reason in str(failure)
