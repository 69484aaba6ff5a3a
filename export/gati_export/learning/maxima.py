"""Maxima as poolings, in heads.

ONNX Runtime leaves a GPU's ReduceMax to a routine of cuDNN's that takes as long, on a batch, as the rest of a small
head. A pooling takes a fifth of that; on a processor, both take the same.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir import convenience

ADDED = {2: (1, 2), 3: (2,), 4: ()}
"""By rank: which dimensions of size 1 make [batch, channels, height, width] of it, with all that is pooled behind."""


def pool_maxima(model: ir.Model) -> None:
    """Replaces maxima over each row [batch, n], or each channel's values, by global poolings."""
    for node in [*model.graph]:
        if node.op_type == "ReduceMax" and (rank := _pooled_rank(node)) is not None:
            nodes = _pooling(node, ADDED[rank])
            convenience.replace_nodes_and_values(model.graph, node, [node], nodes, node.outputs, nodes[-1].outputs)


def _pooled_rank(node: ir.Node) -> int | None:
    """Dimensions of what a maximum is taken of; None where that is no pooling."""
    value, axes = (*node.inputs, None)[:2]
    if value is None or value.shape is None or value.dtype != ir.DataType.FLOAT or axes is None:
        return None
    rank, constant = len(value.shape), ir.convenience.get_const_tensor(axes)
    if rank not in ADDED or constant is None:
        return None
    over = sorted(axis % rank for axis in constant.numpy().ravel().tolist())
    return rank if over == ([2, 3] if rank == 4 else [rank - 1]) else None


def _pooling(node: ir.Node, added: tuple[int, ...]) -> list[ir.Node]:
    """Nodes that pool instead; `added` are dimensions that this takes."""
    nodes, value = list[ir.Node](), node.inputs[0]

    def then(kind: str, *axes: int) -> None:
        nonlocal value
        constant = ir.node("Constant", [], {"value_ints": [*axes]}) if axes else None
        made = ir.node(kind, [value, *(constant.outputs if constant else ())])
        nodes.extend([constant, made] if constant else [made])
        value = made.outputs[0]

    if added:
        then("Unsqueeze", *added)
    then("GlobalMaxPool")
    # of [batch, channels, 1, 1], the dimensions that were added go again, and those that were pooled unless kept
    kept = node.attributes.get_int("keepdims", 1)
    gone = {*added} if kept else {*added, 2, 3}
    if gone:
        then("Squeeze", *sorted(gone))
    nodes[-1].outputs[0].shape, nodes[-1].outputs[0].type = node.outputs[0].shape, node.outputs[0].type
    return nodes
