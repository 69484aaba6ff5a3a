"""Sizes: shapes that a network reads from hidden tensors, and could as well read from its inputs.

An exporter that traces a network writes down whatever its program reads: the length of a text from the embeddings, say,
to expand the attention mask to. Then every layer depends on the embeddings as well as on the layer before it, and only
the last layer could be cut off, although the inputs have the same length.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from gati_export.backbones.backbone import Backbone
from gati_export.backbones.cutpoints import operations
from gati_export.backbones.equality import answers_alike
from gati_export.backbones.graph import RANDOM, reads, separators, subjects
from gati_export.backbones.subgraph import run_up_to

Feeds = Mapping[str, np.ndarray]
"""Inputs by name, [batch, …] each."""

SIZING = {
    **{"Reshape": (1,), "Expand": (1,), "Tile": (1,), "Pad": (1, 3), "Split": (1,), "Squeeze": (1,), "Unsqueeze": (1,)},
    **{"Slice": (1, 2, 3, 4), "Range": (0, 1, 2), "ConstantOfShape": (0,), "OneHot": (1,), "TopK": (1,)},
    **{"Resize": (1, 2, 3), "Upsample": (1,)},
}
"""Inputs of operators that determine the shape of the result."""

SIZED_BY_CONTENT = frozenset({"NonZero", "Compress", "Unique", "NonMaxSuppression", "If", "Loop", "Scan"})
"""Operators whose results have a shape that depends on the content of their inputs."""


class Place(NamedTuple):
    """Dimension `axis` of input `name`."""

    name: str
    axis: int


def ask_inputs(backbone: Backbone, samples: Feeds | None) -> Backbone:
    """Makes a backbone read sizes from its inputs, where it read them from hidden tensors of the same sizes.

    The graph shows that these sizes follow from the inputs' sizes. Which of them they equal is observed, on batches of
    1 and 2, and on inputs that are shorter, by half and by one, along dimensions that may vary.

    Args:
        backbone: As it was loaded.
        samples: Rows to run it on.

    Returns:
        The backbone, with the same file. Its graph is unchanged, too, if it could be cut at no more places, if it does
        not run on inputs of other sizes, or if its answers would change.
    """
    asked = _asked(backbone.model.graph)
    if not asked:
        return backbone
    try:
        cost = operations(backbone, samples)
        feeds = list(_varied(backbone, samples))
        seen = [run_up_to(backbone.model, asked, each) for each in feeds]
        places = _places(backbone.model.graph, cost, feeds)
        found = {value.name or "": _origins([sizes[value] for sizes in seen], places) for value in asked}
        model = _rewritten(backbone.model, {name: origins for name, origins in found.items() if origins is not None})
        other = replace(backbone, model=model)
        more = len(separators(model.graph, operations(other, samples))) > len(separators(backbone.model.graph, cost))
        return other if more and answers_alike(backbone, model, feeds) else backbone
    except Exception:  # ONNX Runtime's own, about sizes that the network does not take
        return backbone


def _asked(graph: ir.Graph) -> list[ir.Value]:
    """Shapes of hidden tensors that the graph reads and that follow from the inputs' shapes, whatever their content."""
    sizes, sized = set(graph.initializers.values()), {*graph.inputs, *graph.initializers.values()}
    for node in graph:
        values = reads(node)
        sizing = [value for index, value in enumerate(node.inputs) if index in SIZING.get(node.op_type, ()) if value]
        if node.op_type not in SIZED_BY_CONTENT and sized.issuperset(values) and sizes.issuperset(sizing):
            sized.update(node.outputs)
        known = sized if node.op_type in ("Shape", "Size") else sizes
        if node.op_type not in RANDOM and known.issuperset(values):
            sizes.update(node.outputs)
    shapes = [node for node in graph if node.op_type == "Shape" and sizes.issuperset(node.outputs)]
    return [node.outputs[0] for node in shapes if node.inputs[0] and node.inputs[0].producer()]


