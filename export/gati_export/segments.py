"""Segments: the graphs between cut points, as files, and the proof that one after another they are the backbone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from gati.chain import Segment, Tensor
from gati.errors import BackboneError
from gati.session import open_session
from gati_export.activations import run_segments
from gati_export.backbone import LIMIT, Backbone
from gati_export.cutpoints import CutPoint
from gati_export.pieces import declare, extract, model_of
from gati_export.quantised import begin_with, end_with, pair_before, pair_behind

BATCH = 8
"""Rows of the larger batches that segments are checked on."""

ALONE = 32
"""Rows that are also checked one by one, and on which the backbone is held against itself."""

TOLERANCE, HALF_TOLERANCE = 1e-5, 1e-2
"""Largest difference of an answer, relative to its largest score or 1: of float32 networks, and of float16 ones."""

BATCH_TOLERANCE = 3e-2
"""The same, between a row alone and in a batch; products of other sizes are rounded in another order."""


@dataclass(frozen=True, eq=False)
class SegmentGraph:
    """The graph between two cut points.

    Attributes:
        index: Position in the chain, from 0.
        inputs: Names of what it reads: the cut tensor before it first, then model inputs that it needs.
        output: The cut tensor after it, or the backbone's output.
        model: The graph. Its weights are the backbone's own, in memory once, until they are written.
    """

    index: int
    inputs: tuple[str, ...]
    output: Tensor
    model: ir.Model


def cut(backbone: Backbone, cutpoints: Sequence[CutPoint]) -> list[SegmentGraph]:
    """Cuts a backbone at cut points of its own.

    Returns:
        One segment more than cut points, in the order of computation. Dynamic dimensions, operator sets and metadata
        are kept; weights that two segments need, and light work on the inputs, are in both.
    """
    points = sorted(cutpoints, key=lambda point: point.node)
    tensors = [*(point.tensor for point in points), backbone.output]
    values = ir.convenience.create_value_mapping(backbone.model.graph, include_subgraphs=False)
    batch = _batch_dimension(backbone)
    graphs = []
    for index, tensor in enumerate(tensors):
        start = tensors[index - 1] if index else None
        graph = extract(backbone.model.graph, values[start.name] if start else None, [values[tensor.name]])
        if start:
            declare(graph.inputs[0], start, batch)
            _read_batch_from_cut(graph)
            if pair := pair_before(values[start.name]):
                begin_with(graph, pair)
        if pair := pair_behind(values[tensor.name]):
            end_with(graph, pair)
        declare(graph.outputs[0], tensor, batch)
        inputs = tuple(value.name or "" for value in graph.inputs)
        graphs.append(SegmentGraph(index, inputs, tensor, model_of(backbone.model, graph)))
    return graphs


def _batch_dimension(backbone: Backbone) -> int | ir.SymbolicDim:
    """The batch as the backbone's first input has it."""
    shape = backbone.model.graph.inputs[0].shape
    dim = None if shape is None else shape[0]
    if dim is None or (isinstance(dim, ir.SymbolicDim) and dim.value is None):
        return ir.SymbolicDim("batch")
    return dim


def _read_batch_from_cut(graph: ir.Graph) -> None:
    """Spares a segment model inputs of which it only wants to know how many rows there are: the cut tensor has as many.

    Exported networks ask the image for the batch size wherever they reshape. Without this, every segment would
    be sent the image.
    """
    for value in list(graph.inputs)[1:]:
        readers = [(node, index) for node, index in value.uses()]
        if all(node.graph is graph and node.op_type == "Shape" and _wants_batch(node) for node, _ in readers):
            for node, index in readers:
                node.replace_input_with(index, graph.inputs[0])
            graph.inputs.remove(value)


def _wants_batch(shape: ir.Node) -> bool:
    """Whether of a `Shape` node's result only the first number is used."""
    start, end = (shape.attributes.get(name) for name in ("start", "end"))
    if end is not None:
        return end.as_int() == 1 and (start is None or start.as_int() == 0)
    if start is not None and start.as_int() != 0:
        return False
    readers = [node for node, _ in shape.outputs[0].uses()]
    return not shape.outputs[0].is_graph_output() and all(_takes_first(node) for node in readers)


def _takes_first(node: ir.Node) -> bool:
    """Whether a node takes number 0 of a list: `Gather` at 0, or `Slice` from 0 to 1."""
    wanted = {"Gather": [0], "Slice": [0, 1]}.get(node.op_type)
    tensors = [None if value is None else ir.convenience.get_const_tensor(value) for value in node.inputs[1:3]]
    if wanted is None or any(tensor is None for tensor in tensors):
        return False
    return [int(number) for tensor in tensors if tensor is not None for number in tensor.numpy().flatten()] == wanted


