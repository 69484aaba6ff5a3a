"""The graph as cutting sees it: what must be carried across a cut, and what is cheap to compute again behind it.

Values are of four kinds:

1. constants: initialisers, and what is computed from them alone;
2. sizes: what depends on the inputs' shapes only;
3. context: what light operators compute from the inputs (an attention mask, positions, a normalised image), and the
   inputs themselves. Any segment can have it by reading the inputs;
4. trunk: everything else, the work that cutting divides.

Context that the trunk starts from, the image or the token ids, is a *source*. It counts as a tensor that a cut would
have to carry for as long as the trunk reads it, so that no cut lets the network's own subject pass by the head.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import onnx_ir as ir

_LIGHT = {
    "arithmetic": "Abs Add Ceil Clip Cos CumSum DequantizeLinear Div Erf Exp Floor Log Max Mean Min Mod Mul Neg Pow "
    "QuantizeLinear Reciprocal Relu Round Sigmoid Sign Sin Softmax Sqrt Sub Sum Tanh",
    "logic": "And BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Equal Greater GreaterOrEqual IsInf IsNaN Less "
    "LessOrEqual Not Or Where Xor",
    "reduction": "ArgMax ArgMin ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin "
    "ReduceProd ReduceSum ReduceSumSquare",
    "movement": "Cast CastLike Compress Concat Dropout Expand Flatten Gather GatherElements GatherND Identity NonZero "
    "OneHot Pad Reshape ReverseSequence ScatterElements ScatterND Slice Split Squeeze Tile Transpose Trilu Unsqueeze",
    "sizes": "ConstantOfShape EyeLike Range Shape Size",
}
LIGHT = frozenset(name for names in _LIGHT.values() for name in names.split())
"""Operators without weights that cost little, so that computing them again costs less than carrying their result."""

PRODUCTS = frozenset({"MatMul", "Gemm", "Einsum"})
"""Operators that are light where they sum nothing, as the outer product of positions and frequencies does."""

RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
)
"""Operators that must not be computed twice: the results would differ."""

SUBJECTS = {"Attention": 3, "MultiHeadAttention": 3, "LSTM": 1, "GRU": 1, "RNN": 1, "Resize": 1}
"""How many of an operator's first inputs it works on; the others are masks and lengths. All of them, if not listed."""


class Kind(IntEnum):
    """What a value depends on; the largest of its operands' kinds, or more."""

    CONSTANT = 0
    SIZE = 1
    CONTEXT = 2
    TRUNK = 3


def reads(node: ir.Node) -> list[ir.Value]:
    """What a node reads from its own graph, with what its subgraphs (`If`, `Loop`, `Scan`) capture from there."""
    values = [value for value in node.inputs if value is not None]
    for graph in _subgraphs(node):
        inside = [value for inner in ir.traversal.RecursiveGraphIterator(graph) for value in inner.inputs]
        values += [v for v in (*inside, *graph.outputs) if v is not None and v.graph is node.graph]
    return values


def _subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def nodes_between(
    graph: ir.Graph, starts: Collection[ir.Value], ends: Collection[ir.Value]
) -> tuple[list[ir.Node], list[ir.Value]]:
    """Walks back from `ends` to `starts`.

    Returns:
        The nodes that `ends` need, in the graph's order; and the values without a producer that they read:
        inputs and initialisers, in the order of first use.
    """
    bounds = set(starts)
    seen = set(bounds)
    needed: set[ir.Node] = set()
    stack = list(ends)
    while stack:
        value = stack.pop()
        node = value.producer()
        if value in seen or node is None:
            continue
        seen.update(node.outputs)
        needed.add(node)
        stack += reads(node)
    ordered = [node for node in graph if node in needed]
    roots = dict.fromkeys(v for node in ordered for v in reads(node) if v.producer() is None and v not in bounds)
    return ordered, list(roots)


def classify(nodes: list[ir.Node], inputs: Collection[ir.Value], macs: Mapping[ir.Node, int]) -> dict[ir.Value, Kind]:
    """Finds the kind of every value that nodes, in topological order, read or write."""
    kinds: dict[ir.Value, Kind] = dict.fromkeys(inputs, Kind.CONTEXT)
    for node in nodes:
        kind = max((kinds.setdefault(value, Kind.CONSTANT) for value in reads(node)), default=Kind.CONSTANT)
        if node.op_type in RANDOM:
            kind = Kind.TRUNK
        elif kind in (Kind.SIZE, Kind.CONTEXT):
            if not _is_light(node, kinds, macs):
                kind = Kind.TRUNK
            elif node.op_type in ("Shape", "Size"):
                kind = Kind.SIZE
        kinds.update(dict.fromkeys(node.outputs, kind))
    return kinds


def _is_light(node: ir.Node, kinds: Mapping[ir.Value, Kind], macs: Mapping[ir.Node, int]) -> bool:
    if node.op_type == "If":
        inside = (inner for graph in _subgraphs(node) for inner in ir.traversal.RecursiveGraphIterator(graph))
        return all(inner.op_type in LIGHT or inner.op_type == "Constant" for inner in inside)
    if node.domain not in ("", "ai.onnx") or node.op_type not in LIGHT | PRODUCTS:
        return False
    if node.op_type == "Gather":
        return not _is_embedding(node, kinds)
    return not macs.get(node, 0)


