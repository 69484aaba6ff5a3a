"""Runs: samples that resemble those served shortly before them, as a camera's frames of one scene do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from gati_export.ragged import is_ragged

CLOSE = 0.5
"""Samples are of one run up to this share of their typical distance to others.

Of a shaking camera's frames (`gati_client.workload.film`, CIFAR-10 or 64×64 digits) 99.5 % have one so close among
those before them; of CIFAR-10's pictures, 1 % have one among as many others.
"""
WINDOW = 16
"""Samples looked back at: two cameras that take turns at random leave a larger gap once in 65,536 frames."""
APART = 32, 64
"""How far off in time as many others are taken: mostly another scene by then, but the same classes are popular."""
EXCESS, NEARLY_ALL = 0.05, 0.5
"""How many more samples must be close to one before them than to one of as many others, for there to be runs.

Cameras make it 50 to 95 % of the samples. Popular classes that drift make it up to 4 % of digits.
"""
LONGER = 4
"""Of samples that differ in length, what comes after so many times the median is not compared."""
REFERENCES, POSITIONS, CHECKED = 16, 1024, 1024
"""Samples that typical distances are taken to, positions compared, and samples that chance is judged by, at most."""


def find_runs(samples: Mapping[str, np.ndarray]) -> np.ndarray:
    """Finds runs of near-duplicates, such as a camera's frames of one scene, in samples in the order they were served.

    A sample joins the runs of all that it is close to among the 16 before it; so cameras may take turns. Distances are
    root mean squares of standardised differences (floating-point inputs and bytes), or shares of differing positions
    (other integers, such as token ids); with both kinds of inputs, samples must be close in both. What only the longer
    of two samples has counts as different.

    Runs are looked for only if samples are clearly closer to those before them than to others: else, what is close is
    so by chance, and each sample is its own run.

    Args:
        samples: Model inputs by name, n rows each, finite.

    Returns:
        The run of each sample, int [n], numbered by first appearance.
    """
    n = len(next(iter(samples.values())))
    kinds = _kinds(samples, np.random.default_rng(0))
    if n < 3 or not kinds:
        return np.arange(n)
    close = np.zeros((WINDOW, n), bool)
    for lag in range(1, min(WINDOW, n - 1) + 1):
        later, earlier = slice(lag, None), slice(None, -lag)
        close[lag - 1, later] = np.all([kind.close(later, earlier) for kind in kinds], axis=0)
    if not _in_runs(float(close.any(axis=0).mean()), kinds, n):
        return np.arange(n)
    lags, rows = np.nonzero(close)
    links = coo_array((np.ones(len(rows), bool), (rows, rows - lags - 1)), shape=(n, n))
    return by_appearance(connected_components(links, directed=False)[1])


def _in_runs(near: float, kinds: Sequence[_Kind], n: int) -> bool:
    """Whether the share of samples that are close to one before them is more than chance makes it.

    The others that are looked at were served a little later, as samples are alike while the same classes are popular.
    That has a scene longer than this in it; so it is enough, too, if nearly all samples are close to one before them,
    and few to any others.
    """
    random = np.random.default_rng(0)
    rows = random.permutation(n)[:CHECKED]
    apart = _share_close(kinds, rows, random.integers(*APART, len(rows)))
    anywhere = _share_close(kinds, rows, random.integers(0, n, len(rows)))
    noise = 5 * np.sqrt(apart * (1 - apart) / len(rows))
    return near - apart > max(EXCESS, noise) or near - anywhere > NEARLY_ALL


def _share_close(kinds: Sequence[_Kind], rows: np.ndarray, lags: np.ndarray) -> float:
    """The share of rows, int [k], close to one of those behind a lag, [k]; behind the last sample comes the first."""
    n = len(kinds[0].rows)
    close = np.zeros(len(rows), bool)
    for further in range(WINDOW):
        others = (rows + 1 + (lags + further) % (n - 1)) % n  # never the row itself
        close |= np.all([kind.close(rows, others) for kind in kinds], axis=0)
    return float(close.mean())


@dataclass(frozen=True)
class _Kind:
    """Inputs whose values are compared in the same way.

    Attributes:
        rows: Their values, at up to `POSITIONS` positions drawn at random, [n, positions]; 0 where a row is shorter.
        sizes: How many of these positions a row has, [n].
        distance: From values, two [k, positions] or one and [positions], and the larger of two sizes, [k], to [k].
        typical: A row's median distance to rows drawn at random, [n].
    """

    rows: np.ndarray
    sizes: np.ndarray
    distance: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    typical: np.ndarray

    @classmethod
    def of(
        cls,
        rows: np.ndarray,
        sizes: np.ndarray,
        distance: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
        random: np.random.Generator,
    ) -> _Kind:
        """Looks for what is typical."""
        references = random.permutation(len(rows))[:REFERENCES]
        apart = [distance(rows, rows[each], np.maximum(sizes, sizes[each])) for each in references]
        return cls(rows, sizes, distance, np.median(apart, axis=0))

    def close(self, first: slice | np.ndarray, second: slice | np.ndarray) -> np.ndarray:
        """Whether rows are close, by the one that is closer to everything."""
        reach = CLOSE * np.minimum(self.typical[first], self.typical[second])
        longer = np.maximum(self.sizes[first], self.sizes[second])
        return self.distance(self.rows[first], self.rows[second], longer) <= reach


def _kinds(samples: Mapping[str, np.ndarray], random: np.random.Generator) -> list[_Kind]:
    found = [samples[name] for name in sorted(samples)]
    found = [rows for rows in found if is_ragged(rows) or (rows.size and (rows != rows[0]).any())]
    types = [rows[0].dtype for rows in found]
    measured = [rows for rows, dtype in zip(found, types, strict=True) if dtype.kind == "f" or dtype == np.uint8]
    counted = [rows for rows, dtype in zip(found, types, strict=True) if dtype.kind in "biu" and dtype != np.uint8]
    kinds = []
    if measured:
        values, sizes = _drawn(measured, random)
        scaled = np.concatenate([_standardised(each) for each in values], axis=1)
        kinds.append(_Kind.of(scaled, sizes, _root_mean_square, random))
    if counted:
        values, sizes = _drawn(counted, random)
        kinds.append(_Kind.of(np.concatenate(values, axis=1), sizes, _differing, random))
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
    values = values.astype(np.float64)
    values /= np.abs(values).max(initial=0) or 1  # so that no square is too large
    return ((values - values.mean()) / (values.std() or 1)).astype(np.float32) if values.size else values


def _root_mean_square(first: np.ndarray, second: np.ndarray, size: np.ndarray) -> np.ndarray:
    gap = first - second
    return np.sqrt(np.einsum("ij,ij->i", gap, gap) / np.maximum(size, 1))


def _differing(first: np.ndarray, second: np.ndarray, size: np.ndarray) -> np.ndarray:
    return (first != second).sum(axis=1) / np.maximum(size, 1)


def by_appearance(labels: np.ndarray) -> np.ndarray:
    """Labels as numbers from 0 on, in the order in which they come first."""
    _, first, members = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[members]
