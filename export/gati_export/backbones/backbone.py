"""The backbone: the user's network as an ONNX graph, checked to be one that gati can cut and serve."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
import onnxruntime as ort

from gati.errors import BackboneError
from gati.inference.head import HIT, KEY, SCORE, THRESHOLD
from gati.inference.session import open_session
from gati.inference.state import STATE_INPUTS
from gati.repository.chain import DTYPES, Tensor
from gati.serving.wire import EXIT, RELEASE
from gati_export.backbones.onnxfile import open_file, read, shorten
from gati_export.backbones.signature import UNKNOWN, Signature
from gati_export.backbones.tail import LEAVE_OUT, TailGraph, divide, flattened, is_pixel, renamed
from gati_export.samples.ragged import few
from gati_export.samples.samples import check_samples, pick

OF_CHAINS = {EXIT, RELEASE}
"""Names of a chain's own outputs."""
OF_HEADS = {SCORE, HIT, KEY, THRESHOLD, *STATE_INPUTS}
"""Names inside heads, which neither read nor give a tensor of one of these."""

DTYPE_OF = {ir.DataType.from_numpy(dtype): name for name, dtype in DTYPES.items()}
"""Triton's datatype names by ONNX's."""

FLOATS = ("FP16", "FP32", "FP64")
FLOAT_TYPES = {"tensor(float16)": "FP16", "tensor(float)": "FP32", "tensor(double)": "FP64"}
"""The same by ONNX Runtime's names of types."""

ReadSamples = Callable[[Sequence[str] | None], Mapping[str, np.ndarray]]
"""Reads samples for inputs of these names, or all that there are where the names are not known yet."""


@dataclass(frozen=True, eq=False)
class Backbone:
    """A network that gives scores, [batch, classes], and perhaps what follows from these.

    Attributes:
        path: Its ONNX file: the user's own, or what the user's PyTorch network was exported to.
        model: Its graph up to the scores, for cutting: weights in memory, local functions inlined.
        inputs: What it reads, batch first; initialisers are not among them.
        output: Its scores, of which the largest is the answer.
        max_batch: 1 where the batch dimension is fixed at 1, else 0: any.
        tail: What it makes of its scores; None where it gives nothing else.
        note: What its user should know of how it was read, if there is something.
    """

    path: Path
    model: ir.Model = field(repr=False)
    inputs: tuple[Tensor, ...]
    output: Tensor
    max_batch: int
    tail: TailGraph | None = None
    note: str = ""

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """All that it gives and that is to be served."""
        return self.tail.outputs if self.tail else (self.output,)

    @cached_property
    def _session(self) -> ort.InferenceSession:
        return self.open()

    def open(self, as_written: bool = False) -> ort.InferenceSession:
        """Opens the network's own file, or its graph where the file keeps the scores to itself."""
        session = open_file(self.path, as_written)
        if self.output.name in (node.name for node in session.get_outputs()):
            return session
        return open_session(ir.to_proto(self.model).SerializeToString(), as_written=as_written)

    def run(self, feeds: Mapping[str, np.ndarray], session: ort.InferenceSession | None = None) -> np.ndarray:
        """Computes the scores [batch, classes] of inputs by name, each [batch, …]; names not its own are ignored."""
        given = {tensor.name: feeds[tensor.name] for tensor in self.inputs}
        return np.asarray((session or self._session).run([self.output.name], given)[0])

    def check_width(self, scores: np.ndarray) -> None:
        """Refuses other numbers of scores than were seen first.

        Raises:
            BackboneError: If there are others.
        """
        if scores.shape[1:] != self.output.shape:
            raise BackboneError(
                f"Output {self.output.name!r} has {self.output.shape[0]} scores for one shape of inputs and "
                f"{scores.shape[1]} for another, and gati serves equally many; fix that dimension of the inputs."
            )

    def batch(self, samples: Mapping[str, np.ndarray] | None, size: int) -> dict[str, np.ndarray]:
        """The first `size` rows of samples (`ragged.few`); zeros where there are no samples."""
        return _batch(self.inputs, samples, size)


