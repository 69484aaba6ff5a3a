"""PyTorch networks as ONNX files: modules in code, and programs that `torch.export` saved."""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
import torch
from torch import nn
from torch.export.graph_signature import ConstantArgument, OutputKind

from gati.errors import BackboneError, SamplesError
from gati.imports import import_callable
from gati.inference.session import open_session, run
from gati_export.backbones.exporter import exporting
from gati_export.samples.ragged import Samples, extremes, few, varying
from gati_export.samples.samples import pick

BATCH = "batch"
Tensors = dict[str, torch.Tensor]

WAS_TRACED = (
    "PyTorch's torch.export can't read the module, so it was traced: what it decides by the numbers it is given, it "
    "decides as for the first two samples."
)

MANY = 32
"""Rows of a larger batch."""

APART = 0.05
"""How far answers are from a module's, relative to its largest or 1, for it to be said; half precision has 0.01."""

TRACED = 1e-3
"""How far the numbers of a network that was traced may be from its module's, absolutely or relatively."""


def export_module(spec: str, samples: Mapping[str, np.ndarray] | None, path: Path) -> str:
    """Writes the module that `package.module:callable` returns as ONNX, with a free batch dimension where it can.

    Args:
        spec: What to import and call without arguments. The module is put in eval mode and not changed otherwise.
        samples: Rows to trace the module with, named as the arguments of its `forward`.
        path: Where the ONNX file goes.

    Returns:
        What to know of how it was exported, if there is something.

    Raises:
        BackboneError: If the module can't be made, called, or exported.
    """
    if samples is None:
        raise BackboneError(f"{spec} can only be exported with samples at hand; give some.")
    module = _build(spec)
    names = _argument_names(spec, module, samples)
    samples = pick(samples, names)
    tries = tries_of(module, samples)
    one, two = tries[:2]
    outputs = _output_names(spec, module, one)
    vary = {name: varying(rows) for name, rows in samples.items()}
    auto = torch.export.Dim.AUTO
    free = {name: {0: BATCH, **dict.fromkeys(axes, auto)} for name, axes in vary.items()}
    ways: list[tuple[str, Callable[[], ir.Model]]] = [
        ("", lambda: _freed(_to_onnx(module, two, outputs, free), vary)),  # a size of 1 would be taken for a constant
        (WAS_TRACED, lambda: _traced(module, tries, outputs, vary)),
    ]
    if not any(vary.values()):
        ways.append(("", lambda: _to_onnx(module, one, outputs, None)))
    errors: list[Exception] = []
    with exporting():
        for said, way in ways:
            try:
                model, note = way(), said
                break
            except Exception as error:  # the exporter raises whatever the module did
                errors.append(error)
        else:
            raise BackboneError(f"{spec} can't be exported to ONNX ({root_cause(errors[0])}).") from errors[0]
        save(model, path)
    return note or _differs(path, module, tries, outputs)


def _differs(path: Path, module: nn.Module, tries: Sequence[Tensors], outputs: list[str]) -> str:
    """Says where the file answers clearly otherwise than the module, as one that counts its calls does."""
    session = open_session(path)
    farthest = 0.0
    for tensors in tries:
        try:
            with torch.no_grad():
                expected = [tensor.float().numpy() for tensor in by_name(module(**tensors)).values()]
            answers = run(session, outputs, {name: tensor.numpy() for name, tensor in tensors.items()})
        except Exception:  # a batch, or a size, that is free in name only
            continue
        for answer, other in zip(answers, expected, strict=True):
            apart = np.abs(answer.astype(np.float32) - other) / max(1.0, np.abs(other).max(initial=0))
            farthest = max(farthest, float(np.nan_to_num(apart).max(initial=0)))
    if farthest <= APART:
        return ""
    return (
        f"The network as PyTorch exports it answers otherwise than the module, by up to {farthest:.2g}; it is served."
    )


def export_saved(source: Path, path: Path) -> None:
    """Writes a program that `torch.export.save` saved as ONNX.

    Raises:
        BackboneError: If the file is no such program, or an operator of it has no ONNX form.
    """
    if not source.is_file():
        raise BackboneError(f"There is no file {source}; check the path.")
    with exporting():
        try:
            saved = torch.export.load(source)
        except Exception as error:  # an archive of any kind, or none
            raise BackboneError(
                f"{source.name} is not a program written by torch.export.save, or is damaged."
            ) from error
        try:
            save(_to_onnx(saved, None, _saved_names(saved), None), path)
        except Exception as error:
            raise BackboneError(f"{source.name} can't be exported to ONNX ({root_cause(error)}).") from error


