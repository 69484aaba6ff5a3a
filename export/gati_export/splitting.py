"""Splitting: which samples train heads, tune them, and calibrate the certificate, and which are one observation.

Frames of one scene, and copies, say little more than one sample does. They form a group, which goes to one part as a
whole and counts once in the certificate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

SHARES = 0.60, 0.15
"""Of the samples, those that train and those that tune; the rest, 25 %, calibrates."""
EXTRA_SHARES, RUN_SHARES = (0.0, 0.30), (0.10, 0.27)
"""The same where there are other samples to train on, and where these come in runs, which those others don't show."""

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
REFERENCES, POSITIONS, CHECKED = 16, 1024, 1024
"""Samples that typical distances are taken to, positions compared, and samples that chance is judged by, at most."""


@dataclass(frozen=True)
class Split:
    """Indices of the samples that train heads, tune them, and calibrate the certificate; no group is in two parts.

    Attributes:
        train: Int [...], rising, like the others.
        tune: Likewise.
        calibrate: Likewise.
        groups: The group of every sample, int [n], numbered by first appearance.
    """

    train: np.ndarray
    tune: np.ndarray
    calibrate: np.ndarray
    groups: np.ndarray


def split(samples: Mapping[str, np.ndarray], runs: np.ndarray | None = None, *, extra: bool = False) -> Split:
    """Splits samples by their content: 60 % train, 15 % tune, 25 % calibrate.

    An input goes to the same part whenever it is seen, so no copy of a calibration sample was trained on; and neither
    was a sample of the same run.

    Args:
        samples: Model inputs by name, [n, ...] each.
        runs: The run of each sample, int [n], as `find_runs` gives them; None if each is its own.
        extra: Whether there are others to train on, so that more of these can tune and calibrate.
    """
    found = list(digests(samples, range(count(samples))))
    contents: dict[bytes, int] = {}
    groups = np.array([contents.setdefault(digest, len(contents)) for digest in found], np.int64)
    if runs is not None:
        groups = _joined(groups, runs)
    # the digest that speaks for a group must not be chosen by the bytes that draw its part: the least is not uniform
    spokesman: dict[int, bytes] = {}
    for group, digest in zip(groups.tolist(), found, strict=True):
        spokesman[group] = min(spokesman.get(group, digest), digest, key=lambda each: each[8:])
    draws = np.array([int.from_bytes(spokesman[group][:8]) / 2**64 for group in groups.tolist()])
    part = np.digitize(draws, np.cumsum(shares(runs, extra=extra)))
    train, tune, calibrate = (np.flatnonzero(part == which) for which in range(3))
    return Split(train, tune, calibrate, groups)


def shares(runs: np.ndarray | None, *, extra: bool) -> tuple[float, float]:
    """Of samples of these runs, what trains and what tunes; the rest calibrates."""
    if not extra:
        return SHARES
    return EXTRA_SHARES if runs is None or len(np.unique(runs)) == len(runs) else RUN_SHARES


def fingerprint(samples: Mapping[str, np.ndarray], index: np.ndarray) -> str:
    """SHA-256, in hex, of the rows at `index`, whatever their order."""
    return hashlib.sha256(b"".join(sorted(digests(samples, index)))).hexdigest()


def digests(samples: Mapping[str, np.ndarray], index: Sequence[int] | np.ndarray) -> Iterator[bytes]:
    """SHA-256 of each row's bytes over all inputs, which are taken in the order of their names."""
    arrays = [np.ascontiguousarray(samples[name]) for name in sorted(samples)]
    for row in index:
        digest = hashlib.sha256()
        for array in arrays:
            digest.update(array[row].tobytes())
        yield digest.digest()


