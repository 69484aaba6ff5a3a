"""Weights: the large tensors of graphs, kept in memory once for all sessions that read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, helper

from gati.inference.session import open_session
from gati.system.temporary import temporary_folder

FILE = "weights"
LEAST = 1 << 12
"""Smallest tensor, in bytes, that is worth sharing."""
ALIGNED = 64
"""Alignment in bytes, as processors like it."""
KINDS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT8, TensorProto.UINT8}


class Weights:
    """Tensors by name, taken out of graphs, and lent to sessions.

    Copies that kernels pack for themselves, as those of matrix products do, still belong to each session.
    """

    def __init__(self, held: Mapping[str, np.ndarray] | None = None) -> None:
        self._held = dict(held or {})

    @property
    def bytes(self) -> int:
        """Size of all tensors."""
        return sum(values.nbytes for values in self._held.values())

    def fork(self) -> Weights:
        """A second collection of the same tensors, to which others can be added."""
        return Weights(self._held)

    def drop(self) -> None:
        """Lets go of all tensors."""
        self._held.clear()

    def take(self, model: ModelProto, folder: Path | None = None) -> None:
        """Takes the large tensors out of a model; their names, types and shapes stay in it.

        Args:
            model: The model.
            folder: The model's folder, if some of its tensors are in files beside it.
        """
        for tensor in tensors(model.graph):
            raw = np.frombuffer(tensor.raw_data, np.uint8)
            if folder is not None and tensor.data_location == TensorProto.EXTERNAL:
                raw = _read(tensor, folder)
                tensor.ClearField("external_data")
                tensor.ClearField("data_location")
            if tensor.data_type in KINDS and raw.nbytes >= LEAST:
                if tensor.name not in self._held:
                    kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
                    self._held[tensor.name] = raw.view(kind).reshape(tensor.dims)
                tensor.ClearField("raw_data")
                tensor.data_location = TensorProto.EXTERNAL
            elif raw.nbytes:
                tensor.raw_data = raw.tobytes()

    def put_back(self, model: ModelProto) -> None:
        """Puts the tensors that were taken back into a model."""
        for tensor in self._gone(model):
            tensor.ClearField("data_location")
            tensor.ClearField("external_data")
            tensor.raw_data = self._held[tensor.name].tobytes()

    def lay_beside(self, model: ModelProto, folder: Path) -> None:
        """Writes the tensors that were taken into a file, for a model that is to be written beside it.

        Raises:
            OSError: If there is no room.
        """
        with (folder / FILE).open("wb") as file:
            for tensor in self._gone(model):
                values = self._held[tensor.name]
                place = {"location": FILE, "offset": file.tell(), "length": values.nbytes}
                del tensor.external_data[:]
                for key, value in place.items():
                    tensor.external_data.add(key=key, value=str(value))
                values.tofile(file)

    def open(self, model: ModelProto) -> ort.InferenceSession:
        """Opens a model whose tensors were taken, on the processor.

        Raises:
            Exception: ONNX Runtime's own, if the model can't be run; OSError, if there is no room for temporary files.
        """
        gone = {tensor.name: tensor for tensor in self._gone(model)}
        for name in gone:
            self._held[name] = _aligned(self._held[name])
        lent = {name: ort.OrtValue.ortvalue_from_numpy(self._held[name]) for name in gone}
        with temporary_folder() as folder:
            # ONNX Runtime reads some tensors, those of an `If`'s branches or to optimise, before it looks at what it is
            # lent. So they also lie in files beside the model, for as long as it is being opened.
            for number, (name, tensor) in enumerate(gone.items()):
                self._held[name].tofile(Path(folder) / str(number))
                del tensor.external_data[:]
                tensor.external_data.add(key="location", value=str(number))
            path = Path(folder) / "model.onnx"
            path.write_bytes(model.SerializeToString())
            return open_session(path, lent=lent)

    def _gone(self, model: ModelProto) -> Iterator[TensorProto]:
        """The tensors of a model that were taken."""
        return (tensor for tensor in tensors(model.graph) if tensor.data_location == TensorProto.EXTERNAL)


def tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """A graph's initializers, and those of graphs inside it; sparse ones are not among them."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from tensors(attribute.g)


def _read(tensor: TensorProto, folder: Path) -> np.ndarray:
    """Bytes of a tensor that lies in a file beside its model."""
    place = {entry.key: entry.value for entry in tensor.external_data}
    raw = _room(int(place["length"]))
    with (folder / place["location"]).open("rb") as file:
        file.seek(int(place.get("offset", 0)))
        if file.readinto(raw.data) < raw.nbytes:
            raise OSError(f"{place['location']} ends within {tensor.name}")
    return raw


def _aligned(values: np.ndarray) -> np.ndarray:
    """The same values, aligned; copied if they are not."""
    if values.ctypes.data % ALIGNED == 0:
        return values
    copy = _room(values.nbytes).view(values.dtype).reshape(values.shape)
    copy[...] = values
    return copy


def _room(size: int) -> np.ndarray:
    """Aligned memory of so many bytes."""
    room = np.empty(size + ALIGNED, np.uint8)
    start = -room.ctypes.data % ALIGNED
    return room[start : start + size]
