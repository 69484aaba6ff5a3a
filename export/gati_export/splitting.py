"""Splitting: which samples train heads, tune them, and calibrate the certificate, and which are one observation.

Frames of one scene, and copies, say little more than one sample does. They form a group, which goes to one part as a
whole and counts once in the certificate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from gati_export.runs import by_appearance

SHARES = 0.60, 0.15
"""Of the samples, those that train and those that tune; the rest, 25 %, calibrates."""
EXTRA_SHARES, RUN_SHARES = (0.0, 0.30), (0.10, 0.27)
"""The same where there are other samples to train on, and where these come in runs, which those others don't show."""


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
        samples: Model inputs by name, n rows each.
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
    arrays = [samples[name] for name in sorted(samples)]
    for row in index:
        digest = hashlib.sha256()
        for array in arrays:
            digest.update(array[row].tobytes())
        yield digest.digest()


def _joined(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The finest groups, int [n], that leave together what either of two groupings has together."""
    first, second = (np.unique(each, return_inverse=True)[1] for each in (first, second))
    # the first grouping's groups are rows, the second's are columns: a sample links one of each
    size = first.max(initial=0) + 1
    links = coo_array((np.ones(len(first), bool), (first, second + size)), shape=(size + len(second),) * 2)
    return by_appearance(connected_components(links, directed=False)[1][first])


def count(samples: Mapping[str, np.ndarray]) -> int:
    """How many rows samples have."""
    return len(next(iter(samples.values())))