def _build(spec: str) -> nn.Module:
    make = import_callable(spec, BackboneError)
    try:
        module = make()
    except (Exception, SystemExit) as error:  # the user's own code
        raise BackboneError(f"{spec}() failed ({root_cause(error)}); it must work without arguments.") from error
    if not isinstance(module, nn.Module):
        raise BackboneError(f"{spec}() gives {type(module).__name__}; it must return a torch.nn.Module.")
    module = _unwrapped(module)
    if isinstance(module, torch.jit.ScriptModule):
        raise BackboneError(
            f"{spec}() gives a TorchScript program; write it with torch.jit.save and give its .pt file."
        )
    try:
        return module.eval()
    except Exception as error:  # the user's own code; what torch.export made has no modes
        raise BackboneError(
            f"{spec}() gives a module that can't be put in eval mode ({root_cause(error)}); give the network as it was "
            "before torch.export, or a .pt2 file."
        ) from error


def _unwrapped(module: nn.Module) -> nn.Module:
    """What torch.compile, or data parallelism, has wrapped."""
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return _unwrapped(module.module)
    return getattr(module, "_orig_mod", module)


def _argument_names(spec: str, module: nn.Module, samples: Mapping[str, np.ndarray]) -> list[str]:
    """Arguments of `forward` that the samples provide: all that it requires, and optional ones that are there."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = [p for p in inspect.signature(module.forward).parameters.values() if p.kind in named]
    required = [p.name for p in parameters if p.default is inspect.Parameter.empty]
    names = [p.name for p in parameters if p.name in required or p.name in samples] or [p.name for p in parameters[:1]]
    if not names:
        raise BackboneError(f"{spec}'s forward names no arguments; write each input as an argument of its own.")
    try:
        pick(samples, names)
    except SamplesError as error:
        there = ", ".join(samples)
        raise BackboneError(
            f"{spec}'s forward takes {', '.join(names)}, and the samples hold {there}; give them the same names."
        ) from error
    return names


def tries_of(module: nn.Module, samples: Samples) -> list[Tensors]:
    """One row, two, and many, and rows of other sizes if there are any; floats as the module computes them."""
    floats = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    found = []
    for feeds in (*(few(samples, size) for size in (1, 2, MANY)), *extremes(samples)):
        tensors = {name: _tensor(name, rows) for name, rows in feeds.items()}
        found.append({name: each.to(floats) if each.is_floating_point() else each for name, each in tensors.items()})
    return found


def _tensor(name: str, rows: np.ndarray) -> torch.Tensor:
    try:
        return torch.from_numpy(rows.astype(rows.dtype.newbyteorder("="), copy=False))
    except TypeError as error:
        raise SamplesError(
            f"Input {name!r} is {rows.dtype} in the samples, which PyTorch has not; convert it."
        ) from error


def _output_names(spec: str, module: nn.Module, tensors: Tensors) -> list[str]:
    """Calls the module once; its outputs are named by the module where it returns a mapping."""
    try:
        with torch.no_grad():
            result = module(**tensors)
    except Exception as error:  # the user's own code
        raise BackboneError(
            f"{spec} fails on the samples ({root_cause(error)}); check their shapes and types."
        ) from error
    outputs = by_name(result)
    strange = next((name for name, output in outputs.items() if not isinstance(output, torch.Tensor)), None)
    if strange is not None or not outputs:
        what = "nothing" if strange is None else f"{type(outputs[strange]).__name__} for {strange!r}"
        raise BackboneError(f"{spec} returns {what}; wrap it so that it returns tensors.")
    return [*outputs]


def _saved_names(saved: torch.export.ExportedProgram) -> list[str]:
    """Names of a saved program's outputs, by what its module returned; ONNX has none for what was None."""
    spec = saved.call_spec.out_spec
    if spec is None:
        return ["output"]
    given = [each.arg for each in saved.graph_signature.output_specs if each.kind is OutputKind.USER_OUTPUT]
    named = by_name(spec.unflatten(given))
    return [name for name, each in named.items() if not (isinstance(each, ConstantArgument) and each.value is None)]


