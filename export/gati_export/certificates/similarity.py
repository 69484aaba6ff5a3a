"""Similarity of samples: distances between their values at some positions, measured as the kind of input wants it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np

from gati_export.samples.ragged import is_ragged

CLOSE = 0.5
"""Two samples are close if they are nearer than this share of their typical distance to others.

Of a shaking camera's frames (`gati_client.workload.film`, CIFAR-10 or 64×64 digits) 99.5 % have one so close among
those before them; of CIFAR-10's pictures, 1 % have one among as many others.
"""
LONGER = 4
"""Of samples that differ in length, only so many times the median length is compared."""
WILD = 100
"""Numbers are clipped at so many times the largest of the median sample: beside a 1e20, all others would be equal."""
REFERENCES, POSITIONS, COMPARED = 16, 1024, 1024
"""Most samples that typical distances are measured to, positions compared, and samples that the scale is taken from."""
LARGE = 8e307
"""Numbers are clipped here first, so that the difference of any two is still finite."""
SIGNS = 1024
"""Length of the sign vectors that many words are compared by at once: shares of differing positions have σ = 3 %."""


class Kind(ABC):
    """Inputs whose values are compared in the same way.

    Attributes:
        rows: Their values at up to `POSITIONS` positions, drawn at random, [n, positions]; padded where a row is
            shorter.
        sizes: How many of these positions each row has, [n].
        typical: A row's median distance to rows drawn at random, [n].
    """

    def __init__(self, rows: np.ndarray, sizes: np.ndarray, random: np.random.Generator) -> None:
        self.rows, self.sizes = rows, sizes
        references = random.permutation(len(rows))[:REFERENCES]
        apart = [self._distance(rows, rows[each], np.maximum(sizes, sizes[each])) for each in references]
        self.typical = np.median(apart, axis=0)

    def close(self, first: slice | np.ndarray, second: slice | np.ndarray) -> np.ndarray:
        """Whether pairs of rows are close, as measured by the smaller of their two typical distances, bool [k]."""
        reach = CLOSE * np.minimum(self.typical[first], self.typical[second])
        longer = np.maximum(self.sizes[first], self.sizes[second])
        return self._distance(self.rows[first], self.rows[second], longer) <= reach

    def distances(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Distances of some rows, int [k], from others, int [m]: float [k, m], nearly those that `close` goes by."""
        ours, theirs = self._vectors(self.rows[first]), self._vectors(self.rows[second])
        squares = np.add.outer(_squares(ours), _squares(theirs)) - 2 * (ours @ theirs.T)
        longer = np.maximum(np.maximum.outer(self.sizes[first], self.sizes[second]), 1)
        return self._from_squares(np.maximum(squares, 0) / longer)

    @abstractmethod
    def _distance(self, first: np.ndarray, second: np.ndarray, size: np.ndarray) -> np.ndarray:
        """Distances, [k], of values, [k, positions], from others, [k, positions] or [positions].

        `size` is the larger of the two rows' sizes, [k].
        """

    @abstractmethod
    def _vectors(self, rows: np.ndarray) -> np.ndarray:
        """Vectors, float32 [k, ...], for rows, [k, positions], whose squared distances stand for those of the rows."""

    @abstractmethod
    def _from_squares(self, squares: np.ndarray) -> np.ndarray:
        """Distances of rows, from squared distances of their vectors divided by the larger size."""


class Numbers(Kind):
    """Floating-point inputs and bytes, standardised: root mean squares of differences."""

    def __init__(self, rows: np.ndarray, sizes: np.ndarray, random: np.random.Generator) -> None:
        super().__init__(rows, sizes, random)
        self._middle = rows.mean(axis=0)

    def _distance(self, first: np.ndarray, second: np.ndarray, size: np.ndarray) -> np.ndarray:
        return np.sqrt(_squares(first - second) / np.maximum(size, 1))

    def _vectors(self, rows: np.ndarray) -> np.ndarray:
        return rows - self._middle  # products of large numbers would hide small differences

    def _from_squares(self, squares: np.ndarray) -> np.ndarray:
        return np.sqrt(squares)


