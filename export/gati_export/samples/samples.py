"""Samples: the inputs that heads learn from, are tuned on, and are certified on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from gati.errors import SamplesError
from gati.repository.chain import Tensor
from gati_export.samples.images import Decode
from gati_export.samples.parquet import NOTHING_TO_DECODE, read_parquet
from gati_export.samples.ragged import each, is_ragged, shapes

ARRAYS = ".npz", ".npy"
"""Files of NumPy's, which hold nothing that would have to be decoded."""


def load_samples(
    path: str | Path,
    *,
    inputs: Sequence[Tensor] | None = None,
    names: Sequence[str] | None = None,
    decode: Decode | None = None,
) -> dict[str, np.ndarray]:
    """Reads samples: a `.npz` or `.npy` file, a Parquet file, or a folder of Parquet files.

    Args:
        path: Arrays (or columns) are named as the model's inputs. A model with one input takes the only
            array, or the only column of lists or images, whatever its name. Others, labels say, are left out.
        inputs: The model's inputs. With them, samples are checked and cast (see `check_samples`); without, what the
            file holds is given as it is.
        names: Names of the model's inputs, where no more is known of them; without, all that the file holds is read.
        decode: For columns of encoded images; see `gati_export.samples.images.parse_decode`.

    Returns:
        Rows by name, n ≥ 1 each: arrays [n, *shape], or of objects where rows differ in shape
        (gati_export.samples.ragged).

    Raises:
        SamplesError: If samples can't be read or don't fit, or there is nothing to decode.
    """
    path = Path(path)
    names = names if inputs is None else [tensor.name for tensor in inputs]
    if path.is_dir() or path.suffix == ".parquet":
        arrays = read_parquet(_existing(path), names, decode)
    elif path.suffix in ARRAYS:
        arrays = _read_numpy(_existing(path))
        if decode is not None:
            raise SamplesError(NOTHING_TO_DECODE.format(name=path.name))
    else:
        raise SamplesError(f"{path.name} is not a kind of samples that gati reads; give .npz, .npy or Parquet.")
    _check_rows(arrays if names is None else pick(arrays, names))
    return arrays if inputs is None else check_samples(arrays, inputs)


def _existing(path: Path) -> Path:
    if not path.exists():
        raise SamplesError(f"There are no samples at {path}; check the path.")
    return path


def _read_numpy(path: Path) -> dict[str, np.ndarray]:
    try:
        loaded = np.load(path, allow_pickle=False)
        arrays = {path.stem: loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except Exception as error:  # NumPy raises what zipfile, zlib or its parser do
        raise SamplesError(
            f"{path.name} is damaged, or holds more than plain arrays ({error}); rows of several shapes go to Parquet."
        ) from error
    return arrays


def pick(samples: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Finds the arrays of a model's inputs: by name, or for a model with one input the only array that can be meant.

    Raises:
        SamplesError: If one is missing.
    """
    missing = [name for name in names if name not in samples]
    if not missing:
        return {name: samples[name] for name in names}
    if len(names) == 1:
        tensors = [rows for rows in samples.values() if len(samples) == 1 or rows.ndim > 1 or is_ragged(rows)]
        if len(tensors) == 1:
            return {names[0]: tensors[0]}
    there = ", ".join(repr(name) for name in samples) or "nothing that fits"
    wanted = ", ".join(repr(name) for name in missing)
    raise SamplesError(f"The samples lack the model's input {wanted} and hold {there}; name them as the model does.")


def check_samples(samples: Mapping[str, np.ndarray], inputs: Sequence[Tensor]) -> dict[str, np.ndarray]:
    """Makes samples fit a model.

    Returns:
        The model's inputs only, in its order and dtypes.

    Raises:
        SamplesError: If an input is missing, empty, of a wrong shape or dtype, or not finite.
    """
    picked = pick(samples, [tensor.name for tensor in inputs])
    _check_rows(picked)
    return {tensor.name: _fit(picked[tensor.name], tensor) for tensor in inputs}


def cast_notes(samples: Mapping[str, np.ndarray], inputs: Sequence[Tensor]) -> list[str]:
    """What to know of samples that are integers where the model takes floats: they may lack a scaling."""
    picked = pick(samples, [tensor.name for tensor in inputs])
    flat = {name: np.concatenate([*map(np.ravel, rows)]) if is_ragged(rows) else rows for name, rows in picked.items()}
    return [
        f"Samples of {tensor.name!r} are {flat[tensor.name].dtype}, {flat[tensor.name].min()} to "
        f"{flat[tensor.name].max()}, and taken as {tensor.dtype} as they are: that has to be what clients send."
        for tensor in inputs
        if tensor.numpy.kind == "f" and flat[tensor.name].dtype.kind in "iu"
    ]


def _check_rows(arrays: Mapping[str, np.ndarray]) -> None:
    counts = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name!r} {count}" for name, count in counts.items())
        raise SamplesError(f"All arrays of the samples must have as many rows, but they have: {listed}.")
    if not counts or not max(counts.values()):
        raise SamplesError("There are no rows in the samples; give at least one.")


def _fit(rows: np.ndarray, tensor: Tensor) -> np.ndarray:
    rows = _unflattened(rows, tensor)
    for shape in shapes(rows):
        if len(shape) != len(tensor.shape) or any(w not in (-1, d) for d, w in zip(shape, tensor.shape, strict=True)):
            raise SamplesError(
                f"A row of input {tensor.name!r} has shape {list(shape)}, and the model takes {list(tensor.shape)} "
                "(-1: any); reshape or resize the samples."
            )
        if 0 in shape:
            raise SamplesError(
                f"A row of input {tensor.name!r} has shape {list(shape)}, and holds nothing; leave it out."
            )
    cast = each(rows, lambda some: np.ascontiguousarray(_cast(some, tensor)))
    finite = each(cast, lambda some: np.isfinite(some).reshape(len(some), -1).all(axis=1))
    bad = int((~finite).sum())
    if bad:
        raise SamplesError(f"{bad} of {len(cast)} rows of input {tensor.name!r} hold NaN or Inf; leave them out.")
    return cast


def _unflattened(rows: np.ndarray, tensor: Tensor) -> np.ndarray:
    """Gives rows that are flat lists of numbers, as tables hold them, the shape of the model's input."""
    flat = rows.ndim <= 2 and min(tensor.shape, default=0) > 0 and not is_ragged(rows)
    return rows.reshape(-1, *tensor.shape) if flat and rows[0].size == np.prod(tensor.shape, dtype=np.int64) else rows


def _cast(rows: np.ndarray, tensor: Tensor) -> np.ndarray:
    """Casts where no value changes but by rounding."""
    target = tensor.numpy
    if rows.dtype == target:
        return rows
    fits = np.can_cast(rows.dtype, target, "same_kind") or (rows.dtype.kind in "iu" and target.kind in "iu")
    if fits:
        with np.errstate(over="ignore"):  # becomes Inf, which the caller looks for
            cast = rows.astype(target)
        if target.kind not in "iu" or np.array_equal(cast, rows):
            return cast
    raise SamplesError(
        f"Input {tensor.name!r} is {rows.dtype} in the samples and {target} in the model, which can't hold all of its "
        "values; convert the samples."
    )
