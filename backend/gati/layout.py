"""Layout: graphs are cut as ONNX Runtime runs them, and not as they lie on disk.

On a CPU, ONNX Runtime keeps the planes of convolutions in blocks of channels (NCHWc). What is cut before that is
optimised has to turn its tensor into planes at its end, and the next piece back into blocks: 1 to 3 % of a network a
cut. So the whole is optimised first, as it would be without cuts, and then cut where its tensors are blocks. Heads
are made to read blocks as well, which saves their convolutions the same.

What goes on from a cut may be something else than its tensor (gati.passed). Then heads begin with what makes the tensor
of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, ValueInfoProto, helper, numpy_helper

from gati.chain import Tensor
from gati.passed import AS_IT_WAS, TO_PLANES, Passed, name_passed
from gati.session import open_session, run, run_chain
from gati.temporary import temporary_folder
from gati.tensorinfo import kind_of, tensor_info
from gati.weights import Weights

TOLERANCE = 1e-3
"""Largest difference of a cut graph from the whole, relative to its largest number: kernels may differ, not results."""


class InseparableError(Exception):
    """A graph that, once it is optimised, can't be cut where it should be."""


@dataclass(frozen=True)
class Split:
    """An optimised graph in pieces, each of which reads the cut tensor before it, and gives the one after it.

    Attributes:
        sessions: The pieces; each has run once.
        pieces: Their graphs, whose large tensors are in `weights`.
        whole: The graph of all of them in one, likewise.
        weights: These.
        values: What they gave for the model's feeds, by name: blocks, where a tensor passes as such.
        passed: What passes under the names of cut tensors that do not pass themselves.
    """

    sessions: tuple[ort.InferenceSession, ...]
    pieces: tuple[ModelProto, ...]
    whole: ModelProto
    weights: Weights
    values: dict[str, np.ndarray]
    passed: Mapping[str, Passed]


def split(
    model: ModelProto,
    cuts: Sequence[Tensor],
    reads: Sequence[Collection[str]],
    feeds: Mapping[str, np.ndarray],
    taken: Weights | None = None,
) -> Split:
    """Optimises a graph as a whole, and cuts it.

    Args:
        model: A model, which is used up: of a large one, as few copies as can be are held at a time.
        cuts: Tensors inside it that it is cut at, in order.
        reads: For each piece, one more than there are cuts, what of the model's inputs and the cut tensors it may read.
        feeds: Something to run the model on, to see that the pieces do what the whole does.
        taken: Large tensors of the model that were taken out of it, used up as well.

    Raises:
        InseparableError: If the optimised graph can't be cut there, or its pieces do something else.
        Exception: ONNX Runtime's own, if the model can't be run; OSError, if there is no room for temporary files.
    """
    inputs, outputs = ([value.name for value in values] for values in (model.graph.input, model.graph.output))
    for cut in cuts:
        model.graph.output.append(tensor_info(cut.name, kind_of(cut.numpy)))
    weights = Weights()
    session, optimised = _optimise(model, taken or Weights(), weights)
    if any(
        attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for attribute in _attributes(optimised.graph)
    ):
        raise InseparableError("it holds branches or loops")
    names = [cut.name for cut in cuts]
    passed = name_passed(optimised.graph, names)
    expected = dict(zip(outputs, run(session, outputs, feeds), strict=True))
    del session
    ends = [*([name] for name in names), outputs]
    pieces = tuple(_piece(optimised, *between) for between in zip(reads, ends, strict=True))
    whole = _piece(optimised, inputs, outputs)
    del optimised
    sessions = tuple(weights.open(piece) for piece in pieces)
    values = run_chain(sessions, feeds)
    for name, value in expected.items():
        if not close(values[name], value):
            raise InseparableError(f"its pieces give another {name!r} than the whole")
    return Split(sessions, pieces, whole, weights, values, passed)


def open_on_passed(head: bytes, cut: Tensor, passed: Passed) -> tuple[ort.InferenceSession, ModelProto]:
    """Opens a head such that it reads what passes under its cut tensor's name; gives its graph as well.

    Args:
        head: The head.
        cut: Its cut tensor.
        passed: What passes in its place.

    Raises:
        InseparableError: If that can't be done.
    """
    on_blocks = passed.nodes[0].op_type == TO_PLANES
    return _on_blocks(head, cut) if on_blocks else _behind(head, cut, passed)


def _behind(head: bytes, cut: Tensor, passed: Passed) -> tuple[ort.InferenceSession, ModelProto]:
    """It begins with what makes the cut tensor of what passes."""
    model = onnx.load_model_from_string(head)
    for node in model.graph.node:
        node.input[:] = [cut.name + AS_IT_WAS if name == cut.name else name for name in node.input]
    for node in reversed(passed.nodes):
        model.graph.node.insert(0, node)
    model.graph.initializer.extend(passed.constants)
    given = next(value for value in model.graph.input if value.name == cut.name)
    given.CopyFrom(tensor_info(cut.name, passed.kind))
    return open_session(model.SerializeToString()), model


