"""Texts reach a model from wherever requests come: the local API, MQTT, a neighbour, a pipeline's topic."""

import json

import numpy as np
import pytest
from tests.shoal_agent.inference import text_release as words
from tests.shoal_agent.inference.nodes import Known, node

from shoal_agent.inference import texts
from shoal_agent.inference.texts import text_tensor
from shoal_agent.local_api import oip
from shoal_agent.local_api.errors import ApiError
from shoal_agent.local_api.routes import Question, Route
from shoal_agent.local_api.service import Service
from shoal_contract.messages import InferRequest, TensorPart

pytest.importorskip("tokenizers")
TEXTS = ["the pump leaks", "cold"]


@pytest.fixture
async def board(tmp_path):
    release = words.write(tmp_path)
    async with node("b") as one:
        await one.engine.admit(release, tmp_path, trial=False)
        await one.engine.switch("words", release)
        yield one


def parts(data: bytes, count: int = 2) -> list[TensorPart]:
    return [TensorPart("text", "text", [count], data)]


def rows(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.float32).reshape(-1, words.WIDTH)


async def test_the_open_inference_protocol_takes_them_as_bytes(board):
    service = Service(board.engine, board.router, deadline_s=20)
    route = Route(Question.MODEL, "words", "")
    assert json.loads(service.describe(route))["inputs"] == [
        {"name": "text", "datatype": "BYTES", "shape": [-1]}
    ]
    part = {"name": "text", "datatype": "BYTES", "shape": [2], "data": TEXTS}
    answer = await service.infer(oip.decode(json.dumps({"inputs": [part]}).encode(), model="words"))
    (output,) = json.loads(answer.header)["outputs"]
    assert (output["name"], output["shape"]) == ("hidden", [2, words.WIDTH])
    got = np.array(output["data"]).reshape(2, -1)
    assert got == pytest.approx(words.expected(TEXTS), abs=1e-5)
    numbers = {"name": "text", "datatype": "INT64", "shape": [1, 2], "data": [2, 3]}
    with pytest.raises(ApiError, match=r"input 'text' is int64 \[1, 2\], not texts"):
        await service.infer(oip.decode(json.dumps({"inputs": [numbers]}).encode(), model="words"))


async def test_a_request_over_mqtt_holds_them_behind_their_lengths(board):
    data = texts.joined([text.encode() for text in TEXTS])
    request = InferRequest(b"12345678", "words", [], 20_000, tensors=parts(data))
    reply = await board.router.answer(request)
    assert reply.reason == ""
    assert rows(reply.tensors[0].data) == pytest.approx(words.expected(TEXTS), abs=1e-5)
    for wrong, reason in ((parts(data[:-1]), "more than there are"), (parts(data, 3), "3 texts")):
        refused = InferRequest(b"12345678", "words", [], 20_000, tensors=wrong)
        assert reason in (await board.router.answer(refused)).reason


@pytest.mark.slow
async def test_a_neighbour_answers_for_a_board_that_has_no_tokenizer(board):
    async with node("a", discovery=Known(board.peer())) as asker:
        inputs = {"text": text_tensor([text.encode() for text in TEXTS])}
        done = await asker.router.infer("words", inputs, deadline_s=20)
    assert done.by == "b"
    got = rows(bytes(done.outputs["hidden"].data))
    assert got == pytest.approx(words.expected(TEXTS), abs=1e-5)
