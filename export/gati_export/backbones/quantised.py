"""Quantised networks in QDQ form: on either side of a cut, the pair of operators that stands there is kept.

ONNX Runtime computes in integers where it finds `DequantizeLinear` before an operator and `QuantizeLinear` behind it. A
cut would part an operator from one of them, and have it computed in floating point: slower, and rounded otherwise than
in the whole. To quantise once more what was quantised changes nothing: whole multiples of the scale stay what they are.
"""

from __future__ import annotations

from typing import NamedTuple

import onnx_ir as ir

QUANTISE, DEQUANTISE = "QuantizeLinear", "DequantizeLinear"


class Pair(NamedTuple):
    """A `QuantizeLinear`, and a `DequantizeLinear` that reads what it gives."""

    quantise: ir.Node
    dequantise: ir.Node


def pair_before(value: ir.Value) -> Pair | None:
    """The pair that makes a value, if one does."""
    dequantise = value.producer()
    quantise = dequantise.inputs[0].producer() if dequantise and dequantise.inputs[0] else None
    return _pair(quantise, dequantise)


def pair_behind(value: ir.Value) -> Pair | None:
    """The pair through which all that read a value read it: one, or several alike."""
    readers = [node for node, _ in value.uses()]
    pairs = [_pair(node, next((reader for reader, _ in node.outputs[0].uses()), None)) for node in readers]
    first = pairs[0] if pairs else None
    if first is None or value.is_graph_output():
        return None
    return first if all(pair and _numbers(pair[0]) == _numbers(first[0]) for pair in pairs) else None


def _numbers(node: ir.Node) -> list[tuple[str, bytes]]:
    """What a node quantises with."""
    tensors = [ir.convenience.get_const_tensor(value) for value in node.inputs[1:] if value]
    return [(str(tensor.dtype), tensor.numpy().tobytes()) for tensor in tensors if tensor is not None]


def _pair(quantise: ir.Node | None, dequantise: ir.Node | None) -> Pair | None:
    if quantise is None or dequantise is None or (quantise.op_type, dequantise.op_type) != (QUANTISE, DEQUANTISE):
        return None
    constants = [ir.convenience.get_const_tensor(v) for n in (quantise, dequantise) for v in n.inputs[1:] if v]
    known = all(tensor is not None for tensor in constants) and _numbers(quantise) == _numbers(dequantise)
    return Pair(quantise, dequantise) if known else None


def begin_with(graph: ir.Graph, pair: Pair) -> None:
    """Has a graph that goes on from a cut read it through a copy of a pair."""
    given = graph.inputs[0]
    readers = list(given.uses())
    nodes = _copy(graph, pair, given)
    for node, index in readers:
        node.replace_input_with(index, nodes[-1].outputs[0])
    graph.insert_before(graph[0], nodes)


def end_with(graph: ir.Graph, pair: Pair) -> None:
    """Has a graph give its output through a copy of a pair, under the output's own name."""
    output = graph.outputs[0]
    name, output.name = output.name, f"{output.name}/exact"
    nodes = _copy(graph, pair, output)
    graph.extend(nodes)
    nodes[-1].outputs[0].name = name
    graph.outputs[0] = nodes[-1].outputs[0]


def _copy(graph: ir.Graph, pair: Pair, value: ir.Value) -> list[ir.Node]:
    """A pair's nodes, not in the graph yet, that read a value of it."""
    stem, nodes = value.name, list[ir.Node]()
    for node in pair:
        label = f"{stem}/{node.op_type}"
        constants = [given and _constant(graph, given, f"{label}/{i}") for i, given in enumerate(node.inputs[1:])]
        attributes = [attribute for attribute in node.attributes.values() if isinstance(attribute, ir.Attr)]
        copy = ir.Node(node.domain, node.op_type, [value, *constants], attributes, name=label)
        value = copy.outputs[0]
        value.name = f"{label}/output"
        nodes.append(copy)
    return nodes


def _constant(graph: ir.Graph, value: ir.Value, name: str) -> ir.Value:
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None:
        raise ValueError(f"{value.name} is computed.")
    shape = ir.Shape(tensor.shape.numpy())
    constant = ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(constant)
    return constant
