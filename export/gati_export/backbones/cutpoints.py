"""Cut points: where a backbone can be cut, and at which of these places a head is worth its while."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from gati.errors import BackboneError
from gati.repository.chain import Tensor
from gati_export.backbones.backbone import DTYPE_OF, FLOATS, Backbone
from gati_export.backbones.compute import Shape, counts, macs
from gati_export.backbones.graph import Separator, separators
from gati_export.backbones.onnxfile import shorten
from gati_export.backbones.subgraph import run_up_to

LATEST = 0.95
"""Share of the compute after which a hit would save too little."""


@dataclass(frozen=True)
class CutPoint:
    """A tensor that alone separates the graph before it from the graph after it.

    Attributes:
        tensor: The tensor; its shape is without the batch dimension.
        node: Index of its producer among the graph's nodes.
        share: Share of the backbone's multiply-accumulate operations done when it is computed, 0..1, from shapes.
        elements: How many numbers it has for one sample.
    """

    tensor: Tensor
    node: int
    share: float
    elements: int


def find_cutpoints(backbone: Backbone, samples: Mapping[str, np.ndarray] | None = None) -> list[CutPoint]:
    """Finds all cut points at which a head could sit.

    These are the graph's separators (see `gati_export.backbones.graph`) that come after some heavy work and hold a
    float tensor, batch first, of rank ≥ 2 and of the same shape for every row. Shapes are not inferred but seen: the
    backbone is run on batches of 1 and 2.

    Returns:
        Cut points in the order of computation; none where every position is bridged by a skip connection.

    Raises:
        BackboneError: If the backbone fails on the samples, or could be cut early enough only where no head can read.
    """
    cost = operations(backbone, samples)
    found = [separator for separator in separators(backbone.model.graph, cost) if separator.done]
    values = [separator.value for separator in found]
    seen = [_run(backbone, values, backbone.batch(samples, size)) for size in _batches(backbone)]
    scores = backbone.model.graph.outputs[0]
    varied = _run_resized(backbone, [*values, scores], backbone.batch(samples, 1))
    if varied and scores in varied:
        backbone.check_width(varied[scores])
    places = {separator: _cutpoint(separator, seen, varied) for separator in found}
    early = [place for separator, place in places.items() if separator.done <= LATEST * separator.total]
    reasons = [place for place in early if isinstance(place, str)]
    if reasons and len(reasons) == len(early):
        raise BackboneError(f"This network can't be cut: between its layers, {max(reasons, key=reasons.count)}.")
    return [place for place in places.values() if isinstance(place, CutPoint)]


def operations(backbone: Backbone, samples: Mapping[str, np.ndarray] | None) -> dict[ir.Node, int]:
    """Multiply-accumulate operations of each node of the graph, for one row."""
    shapes = _shapes(backbone, samples)
    return {node: macs(node, lambda value: shapes.get(value, ())) for node in backbone.model.graph}


def _batches(backbone: Backbone) -> tuple[int, ...]:
    return (1,) if backbone.max_batch == 1 else (1, 2)


def _shapes(backbone: Backbone, samples: Mapping[str, np.ndarray] | None) -> dict[ir.Value, Shape]:
    """Shapes, for a batch of 1, of all that nodes with countable operations read and write."""
    countable = [node for node in backbone.model.graph if counts(node)]
    operands = dict.fromkeys(v for node in countable for v in (*node.inputs, node.outputs[0]) if v is not None)
    feeds = backbone.batch(samples, 1)
    shapes: dict[ir.Value, Shape] = {}
    for value in operands:
        if value.const_value is not None:
            shapes[value] = tuple(int(d) for d in value.const_value.shape.numpy())
        elif value.is_graph_input():
            shapes[value] = feeds[value.name or ""].shape
    seen = _run(backbone, [value for value in operands if value not in shapes], feeds)
    return shapes | {value: array.shape for value, array in seen.items()}


def _run(
    backbone: Backbone, values: Collection[ir.Value], feeds: Mapping[str, np.ndarray]
) -> dict[ir.Value, np.ndarray]:
    """Runs the backbone, and gives tensors inside it."""
    try:
        return run_up_to(backbone.model, values, feeds)
    except Exception as error:  # ONNX Runtime's classes have no root of their own
        raise BackboneError(f"{backbone.path.name} can't be run up to hidden tensors ({shorten(error)}).") from error


def _run_resized(
    backbone: Backbone, values: Collection[ir.Value], feeds: Mapping[str, np.ndarray]
) -> dict[ir.Value, np.ndarray] | None:
    """Runs on inputs of another size, where they have dimensions that may vary; None if that fails."""
    if not any(-1 in tensor.shape for tensor in backbone.inputs):
        return {}
    resized = {}
    for tensor in backbone.inputs:
        rows = feeds[tensor.name]
        for axis, size in enumerate(tensor.shape, start=1):
            if size == -1:
                half = range(rows.shape[axis] // 2) if rows.shape[axis] > 1 else [0, 0]
                rows = rows.take(half, axis)
        resized[tensor.name] = rows
    try:
        return _run(backbone, values, resized)
    except BackboneError:
        return None


def _cutpoint(
    separator: Separator, seen: Sequence[Mapping[ir.Value, np.ndarray]], varied: Mapping[ir.Value, np.ndarray] | None
) -> CutPoint | str:
    """The cut point of a separator, or where a head could not read it, what is there instead."""
    value = separator.value
    arrays = [results[value] for results in seen if value in results]
    if len(arrays) < len(seen) or arrays[0].ndim < 2:
        return "there is no tensor with a row for each sample"
    if any(array.shape != (batch, *arrays[0].shape[1:]) for batch, array in enumerate(arrays, start=1)):
        if all(array.ndim > 2 and array.shape[1] == batch for batch, array in enumerate(arrays, start=1)):
            return "the batch is the second dimension, as recurrent layers have it in ONNX, and heads need it first"
        return "tensors have other shapes than a row for each sample"
    dtype = DTYPE_OF.get(ir.DataType.from_numpy(arrays[0].dtype))
    if dtype not in FLOATS or not arrays[0].size:
        return "there are no floating-point numbers, and heads need some; quantise the network in QDQ form"
    tensor = Tensor(value.name or "", dtype, _row_shape(value, arrays[0], varied))
    return CutPoint(tensor, separator.node, separator.done / separator.total, arrays[0].size)


def _row_shape(value: ir.Value, array: np.ndarray, varied: Mapping[ir.Value, np.ndarray] | None) -> tuple[int, ...]:
    """Shape without the batch, with -1 where it was seen to vary, or is declared to if no other size could be run."""
    shape = array.shape[1:]
    if varied is None:
        declared = None if value.shape is None else value.shape[1:]
        return tuple(d if declared and isinstance(declared[i], int) else -1 for i, d in enumerate(shape))
    other = varied[value].shape[1:] if value in varied else shape
    return tuple(d if d == o else -1 for d, o in zip(shape, other, strict=True))


def choose_cutpoints(cutpoints: Sequence[CutPoint], limit: int = 8) -> list[CutPoint]:
    """Chooses the cut points that are worth a head.

    Cut points with no heavy work between them see the same, so that one of them is kept: the
    smallest tensor, and the last of equal ones. That one never lies between a convolution or matrix product and its
    normalisation, bias or activation, which ONNX Runtime fuses: they change no sizes, so the one after them wins.
    Then, while there are more than `limit`, the one goes whose neighbours are nearest to each other by
    compute; the earliest, which saves most, stays.

    Raises:
        BackboneError: If none is left.
    """
    early = [point for point in cutpoints if point.share <= LATEST]
    runs = itertools.groupby(early, key=lambda point: point.share)
    kept = [min(reversed(list(run)), key=lambda point: point.elements) for _, run in runs]
    if not kept:
        raise BackboneError(
            "This network has no tensor, batch first, that alone separates what comes before it from what comes after, "
            "so it can't be cut; gati needs layers or blocks one after another, behind where all inputs have met."
        )
    while len(kept) > max(limit, 1):
        shares = [*(point.share for point in kept), 1.0]
        gaps = {i: shares[i + 1] - shares[i - 1] for i in range(1, len(kept))}
        del kept[min(gaps, key=lambda i: (gaps[i], -i))]
    return kept
