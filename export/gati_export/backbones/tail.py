"""The tail: what a network makes of its scores, such as probabilities, a label, or the five best.

Heads foretell scores. What else the network gives is computed of these alone, whoever answered, without weights: so it
is right where the scores are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from gati.errors import BackboneError
from gati.inference.session import open_session
from gati.repository.chain import DTYPES, Tensor
from gati_export.backbones.compute import counts
from gati_export.backbones.graph import bottlenecks, nodes_between
from gati_export.backbones.subgraph import declare, extract, model_of, run_up_to
from gati_export.staging import write_part

NAME_OF = {dtype: name for name, dtype in DTYPES.items()}
TOLERANCE = 1e-3
"""Largest difference of a row's outputs alone and beside another row."""
LEAVE_OUT = "name the outputs to serve without it (--outputs)."


@dataclass(frozen=True, eq=False)
class TailGraph:
    """What a network makes of its scores.

    Attributes:
        outputs: All that the network gives, in its order; its scores need not be among them.
        model: From the scores to all other outputs.
    """

    outputs: tuple[Tensor, ...]
    model: ir.Model

    def write(self, path: Path) -> str:
        """Writes the model; returns the file's SHA-256."""
        data = ir.to_proto(self.model).SerializeToString(deterministic=True)
        return write_part(path, data)


def is_pixel(sizes: Sequence[int | str]) -> bool:
    """Whether an output, [batch, *sizes], is one pixel with a channel for each class."""
    return len(sizes) > 1 and all(size == 1 for size in sizes[1:])


def flattened(model: ir.Model, end: ir.Value, sizes: Sequence[int | str]) -> ir.Value:
    """Leads an output that is one pixel, [batch, classes, 1, 1], by [batch, classes]; others stay as they are."""
    if end.producer() is None or not is_pixel(sizes):
        return end
    name = end.name or ""
    flat = ir.node("Flatten", [end], {"axis": 1})
    flat.outputs[0].name = _unused(model.graph, f"{name}/scores")
    shape = ir.Value(
        name=_unused(model.graph, f"{name}/shape"), const_value=ir.tensor(np.array([0, -1, *sizes[1:]], np.int64))
    )
    model.graph.register_initializer(shape)
    return _replaced(model.graph, end, [flat, ir.node("Reshape", [flat.outputs[0], shape])])


def renamed(model: ir.Model, end: ir.Value) -> ir.Value:
    """Leads an output by a tensor of another name, so that heads can give that one."""
    return _replaced(model.graph, end, [ir.node("Identity", [end])]) if end.producer() else end


def _replaced(graph: ir.Graph, end: ir.Value, nodes: Sequence[ir.Node]) -> ir.Value:
    """Has the last of some nodes behind an output give it in its place."""
    maker, found = end.producer(), nodes[-1].outputs[0]
    assert maker is not None
    found.name, end.name = end.name, _unused(graph, f"{end.name}/before")
    graph.insert_after(maker, nodes)
    graph.outputs[list(graph.outputs).index(end)] = found
    return found


def _unused(graph: ir.Graph, name: str) -> str:
    """A name, or one like it, that nothing in a graph has."""
    taken = ir.convenience.create_value_mapping(graph)
    while name in taken:
        name += "_"
    return name


def divide(
    model: ir.Model, ends: Sequence[ir.Value], batches: Sequence[Mapping[str, np.ndarray]], fewest: int
) -> tuple[Tensor, TailGraph] | None:
    """Finds the scores of a network that gives what follows from them, and what makes this of them.

    Args:
        model: The network.
        ends: Its outputs.
        batches: Inputs by name to run it on; the first that it takes is used.
        fewest: How many scores a row has at least.

    Returns:
        The last floating-point tensor [batch, scores] of which alone all outputs are computed, without weights, and the
        tail; None where there is no such tensor.

    Raises:
        BackboneError: If an output can't be served.
    """
    candidates = _may_be_scores(model.graph, ends)
    seen = next((values for feeds in batches if (values := _seen(model, candidates, feeds))), {})
    for value in candidates:
        rows = seen.get(value, np.empty(0))
        if rows.ndim == 2 and rows.dtype.kind == "f" and rows.shape[1] >= fewest:
            scores = Tensor(value.name or "", NAME_OF[rows.dtype], rows.shape[1:])
            return scores, _tail(model, value, scores, ends, rows)
    return None


def _may_be_scores(graph: ir.Graph, ends: Collection[ir.Value]) -> list[ir.Value]:
    """Values of which alone all of `ends` are computed, without weights; the last one first."""
    found = []
    for value in reversed([value for value in bottlenecks(graph, ends) if [value] != [*ends]]):
        behind, _ = nodes_between(graph, [value], ends)
        if any(map(counts, behind)):
            break
        found.append(value)
    return found


def _seen(model: ir.Model, values: Collection[ir.Value], feeds: Mapping[str, np.ndarray]) -> dict[ir.Value, np.ndarray]:
    try:
        return run_up_to(model, values, feeds)
    except Exception:  # ONNX Runtime's own: a batch may be free in name only
        return {}


def _tail(model: ir.Model, value: ir.Value, scores: Tensor, ends: Sequence[ir.Value], rows: np.ndarray) -> TailGraph:
    """Takes what is behind the scores out of a model, and tries it on some."""
    graph = extract(model.graph, value, [end for end in ends if end is not value])
    tail, batch = model_of(model, graph), ir.SymbolicDim("batch")
    declare(graph.inputs[0], scores, batch)
    known = {scores.name: scores} | _outputs(tail, scores, rows)
    for end in graph.outputs:
        declare(end, known[end.name or ""], batch)
    return TailGraph(tuple(known[end.name or ""] for end in ends), tail)


def _outputs(tail: ir.Model, scores: Tensor, rows: np.ndarray) -> dict[str, Tensor]:
    """The outputs as they are seen; each must have a row for each row of scores, that hangs on this one alone."""
    session = open_session(ir.to_proto(tail).SerializeToString())
    names = [node.name for node in session.get_outputs()]
    together = session.run(names, {scores.name: rows})
    alone = [session.run(names, {scores.name: rows[i : i + 1]}) for i in range(len(rows))]
    found = {}
    for node, values, *ones in zip(session.get_outputs(), together, *alone, strict=True):
        if not isinstance(values, np.ndarray) or values.dtype not in NAME_OF:
            raise BackboneError(f"Output {node.name!r} is {node.type}, which gati does not serve; {LEAVE_OUT}")
        if not _are_rows(ones, values):
            raise BackboneError(f"Output {node.name!r} is not one row for each row of the scores; {LEAVE_OUT}")
        found[node.name] = Tensor(node.name, NAME_OF[values.dtype], values.shape[1:])
    return found


def _are_rows(ones: Sequence[np.ndarray], values: np.ndarray) -> bool:
    if values.shape[:1] != (len(ones),) or any(one.shape != (1, *values.shape[1:]) for one in ones):
        return False
    return np.allclose(np.concatenate(ones), values, rtol=0, atol=TOLERANCE, equal_nan=True)