def load_backbone(
    source: str,
    samples: Mapping[str, np.ndarray] | ReadSamples | None,
    workdir: Path,
    *,
    numbers: bool = False,
    outputs: Sequence[str] = (),
    signature: Signature = UNKNOWN,
) -> Backbone:
    """Loads a network and checks that it can be cut and served.

    Args:
        source: An `.onnx` file, a `.pt2` program of `torch.export.save` (which may run code when it is loaded), a `.pt`
            program of `torch.jit.save`, or `package.module:callable`, which returns a `torch.nn.Module`.
        samples: Rows to try the network on, as `load_samples` gives them, or what reads them; modules can't be
            exported without.
        workdir: Folder for the ONNX file of a PyTorch network.
        numbers: Whether its output is numbers, of which one will do, and not scores of classes.
        outputs: Which of its outputs are to be served; all, if none is named.
        signature: A `.pt` program's, as far as it is known; see `gati_export.backbones.torchscript`.

    Raises:
        BackboneError: If the network can't be read, run, cut, or served.
        SamplesError: If the samples don't fit it.
    """
    path, note = Path(source), ""
    if path.suffix in (".pt", ".pt2") or (":" in source and path.suffix != ".onnx"):
        from gati_export.backbones import pytorch  # takes seconds to import

        if callable(samples) and path.suffix != ".pt2":
            samples = samples(signature.names or None)
        path = workdir / "backbone.onnx"
        note = pytorch.to_onnx(source, None if callable(samples) else samples, path, signature)
    elif path.suffix != ".onnx":
        raise BackboneError(
            f"{source!r} is no backbone; give an .onnx, .pt2 or .pt file, package.module:function, or a model's folder "
            "in a Triton repository."
        )
    return replace(_checked(path, samples, numbers, outputs), note=note)


def _checked(
    path: Path, samples: Mapping[str, np.ndarray] | ReadSamples | None, numbers: bool, outputs: Sequence[str]
) -> Backbone:
    model = read(path)
    session = open_file(path)
    _rename_reserved(model)
    if callable(samples):
        samples = samples([value.name or "" for value in model.graph.inputs])
    inputs = _inputs(model, samples)
    fixed = _is_fixed(model)
    samples = None if samples is None else check_samples(samples, inputs)
    ends = _ends(model, outputs)
    _check_names([tensor.name for tensor in inputs], OF_CHAINS | OF_HEADS)
    _check_names([value.name or "" for value in ends], OF_CHAINS)
    batches = [_batch(inputs, samples, size) for size in ((1,) if fixed else (2, 1))]
    output, tail = _scores(path, model, session, ends, batches, 1 if numbers else 2)
    _keep_only(model, output.name)
    trial = Backbone(path, model, inputs, output, int(fixed), tail)
    scores = _try(trial, samples, 1)
    if scores.ndim == 2 and scores.shape == (1, 1) and not numbers:
        raise BackboneError(
            f"Output {output.name!r} is one number; gati serves scores of at least two classes (of a probability p, "
            "export both 1 - p and p), and numbers where it is told what agreement means: --agreement 'within X'."
        )
    if scores.ndim != 2 or len(scores) != 1 or not scores.size:
        drop = " Leave out what drops that dimension, a squeeze say." if scores.shape == (1,) else ""
        raise BackboneError(
            f"Output {output.name!r} has shape {list(scores.shape)} for one row; gati serves classifiers and "
            f"regressions, whose output is [batch, classes] or [batch, numbers].{drop}"
        )
    output = Tensor(output.name, output.dtype, (scores.shape[1],))
    fixed = fixed or not _takes_two(trial, samples, scores.shape[1])
    return Backbone(path, model, inputs, output, int(fixed), tail)


def _inputs(model: ir.Model, samples: Mapping[str, np.ndarray] | None) -> tuple[Tensor, ...]:
    names = [value.name or "" for value in model.graph.inputs]
    if not names:
        raise BackboneError("The network has no inputs; export it with its inputs as arguments.")
    rows = {} if samples is None else pick(samples, names)
    tensors = []
    for value, name in zip(model.graph.inputs, names, strict=True):
        if value.dtype is None or value.dtype not in DTYPE_OF:
            kind = "of an unknown type" if value.dtype is None else str(value.dtype)
            raise BackboneError(f"Input {name!r} is {kind}, which gati does not serve; export it as numbers or bools.")
        if value.shape is None and name not in rows:
            raise BackboneError(f"The file does not say the shape of input {name!r}; give samples to learn it from.")
        shape = rows[name].shape if value.shape is None else value.shape
        if not len(shape):
            raise BackboneError(f"Input {name!r} is a scalar; export it with the batch as its first dimension.")
        if isinstance(shape[0], int) and shape[0] != 1 and value.shape is not None:
            raise BackboneError(
                f"Input {name!r} has its batch fixed at {shape[0]}; export the network with a dynamic batch, or with 1."
            )
        tensors.append(Tensor(name, DTYPE_OF[value.dtype], tuple(d if isinstance(d, int) else -1 for d in shape[1:])))
    return tuple(tensors)


def _is_fixed(model: ir.Model) -> bool:
    """Whether the batch is fixed at 1, for all inputs alike."""
    fixed = [value.shape is not None and value.shape[0] == 1 for value in model.graph.inputs]
    if any(fixed) and not all(fixed):
        names = ", ".join(repr(v.name) for v, is_fixed in zip(model.graph.inputs, fixed, strict=True) if is_fixed)
        raise BackboneError(f"The batch is fixed at 1 for {names} but not for other inputs; export all of them alike.")
    return all(fixed)


