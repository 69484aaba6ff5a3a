"""Layout: graphs are cut in the memory layout in which ONNX Runtime runs them, not in that of their files.

On a CPU, ONNX Runtime keeps the planes of convolutions in blocks of channels (NCHWc). A piece that was cut off before
it was optimised has to turn its output into planes, and the next piece has to turn it back into blocks: each cut costs
1 to 3 % of a network. So the whole graph is optimised first, as it would be without cuts, and is then cut where its
tensors are blocks. Heads are made to read blocks as well, which spares their convolutions the same.

Where something else than the cut tensor crosses a cut (gati.inference.substitute), a head begins with the nodes that
compute the cut tensor from it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, ValueInfoProto, helper, numpy_helper

from gati.inference.session import open_session, run, run_chain
from gati.inference.substitute import ORIGINAL, TO_PLANES, Substitute, name_substitutes
from gati.inference.tensorinfo import kind_of, tensor_info
from gati.inference.weights import Weights
from gati.repository.chain import Tensor
from gati.system.temporary import temporary_folder

TOLERANCE = 1e-3
"""Largest difference between a cut graph and the whole, relative to its largest number: kernels may round otherwise."""


class InseparableError(Exception):
    """A graph that can't be cut at its cut points once it is optimised."""


@dataclass(frozen=True)
class CutGraph:
    """An optimised graph in pieces, each of which reads the cut tensor before it and computes the one after it.

    Attributes:
        sessions: A session for each piece, which has run once.
        pieces: Their graphs, whose large tensors are in `weights`.
        whole: The graph of all pieces in one, likewise.
        weights: The large tensors.
        values: What the pieces computed from the feeds that they were tried on, by name.
        substitutes: What crosses a cut in place of its tensor, by the name of the cut tensor.
    """

    sessions: tuple[ort.InferenceSession, ...]
    pieces: tuple[ModelProto, ...]
    whole: ModelProto
    weights: Weights
    values: dict[str, np.ndarray]
    substitutes: Mapping[str, Substitute]


def cut_optimised(
    model: ModelProto,
    cuts: Sequence[Tensor],
    reads: Sequence[Collection[str]],
    feeds: Mapping[str, np.ndarray],
    taken: Weights | None = None,
) -> CutGraph:
    """Optimises a graph as a whole, and cuts it.

    Args:
        model: The model, which is emptied: of a large one, as few copies as possible are held at a time.
        cuts: Tensors inside it that it is cut at, in order.
        reads: For each piece (one more than there are cuts), which of the model's inputs and cut tensors it may read.
        feeds: Inputs to run the model on, to see that the pieces compute what the whole does.
        taken: Large tensors that were taken out of the model; emptied as well.

    Raises:
        InseparableError: If the optimised graph can't be cut there, or its pieces compute something else.
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
    substitutes = name_substitutes(optimised.graph, names)
    expected = dict(zip(outputs, run(session, outputs, feeds), strict=True))
    del session
    ends = [*([name] for name in names), outputs]
    pieces = tuple(_piece(optimised, *between) for between in zip(reads, ends, strict=True))
    whole = _piece(optimised, inputs, outputs)
    del optimised
    sessions = tuple(weights.open(piece) for piece in pieces)
    values = run_chain(sessions, feeds)
    for name, value in expected.items():
        if not nearly_equal(values[name], value):
            raise InseparableError(f"its pieces give another {name!r} than the whole")
    return CutGraph(sessions, pieces, whole, weights, values, substitutes)


def open_on_substitute(head: bytes, cut: Tensor, substitute: Substitute) -> tuple[ort.InferenceSession, ModelProto]:
    """Opens a head such that it reads a substitute of its cut tensor.

    Args:
        head: The head's file.
        cut: Its cut tensor.
        substitute: What crosses the cut in its place.

    Returns:
        The session, and the graph that it runs.

    Raises:
        InseparableError: If that can't be done.
    """
    on_blocks = substitute.nodes[0].op_type == TO_PLANES
    return _on_blocks(head, cut) if on_blocks else _behind(head, cut, substitute)


def _behind(head: bytes, cut: Tensor, substitute: Substitute) -> tuple[ort.InferenceSession, ModelProto]:
    """Puts the nodes that compute the cut tensor from its substitute before the head."""
    model = onnx.load_model_from_string(head)
    for node in model.graph.node:
        node.input[:] = [cut.name + ORIGINAL if name == cut.name else name for name in node.input]
    for node in reversed(substitute.nodes):
        model.graph.node.insert(0, node)
    model.graph.initializer.extend(substitute.constants)
    given = next(value for value in model.graph.input if value.name == cut.name)
    given.CopyFrom(tensor_info(cut.name, substitute.kind))
    return open_session(model.SerializeToString()), model


def _on_blocks(head: bytes, cut: Tensor) -> tuple[ort.InferenceSession, ModelProto]:
    """Makes a head read blocks, where its cut tensor is [batch, channels, ...].

    The head is optimised behind a convolution, whose output is in blocks, and then cut off from it again.
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
    found = cut_optimised(whole, [cut], [{plane.name}, {cut.name, *state}], {plane.name: probe(plane), **feeds})
    if cut.name not in found.substitutes:
        raise InseparableError("it can't read blocks")
    found.weights.put_back(found.pieces[1])
    return found.sessions[1], found.pieces[1]


def probe(tensor: Tensor) -> np.ndarray:
    """A row to try a network on: noise for a tensor of floating point, ones for any other."""
    zeros = tensor.zeros()
    if zeros.dtype.kind != "f":
        return np.ones_like(zeros)
    return np.random.default_rng(0).standard_normal(zeros.shape).astype(zeros.dtype)


def _optimise(model: ModelProto, before: Weights, weights: Weights) -> tuple[ort.InferenceSession, ModelProto]:
    """Opens a model, and returns its session and the optimised graph that this runs.

    Empties the model and `before`, the large tensors that were taken out of it. Those of the graph go to `weights`.
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
    """The part of a model that computes the wanted tensors from given ones, as a model of its own."""
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
    """The nodes, in order, that it takes to compute the wanted tensors from given ones."""
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


def nearly_equal(found: np.ndarray, expected: np.ndarray) -> bool:
    """Whether outputs of two graphs are equal but for rounding; of integers, only the shapes are compared."""
    if expected.dtype.kind != "f":
        return found.shape == expected.shape
    largest = float(np.abs(np.nan_to_num(expected)).max(initial=1.0))
    return found.shape == expected.shape and np.allclose(
        found, expected, rtol=0, atol=TOLERANCE * largest, equal_nan=True
    )
