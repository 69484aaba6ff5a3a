"""Substitutes: the tensors that really cross a cut of an optimised graph, in place of the cut tensor.

ONNX Runtime keeps the planes of convolutions in blocks of channels, moves transpositions, and removes pairs of
quantisation and dequantisation. So the stage behind a cut may read blocks, the tensor before its transposition, or
integers. Then that substitute crosses the cut, under the cut tensor's name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper

TO_PLANES, TRANSPOSE, DEQUANTISE = "ReorderOutput", "Transpose", "DequantizeLinear"
"""Operators: ONNX Runtime's own from blocks to planes, and two of ONNX's."""
ORIGINAL = "/as it was"
"""Appended to the name of the cut tensor itself, where a substitute has taken its name."""


@dataclass(frozen=True)
class Substitute:
    """A tensor that crosses a cut in place of the cut tensor, under its name.

    Attributes:
        kind: ONNX's number for the type of its elements.
        nodes: The nodes that compute the cut tensor from it, in order.
        constants: The constants that these nodes read.
    """

    kind: int
    nodes: Sequence[NodeProto]
    constants: Sequence[TensorProto] = ()


def name_substitutes(graph: GraphProto, cuts: Sequence[str]) -> dict[str, Substitute]:
    """Finds substitutes of cut tensors, and renames in the graph: a substitute takes its cut tensor's name.

    Args:
        graph: The optimised graph, changed in place.
        cuts: Names of the cut tensors, which are among its outputs.

    Returns:
        The substitutes that there are, by the name of the cut tensor.
    """
    makers = {name: node for node in graph.node for name in node.output}
    readers = Counter(name for node in graph.node for name in {*node.input})
    constants = {tensor.name: tensor for tensor in graph.initializer}
    substitutes: dict[str, Substitute] = {}
    for output in graph.output:
        found = _substitute(output, makers, readers, constants) if output.name in cuts else None
        if found is not None:
            substitutes[output.name] = found
            output.type.tensor_type.elem_type = found.kind
    renamed = {found.nodes[0].input[0]: cut for cut, found in substitutes.items()}
    renamed |= {cut: cut + ORIGINAL for cut in substitutes}
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [renamed.get(name, name) for name in names]
    return substitutes


def _substitute(
    cut: ValueInfoProto,
    makers: Mapping[str, NodeProto],
    readers: Mapping[str, int],
    constants: Mapping[str, TensorProto],
) -> Substitute | None:
    """The blocks that the cut tensor is made of, or else a tensor that other nodes read, too; None if neither."""
    kind, nodes, read = cut.type.tensor_type.elem_type, list[NodeProto](), list[TensorProto]()
    maker = makers.get(cut.name)
    if maker is not None and maker.op_type == TO_PLANES:
        return Substitute(kind, [maker])
    while maker is not None and (_keeps_batch(maker) or _dequantises(maker, constants)):
        nodes.insert(0, maker)
        read += [constants[name] for name in maker.input[1:]]
        if maker.op_type == DEQUANTISE:
            kind = read[-1].data_type
            del maker.attribute[:]  # axes and blocks, which one scale does not need: a head's version may lack them
        if readers[maker.input[0]] > 1:
            return Substitute(kind, nodes, read)
        maker = makers.get(maker.input[0])
    return None


def _keeps_batch(node: NodeProto) -> bool:
    """Whether a node is a transposition that leaves the batch dimension first."""
    order = [list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"]
    return node.op_type == TRANSPOSE and bool(order) and order[0][0] == 0


def _dequantises(node: NodeProto, constants: Mapping[str, TensorProto]) -> bool:
    """Whether a node dequantises integers to float32 by one scale and one zero point, both constant."""
    return (
        (node.op_type, node.domain, len(node.input)) == (DEQUANTISE, "", 3)
        and all(name in constants and len(numpy_helper.to_array(constants[name]).shape) == 0 for name in node.input[1:])
        and constants[node.input[1]].data_type == TensorProto.FLOAT
    )
