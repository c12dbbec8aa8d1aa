"""The client of `make bench-infer-http`: every request has its own answer, and none that failed is counted."""

import asyncio
import importlib
import json
import sys
from pathlib import Path

import pytest
from tests.shoal_agent.until import until
from tests.support.toy_models import ToyModels

from shoal_agent.config import LocalApiTable
from shoal_agent.local_api.server import serve
from shoal_agent.local_api.service import Service

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def http_load(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    for name in ("http_load", "measure"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("http_load")
    for name in ("http_load", "measure"):
        sys.modules.pop(name, None)


def request(http_load, number: float, model: str = "double") -> bytes:
    part = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [number] * 4}
    body = json.dumps({"inputs": [part]}).encode()
    return http_load.request(f"/v2/models/{model}/infer", body)


@pytest.fixture
async def api():
    models = ToyModels()
    service = Service(models, models, deadline_s=5)
    async with serve(LocalApiTable(port=0), service) as api:
        yield api


@pytest.mark.parametrize("connections", [1, 4])
async def test_every_answer_stands_where_its_request_stood(api, http_load, connections):
    asked = [request(http_load, number) for number in range(50)]
    answered = await asyncio.to_thread(http_load.ask, api.port, asked, connections=connections)
    firsts = [json.loads(body)["outputs"][0]["data"][0] for body in answered.bodies]
    assert firsts == [2 * number for number in range(50)]
    assert all(0 < latency_s <= answered.took_s for latency_s in answered.latencies_s)
    assert api.stats.connections == connections
    await until(lambda: not api.connections)


async def test_an_answer_that_is_a_refusal_ends_the_run(api, http_load):
    asked = [request(http_load, 1), request(http_load, 1, "busy")]
    with pytest.raises(sys.modules["measure"].BenchError, match="429"):
        await asyncio.to_thread(http_load.ask, api.port, asked, connections=1)