def write_segments(graphs: Sequence[SegmentGraph], folder_of: Callable[[int], Path]) -> tuple[Segment, ...]:
    """Writes each segment as `folder_of(index)/model.onnx`, byte for byte the same for the same backbone.

    Returns:
        The chain's segments. Their `share` is 0.0 until `with_shares` fills in what was measured.

    Raises:
        BackboneError: If a segment is too large for one file, or can't be written.
    """
    segments = []
    for graph in graphs:
        weights = sum(
            value.const_value.nbytes for value in graph.model.graph.initializers.values() if value.const_value
        )
        if weights > LIMIT:
            raise BackboneError(f"Segment {graph.index} has {weights / 1e9:.1f} GB of weights; cut at more places.")
        data = ir.to_proto(graph.model).SerializeToString(deterministic=True)
        path = folder_of(graph.index) / "model.onnx"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        except OSError as error:
            raise BackboneError(f"Segment {graph.index} can't be written to {path} ({error.strerror}).") from error
        segments.append(Segment(graph.index, graph.inputs, graph.output, hashlib.sha256(data).hexdigest(), 0.0))
    return tuple(segments)


def with_shares(segments: Sequence[Segment], seconds: Sequence[float]) -> tuple[Segment, ...]:
    """Fills in each segment's `share`: the part of all seconds that has passed when it is done."""
    done = np.cumsum(seconds) / np.sum(seconds)
    return tuple(replace(segment, share=float(share)) for segment, share in zip(segments, done, strict=True))


def check_segments(backbone: Backbone, paths: Sequence[Path], samples: Mapping[str, np.ndarray]) -> float:
    """Compares the segments, run one after another, with the whole backbone: on all samples in batches, on some alone.

    Args:
        backbone: The backbone.
        paths: The segments' files, in order.
        samples: Model inputs by name, [n, …].

    Returns:
        The largest difference of a score, relative to the largest score of its row or 1; 0.0 when bit for bit the same.

    Raises:
        BackboneError: If they differ by more than float32 (or float16) rounding explains, or if the backbone
            differs as much from itself, run twice, or much from itself in batches of other sizes.
    """
    sessions = [open_session(path) for path in paths]
    allowed = tolerance(backbone)
    count = len(samples[backbone.inputs[0].name])
    sizes = {1: count} if backbone.max_batch == 1 else {1: min(count, ALONE), BATCH: count}
    largest = 0.0
    for size, rows in sizes.items():
        for start in range(0, rows, size):
            feeds = {tensor.name: samples[tensor.name][start : start + size] for tensor in backbone.inputs}
            expected = backbone.run(feeds)
            if start < ALONE and not difference(backbone.run(feeds), expected) <= allowed:
                raise BackboneError(
                    "The backbone answers the same input differently from run to run; export it in eval mode, without "
                    "dropout or random numbers."
                )
            largest = max(largest, difference(run_segments(sessions, feeds), expected))
    _check_batches(backbone, samples)
    if largest > allowed:
        raise BackboneError(
            f"The segments' answers differ from the backbone's by {largest:.1e} of its largest score, where rounding "
            f"explains {allowed:.0e}; {_advice(backbone)}."
        )
    return largest


def _advice(backbone: Backbone) -> str:
    if any(node.op_type == "QuantizeLinear" for node in backbone.model.graph):
        return (
            "where 8-bit products overflow, ONNX Runtime's answers depend on what it fuses: quantise the network with "
            "reduce_range, or give it as it was before"
        )
    return "cut at fewer places (--cut-points)"


def _check_batches(backbone: Backbone, samples: Mapping[str, np.ndarray]) -> None:
    """Refuses a backbone whose answer to a row depends on the other rows of its batch: nothing could be promised."""
    if backbone.max_batch == 1:
        return
    feeds = {tensor.name: samples[tensor.name][:BATCH] for tensor in backbone.inputs}
    together = backbone.run(feeds)
    alone = [backbone.run({name: rows[i : i + 1] for name, rows in feeds.items()}) for i in range(len(together))]
    apart = difference(np.concatenate(alone), together)
    if not apart <= BATCH_TOLERANCE:
        raise BackboneError(
            f"The backbone answers the same input differently alone and in a batch (by {apart:.1e} of its largest "
            "score); leave out what mixes rows, such as normalisation in training mode or dynamic quantisation, or "
            "export it with a batch of 1."
        )


def tolerance(backbone: Backbone) -> float:
    """The largest `difference` from a backbone's answers that rounding explains."""
    weights = (value.dtype for value in backbone.model.graph.initializers.values())
    half = backbone.output.dtype == "FP16" or any(d in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16) for d in weights)
    return HALF_TOLERANCE if half else TOLERANCE


def difference(actual: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference relative to the row's largest score or 1; infinite where one of them is not a number."""
    if actual.shape != expected.shape:
        return np.inf
    wide, other = expected.astype(np.float64), actual.astype(np.float64)
    scale = np.maximum(np.abs(wide).max(axis=1, keepdims=True), 1.0)
    with np.errstate(invalid="ignore"):
        apart = np.where(wide == other, 0.0, np.abs(wide - other) / scale)
    return float(np.nan_to_num(apart, nan=np.inf).max(initial=0.0))
