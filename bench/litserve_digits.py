"""`litserve_digits.py MODEL PORT`: an ONNX file served by LitServe, as its documentation has it. Run by .venv-serving-peers."""

import sys
from typing import Any

import litserve
import numpy as np
import onnxruntime


class Digits(litserve.LitAPI):
    """Takes and gives Open Inference Protocol's JSON, as the others do."""

    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe passes it by name
        """Load the model."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(
            sys.argv[1], options, providers=["CPUExecutionProvider"]
        )
        self.input = self.session.get_inputs()[0].name

    def decode_request(self, request) -> np.ndarray:  # noqa: ANN001 - it would become FastAPI's
        """The first input."""
        tensor = request["inputs"][0]
        return np.asarray(tensor["data"], np.float32).reshape(tensor["shape"])

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Run the model."""
        return self.session.run(None, {self.input: x})[0]

    def encode_response(self, output: np.ndarray) -> dict[str, Any]:
        """The one output."""
        tensor = {"name": "logits", "datatype": "FP32", "shape": list(output.shape)}
        return {"model_name": "digits", "outputs": [{**tensor, "data": output.ravel().tolist()}]}


def main() -> None:
    """Serve until told to end."""
    api = Digits(api_path="/v2/models/digits/infer")
    server = litserve.LitServer(api, accelerator="cpu", fast_queue=True)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[2]),
        log_level="error",
        generate_client_file=False,
        num_api_servers=1,
    )


if __name__ == "__main__":
    main()