def find_runs(samples: Mapping[str, np.ndarray]) -> np.ndarray:
    """Finds runs of near-duplicates, such as a camera's frames of one scene, in samples in the order they were served.

    A sample joins the runs of all that it is close to among the 16 before it; so cameras may take turns. Distances are
    root mean squares of standardised differences (floating-point inputs and bytes), or shares of differing positions
    (other integers, such as token ids); with both kinds of inputs, samples must be close in both.

    Runs are looked for only if samples are clearly closer to those before them than to others: else, what is close is
    so by chance, and each sample is its own run.

    Args:
        samples: Model inputs by name, [n, ...] each, finite.

    Returns:
        The run of each sample, int [n], numbered by first appearance.
    """
    n = count(samples)
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
    return _by_appearance(connected_components(links, directed=False)[1])


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
        rows: Their values, at up to `POSITIONS` positions drawn at random, [n, positions].
        distance: Between rows, two [k, positions] or one and [positions], [k].
        typical: A row's median distance to rows drawn at random, [n].
    """

    rows: np.ndarray
    distance: Callable[[np.ndarray, np.ndarray], np.ndarray]
    typical: np.ndarray

    def close(self, first: slice | np.ndarray, second: slice | np.ndarray) -> np.ndarray:
        """Whether rows are close, by the one that is closer to everything."""
        reach = CLOSE * np.minimum(self.typical[first], self.typical[second])
        return self.distance(self.rows[first], self.rows[second]) <= reach


def _kinds(samples: Mapping[str, np.ndarray], random: np.random.Generator) -> list[_Kind]:
    flat = [samples[name].reshape(len(samples[name]), -1) for name in sorted(samples)]
    flat = [array for array in flat if array.size and (array != array[0]).any()]
    measured = [array for array in flat if array.dtype.kind == "f" or array.dtype == np.uint8]
    counted = [array for array in flat if array.dtype.kind in "biu" and array.dtype != np.uint8]
    kinds = []
    if measured:
        scaled = [_standardised(array) for array in _drawn(measured, random)]
        kinds.append(_kind(np.concatenate(scaled, axis=1), _root_mean_square, random))
    if counted:
        kinds.append(_kind(np.concatenate(_drawn(counted, random), axis=1), _differing, random))
    return kinds


def _kind(
    rows: np.ndarray, distance: Callable[[np.ndarray, np.ndarray], np.ndarray], random: np.random.Generator
) -> _Kind:
    references = random.permutation(len(rows))[:REFERENCES]
    return _Kind(rows, distance, np.median([distance(rows, rows[each]) for each in references], axis=0))


def _drawn(arrays: Sequence[np.ndarray], random: np.random.Generator) -> list[np.ndarray]:
    """Positions drawn among those of all arrays together, which are [n, positions] each."""
    widths = [array.shape[1] for array in arrays]
    picked = np.sort(random.permutation(sum(widths))[:POSITIONS])
    starts = np.cumsum([0, *widths])
    return [
        array[:, picked[(picked >= start) & (picked < start + array.shape[1])] - start]
        for array, start in zip(arrays, starts[:-1], strict=True)
    ]


def _standardised(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.float64)
    values /= np.abs(values).max(initial=0) or 1  # so that no square is too large
    return ((values - values.mean()) / (values.std() or 1)).astype(np.float32) if values.size else values


def _root_mean_square(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    gap = first - second
    return np.sqrt(np.einsum("ij,ij->i", gap, gap) / gap.shape[1])


def _differing(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return (first != second).mean(axis=1)


def _joined(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The finest groups, int [n], that leave together what either of two groupings has together."""
    first, second = (np.unique(each, return_inverse=True)[1] for each in (first, second))
    # the first grouping's groups are rows, the second's are columns: a sample links one of each
    size = first.max(initial=0) + 1
    links = coo_array((np.ones(len(first), bool), (first, second + size)), shape=(size + len(second),) * 2)
    return _by_appearance(connected_components(links, directed=False)[1][first])


def _by_appearance(labels: np.ndarray) -> np.ndarray:
    _, first, members = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[members]


def count(samples: Mapping[str, np.ndarray]) -> int:
    """How many rows samples have."""
    return len(next(iter(samples.values())))
