"""Asks a local API everything that tritonclient can ask it; run by .venv-serving-peers. Prints what it got as JSON.

`triton_client.py ADDRESS`: one with the models of toy_models.py.
"""

import json
import sys

import numpy as np
from tritonclient import http
from tritonclient.utils import InferenceServerException


def image(rows: int, *, as_bytes: bool) -> http.InferInput:
    tensor = http.InferInput("x", [rows, 4], "FP32")
    tensor.set_data_from_numpy(np.arange(rows * 4, dtype=np.float32).reshape(rows, 4), as_bytes)
    return tensor


def refused(ask, *arguments, **options) -> str:
    try:
        ask(*arguments, **options)
    except InferenceServerException as exc:
        return exc.status()
    return "not refused"


def main() -> None:
    client = http.InferenceServerClient(sys.argv[1], concurrency=4)
    version = client.get_model_metadata("double")["versions"][0]
    told = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready("double"),
        "version_ready": client.is_model_ready("double", version),
        "absent_ready": client.is_model_ready("absent"),
        "server": client.get_server_metadata(),
        "model": client.get_model_metadata("double", version),
    }
    for as_bytes in (False, True):
        for wanted_as_bytes in (False, True):
            answer = client.infer(
                "double",
                [image(3, as_bytes=as_bytes)],
                model_version=version,
                outputs=[http.InferRequestedOutput("y", binary_data=wanted_as_bytes)],
                request_id="7",
                priority=1,
                timeout=2_000_000,
            )
            assert answer.get_response()["id"] == "7"
            assert answer.as_numpy("n") is None
            assert answer.as_numpy("y").dtype == np.float32
            assert (answer.as_numpy("y") == 2 * np.arange(12).reshape(3, 4)).all()
    everything = client.infer("double", [image(2, as_bytes=True)])
    told["outputs"] = [everything.as_numpy(name).tolist() for name in ("y", "n")]
    many = [client.async_infer("double", [image(1, as_bytes=True)]) for _ in range(20)]
    told["many"] = sum(answer.get_result().as_numpy("y")[0, 1] == 2 for answer in many)
    one = [image(1, as_bytes=True)]
    told["refused"] = {
        "absent": refused(client.infer, "absent", one),
        "busy": refused(client.infer, "busy", one),
        "late": refused(client.infer, "late", one),
        "version": refused(client.infer, "double", one, model_version="1"),
        "shape": refused(client.infer, "whole", one),
        "compressed": refused(client.infer, "double", one, request_compression_algorithm="gzip"),
    }
    print(json.dumps(told, default=int))


main()