def _varied(backbone: Backbone, samples: Feeds | None) -> Iterator[Feeds]:
    """Batches of 1 and of 2, and single rows that are shorter along one dimension that may vary."""
    one = backbone.batch(samples, 1)
    yield one
    if backbone.max_batch != 1:
        yield backbone.batch(samples, 2)
    for places in _free(backbone).values():
        length = min(one[place.name].shape[place.axis] for place in places)
        for shorter in {length // 2, length - 1} - {0}:
            yield one | {place.name: one[place.name].take(range(shorter), place.axis) for place in places}


def _free(backbone: Backbone) -> dict[object, list[Place]]:
    """Dimensions of inputs that may vary, together where they have one name, or none and the same axis."""
    found: dict[object, list[Place]] = {}
    for value, tensor in zip(backbone.model.graph.inputs, backbone.inputs, strict=True):
        for axis, size in enumerate(tensor.shape, start=1):
            if size == -1:
                dim = None if value.shape is None else value.shape[axis]
                name = dim.value if isinstance(dim, ir.SymbolicDim) else None
                found.setdefault(name or axis, []).append(Place(tensor.name, axis))
    return found


def _places(graph: ir.Graph, cost: Mapping[ir.Node, int], feeds: Sequence[Feeds]) -> dict[Place, list[int]]:
    """Sizes of inputs' dimensions in each run; first of inputs such as masks, which later layers read anyway."""
    start = [value.name for value in subjects(graph, cost)]
    names = sorted(feeds[0], key=lambda name: name in start)
    places = [Place(name, axis) for name in names for axis in range(feeds[0][name].ndim)]
    return {place: [each[place.name].shape[place.axis] for each in feeds] for place in places}


def _origins(sizes: Sequence[np.ndarray], places: Mapping[Place, list[int]]) -> list[Place | int] | None:
    """For each dimension of a tensor, its size if that is constant, or the input's dimension that it always equals.

    None if a dimension is neither.
    """
    found = [_origin([int(size) for size in dim], places) for dim in zip(*sizes, strict=True)]
    known = [origin for origin in found if origin is not None]
    return known if len(known) == len(found) else None


def _origin(sizes: list[int], places: Mapping[Place, list[int]]) -> Place | int | None:
    if len(set(sizes)) == 1:
        return sizes[0]
    return next((place for place, seen in places.items() if seen == sizes), None)


def _rewritten(model: ir.Model, origins: Mapping[str, Sequence[Place | int]]) -> ir.Model:
    """A copy in which the shapes of these names are computed from the inputs' dimensions."""
    model = model.clone()
    graph, first = model.graph, model.graph[0]
    inputs = {value.name: value for value in graph.inputs}
    sizes: dict[Place | int, ir.Value] = {}
    for node in [node for node in graph if node.outputs[0].name in origins]:
        dims = origins[node.outputs[0].name or ""]
        for dim in dims:
            if dim not in sizes:
                nodes = [_number(dim)] if isinstance(dim, int) else _dimension(inputs[dim.name], dim.axis)
                graph.insert_before(first, nodes)
                sizes[dim] = nodes[-1].outputs[0]
        whole = ir.node("Concat", [sizes[dim] for dim in dims], {"axis": 0})
        graph.insert_before(node, whole)
        node.outputs[0].replace_all_uses_with(whole.outputs[0])
        graph.remove(node, safe=True)
    return model


def _dimension(value: ir.Value, axis: int) -> list[ir.Node]:
    """Nodes that compute the size of a dimension, [1]; it is the output of the last."""
    shape, which = ir.node("Shape", [value]), _number(axis)
    return [shape, which, ir.node("Gather", [shape.outputs[0], which.outputs[0]], {"axis": 0})]


def _number(number: int) -> ir.Node:
    return ir.node("Constant", [], {"value_ints": [number]})