def by_name(result: Any) -> dict[str, Any]:
    """What a module returned, by the names that its outputs get."""
    if isinstance(result, Mapping):
        return {str(name): output for name, output in result.items()}
    outputs = result if isinstance(result, (tuple, list)) else [result]
    if len(outputs) == 1:
        return {"output": outputs[0]}
    return {f"output_{place}": output for place, output in enumerate(outputs)}


def _to_onnx(program: Any, tensors: Tensors | None, outputs: list[str], dynamic: Any) -> ir.Model:
    exported = torch.onnx.export(
        program, (), kwargs=tensors, dynamic_shapes=dynamic, output_names=outputs, dynamo=True, verbose=False
    )
    if exported is None:
        raise BackboneError("PyTorch's exporter gave nothing.")
    return exported.model


def _freed(model: ir.Model, vary: Mapping[str, Sequence[int]]) -> ir.Model:
    for value in model.graph.inputs:
        if value.shape is None or any(isinstance(value.shape[axis], int) for axis in (0, *vary[value.name or ""])):
            raise BackboneError("The batch, or a size that varies, became a constant.")
    return model


def free_axes(vary: Mapping[str, Sequence[int]], outputs: Sequence[str]) -> dict[str, dict[int, str]]:
    """Axes that may vary, as tracing takes them: the batch, and those of inputs."""
    inputs = {name: {0: BATCH, **{axis: f"{name}_{axis}" for axis in axes}} for name, axes in vary.items()}
    return inputs | {name: {0: BATCH} for name in outputs}


def _traced(
    module: nn.Module, tries: Sequence[Tensors], outputs: list[str], vary: Mapping[str, Sequence[int]]
) -> ir.Model:
    """Follows the module through one call, as PyTorch exported before: it takes what `torch.export` can't read.

    What the module decided in that call is decided for good, hence held against it on batches of all sizes.
    """
    file: Any = io.BytesIO()
    names: dict[str, Any] = {"input_names": [*vary], "output_names": outputs, "dynamic_axes": free_axes(vary, outputs)}
    torch.onnx.export(module, (), file, kwargs=tries[1], **names, dynamo=False)
    return held_against(file.getvalue(), lambda tensors: module(**tensors), tries, outputs)


def held_against(file: bytes, call: Callable[[Tensors], Any], tries: Sequence[Tensors], outputs: list[str]) -> ir.Model:
    """Reads an ONNX file that was made of a module, if it says what the module says.

    Raises:
        AssertionError: If it does not.
    """
    session = open_session(file)
    for tensors in tries:
        with torch.no_grad():
            expected = by_name(call(tensors)).values()
        answers = run(session, outputs, {name: tensor.numpy() for name, tensor in tensors.items()})
        for answer, tensor in zip(answers, expected, strict=True):
            np.testing.assert_allclose(answer, tensor.numpy(), rtol=TRACED, atol=TRACED)
    return ir.from_proto(onnx.load_model_from_string(file))


def save(model: ir.Model, path: Path) -> None:
    """Writes a model without the exporter's notes: they hold stack traces, with paths of the machine it ran on."""
    passes.ClearMetadataAndDocStringPass()(model)
    _make_room(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    ir.save(model, path)


def _make_room(model: ir.Model) -> None:
    """Renames what has an output's name inside the network: the module that a dictionary's key is named as, say."""
    outputs = {value.name or "" for value in model.graph.outputs}
    taken = next((value.name for value in model.graph.inputs if value.name in outputs), None)
    if taken is not None:
        raise BackboneError(f"an input and an output are both named {taken!r}; rename one of them")
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for value in node.outputs:
            if value.name in outputs and value not in model.graph.outputs:
                value.name = f"{value.name}/inner"
    for name in outputs & set(model.graph.initializers):
        weights = model.graph.initializers[name]
        if weights not in model.graph.outputs:
            weights.name = f"{name}/inner"


def root_cause(error: BaseException) -> str:
    """The cause of a chain of exceptions, in one short line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
    return text if len(text) <= 200 else f"{text[:200]}…"
