"""Fusing: segments with no head between them run as one graph, which spares the cost of a cut.

ONNX Runtime optimises a graph as a whole. A cut converts layouts and prevents fusions: 2 to 3 % of a network each.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import GraphProto, ModelProto
from onnx.compose import add_prefix_graph

from gati.inference.weights import Weights, tensors

LARGEST = 1_500_000_000
"""Most bytes of a graph that is made of several: protobuf ends at 2 GiB, and there are temporary copies."""


def fuse(models: Sequence[bytes]) -> bytes:
    """Joins ONNX models as `join` does, and returns the file's bytes."""
    return models[0] if len(models) == 1 else join(models).SerializeToString()


def join(models: Sequence[bytes], prefix: str = "", weights: Weights | None = None) -> ModelProto:
    """Joins ONNX models, each of which reads the output of the one before, and perhaps inputs of the whole.

    Names inside each model get a prefix: two may hold the same weights, or repeat light work on an input.

    Args:
        models: At least one, of the same operator sets, with different inner names for the tensors between them.
        prefix: Goes before the prefixes that tell the models apart.
        weights: Takes the large tensors out, if given.

    Returns:
        A model with all inputs that are not outputs of another of the models, and with the outputs of the last.

    Raises:
        google.protobuf.message.DecodeError: If one is no ONNX model.
    """
    if len(models) == 1 and not prefix and weights is None:
        return onnx.load_model_from_string(models[0])
    parts = [onnx.load_model_from_string(model) for model in models]
    whole = ModelProto(ir_version=parts[0].ir_version)
    whole.opset_import.extend(parts[0].opset_import)
    whole.graph.name = parts[0].graph.name
    given: set[str] = set()
    functions: set[tuple[str, str]] = set()
    for place, part in enumerate(parts):
        inner = {"rename_inputs": False, "rename_outputs": False, "rename_value_infos": False}
        graph = prefixed(part.graph, f"{prefix}{place}/", inplace=True, **inner)
        if weights is not None:
            weights.take(part)  # now: below, all that is still in the graph is copied
        whole.graph.input.extend(value for value in graph.input if value.name not in given)
        given |= {value.name for value in (*graph.input, *graph.output)}
        whole.graph.node.extend(graph.node)
        whole.graph.initializer.extend(graph.initializer)
        whole.graph.sparse_initializer.extend(graph.sparse_initializer)
        whole.functions.extend(f for f in part.functions if (f.domain, f.name) not in functions)
        functions |= {(function.domain, function.name) for function in part.functions}
    whole.graph.output.extend(parts[-1].graph.output)
    return whole


def prefixed(graph: GraphProto, prefix: str, **how: bool) -> GraphProto:
    """Puts a prefix before names inside a graph; `how` is passed to `onnx.compose.add_prefix_graph`.

    That function alone does not rename what a branch, or a loop's body, reads of the weights outside of it.
    """
    known = {tensor.name: prefix + tensor.name for tensor in tensors(graph)}
    return add_prefix_graph(graph, prefix, name_map=known, **how)


def stage_ranges(count: int, cuts: Sequence[int], sizes: Sequence[int]) -> list[range]:
    """Which segments run together as one stage: those up to each cut point in use, if they are not too large together.

    Args:
        count: Segments of the chain.
        cuts: Cut points with a head.
        sizes: Bytes of each segment.

    Returns:
        Indices of each stage's segments, in order.
    """
    found, start = [], 0
    for index in range(count):
        full = index + 1 < count and sum(sizes[start : index + 2]) > LARGEST
        if index in cuts or full or index + 1 == count:
            found.append(range(start, index + 1))
            start = index + 1
    return found