def _on_blocks(head: bytes, cut: Tensor) -> tuple[ort.InferenceSession, ModelProto]:
    """Its cut tensor is [batch, channels, ...].

    It is optimised behind a convolution, since these give blocks, and cut off again.
    """
    whole = onnx.load_model_from_string(head)
    given = {value.name: value for value in whole.graph.input}
    state = {name: value.type.tensor_type.shape.dim for name, value in given.items() if name != cut.name}
    plane = Tensor(f"{cut.name}/plane", cut.dtype, (1, *cut.shape[1:]))
    scales = np.linspace(-1, 1, cut.shape[0], dtype=cut.numpy).reshape(-1, 1, *(1 for _ in cut.shape[1:]))
    whole.graph.initializer.append(numpy_helper.from_array(scales, f"{cut.name}/scales"))
    whole.graph.node.insert(0, helper.make_node("Conv", [plane.name, f"{cut.name}/scales"], [cut.name]))
    whole.graph.input.remove(given[cut.name])
    whole.graph.input.append(tensor_info(plane.name, kind_of(cut.numpy), ("batch", *plane.shape)))
    feeds = {name: np.zeros([size.dim_value for size in shape], np.float32) for name, shape in state.items()}
    found = split(whole, [cut], [{plane.name}, {cut.name, *state}], {plane.name: probe(plane), **feeds})
    if cut.name not in found.passed:
        raise InseparableError("it can't read blocks")
    found.weights.put_back(found.pieces[1])
    return found.sessions[1], found.pieces[1]


def probe(tensor: Tensor) -> np.ndarray:
    """One row to try a network on: noise for a tensor of floating point, ones for any other."""
    zeros = tensor.zeros()
    if zeros.dtype.kind != "f":
        return np.ones_like(zeros)
    return np.random.default_rng(0).standard_normal(zeros.shape).astype(zeros.dtype)


def _optimise(model: ModelProto, before: Weights, weights: Weights) -> tuple[ort.InferenceSession, ModelProto]:
    """The session of a model, and the graph that it runs.

    Large tensors of the model, perhaps taken `before`, are used up; those of the graph go to the weights.
    """
    with temporary_folder() as folder:
        given, path = Path(folder) / "given.onnx", Path(folder) / "optimised.onnx"
        before.take(model)
        before.lay_beside(model, given.parent)
        given.write_bytes(model.SerializeToString())
        model.Clear()
        before.drop()
        session = open_session(given, optimised=path)
        graph = onnx.load(path, load_external_data=False)
        weights.take(graph, path.parent)
        return session, graph


def _piece(model: ModelProto, given: Collection[str], wanted: Sequence[str]) -> ModelProto:
    """The part of a model between some of its tensors and others, as a model of its own."""
    nodes = _needed(model.graph, given, wanted)
    read = {name for node in nodes for name in node.input}
    weights = [tensor for tensor in model.graph.initializer if tensor.name in read]
    known = {value.name: _shapeless(value) for value in model.graph.output}
    known |= {value.name: value for value in model.graph.input}
    missing = read - {tensor.name for tensor in weights} - {name for node in nodes for name in node.output} - {""}
    if not missing <= set(given) or len(nodes) == 0:
        raise InseparableError(f"once optimised, a piece reads {sorted(missing - set(given))[:3]} as well")
    piece = ModelProto(ir_version=model.ir_version)
    piece.opset_import.extend(model.opset_import)
    piece.graph.name = model.graph.name
    piece.graph.node.extend(nodes)
    piece.graph.initializer.extend(weights)
    piece.graph.input.extend(known[name] for name in given if name in missing)
    piece.graph.output.extend(_shapeless(known[name]) for name in wanted)
    return piece


def _needed(graph: GraphProto, given: Collection[str], wanted: Iterable[str]) -> list[NodeProto]:
    """The nodes, in order, that it takes to compute some tensors from others."""
    maker = {name: place for place, node in enumerate(graph.node) for name in node.output}
    open_, places = list(wanted), set[int]()
    while open_:
        name = open_.pop()
        place = maker.get(name)
        if name in given or place is None or place in places:
            continue
        places.add(place)
        open_ += graph.node[place].input
    return [graph.node[place] for place in sorted(places)]


def _shapeless(value: ValueInfoProto) -> ValueInfoProto:
    return tensor_info(value.name, value.type.tensor_type.elem_type)


def _attributes(graph: GraphProto) -> Iterable[AttributeProto]:
    return (attribute for node in graph.node for attribute in node.attribute)


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    """Whether what a graph gives is what another gives, but for rounding; of integers, only shapes are compared."""
    if expected.dtype.kind != "f":
        return found.shape == expected.shape
    largest = float(np.abs(np.nan_to_num(expected)).max(initial=1.0))
    return found.shape == expected.shape and np.allclose(
        found, expected, rtol=0, atol=TOLERANCE * largest, equal_nan=True
    )
