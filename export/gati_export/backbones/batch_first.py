"""Batch first: tensors with the time before the batch, as recurrent layers have them in ONNX, are transposed.

A head needs the batch as the first dimension. So a pair of transpositions is put behind such a tensor, of which the
second undoes the first; the graph can be cut between the two. Where it is not, ONNX Runtime removes both again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from gati_export.backbones.backbone import Backbone
from gati_export.backbones.cutpoints import operations
from gati_export.backbones.equality import answers_alike
from gati_export.backbones.graph import separators
from gati_export.backbones.subgraph import run_up_to


def batch_first(backbone: Backbone, samples: Mapping[str, np.ndarray] | None) -> Backbone:
    """Makes a backbone have the batch first wherever all of it passes through one tensor.

    Args:
        backbone: As it was loaded.
        samples: Rows to run it on.

    Returns:
        The backbone, with the same file. Its graph is unchanged, too, if nothing is to be transposed, or if the answers
        would change.
    """
    if not any(map(_moves_batch, backbone.model.graph)):
        return backbone
    try:
        sizes = (1,) if backbone.max_batch == 1 else (1, 2, 3)
        feeds = [backbone.batch(samples, size) for size in sizes]
        found = [each.value for each in separators(backbone.model.graph, operations(backbone, samples)) if each.done]
        seen = [run_up_to(backbone.model, found, each) for each in feeds]
        ranks = {value.name or "": seen[0][value].ndim for value in found if _is_second(value, seen)}
        if not ranks:
            return backbone
        model = _transposed(backbone.model, ranks)
        return replace(backbone, model=model) if answers_alike(backbone, model, feeds) else backbone
    except Exception:  # ONNX Runtime's own; the search for cut points will report it
        return backbone


def _moves_batch(node: ir.Node) -> bool:
    """Whether a node may move the first dimension, which is the batch in inputs, to the second place."""
    order = node.attributes.get("perm")
    return node.op_type == "Transpose" and (order is None or order.as_ints()[1:2] == (0,))


def _is_second(value: ir.Value, seen: Sequence[Mapping[ir.Value, np.ndarray]]) -> bool:
    """Whether the batch is a tensor's second dimension and not its first, in all batches that were run."""
    shapes = [results[value].shape for results in seen if value in results]
    sizes = list(range(1, len(seen) + 1))
    return (
        len(shapes) == len(seen)
        and len(shapes[0]) > 2
        and [shape[1] for shape in shapes] == sizes != [shape[0] for shape in shapes]
    )


def _transposed(model: ir.Model, ranks: Mapping[str, int]) -> ir.Model:
    """A copy in which the tensors of these names, and of so many dimensions, are transposed and transposed back."""
    model = model.clone()
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    for name, rank in ranks.items():
        value, order = values[name], [1, 0, *range(2, rank)]
        readers, producer = list(value.uses()), value.producer()
        if producer is None or value.is_graph_output():
            continue
        there = ir.node("Transpose", [value], {"perm": order})
        back = ir.node("Transpose", there.outputs, {"perm": order})
        there.outputs[0].name = f"{name}/batch_first"
        model.graph.insert_after(producer, [there, back])
        for node, index in readers:
            node.replace_input_with(index, back.outputs[0])
    return model
