"""Subgraphs of a network, as models of their own."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from gati.inference.session import open_session
from gati.repository.chain import Tensor
from gati_export.backbones.graph import nodes_between


def extract(graph: ir.Graph, start: ir.Value | None, ends: Sequence[ir.Value]) -> ir.Graph:
    """Copies the part of a graph that computes `ends` from `start`, or from the inputs.

    `onnx_ir.convenience.extract` does nearly this, but has to be told the inputs, and orders initialisers at random, so
    that every export would have another digest.
    """
    nodes, roots = nodes_between(graph, () if start is None else (start,), ends)
    inputs = [value for value in graph.inputs if value in set(roots)]
    view = ir.GraphView(
        inputs if start is None else [start, *inputs],
        ends,
        nodes=nodes,
        initializers=[value for value in roots if value.is_initializer()],
        opset_imports=graph.opset_imports,
        name=graph.name,
        doc_string=graph.doc_string,
        metadata_props=graph.metadata_props,
    )
    return view.clone()


def run_up_to(
    model: ir.Model, values: Collection[ir.Value], feeds: Mapping[str, np.ndarray]
) -> dict[ir.Value, np.ndarray]:
    """Runs a model, and returns the values inside it that are asked for; those that are no dense tensors are left out.

    Raises:
        Exception: ONNX Runtime's own, if it can't be run.
    """
    if not values:
        return {}
    proto = ir.to_proto(model)
    del proto.graph.output[:]
    # without a type: ONNX Runtime infers it, where a file may say something else or nothing
    proto.graph.output.extend(onnx.ValueInfoProto(name=value.name) for value in values)
    results = open_session(proto.SerializeToString()).run(None, dict(feeds))
    return {value: array for value, array in zip(values, results, strict=True) if isinstance(array, np.ndarray)}


NEWER_IR = 8
"""The lowest version of ONNX's format that subgraphs are written in: before 4, weights had to be inputs, too."""


def model_of(whole: ir.Model, graph: ir.Graph) -> ir.Model:
    """A model of a subgraph, with the metadata of the whole one."""
    return ir.Model(
        graph,
        ir_version=max(whole.ir_version, NEWER_IR),
        producer_name=whole.producer_name,
        producer_version=whole.producer_version,
        domain=whole.domain,
        model_version=whole.model_version,
        doc_string=whole.doc_string,
        metadata_props=dict(whole.metadata_props),
    )


def declare(value: ir.Value, tensor: Tensor, batch: int | ir.SymbolicDim) -> None:
    """Declares a boundary's type and shape as they were observed: files often lack them, in part or altogether."""
    known = value.shape if value.shape is not None and len(value.shape) == len(tensor.shape) + 1 else None
    free = [known[i] if known and not isinstance(known[i], int) else None for i in range(1, len(tensor.shape) + 1)]
    dims = [dim if dim >= 0 else free[i] for i, dim in enumerate(tensor.shape)]
    value.type = ir.TensorType(ir.DataType.from_numpy(tensor.numpy))
    value.shape = ir.Shape([batch, *dims])