def _ends(model: ir.Model, names: Sequence[str]) -> list[ir.Value]:
    """The outputs of these names, or all if there are none, in the network's order."""
    ends = list(model.graph.outputs)
    there = [value.name or "" for value in ends]
    twice = next((name for name in there if there.count(name) > 1), None)
    if twice is not None:
        raise BackboneError(f"The network lists its output {twice!r} twice; export it with each output once.")
    missing = next((name for name in names if name not in there), None)
    if missing is not None:
        raise BackboneError(f"The network has no output {missing!r}; it has {', '.join(there)}.")
    return [value for value in ends if value.name in names or not names]


def _scores(
    path: Path,
    model: ir.Model,
    session: ort.InferenceSession,
    ends: Sequence[ir.Value],
    batches: Sequence[Mapping[str, np.ndarray]],
    fewest: int,
) -> tuple[Tensor, TailGraph | None]:
    """The network's scores, and what it makes of them; how many there are is to be seen where it gives nothing else."""
    names = [value.name or "" for value in ends]
    nodes = {node.name: node for node in session.get_outputs()}
    name, alone = names[0], nodes[names[0]]
    if len(ends) == 1 and alone.type in FLOAT_TYPES and not is_pixel(alone.shape[1:]) and name not in OF_HEADS:
        if ends[0].is_graph_input():
            raise BackboneError("The network gives its input back; there is nothing to cut.")
        return Tensor(name, FLOAT_TYPES[alone.type], (-1,)), None
    constant = next((end.name for end in ends if end.producer() is None and not end.is_graph_input()), None)
    if constant is not None:
        raise BackboneError(f"Output {constant!r} is a constant, the same for all inputs; {LEAVE_OUT}")
    ends = [flattened(model, end, nodes[end.name or ""].shape[1:]) for end in ends]
    ends = [renamed(model, end) if end.name in OF_HEADS else end for end in ends]
    found = divide(model, ends, batches, fewest)
    if found is not None:
        return found
    if len(ends) == 1:
        raise BackboneError(f"Output {name!r} is {alone.type}, and no scores lead to it; give these as well.")
    raise BackboneError(
        f"{path.name} has several outputs ({', '.join(names)}), and no scores of which alone all of them are computed "
        "without weights: heads foretell one output, and what follows from it. Name what to serve (--outputs)."
    )


def _keep_only(model: ir.Model, output: str) -> None:
    """Leaves out what is behind the scores."""
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    model.graph.outputs.clear()
    model.graph.outputs.append(values[output])
    passes.RemoveUnusedNodesPass()(model)


def _check_names(names: Sequence[str], taken: Collection[str]) -> None:
    for name in names:
        if name in taken:
            raise BackboneError(f"The name {name!r} is taken by gati's own outputs; rename the network's {name!r}.")


def _batch(inputs: tuple[Tensor, ...], samples: Mapping[str, np.ndarray] | None, size: int) -> dict[str, np.ndarray]:
    if samples is None:
        return {tensor.name: tensor.zeros(size) for tensor in inputs}
    return check_samples(few(pick(samples, [tensor.name for tensor in inputs]), size), inputs)


def _try(backbone: Backbone, samples: Mapping[str, np.ndarray] | None, size: int) -> np.ndarray:
    feeds = backbone.batch(samples, size)
    try:
        return backbone.run(feeds)
    except Exception as error:  # see onnxfile.open_file
        if size == 1 and _runs(backbone, backbone.batch(samples, 2)):
            raise BackboneError(
                f"{backbone.path.name} takes two rows and not one: a batch is fixed inside it, whatever it declares; "
                "export it with a dynamic batch, traced with any other number of rows."
            ) from error
        what = "zeros; give samples" if samples is None else "the samples; give inputs that it takes"
        raise BackboneError(f"{backbone.path.name} fails on {what} ({shorten(error)}).") from error


def _runs(backbone: Backbone, feeds: Mapping[str, np.ndarray]) -> bool:
    try:
        return bool(backbone.run(feeds).size)
    except Exception:
        return False


def _takes_two(backbone: Backbone, samples: Mapping[str, np.ndarray] | None, classes: int) -> bool:
    """Whether a batch that is declared free is so: a graph may hold reshapes to one row all the same."""
    try:
        return _try(backbone, samples, 2).shape == (2, classes)
    except BackboneError:
        return False


def _rename_reserved(model: ir.Model) -> None:
    """Renames tensors inside the graph that a head on them could not be told apart from its own."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for value in node.outputs:
            if value.name in OF_CHAINS | OF_HEADS and not value.is_graph_output():
                value.name = f"{value.name}.backbone"
