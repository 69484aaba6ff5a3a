"""Ragged samples: rows that differ in shape, as texts differ in length, where a network takes any.

An input's rows are an array [n, ...] where they are of one shape; where they are not, as NumPy has it, one of objects,
[n], each of which is an array. What is run together is of one shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

Samples = Mapping[str, np.ndarray]
"""Model inputs by name, n rows each."""


def count(samples: Samples) -> int:
    """How many rows samples have."""
    return len(next(iter(samples.values())))


def is_ragged(rows: np.ndarray) -> bool:
    """Whether rows may differ in shape."""
    return rows.dtype == object


def gathered(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of any shapes as an input's."""
    return np.stack(rows) if len({row.shape for row in rows}) == 1 else apart(rows)


def apart(rows: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Rows as objects, so that one may be put in the place of another, of whatever shape."""
    found = np.empty(len(rows), object)
    for place, row in enumerate(rows):  # at once, NumPy would look for dimensions that they share
        found[place] = row
    return found


def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The rows of several inputs, one after another."""
    if len({part.shape[1:] for part in parts}) == 1 and not any(map(is_ragged, parts)):
        return np.concatenate(parts)
    return gathered([row for part in parts for row in part])


def each(rows: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Changes rows, [k, ...] at a time, whatever their shapes."""
    return gathered([change(row[None])[0] for row in rows]) if is_ragged(rows) else change(rows)


def shapes(rows: np.ndarray) -> set[tuple[int, ...]]:
    """The shapes that rows have."""
    return {row.shape for row in rows} if is_ragged(rows) else {rows.shape[1:]}


def rows_at(samples: Samples, rows: Sequence[int] | np.ndarray | slice) -> dict[str, np.ndarray]:
    """Rows of one shape, to be run: [k, ...] by name."""
    picked = {name: values[rows] for name, values in samples.items()}
    return {name: np.stack(list(values)) if is_ragged(values) else values for name, values in picked.items()}


def few(samples: Samples, size: int) -> dict[str, np.ndarray]:
    """The first rows of the typical shape, repeated where there are fewer: [size, ...] by name."""
    return rows_at(samples, np.resize(typical(samples), size))


def unpadded(rows: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The inputs of one sample without their padding, where a mask among them tells of it: ones, then zeros to the end.

    Who asks many texts together fills them up to the longest: they are the texts that they were.
    """
    used = {len(row): int(row.sum()) for row in rows if _is_mask(row)}
    if not used:
        return list(rows)
    return [row[: used.get(len(row))] if row.ndim == 1 and row.dtype.kind in "iub" else row for row in rows]


def _is_mask(row: np.ndarray) -> bool:
    if row.ndim != 1 or row.dtype.kind not in "iub" or not row.size or row[0] != 1:
        return False
    last = int(np.flatnonzero(row)[-1])
    return bool((row[: last + 1] == 1).all())


def batches(samples: Samples, rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Places among `rows` of those that can be run together, at most `size` at a time; all places come once."""
    alike: dict[tuple, list[int]] = {}
    ragged = [values for values in samples.values() if is_ragged(values)]
    for place, row in enumerate(rows.tolist()):
        alike.setdefault(tuple(values[row].shape for values in ragged), []).append(place)
    for places in alike.values():
        for start in range(0, len(places), size):
            yield np.array(places[start : start + size])


def varying(rows: np.ndarray) -> list[int]:
    """The axes along which rows differ in size, the batch being axis 0."""
    sizes = zip(*shapes(rows), strict=True)
    return [axis for axis, found in enumerate(sizes, start=1) if len(set(found)) > 1]


def extremes(samples: Samples) -> list[dict[str, np.ndarray]]:
    """The smallest row and the largest, [1, ...] each; none where all rows are of one shape."""
    ragged = [values for values in samples.values() if is_ragged(values)]
    if not ragged:
        return []
    sizes = [sum(row.size for row in rows) for rows in zip(*ragged, strict=True)]
    return [rows_at(samples, [int(place)]) for place in (np.argmin(sizes), np.argmax(sizes))]


def typical(samples: Samples) -> np.ndarray:
    """The rows that have the shape of a row of median size: what they take is what rows take."""
    n = count(samples)
    ragged = [values for values in samples.values() if is_ragged(values)]
    if not ragged:
        return np.arange(n)
    sizes = [sum(values[row].size for values in ragged) for row in range(n)]
    median = int(np.argsort(sizes, kind="stable")[n // 2])
    wanted = [values[median].shape for values in ragged]
    return np.array([row for row in range(n) if [values[row].shape for values in ragged] == wanted])
