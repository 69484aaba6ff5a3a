"""From the caller's arrays to a request's tensors and back, the same for every protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gati_client.answer import Answer
from gati_client.errors import InvalidRequest
from gati_client.metadata import Metadata, TensorSpec

EXIT = ("exit", "INT32")
RELEASE = ("release", "INT64")
"""Name and datatype of the outputs by which a chain says where it answered."""

CASTS = {"f": "biuf", "V": "biuf", "i": "b", "u": "b", "O": "SU"}
"""Kinds of dtype that may become another kind; V is bfloat16, which NumPy does not know for a float."""


def encode(metadata: Metadata, inputs: Any, named: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Fits what the caller gave to the model's inputs.

    Args:
        metadata: The model's.
        inputs: An array for a model with one input, a mapping of names to arrays, or None.
        named: Inputs given as keyword arguments, instead of `inputs`.

    Returns:
        Arrays by input name, of the dtypes that the model declares. An input that was left out is left out here
        too, since only the server knows which are optional.

    Raises:
        InvalidRequest: If a name, shape or dtype does not fit.
    """
    given = _by_name(metadata, inputs, named)
    specs = {spec.name: spec for spec in metadata.inputs}
    for name in given:
        if name not in specs:
            raise InvalidRequest(f"{metadata.model!r} has no input {name!r}; it has {_names(metadata)}.")
    return {name: fit(specs[name], value) for name, value in given.items()}


def _by_name(metadata: Metadata, inputs: Any, named: Mapping[str, Any]) -> Mapping[str, Any]:
    if (inputs is None) == (not named):
        how = "not at all" if inputs is None else "twice"
        raise InvalidRequest(f"Inputs were given {how}: pass an array, a mapping, or keyword arguments.")
    if inputs is None:
        return named
    if isinstance(inputs, Mapping):
        if not inputs:
            raise InvalidRequest(f"The mapping of inputs is empty; {metadata.model!r} has {_names(metadata)}.")
        return inputs
    if len(metadata.inputs) != 1:
        raise InvalidRequest(f"{metadata.model!r} has several inputs; name them: {_names(metadata)}.")
    return {metadata.inputs[0].name: inputs}


def _names(metadata: Metadata) -> str:
    return ", ".join(f"{spec.name!r}: {spec}" for spec in metadata.inputs)


def fit(spec: TensorSpec, value: Any) -> np.ndarray:
    """An array of the input's shape and dtype.

    Casts lose precision at most, never the value: any number to a float, integers to integers that can hold them,
    booleans to any number; not floats to integers, and no overflow. One number a row may come as [rows].

    Raises:
        InvalidRequest: If the shape or the dtype does not fit.
    """
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:  # RuntimeError: a tensor that lies on a GPU
        raise InvalidRequest(f"Input {spec.name!r} can't be made an array ({error}).") from error
    if spec.shape == (-1, 1) and array.ndim == 1:
        array = array[:, None]
    _check_shape(spec, array)
    return _cast(spec, array)


def _check_shape(spec: TensorSpec, array: np.ndarray) -> None:
    shape = list(array.shape)
    if spec.batched and _matches(spec.shape[1:], array.shape):
        raise InvalidRequest(
            f"Input {spec.name!r} is one row of shape {shape} without a batch dimension; {spec} is expected, "
            f"so pass `{spec.name}[None]`."
        )
    if not _matches(spec.shape, array.shape):
        raise InvalidRequest(f"Input {spec.name!r} has shape {shape}; {spec} is expected.")
    if spec.batched and not len(array):
        raise InvalidRequest(f"Input {spec.name!r} is an empty batch of shape {shape}; it needs at least one row.")


def _matches(expected: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return len(expected) == len(shape) and all(e in (-1, s) for e, s in zip(expected, shape, strict=True))


def _cast(spec: TensorSpec, array: np.ndarray) -> np.ndarray:
    target = spec.numpy
    if target == array.dtype:
        return array
    if target.kind in "iu" and array.dtype.kind in "iu":
        return _narrow(spec, array)
    if array.dtype.kind not in CASTS.get(target.kind, ""):
        raise InvalidRequest(f"Input {spec.name!r} has dtype {array.dtype}, which can't safely become {spec.datatype}.")
    try:
        with np.errstate(over="raise"):
            return array.astype(target)
    except FloatingPointError as error:
        raise InvalidRequest(f"Input {spec.name!r} holds numbers too large for {spec.datatype}.") from error


def _narrow(spec: TensorSpec, array: np.ndarray) -> np.ndarray:
    """Integers to integers, if every one of them fits."""
    limits = np.iinfo(spec.numpy)
    if array.size and not (limits.min <= int(array.min()) and int(array.max()) <= limits.max):
        raise InvalidRequest(f"Input {spec.name!r} holds integers that {spec.datatype} can't.")
    return array.astype(spec.numpy)


def parameters(exact: bool) -> dict[str, str]:
    """The request parameters: whether heads may answer."""
    return {"gati_mode": "exact" if exact else "cached"}


def tensors(kind: Any, metadata: Metadata, arrays: Mapping[str, np.ndarray]) -> list[Any]:
    """The arrays as a protocol's `InferInput`s (`kind`)."""
    datatypes = {spec.name: spec.datatype for spec in metadata.inputs}
    result = []
    for name, array in arrays.items():
        tensor = kind(name, list(array.shape), datatypes[name])
        tensor.set_data_from_numpy(array)
        result.append(tensor)
    return result


def decode(metadata: Metadata, result: Any) -> Answer:
    """Reads a tritonclient `InferResult`, of either protocol."""
    outputs: dict[str, np.ndarray] = {}
    traces: dict[tuple[str, str], np.ndarray] = {}
    for spec in metadata.outputs:
        array = result.as_numpy(spec.name)
        if array is None:
            continue
        key = (spec.name, spec.datatype)
        if key in (EXIT, RELEASE):
            traces[key] = array.reshape(-1)
        else:
            outputs[spec.name] = array
    return Answer(outputs, traces.get(EXIT), traces.get(RELEASE))
