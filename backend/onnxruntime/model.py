"""Stand-in for Triton's C++ ONNX Runtime backend, where Triton came from pip alone and has none.

Serves `<model>/<version>/model.onnx` of repositories that say `backend: "onnxruntime"`, one batch at a time, on a
processor, or on the GPU of an instance that has one. It exists so that the same repository runs on both; it is no
faster than Python.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import gati  # noqa: F401  # first: it keeps ONNX Runtime from telling of models

# isort: split
import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

from gati.errors import first_line
from gati.inference.session import INTRA_OP, SPIN, Device, open_alone, open_session, run, threads
from gati.system.parent import when_orphaned
from gati.triton.heartbeat import beat


class TritonPythonModel:
    """What Triton's Python backend calls; see its own documentation for the methods."""

    def initialize(self, args: dict[str, str]) -> None:
        path = Path(args["model_repository"], args["model_version"], "model.onnx")
        try:
            self._session = _open(path, args)
        except Exception as error:
            raise pb_utils.TritonModelException(f"{path.name} can't be opened: {first_line(error)}") from None
        when_orphaned(lambda: os._exit(1))
        beat(os.environ)
        self._inputs = [i.name for i in self._session.get_inputs()]
        self._outputs = [o.name for o in self._session.get_outputs()]

    def execute(self, requests: list[Any]) -> list[Any]:
        if len(requests) > 1:
            with suppress(Exception):  # alone, each gets its own answer or its own error
                return self._answer_together(requests)
        return [self._answer(request) for request in requests]

    def _answer_together(self, requests: list[Any]) -> list[Any]:
        """Answers what Triton has batched, by one run."""
        feeds = [self._feeds(request) for request in requests]
        joined = {name: np.concatenate([one[name] for one in feeds]) for name in self._inputs}
        values = dict(zip(self._outputs, run(self._session, self._outputs, joined), strict=True))
        ends = np.cumsum([len(one[self._inputs[0]]) for one in feeds])
        parts = {name: np.split(value, ends[:-1]) for name, value in values.items()}
        return [
            _response(wanted, [parts[name][place] for name in wanted])
            for place, wanted in enumerate(map(self._wanted, requests))
        ]

    def _answer(self, request: Any) -> Any:
        try:
            wanted = self._wanted(request)
            values = run(self._session, wanted, self._feeds(request))
        except Exception as error:
            return pb_utils.InferenceResponse(
                error=pb_utils.TritonError(first_line(error), pb_utils.TritonError.INVALID_ARG)
            )
        return _response(wanted, values)

    def _feeds(self, request: Any) -> dict[str, np.ndarray]:
        return {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self._inputs}

    def _wanted(self, request: Any) -> list[str]:
        return [name for name in self._outputs if name in request.requested_output_names()]


def _response(names: list[str], values: list[np.ndarray]) -> Any:
    return pb_utils.InferenceResponse([pb_utils.Tensor(n, v) for n, v in zip(names, values, strict=True)])


def _open(path: Path, args: dict[str, str]) -> ort.InferenceSession:
    if args["model_instance_kind"] == "GPU":
        return open_session(path, Device("cuda", int(args["model_instance_device_id"])))
    return open_alone(path, *_threading(args["model_config"]))


def _threading(config: str) -> tuple[int, bool]:
    """Threads and spinning, from the parameters of the model's configuration (JSON)."""
    parameters = {key: value["string_value"] for key, value in json.loads(config).get("parameters", {}).items()}
    return int(parameters.get(INTRA_OP, threads())), parameters.get(SPIN, "1") == "1"
