"""Models of other people's in a chain's repository: they are served as Triton alone would serve them."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from conftest import MODEL, Exported, Serve, Served

from gati.triton.startup import is_complete

PREPARES = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.add_input({"name": "RAW", "data_type": "TYPE_FP32", "dims": [1, 16, 16]})
        config.add_output({"name": "SCALED", "data_type": "TYPE_FP32", "dims": [1, 16, 16]})
        config.set_max_batch_size(4)
        return config

    def execute(self, requests):
        given = [pb_utils.get_input_tensor_by_name(request, "RAW").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("SCALED", each)]) for each in given]
"""
PIPELINE = f"""
platform: "ensemble"
max_batch_size: 4
input [{{ name: "RAW", data_type: TYPE_FP32, dims: [1, 16, 16] }}]
output [{{ name: "output", data_type: TYPE_FP32, dims: [10] }}]
ensemble_scheduling {{ step [{{
  model_name: "prepares", model_version: -1
  input_map {{ key: "RAW", value: "RAW" }} output_map {{ key: "SCALED", value: "scaled" }}
}}, {{
  model_name: "{MODEL}", model_version: -1
  input_map {{ key: "image", value: "scaled" }} output_map {{ key: "output", value: "output" }}
}}] }}
"""
CALLS = f"""
import time
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        time.sleep(1)
        return [self._call(pb_utils.get_input_tensor_by_name(request, "image").as_numpy()) for request in requests]

    def _call(self, image):
        called = pb_utils.InferenceRequest(
            model_name="{MODEL}", requested_output_names=["output"], inputs=[pb_utils.Tensor("image", image)]
        ).exec()
        if called.has_error():
            return pb_utils.InferenceResponse(error=called.error())
        return pb_utils.InferenceResponse([pb_utils.Tensor("output", called.output_tensors()[0].as_numpy())])
"""
CALLS_CONFIG = """
backend: "python"
max_batch_size: 4
input [{ name: "image", data_type: TYPE_FP32, dims: [1, 16, 16] }]
output [{ name: "output", data_type: TYPE_FP32, dims: [10] }]
"""


def put(repository: Path, name: str, code: str = "", config: str = "") -> None:
    (repository / name / "1").mkdir(parents=True)
    if code:
        (repository / name / "1" / "model.py").write_text(code)
    if config:
        (repository / name / "config.pbtxt").write_text(config)


def ask(served: Served, model: str, name: str, images: np.ndarray) -> np.ndarray:
    with triton.InferenceServerClient(served.grpc) as client:
        tensor = triton.InferInput(name, images.shape, "FP32")
        tensor.set_data_from_numpy(images)
        outputs = [triton.InferRequestedOutput("output")]
        answer = client.infer(model, [tensor], outputs=outputs, parameters={"gati_mode": "exact"})
        return answer.as_numpy("output")


@pytest.mark.parametrize("config", ["", 'backend: "python"\n'], ids=["none", "short"])
def test_what_a_configuration_leaves_out_is_found_out(
    exported: Exported, serve: Serve, tmp_path: Path, config: str
) -> None:
    repository = exported.copy(tmp_path)
    put(repository, "prepares", PREPARES, config)
    put(repository, "pipeline", config=PIPELINE)
    served = serve(repository)
    assert served.server.models == [MODEL, "pipeline", "prepares"]
    images = exported.images[:4]
    np.testing.assert_array_equal(ask(served, "pipeline", "RAW", images), ask(served, MODEL, "image", images))


def test_what_is_all_said_need_not_be_found_out(exported: Exported, tmp_path: Path) -> None:
    """Which takes a second process of each model's, and as long again."""
    repository = exported.copy(tmp_path, plain=True)
    put(repository, "calls", CALLS, CALLS_CONFIG)
    assert is_complete(repository)
    for left_out in ("backend", "max_batch_size", "input", "output"):
        lines = [f"# {line}" if line.startswith(left_out) else line for line in CALLS_CONFIG.splitlines()]
        (repository / "calls" / "config.pbtxt").write_text("\n".join(lines))
        assert not is_complete(repository)


def test_what_calls_a_chain_is_answered_before_the_end(exported: Exported, serve: Serve, tmp_path: Path) -> None:
    repository = exported.copy(tmp_path)
    put(repository, "calls", CALLS, CALLS_CONFIG)
    served = serve(repository)
    answers = list[np.ndarray]()
    asking = threading.Thread(target=lambda: answers.append(ask(served, "calls", "image", exported.images[:1])))
    asking.start()
    time.sleep(0.5)
    served.server.stop()
    asking.join()
    assert [answer.shape for answer in answers] == [(1, 10)]
