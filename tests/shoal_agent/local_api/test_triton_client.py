"""The Python client of Triton, as its makers publish it, finds what it looks for."""

import asyncio
import json
from pathlib import Path

import pytest
from tests.support.toy_models import VERSION

ROOT = Path(__file__).parents[3]
PYTHON = ROOT / ".venv-serving-peers/bin/python"
PROGRAM = ROOT / "tests/support/triton_client.py"


@pytest.mark.skipif(not PYTHON.exists(), reason="sh tools/setup-serving-peers")
@pytest.mark.timeout(60)
async def test_tritonclient_is_answered_whatever_it_asks(api, models):
    process = await asyncio.create_subprocess_exec(
        PYTHON, PROGRAM, f"127.0.0.1:{api.port}", stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    assert process.returncode == 0
    told = json.loads(said)
    assert {name: told[name] for name in told if name.endswith(("live", "ready"))} == {
        "live": True,
        "ready": True,
        "model_ready": True,
        "version_ready": True,
        "absent_ready": False,
    }
    assert told["server"]["extensions"] == ["binary_tensor_data"]
    assert told["model"]["versions"] == [VERSION]
    assert told["outputs"] == [[[0, 2, 4, 6], [8, 10, 12, 14]], [0, 1]]
    assert told["many"] == 20
    assert told["refused"] == {
        "absent": "404",
        "busy": "429",
        "late": "504",
        "version": "404",
        "shape": "400",
        "compressed": "415",
    }
    assert {(asked.priority, asked.deadline_s) for asked in models.asked} == {(2, 2.0), (1, 5.0)}
