"""Heads: a predictor, its selector and a threshold as one ONNX file, by the contract of `gati.inference.head`."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
import torch
from onnx import numpy_helper
from onnxscript.optimizer import fold_constants
from torch import Tensor as Torch
from torch import nn

from gati.errors import BackboneError, first_line
from gati.inference.head import HIT, KEY, SCORE, THRESHOLD
from gati.inference.state import MEMORY_ANSWERS, MEMORY_KEYS, STATE_INPUTS
from gati.repository.chain import Tensor
from gati_export.backbones.exporter import exporting
from gati_export.backbones.opset import OPSET
from gati_export.families.blocks.distillation import Scale
from gati_export.families.blocks.integers import IN_ONNX
from gati_export.families.family import Lookup
from gati_export.learning.headfile import CLOSED
from gati_export.learning.maxima import pool_maxima

PREFIX = "head/"
"""Of all other names inside a head's graph, so that none of them can be the cut tensor's or the output's."""
ARITHMETIC = {"Add", "Sub", "Mul", "Reciprocal", "Neg", "MatMul"}


class Head(nn.Module):
    """From a hidden activation to the backbone's presumable answer, how sure that is, and whether to serve it.

    The score is NaN, which reaches no threshold, for a row that holds any NaN or infinity (ReLU may drop them on their
    way to the logits), and for one whose logits overflow.
    """

    threshold: Torch

    def __init__(self, lookup: Lookup, scale: Scale, output: Tensor) -> None:
        super().__init__()
        self.lookup = lookup
        self.scale = scale
        self.dtype = torch.from_numpy(output.zeros(1)).dtype
        self.register_buffer(THRESHOLD, torch.tensor(CLOSED))

    def forward(self, hidden: Torch, *state: Torch) -> tuple[Torch, ...]:
        """What activations [batch, ...] give.

        Args:
            hidden: The activations.
            state: What the lookup asks for, in the order of its `state`.

        Returns:
            Answer [batch, classes], score float32 [batch], hit bool [batch], and key float32 [batch, dim] if any.
        """
        hidden = hidden.float()
        known = dict(zip(self.lookup.state, state, strict=True))
        if MEMORY_ANSWERS in known:
            known[MEMORY_ANSWERS] = self.scale.logits_of(known[MEMORY_ANSWERS])
        features = self.lookup.reduce(hidden)
        found = self.lookup(features, known)
        # NaN where any value is NaN or infinite, or where the sum overflows, which makes a miss of a legitimate row
        score = found.score + features.sum(tuple(range(1, features.ndim))) * 0
        answer = self.scale.answer(found.logits).to(self.dtype)
        return (answer, score, score >= self.threshold) + (() if found.key is None else (found.key,))


def head_model(head: Head, cut: Tensor, output: Tensor) -> bytes:
    """Exports a head as ONNX, for any batch size; its threshold is one that no score reaches.

    Args:
        head: The head, trained.
        cut: Its cut tensor, and the name and dtype of its input.
        output: The backbone's output, and the name and dtype of its answer.

    Raises:
        BackboneError: If the backbone's names collide with those of a head's inputs or outputs, or PyTorch can't
            export the lookup.
    """
    taken = {cut.name, output.name} & {SCORE, HIT, KEY, THRESHOLD, *STATE_INPUTS}
    if taken or cut.name == output.name:
        raise BackboneError(f"A head can't read {cut.name!r} and give {output.name!r}; rename those tensors.")
    head.eval()
    hidden = torch.from_numpy(cut.zeros(2))
    state = [torch.zeros(shape) for shape in head.lookup.state.values()]
    names = {0: "batch"} | {axis: f"d{axis}" for axis, size in enumerate(cut.shape, 1) if size < 0}
    free = {axis: torch.export.Dim(name) for axis, name in names.items()}
    try:
        with exporting():
            program = torch.onnx.export(
                head,
                (hidden, *state),
                input_names=[cut.name, *head.lookup.state],
                output_names=[output.name, SCORE, HIT] + [KEY] * (MEMORY_KEYS in head.lookup.state),
                dynamic_shapes=(free, *([tuple({} for _ in state)] if state else [])),
                custom_translation_table=IN_ONNX,
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
                optimize=False,  # it would merge weights, which keep their names for a warm start
            )
    except Exception as error:  # of whatever its lookup does that can't be traced, PyTorch's first words say nothing
        raise _unwritten(head, cut, first_line(error.__cause__ or error)) from error
    if program is None:
        raise _unwritten(head, cut, "PyTorch gives no reason")
    # else ONNX Runtime does not see that a convolution and its normalisation are one
    fold_constants(program.model, onnx_shape_inference=False, should_fold=_folded)
    pool_maxima(program.model)
    passes.RemoveUnusedNodesPass()(program.model)
    _rename(program.model)
    passes.ClearMetadataAndDocStringPass()(program.model)  # they hold stack traces of the exporting machine
    return ir.to_proto(program.model).SerializeToString(deterministic=True)


def _unwritten(head: Head, cut: Tensor, why: str) -> BackboneError:
    return BackboneError(f"PyTorch can't write the head {head.lookup.name!r} on {cut.name!r} as ONNX: {why}.")


def _folded(node: ir.Node) -> bool | None:
    """Leaves what is computed of weights to ONNX Runtime: a warm start needs the weights themselves."""
    return False if node.op_type in ARITHMETIC else None


def _rename(model: ir.Model) -> None:
    """Gives all values but inputs, outputs and the threshold names that they don't share with any of those."""
    graph = model.graph
    ends = [*graph.inputs, *graph.outputs]
    prefix = PREFIX
    while any((value.name or "").startswith(prefix) for value in ends):
        prefix = f"_{prefix}"
    public = {id(value) for value in ends}  # by identity: inner ones may have the same names
    inner = [value for value in graph.initializers.values() if value.name != THRESHOLD]
    for node in graph:
        node.name = f"{prefix}{node.name}"
        inner += [value for value in node.outputs if id(value) not in public]
    for value in inner:
        value.name = f"{prefix}{value.name}"
    for value in (*ends, *inner, graph.initializers[THRESHOLD]):
        value.metadata_props.clear()  # the exporter's own


def weights_of(model: bytes) -> dict[str, Torch]:
    """The lookup's weights inside a head's file, for a warm start."""
    tensors = onnx.ModelProto.FromString(model).graph.initializer
    named = ((tensor.name.partition(f"{PREFIX}lookup.")[2], tensor) for tensor in tensors)
    return {name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for name, tensor in named if name}
