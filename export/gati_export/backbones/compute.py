"""How much a node computes: multiply-accumulate operations, from the shapes of what it reads and writes."""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx_ir as ir

Shape = tuple[int, ...]
ShapeOf = Callable[[ir.Value], Shape]
"""The shape of a value, in one run of the network; the empty shape where it is unknown."""


def counts(node: ir.Node) -> bool:
    """Whether a node's operations can be counted, so that the shapes around it are needed."""
    return node.op_type in _COUNTERS


def macs(node: ir.Node, shape_of: ShapeOf) -> int:
    """Estimates a node's multiply-accumulate operations.

    A product over a dimension of 1 sums nothing: it is elementwise work, and counts 0 as all such work does.
    """
    counter = _COUNTERS.get(node.op_type)
    if counter is None:
        return 0
    inputs = [() if value is None else shape_of(value) for value in node.inputs]
    try:
        return counter(node, inputs, shape_of(node.outputs[0]))
    except (IndexError, ZeroDivisionError):  # an operand is missing, or its shape is unknown
        return 0


def _convolution(node: ir.Node, inputs: list[Shape], output: Shape) -> int:
    """Each output element sums over one filter: W is [out, in / groups, *kernel]."""
    weight = inputs[3] if node.op_type == "QLinearConv" else inputs[1]
    return math.prod(output) * math.prod(weight[1:])


def _transposed(node: ir.Node, inputs: list[Shape], output: Shape) -> int:
    """Each input element is spread by one filter: W is [in, out / groups, *kernel]."""
    return math.prod(inputs[0]) * math.prod(inputs[1][1:])


def _product(node: ir.Node, inputs: list[Shape], output: Shape) -> int:
    """Each output element sums over the dimension that both operands share, which is the left one's last."""
    transposed = node.attributes.get("transA")
    length = inputs[0][0 if transposed is not None and transposed.as_int() else -1]
    return math.prod(output) * length if length > 1 else 0


def _einsum(node: ir.Node, inputs: list[Shape], output: Shape) -> int:
    """One multiplication for each combination of all indices, where any index is summed over."""
    terms, _, result = node.attributes["equation"].as_string().replace(" ", "").partition("->")
    sizes = {
        letter: size
        for term, shape in zip(terms.split(","), inputs, strict=False)
        # an ellipsis stands for the leading dimensions: those after it are aligned from the right
        for letter, size in zip(reversed(term.rpartition("...")[2]), reversed(shape), strict=False)
    }
    summed = math.prod(size for letter, size in sizes.items() if letter not in result)
    return math.prod(output) * summed if summed > 1 else 0


def _attention(node: ir.Node, inputs: list[Shape], output: Shape) -> int:
    """Scores of each query with each key, then as many products with the values: q and k are [batch, …, length, …]."""
    query, key = inputs[0], inputs[1] or inputs[0]
    return 2 * math.prod(query) * key[-2]


def _fused_attention(node: ir.Node, inputs: list[Shape], output: Shape) -> int:
    """Projections of the input [batch, length, in] by W [in, 3 · hidden], then attention."""
    batch, length, width = inputs[0]
    hidden = inputs[1][1]
    return batch * length * (width * hidden + 2 * length * hidden // 3)


def _recurrent(node: ir.Node, inputs: list[Shape], output: Shape) -> int:
    """Each step of X [length, batch, in] multiplies with W and R, each [directions, gates · hidden, …]."""
    return math.prod(inputs[0][:2]) * (math.prod(inputs[1]) + math.prod(inputs[2]))


_COUNTERS: dict[str, Callable[[ir.Node, list[Shape], Shape], int]] = {
    "Conv": _convolution,
    "FusedConv": _convolution,
    "ConvInteger": _convolution,
    "QLinearConv": _convolution,
    "DeformConv": _convolution,
    "ConvTranspose": _transposed,
    "Gemm": _product,
    "FusedGemm": _product,
    "MatMul": _product,
    "FusedMatMul": _product,
    "MatMulNBits": _product,
    "MatMulInteger": _product,
    "MatMulIntegerToFloat": _product,
    "DynamicQuantizeMatMul": _product,
    "QLinearMatMul": _product,
    "QGemm": _product,
    "Einsum": _einsum,
    "MultiHeadAttention": _attention,
    "Attention": lambda node, *shapes: (_fused_attention if node.domain else _attention)(node, *shapes),
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
}
