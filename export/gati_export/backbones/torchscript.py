"""TorchScript programs as ONNX files: what `torch.jit.save` wrote, and Triton's PyTorch backend serves."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from gati.errors import BackboneError
from gati_export.backbones.exporter import exporting
from gati_export.backbones.program import Tensors, by_name, free_axes, held_against, root_cause, save, tries_of
from gati_export.backbones.signature import Signature
from gati_export.samples.ragged import varying
from gati_export.samples.samples import check_samples, pick

PLACE = re.compile(r".+__(\d+)")
"""Names that tell a place, as `INPUT__0` does: a TorchScript program's outputs have no names of their own."""

WRONG = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception): (.+)$", re.MULTILINE)
"""The line of a message of TorchScript's that says what went wrong."""


def export_script(source: Path, samples: Mapping[str, np.ndarray] | None, path: Path, signature: Signature) -> None:
    """Writes a program as ONNX, with free dimensions where its signature has them, the batch anyway.

    What comes of it is held against the program.

    Args:
        source: What `torch.jit.save` wrote.
        samples: Rows to call it with, named as its inputs.
        path: Where the ONNX file goes.
        signature: Its inputs and outputs, which are found as Triton finds them: by the names of the arguments of
            `forward`, by the place that a name like `INPUT__0` tells, or else in their order. Without any, arguments
            name inputs.

    Raises:
        BackboneError: If it is no such program, can't be called, or can't be exported.
        SamplesError: If the samples don't fit the signature.
    """
    if samples is None:
        raise BackboneError(f"{source.name} can only be exported with samples at hand; give some.")
    module = _read(source)
    samples = check_samples(samples, signature.inputs) if signature.inputs else samples
    inputs = _inputs(source, module, signature.names, samples)
    samples = pick(samples, inputs)
    tries = tries_of(module, samples)
    vary = {name: varying(rows) for name, rows in samples.items()}
    vary |= {tensor.name: [i for i, size in enumerate(tensor.shape, 1) if size < 0] for tensor in signature.inputs}
    try:
        with torch.no_grad():
            given = [*by_name(module(*tries[0].values()))]
    except Exception as error:  # whatever the program raises
        raise BackboneError(f"{source.name} fails on the samples ({_said(error)}); check their shapes.") from error
    with exporting():
        try:
            model = _to_onnx(module, tries, _outputs(given, signature.outputs), vary)
        except Exception as error:  # the exporter's, or a difference from the program
            raise BackboneError(f"{source.name} can't be exported to ONNX ({_said(error)}).") from error
        save(model, path)


def _read(source: Path) -> torch.jit.ScriptModule:
    if not source.is_file():
        raise BackboneError(f"There is no file {source}; check the path.")
    with exporting():
        try:
            return torch.jit.load(source, map_location="cpu").eval()
        except Exception as error:  # an archive of any kind, or none
            raise BackboneError(
                f"{source.name} is no TorchScript program, or is damaged; of weights that were saved without their "
                "network, give package.module:callable, which builds it and loads them."
            ) from error


def _inputs(
    source: Path, module: torch.jit.ScriptModule, names: Sequence[str], samples: Mapping[str, np.ndarray]
) -> list[str]:
    """Names of the inputs, in the order of the arguments of `forward`."""
    forward: Any = module.forward  # a method of the program, not of Python
    _, *arguments = forward.schema.arguments
    known = [argument.name for argument in arguments]
    inputs = _in_place(names, known) if names else [name for name in known if name in samples] or known[:1]
    required = sum(not argument.has_default_value() for argument in arguments)
    between = all(name in known for name in inputs) and inputs != known[: len(inputs)]  # they are given by place
    if not required <= len(inputs) <= len(known) or between:
        there = ", ".join(names or samples)
        raise BackboneError(f"{source.name} takes {', '.join(known)}, and is given {there}; name them alike.")
    return inputs


def _in_place(names: Sequence[str], known: Sequence[str]) -> list[str]:
    if all(name in known for name in names):
        return sorted(names, key=known.index)
    places = [PLACE.fullmatch(name) for name in names]
    if all(places):
        return sorted(names, key=lambda name: int(name.rpartition("__")[2]))
    return list(names)


def _outputs(given: Sequence[str], names: Sequence[str]) -> list[str]:
    """Names of all outputs; those that are not told are named as a module's."""
    told = {int(found[1]): name for name in names if (found := PLACE.fullmatch(name))}
    if len(told) != len(names):
        told = dict(enumerate(names))
    return [told.get(place, name) for place, name in enumerate(given)]


def _to_onnx(
    module: torch.jit.ScriptModule, tries: Sequence[Tensors], outputs: list[str], vary: Mapping[str, Sequence[int]]
) -> ir.Model:
    file: Any = io.BytesIO()
    wanted: dict[str, Any] = {"input_names": [*tries[1]], "output_names": outputs}
    axes = free_axes(vary, outputs)
    torch.onnx.export(module, tuple(tries[1].values()), file, **wanted, dynamic_axes=axes, dynamo=False)
    return held_against(file.getvalue(), lambda tensors: module(*tensors.values()), tries, outputs)


def _said(error: Exception) -> str:
    """What went wrong, without the listing of the program that TorchScript puts before it."""
    said = WRONG.findall(str(error))
    return root_cause(RuntimeError(said[-1])) if said else root_cause(error)
