"""Cascade: a chain and the heads of a release as one graph, for a request of one row on a processor.

A run of a network drives what Python needs out of the processor's caches, so that each stage and each lookup costs a
request some 0.1 ms more than they take themselves. In a cascade ONNX Runtime goes from stage to head to stage by
itself, and leaves at the first hit, by an `If` behind each head. A batch goes stage by stage
(gati.serving.orchestrator): its rows leave at different exits, and those that hit are answered while the others go on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from gati.inference.head import HIT, KEY
from gati.inference.session import run
from gati.inference.state import HeadState
from gati.inference.steps import Leave, MissedRows, Step, common_versions, of_head, prefixed_head
from gati.inference.tensorinfo import kind_of, tensor_info
from gati.repository.chain import Tensor

ANSWER, EXIT = "answer", "exit"
ROW = np.arange(1)
WEIGHTS_APART = 4
"""The first version of ONNX's format in which the weights of an `If`'s branches need not be inputs of the graph."""


class Cascade:
    """A chain and its heads as one graph; see `gati.inference.steps.Joined`.

    Args:
        session: Runs the graph that `assemble` makes of the steps.
        steps: The steps.
    """

    rows = 1

    def __init__(self, session: ort.InferenceSession, steps: Sequence[Step]) -> None:
        self._session = session
        self._state = [step.last for step in steps if step.spec.state]
        self._keyed = [step.last for step in steps if KEY in step.spec.outputs]
        self._outputs = [node.name for node in session.get_outputs()]

    def run(self, inputs: Mapping[str, np.ndarray], state: Mapping[int, HeadState], leave: Leave) -> list[MissedRows]:
        """See `gati.inference.steps.Joined`."""
        for index in self._state:
            inputs = {**inputs, **{of_head(index, name): value for name, value in state[index].feeds().items()}}
        output, where, *keys = run(self._session, self._outputs, inputs)
        exit_ = where.item()
        leave(ROW, output, exit_)
        return [MissedRows(i, ROW, key) for i, key in zip(self._keyed, keys, strict=True) if i < exit_ and len(key)]


def assemble(steps: Sequence[Step], inputs: Sequence[Tensor], output: Tensor) -> ModelProto:
    """Makes one graph of stages and heads, whose outputs are an answer, an exit, and the heads' keys.

    Args:
        steps: At least two. Stages are pieces of one graph: tensors of the same name are the same. Heads may use any
            names.
        inputs: The model's inputs.
        output: The chain's output.

    Raises:
        UnjoinableError: If there are no versions of the operator sets that fit all of them.
    """
    versions = common_versions(steps)
    kept = Counter(weight.name for step in steps for weight in step.stage.graph.initializer)
    common = {weight.name: weight for step in steps for weight in step.stage.graph.initializer if kept[weight.name] > 1}
    *before, last = zip(steps, _run_once(steps), strict=True)
    level = _end(*last, output)
    for step, nodes in reversed(before):
        level = _before(level, step, nodes, prefixed_head(step), output, common)
    graph = level.graph("cascade", common)
    graph.initializer.extend(common.values())
    # With fixed shapes, ONNX Runtime plans which tensors share memory: 1 to 3 % of a network's time (measured).
    graph.input.extend(tensor_info(tensor.name, kind_of(tensor.numpy), _row(tensor)) for tensor in inputs)
    for step in steps:
        graph.input.extend(
            tensor_info(of_head(step.last, name), TensorProto.FLOAT, shape) for name, shape in step.spec.state.items()
        )
    opsets = [helper.make_opsetid(domain, version) for domain, version in versions.items()]
    return helper.make_model(
        graph, opset_imports=opsets, ir_version=max(WEIGHTS_APART, *(step.stage.ir_version for step in steps))
    )


@dataclass(frozen=True)
class _Level:
    """What is run if no head before it has hit, and its outputs: an answer, an exit, and keys by cut point."""

    nodes: Sequence[NodeProto]
    weights: Sequence[TensorProto]
    answer: ValueInfoProto
    exit: ValueInfoProto
    keys: Mapping[int, ValueInfoProto]

    def graph(self, name: str, common: Mapping[str, TensorProto]) -> GraphProto:
        """The same as a graph, without the weights that several levels have in common."""
        weights = [weight for weight in self.weights if weight.name not in common]
        return helper.make_graph(self.nodes, name, [], [self.answer, self.exit, *self.keys.values()], weights)


def _run_once(steps: Sequence[Step]) -> list[list[NodeProto]]:
    """The nodes of each stage that no stage before it has: each stage by itself repeats what it reads, such as a mask.

    A branch of an `If` can read tensors outside of it.
    """
    found, made = list[list[NodeProto]](), set[str]()
    for step in steps:
        found.append([node for node in step.stage.graph.node if made.isdisjoint(node.output)])
        made.update(name for node in found[-1] for name in node.output if name)
    return found


def _end(step: Step, nodes: Sequence[NodeProto], output: Tensor) -> _Level:
    """The innermost level: the last stage, which answers every row that gets there."""
    exit_ = _here(step.last, EXIT, TensorProto.INT64)
    nodes = [*nodes, _constant(exit_.name, np.array([step.last]))]
    return _Level(nodes, step.stage.graph.initializer, tensor_info(output.name, kind_of(output.numpy)), exit_, {})


def _before(
    level: _Level,
    step: Step,
    nodes: Sequence[NodeProto],
    head: GraphProto,
    output: Tensor,
    common: Mapping[str, TensorProto],
) -> _Level:
    """The level around another: a stage and its head, and that other level if the head misses."""
    index = step.last
    answer, exit_ = _here(index, ANSWER, kind_of(output.numpy)), _here(index, EXIT, TensorProto.INT64)
    later = {place: _here(index, f"{KEY}/{place}", TensorProto.FLOAT) for place in level.keys}
    gives = [value.name for value in (answer, exit_, *later.values())]
    leave = helper.make_node("If", [of_head(index, HIT)], gives)
    branches = {"then_branch": _hit(step, output, level.keys), "else_branch": level.graph(f"miss {index}", common)}
    leave.attribute.extend(helper.make_attribute(name, graph) for name, graph in branches.items())
    nodes = [*nodes, *head.node, leave]
    own = {index: tensor_info(of_head(index, KEY), TensorProto.FLOAT)} if KEY in step.spec.outputs else {}
    return _Level(nodes, [*step.stage.graph.initializer, *head.initializer], answer, exit_, own | later)


def _hit(step: Step, output: Tensor, later: Iterable[int]) -> GraphProto:
    """The branch of a hit: it computes nothing more, and has empty keys for the heads behind."""
    index = step.last
    answer = _here(index, f"{HIT}/{ANSWER}", kind_of(output.numpy))
    exit_ = _here(index, f"{HIT}/{EXIT}", TensorProto.INT64)
    keys = [_here(index, f"{HIT}/{KEY}/{place}", TensorProto.FLOAT) for place in later]
    nodes = [
        helper.make_node("Identity", [of_head(index, output.name)], [answer.name]),
        _constant(exit_.name, np.array([index])),
        *(_constant(key.name, np.zeros((0, 0), np.float32)) for key in keys),
    ]
    return helper.make_graph(nodes, f"hit {index}", [], [answer, exit_, *keys])


def _here(index: int, name: str, kind: int) -> ValueInfoProto:
    """A tensor that belongs to the cascade itself."""
    return tensor_info(f"cascade/exit {index}/{name}", kind)


def _row(tensor: Tensor) -> list[int | str]:
    """The shape of a tensor for one row; dimensions that may vary have names."""
    return [1, *(size if size >= 0 else f"{tensor.name}/{axis}" for axis, size in enumerate(tensor.shape, 1))]


def _constant(name: str, value: np.ndarray) -> NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))
