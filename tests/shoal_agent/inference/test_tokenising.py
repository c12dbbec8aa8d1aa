import asyncio
import math
import sys

import numpy as np
import pytest
from tests.shoal_agent.inference import text_release as words

from shoal_agent.inference.engine import Engine
from shoal_agent.inference.errors import BadInputError, ModelRefusedError
from shoal_agent.inference.model_errors import ModelError
from shoal_agent.inference.onnx_model import Model
from shoal_agent.inference.texts import text_tensor
from shoal_agent.inference.trial import try_out

pytest.importorskip("tokenizers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


BOMB = "a" * 60 + "b"


def run(model, texts):
    tensor = text_tensor([text.encode() for text in texts])
    form, rows = model.signature.form({"text": tensor}, ())
    array = np.frombuffer(tensor.data, np.uint8).reshape(tensor.shape)
    (output,) = model.run(form, [array])
    assert len(output) == rows
    return output


def reason_why_not(directory):
    try:
        Model(directory)
    except ModelError as exc:
        return str(exc)
    return ""


def test_texts_are_tokenised_run_and_pooled(tmp_path):
    words.write(tmp_path)
    model = Model(tmp_path)
    assert model.golden_count == len(words.TEXTS)
    assert [(i.name, i.dtype, i.shape) for i in model.signature.outputs] == [
        ("hidden", "float32", (-1, words.WIDTH))
    ]
    texts = ["Hot VALVE", "the the cold", "ünknown"]
    assert run(model, texts) == pytest.approx(words.expected(texts), abs=1e-5)


def test_a_text_that_is_too_long_for_the_model_is_cut_off(tmp_path):
    words.write(tmp_path)
    model = Model(tmp_path)
    long = "hot " * 40
    assert run(model, [long]) == pytest.approx(words.expected([long]), abs=1e-5)
    with pytest.raises(BadInputError, match="a text of 201 bytes; the model takes at most 200"):
        run(model, ["x" * 201])


def test_an_empty_text_has_an_answer(tmp_path):
    words.write(tmp_path)
    output = run(Model(tmp_path), ["", "hot"])
    assert output == pytest.approx(words.expected(["", "hot"]), abs=1e-5)


def test_a_row_may_also_be_that_of_the_first_token(tmp_path):
    words.write(tmp_path, spec={"max_bytes = 200": 'max_bytes = 200\npooling = "cls"'})
    with pytest.raises(ModelError, match="golden inputs give other outputs"):
        Model(tmp_path)
    rows = [words.table()[[2, words.WORDS.index("hot")]]]
    wanted = np.array([r[0] + r.mean(axis=0) for r in rows])
    np.savez(
        tmp_path / "golden.npz",
        **{
            "inputs.text": np.array(["hot"]),
            "outputs.hidden": (wanted / np.linalg.norm(wanted)).astype(np.float32),
        },
    )
    assert Model(tmp_path).golden_count == 1


def test_a_model_that_does_not_heed_the_mask_is_refused(tmp_path):
    words.write(tmp_path, heeds_mask=False)
    np.savez(
        tmp_path / "golden.npz",
        **{"inputs.text": np.array(["hot"]), "outputs.hidden": words.expected(["hot"])},
    )
    with pytest.raises(ModelError, match="filled up with `pad`, golden inputs give other outputs"):
        Model(tmp_path)


@pytest.mark.parametrize(
    ("tokens", "reason"),
    [
        (b"", "tokenizer.json: EOF"),
        (b"\xff\xfe", "tokenizer.json: not UTF-8"),
        (b"[]", "tokenizer.json: invalid type"),
        (b"[" * 100_000, "tokenizer.json: "),
        (words.tokenizer()[:-20], "tokenizer.json: "),
        (words.tokenizer(words.WORDS[2:]), "tokenizer.json: .*UNK"),
        (
            words.tokenizer([*words.WORDS[:4], "[x]", *words.WORDS[4:]]),
            "ONNX Runtime|other outputs",
        ),
    ],
)
def test_a_tokenizer_that_is_none_or_another_is_refused_with_the_reason(tmp_path, tokens, reason):
    words.write(tmp_path, tokens=tokens)
    with pytest.raises(ModelError, match=reason):
        Model(tmp_path)


def test_a_tokenizer_file_that_is_too_large_is_not_read(tmp_path):
    words.write(tmp_path)
    with (tmp_path / "tokenizer.json").open("r+b") as file:
        file.truncate(48 * 1024 * 1024 + 1)
    with pytest.raises(ModelError, match=r"tokenizer.json: not a plain file of at most"):
        Model(tmp_path)


def test_mutated_tokenizers_are_taken_or_refused_and_nothing_else(tmp_path):
    words.write(tmp_path)
    good = words.tokenizer()
    rng = np.random.default_rng(11)
    refused = 0
    for _ in range(150):
        bad = bytearray(good)
        for place in rng.integers(0, len(bad), 3):
            bad[place] = rng.integers(32, 127)
        (tmp_path / "tokenizer.json").write_bytes(bad)
        reason = reason_why_not(tmp_path)
        refused += bool(reason)
        assert "\n" not in reason
    assert refused > 30


def test_a_golden_text_at_which_the_tokenizer_breaks_is_a_reason(tmp_path):
    words.write(tmp_path, tokens=words.bomb())
    arrays = {"inputs.text": np.array([BOMB]), "outputs.hidden": words.expected([BOMB])}
    np.savez(tmp_path / "golden.npz", **arrays)
    with pytest.raises(ModelError, match=r"tokenizer.json: the tokenizer broke: .*retry-limit"):
        Model(tmp_path)


@pytest.mark.slow
async def test_a_text_at_which_the_tokenizer_breaks_is_refused_and_its_neighbours_are_not(tmp_path):
    release = words.write(tmp_path, tokens=words.bomb())
    async with Engine.open() as engine:
        await engine.admit(release, tmp_path, trial=False)
        await engine.switch("words", release)

        def ask(text):
            tensor = text_tensor([text.encode()])
            return engine.infer("words", {"text": tensor}, deadline_s=30)

        good, bad, other = await asyncio.gather(
            ask("the pump"), ask(BOMB), ask("cold"), return_exceptions=True
        )
        assert isinstance(bad, BadInputError)
        assert "retry-limit" in str(bad)
        for done, text in ((good, "the pump"), (other, "cold")):
            row = np.frombuffer(done.outputs["hidden"].data, np.float32)
            assert row == pytest.approx(words.expected([text])[0], abs=1e-5)
        assert engine.stats.worker_restarts == 0


@pytest.mark.slow
def test_a_board_without_the_package_says_what_to_install(tmp_path, monkeypatch):
    words.write(tmp_path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ModelError, match=r"install requirements/text.txt"):
        Model(tmp_path)


@pytest.mark.slow
async def test_the_trial_of_a_board_refuses_it_with_the_reason(tmp_path):
    release = words.write(tmp_path, tokens=b"{}")
    with pytest.raises(ModelRefusedError, match=r"tokenizer.json"):
        await try_out(release, tmp_path, python=sys.executable)


@pytest.mark.slow
async def test_texts_of_many_requests_share_batches_and_get_their_own_answers(tmp_path):
    release = words.write(tmp_path / "r")
    async with Engine.open() as engine:
        await engine.admit(release, tmp_path / "r")
        await engine.switch("words", release)
        texts = [" ".join(words.WORDS[3 : 4 + n % 7]) for n in range(60)]

        async def ask(text):
            tensor = text_tensor([text.encode()])
            done = await engine.infer("words", {"text": tensor}, deadline_s=20)
            return np.frombuffer(done.outputs["hidden"].data, np.float32)

        rows = await asyncio.gather(*map(ask, texts))
        assert np.array(rows) == pytest.approx(words.expected(texts), abs=1e-5)
        assert engine.stats.batches < len(texts)
        assert math.isclose(np.linalg.norm(rows[0]), 1, abs_tol=1e-5)
