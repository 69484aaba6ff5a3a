"""ONNX files of users: read, with all that lies beside them, and opened as they are."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
import onnxruntime as ort

from gati.errors import BackboneError
from gati.inference.session import open_session

LIMIT = 1_800_000_000
"""Bytes of weights above which a network does not fit a single ONNX file (protobuf ends at 2 GiB)."""


def read(path: Path) -> ir.Model:
    """Reads the graph, with its weights in memory and its local functions inlined.

    Raises:
        BackboneError: If it is not there, no network, too large, or in parts that can't be read.
    """
    if not path.is_file():
        raise BackboneError(f"There is no file {path}; check the path.")
    try:
        model = ir.load(path)
        empty = not len(model.graph)
    except Exception as error:  # the parser's, or what broken fields do to the graph's builder
        if _gives_dictionaries(path):
            raise BackboneError(
                f"{path.name} gives dictionaries (ZipMap), which gati does not serve; export it to give arrays, with "
                "zipmap=False."
            ) from error
        raise BackboneError(f"{path.name} is not an ONNX file, or was cut short.") from error
    if empty:
        raise BackboneError(f"{path.name} holds no network; it is not an ONNX file, or was cut short.")
    passes.RemoveInitializersFromInputsPass()(model)
    passes.TopologicalSortPass()(model)  # ONNX Runtime does that itself, so that some converters leave it out
    _free_unknown(model)
    weights = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    for tensor in weights:
        if isinstance(tensor, ir.ExternalTensor) and not _is_complete(tensor):
            raise BackboneError(
                f"{path.name} keeps weights in {tensor.location!r}, which is missing or too short; put it beside it."
            )
    size = sum(tensor.nbytes for tensor in weights)
    if size > LIMIT:
        raise BackboneError(f"{path.name} has {size / 1e9:.1f} GB of weights; gati serves networks of up to 1.8 GB.")
    ir.external_data.load_to_model(model)
    try:
        passes.InlinePass()(model)
    except ValueError as error:
        raise BackboneError(
            f"{path.name} has functions of its own that can't be taken apart ({error}); inline them with "
            "onnx.inliner, or export it with one opset for all."
        ) from error
    return model


def _gives_dictionaries(path: Path) -> bool:
    """Whether an output is a map, or a sequence of these, of which the graph's builder knows nothing."""
    try:
        types = [value.type for value in onnx.load(path, load_external_data=False).graph.output]
    except Exception:  # it is no ONNX file
        return False
    return any(kind.HasField("map_type") or kind.sequence_type.elem_type.HasField("map_type") for kind in types)


def _free_unknown(model: ir.Model) -> None:
    """Lets dimensions of inputs vary that Paddle2ONNX calls -1 or "?": ONNX Runtime takes them so too."""
    for value in model.graph.inputs:
        dims = [dim.value if isinstance(dim, ir.SymbolicDim) else dim for dim in value.shape or ()]
        if any(dim in (-1, "?") for dim in dims):
            value.shape = ir.Shape([None if dim in (-1, "?") else dim for dim in dims])


def _is_complete(tensor: ir.ExternalTensor) -> bool:
    file = Path(tensor.path)
    return file.is_file() and file.stat().st_size >= (tensor.offset or 0) + tensor.nbytes


def open_file(path: Path, as_written: bool = False) -> ort.InferenceSession:
    """Opens the file as it lies there; see gati.inference.session.open_session.

    Raises:
        BackboneError: If ONNX Runtime can't run it.
    """
    try:
        return open_session(path, as_written=as_written)
    except Exception as error:  # ONNX Runtime has a class for each status, all of them directly below Exception
        raise BackboneError(
            f"ONNX Runtime can't run {path.name} ({shorten(error)}); export it with operators and an opset it knows."
        ) from error


def shorten(error: Exception) -> str:
    """What ONNX Runtime has to say, in one line, without its codes, paths and C++ signatures."""
    text = str(error).strip() or type(error).__name__
    for noise in (
        r"^\[ONNXRuntimeError\] : \d+ : \w+ : ",
        r"^Load model from .*? failed:",
        r"^Non-zero status code returned while running ",
        r" Name:'[^']*' Status Message:",
        r"/\S+?:\d+ .*?\)(?= [A-Z])",
        r"\b\w+\.(h|cc):\d+ ",
    ):
        text = re.sub(noise, "", text)
    text = text.strip().splitlines()[0].rstrip(".")
    return text if len(text) <= 200 else f"{text[:200]}…"