class Words(Kind):
    """Other integers, such as token ids: shares of differing positions."""

    def __init__(self, rows: np.ndarray, sizes: np.ndarray, random: np.random.Generator) -> None:
        super().__init__(rows, sizes, random)
        self._columns = np.arange(SIGNS) % rows.shape[1]
        self._factors = random.integers(0, 2**63, SIGNS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)

    def _distance(self, first: np.ndarray, second: np.ndarray, size: np.ndarray) -> np.ndarray:
        return (first != second).sum(axis=1) / np.maximum(size, 1)

    def _vectors(self, rows: np.ndarray) -> np.ndarray:
        """Signs, hashed from each word and its position: of two different words, half of the signs are equal."""
        words = rows.astype(np.int64).view(np.uint64)[:, self._columns]
        hashed = (words + np.uint64(1)) * self._factors
        hashed ^= hashed >> np.uint64(29)
        hashed *= self._factors
        return np.where(hashed >> np.uint64(63), np.float32(1), np.float32(-1))

    def _from_squares(self, squares: np.ndarray) -> np.ndarray:
        return squares * (self.rows.shape[1] / (2 * SIGNS))  # 4 for each sign that differs, and half of them do


def kinds_of(samples: Mapping[str, np.ndarray], random: np.random.Generator) -> list[Kind]:
    """The kinds that samples, by name, are compared by: numbers, words, both, or none where all samples are equal."""
    found = [samples[name] for name in sorted(samples)]
    found = [rows for rows in found if is_ragged(rows) or (rows.size and (rows != rows[0]).any())]
    types = [rows[0].dtype for rows in found]
    measured = [rows for rows, dtype in zip(found, types, strict=True) if dtype.kind == "f" or dtype == np.uint8]
    counted = [rows for rows, dtype in zip(found, types, strict=True) if dtype.kind in "biu" and dtype != np.uint8]
    kinds: list[Kind] = []
    if measured:
        values, sizes = _drawn(measured, random)
        kinds.append(Numbers(np.concatenate([_standardised(each) for each in values], axis=1), sizes, random))
    if counted:
        values, sizes = _drawn(counted, random)
        kinds.append(Words(np.concatenate(values, axis=1), sizes, random))
    return kinds


def _drawn(inputs: Sequence[np.ndarray], random: np.random.Generator) -> tuple[list[np.ndarray], np.ndarray]:
    """Values at positions drawn among those of all inputs, [n, positions] each, and how many of them a row has, [n]."""
    widths = [_width(rows) for rows in inputs]
    picked = np.sort(random.permutation(sum(widths))[:POSITIONS])
    starts = np.cumsum([0, *widths])
    parts = [
        _values(rows, picked[(picked >= start) & (picked < start + width)] - start)
        for rows, start, width in zip(inputs, starts[:-1], widths, strict=True)
    ]
    return [values for values, _ in parts], np.sum([sizes for _, sizes in parts], axis=0)


def _width(rows: np.ndarray) -> int:
    """How many positions of rows are compared: of those that differ in shape, as many as most have, and some more."""
    if not is_ragged(rows):
        return rows[0].size
    sizes = [row.size for row in rows]
    return min(max(sizes), LONGER * int(np.median(sizes)))


def _values(rows: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What rows hold at some positions, [n, positions], and how many of these they have, [n]."""
    if not is_ragged(rows):
        return rows.reshape(len(rows), -1)[:, positions], np.full(len(rows), len(positions))
    sizes = np.searchsorted(positions, [row.size for row in rows])
    values = np.zeros((len(rows), len(positions)), rows[0].dtype)
    for place, (row, size) in enumerate(zip(rows, sizes.tolist(), strict=True)):
        values[place, :size] = row.reshape(-1)[positions[:size]]
    return values, sizes


def _standardised(values: np.ndarray) -> np.ndarray:
    """Numbers, [n, positions], with mean 0 and deviation 1. NaN becomes the median, and outliers are clipped."""
    if not values.size:
        return values.astype(np.float32)
    values = values.astype(np.float64)
    some = values[:: -(-len(values) // COMPARED)]
    some = some[np.isfinite(some)]
    middle = min(max(float(np.median(some)), -LARGE), LARGE) if some.size else 0.0
    np.nan_to_num(values, copy=False, nan=middle)
    values = np.clip(values, -LARGE, LARGE, out=values)
    values -= middle
    largest = np.maximum(values.max(axis=1), -values.min(axis=1))
    values /= np.median(largest[largest > 0]) if largest.any() else 1.0  # so that no square is too large
    np.clip(values, -WILD, WILD, out=values)
    return ((values - values.mean()) / (values.std() or 1)).astype(np.float32)


def _squares(vectors: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", vectors, vectors)
