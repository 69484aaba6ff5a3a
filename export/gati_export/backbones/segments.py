"""Segments: the graphs between cut points, as files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from gati.errors import BackboneError
from gati.repository.chain import Segment, Tensor
from gati_export.backbones.backbone import Backbone
from gati_export.backbones.cutpoints import CutPoint
from gati_export.backbones.onnxfile import LIMIT
from gati_export.backbones.quantised import begin_with, end_with, pair_before, pair_behind
from gati_export.backbones.subgraph import declare, extract, model_of
from gati_export.staging import write_part


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
            digest = write_part(path, data)
        except OSError as error:
            raise BackboneError(f"Segment {graph.index} can't be written to {path} ({error.strerror}).") from error
        segments.append(Segment(graph.index, graph.inputs, graph.output, digest, 0.0))
    return tuple(segments)


def with_shares(segments: Sequence[Segment], seconds: np.ndarray | Sequence[float]) -> tuple[Segment, ...]:
    """Fills in each segment's `share`: the part of all seconds that has passed when it is done."""
    done = np.cumsum(seconds) / np.sum(seconds)
    return tuple(replace(segment, share=float(share)) for segment, share in zip(segments, done, strict=True))
