"""Weights: the large tensors of graphs, held once for all sessions that read them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, numpy_helper

from gati.session import open_session

LEAST = 1 << 12
"""Bytes of a tensor that is worth being held once."""
ALIGNED = 64
"""Bytes, by which processors like to read."""
KINDS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT8, TensorProto.UINT8}


class Weights:
    """Tensors by name, taken out of graphs, and lent to sessions.

    What a kernel packs for itself, as those of matrix products do, is the session's own all the same.
    """

    def __init__(self, held: Mapping[str, np.ndarray] | None = None) -> None:
        self._held = dict(held or {})

    @property
    def bytes(self) -> int:
        """How much is held."""
        return sum(values.nbytes for values in self._held.values())

    def fork(self) -> Weights:
        """The same tensors, to which others can be added."""
        return Weights(self._held)

    def take(self, model: ModelProto) -> None:
        """Takes the large tensors out of a model: what stays are their names, types and shapes."""
        for tensor in _tensors(model.graph):
            if tensor.data_type in KINDS and len(tensor.raw_data) >= LEAST:
                if tensor.name not in self._held:
                    self._held[tensor.name] = _aligned(numpy_helper.to_array(tensor))
                tensor.ClearField("raw_data")
                tensor.data_location = TensorProto.EXTERNAL

    def put_back(self, model: ModelProto) -> None:
        """Puts them back."""
        for tensor in self._gone(model):
            tensor.ClearField("data_location")
            tensor.ClearField("external_data")
            tensor.raw_data = self._held[tensor.name].tobytes()

    def open(self, model: ModelProto) -> ort.InferenceSession:
        """Opens a model whose tensors were taken; on the processor.

        Raises:
            Exception: ONNX Runtime's own, if the model can't be run; OSError, if there is no room for temporary files.
        """
        gone = {tensor.name: tensor for tensor in self._gone(model)}
        lent = {name: ort.OrtValue.ortvalue_from_numpy(self._held[name]) for name in gone}
        with tempfile.TemporaryDirectory(prefix="gati-") as folder:
            # Files beside it, since an `If` keeps a copy of its branches' weights, and ONNX Runtime wants to see some.
            for number, (name, tensor) in enumerate(gone.items()):
                self._held[name].tofile(Path(folder) / str(number))
                del tensor.external_data[:]
                tensor.external_data.add(key="location", value=str(number))
            path = Path(folder) / "model.onnx"
            path.write_bytes(model.SerializeToString())
            return open_session(path, lent=lent)

    def _gone(self, model: ModelProto) -> Iterator[TensorProto]:
        """The tensors of a model that were taken."""
        return (tensor for tensor in _tensors(model.graph) if tensor.data_location == TensorProto.EXTERNAL)


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _tensors(attribute.g)


def _aligned(values: np.ndarray) -> np.ndarray:
    room = np.empty(values.nbytes + ALIGNED, np.uint8)
    start = -room.ctypes.data % ALIGNED
    copy = room[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    copy[...] = values
    return copy