def _is_embedding(node: ir.Node, kinds: Mapping[ir.Value, Kind]) -> bool:
    """A learned table looked up by data is where a text network starts, and too large to be in two segments."""
    table, index = node.inputs[0], node.inputs[1]
    if table is None or index is None or kinds[table] != Kind.CONSTANT or kinds[index] != Kind.CONTEXT:
        return False
    tensor = ir.convenience.get_const_tensor(table)
    # a table that is computed, dequantised say, has no tensor; take it for what it most likely is
    return tensor is None or (tensor.dtype.is_floating_point() and len(tensor.shape) > 1)


@dataclass(frozen=True)
class Separator:
    """A value of the trunk that separates its nodes: all before it work towards it, all after it depend on it alone.

    Attributes:
        value: The value.
        node: Index of its producer among the graph's nodes.
        done: Operations of the trunk up to it.
        total: Operations of the whole trunk.
    """

    value: ir.Value
    node: int
    done: int
    total: int


def separators(graph: ir.Graph, macs: Mapping[ir.Node, int]) -> list[Separator]:
    """Finds every value that alone separates the trunk, by one sweep over the nodes in any topological order.

    A value is live from its producer to its last reader in the trunk; sources are live from the start. Claim: *t*
    separates the trunk if and only if *t* alone is live right after its producer. If *t* alone is live there, whatever
    comes later gets at earlier work through *t* only. Conversely, let another value *u* be live there: a
    node *w* after it reads *u*, and *w* works towards the output (other nodes are left out), so a path leads from *u*
    by *w* to the output. It misses *t*: *t*'s producer comes after *u*'s, and before *w* and all that follows. So
    *t* doesn't separate. Nothing in this depends on which topological order was swept.

    The output itself is left out: nothing comes after it.
    """
    output = graph.outputs[0]
    trunk, kinds = _trunk(graph, macs)
    index = {node: position for position, node in enumerate(graph)}
    done = list(itertools.accumulate(macs.get(node, 0) for node in trunk))
    return [
        Separator(value, index[trunk[position]], done[position], done[-1])
        for position, value in _alone(trunk, _sources(trunk, kinds), [output])
        if value is not output
    ]


def bottlenecks(graph: ir.Graph, ends: Collection[ir.Value]) -> list[ir.Value]:
    """Values of which alone all of `ends` are computed, in the order of computation, by the same sweep.

    Unlike separators they let nothing of the inputs by, not even what is cheap to compute again.
    """
    nodes, _ = nodes_between(graph, (), ends)
    kinds = classify(nodes, graph.inputs, {})
    varying = [node for node in nodes if kinds[node.outputs[0]] != Kind.CONSTANT]
    return [value for _, value in _alone(varying, {*graph.inputs}, ends)]


def _alone(
    nodes: Sequence[ir.Node], live: Collection[ir.Value], ends: Collection[ir.Value]
) -> Iterator[tuple[int, ir.Value]]:
    """Values that alone are live right after their producers, whose positions come with them."""
    last = {value: position for position, node in enumerate(nodes) for value in reads(node)}
    last |= dict.fromkeys(ends, len(nodes))
    for position, node in enumerate(nodes):
        live = {value for value in (*live, *node.outputs) if last.get(value, -1) > position}
        if len(live) == 1 and (value := next(iter(live))) in node.outputs:
            yield position, value


def subjects(graph: ir.Graph, macs: Mapping[ir.Node, int]) -> list[ir.Value]:
    """Inputs that the trunk starts from, the image or the token ids; what else it reads are masks, say."""
    sources = _sources(*_trunk(graph, macs))
    _, roots = nodes_between(graph, (), sources)
    return [value for value in graph.inputs if value in {*roots, *sources}]


def _trunk(graph: ir.Graph, macs: Mapping[ir.Node, int]) -> tuple[list[ir.Node], dict[ir.Value, Kind]]:
    nodes, _ = nodes_between(graph, (), [graph.outputs[0]])
    kinds = classify(nodes, graph.inputs, macs)
    return [node for node in nodes if kinds[node.outputs[0]] == Kind.TRUNK], kinds


def _sources(trunk: list[ir.Node], kinds: Mapping[ir.Value, Kind]) -> set[ir.Value]:
    """Context that the trunk starts from: what its first nodes, which read nothing of the trunk, work on."""
    found: set[ir.Value] = set()
    for node in trunk:
        if max((kinds[value] for value in reads(node)), default=Kind.CONSTANT) == Kind.CONTEXT:
            subjects = node.inputs[: SUBJECTS.get(node.op_type, len(node.inputs))]
            values = [value for value in subjects if value is not None] or reads(node)
            found.update(value for value in values if kinds[value] == Kind.CONTEXT)
    return found
