"""What passes at a cut of an optimised graph, in place of the cut tensor.

ONNX Runtime keeps the planes of convolutions in blocks of channels, moves transpositions, and of quantised networks
leaves out what makes integers of floating point and back again. So what goes on from a cut may be blocks, the tensor
before it was transposed, or integers. Then that is what passes, under the cut tensor's name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper

TO_PLANES, TRANSPOSE, DEQUANTISE = "ReorderOutput", "Transpose", "DequantizeLinear"
"""ONNX Runtime's operator from blocks to planes, and two of ONNX's."""
AS_IT_WAS = "/as it was"
"""What a cut tensor is called where it passes as something else under its name."""


@dataclass(frozen=True)
class Passed:
    """Something that passes at a cut, under the cut tensor's name, in place of it.

    Attributes:
        kind: ONNX's number for the type of its elements.
        nodes: What makes the cut tensor of it, in order.
        constants: What these read besides.
    """

    kind: int
    nodes: Sequence[NodeProto]
    constants: Sequence[TensorProto] = ()


def name_passed(graph: GraphProto, cuts: Sequence[str]) -> dict[str, Passed]:
    """Gives what goes on from cut tensors their names, and these another."""
    makers = {name: node for node in graph.node for name in node.output}
    readers = Counter(name for node in graph.node for name in {*node.input})
    constants = {tensor.name: tensor for tensor in graph.initializer}
    passed: dict[str, Passed] = {}
    for output in graph.output:
        if output.name in cuts and (found := _passed(output, makers, readers, constants)) is not None:
            passed[output.name] = found
            output.type.tensor_type.elem_type = found.kind
    renamed = {found.nodes[0].input[0]: cut for cut, found in passed.items()} | {c: c + AS_IT_WAS for c in passed}
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [renamed.get(name, name) for name in names]
    return passed


def _passed(
    cut: ValueInfoProto,
    makers: Mapping[str, NodeProto],
    readers: Mapping[str, int],
    constants: Mapping[str, TensorProto],
) -> Passed | None:
    """What goes on from a cut in place of its tensor: blocks, or what others read that it is made of, if anything."""
    kind, nodes, read = cut.type.tensor_type.elem_type, list[NodeProto](), list[TensorProto]()
    maker = makers.get(cut.name)
    if maker is not None and maker.op_type == TO_PLANES:
        return Passed(kind, [maker])
    while maker is not None and (_keeps_batch(maker) or _dequantises(maker, constants)):
        nodes.insert(0, maker)
        read += [constants[name] for name in maker.input[1:]]
        if maker.op_type == DEQUANTISE:
            kind = read[-1].data_type
            del maker.attribute[:]  # of axes and blocks, which a lone scale has not; a head's version may not know them
        if readers[maker.input[0]] > 1:
            return Passed(kind, nodes, read)
        maker = makers.get(maker.input[0])
    return None


def _keeps_batch(node: NodeProto) -> bool:
    """Whether a node transposes, and the batch stays where it is."""
    order = [list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"]
    return node.op_type == TRANSPOSE and bool(order) and order[0][0] == 0


def _dequantises(node: NodeProto, constants: Mapping[str, TensorProto]) -> bool:
    """Whether a node makes float32 of integers, all by the same scale and zero point, which are constants."""
    return (
        (node.op_type, node.domain, len(node.input)) == (DEQUANTISE, "", 3)
        and all(name in constants and len(numpy_helper.to_array(constants[name]).shape) == 0 for name in node.input[1:])
        and constants[node.input[1]].data_type == TensorProto.FLOAT
    )
