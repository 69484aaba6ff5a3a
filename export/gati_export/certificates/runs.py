"""Runs: samples that resemble those served shortly before them, as a camera's frames of one scene do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from gati_export.certificates.scenes import find_scenes
from gati_export.certificates.similarity import Kind, kinds_of
from gati_export.samples.ragged import count

WINDOW = 16
"""Samples looked back at first: two cameras that take turns at random leave a larger gap once in 65,536 frames."""
APART = 32, 64
"""How far off in time as many others are taken: mostly another scene by then, but the same classes are popular."""
EXCESS, NEARLY_ALL = 0.05, 0.5
"""How many more samples must be close to one before them than to one of as many others, for there to be runs.

Cameras make it 50 to 95 % of the samples. Popular classes that drift make it up to 4 % of digits.
"""
CHECKED = 1024
"""Samples that chance is judged by, at most."""


def find_runs(samples: Mapping[str, np.ndarray]) -> np.ndarray:
    """Finds runs of near-duplicates, such as a camera's frames of one scene, in samples in the order they were served.

    A sample joins the runs of all that it is close to among the 16 before it; so cameras may take turns. Distances are
    root mean squares of standardised differences (floating-point inputs and bytes), or shares of differing positions
    (other integers, such as token ids); with both kinds of inputs, samples must be close in both. What only the longer
    of two samples has counts as different.

    Such runs are looked for only if samples are clearly closer to those before them than to others: else, what is close
    is so by chance, and each sample is its own run. Where it is looked farther back, see
    gati_export.certificates.scenes.

    Args:
        samples: Model inputs by name, n rows each.

    Returns:
        The run of each sample, int [n], numbered by first appearance.
    """
    n = count(samples)
    kinds = kinds_of(samples, np.random.default_rng(0))
    if n < 3 or not kinds:
        return np.arange(n)
    close = np.zeros((WINDOW, n), bool)
    for lag in range(1, min(WINDOW, n - 1) + 1):
        later, earlier = slice(lag, None), slice(None, -lag)
        close[lag - 1, later] = np.all([kind.close(later, earlier) for kind in kinds], axis=0)
    if not _in_runs(float(close.any(axis=0).mean()), kinds, n):
        close[:] = False
    lags, rows = np.nonzero(close)
    scenes = find_scenes(samples, kinds, ~close.any(axis=0))
    first, second = np.concatenate([rows, scenes[0]]), np.concatenate([rows - lags - 1, scenes[1]])
    links = coo_array((np.ones(len(first), bool), (first, second)), shape=(n, n))
    return by_appearance(connected_components(links, directed=False)[1])


def _in_runs(near: float, kinds: Sequence[Kind], n: int) -> bool:
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


def _share_close(kinds: Sequence[Kind], rows: np.ndarray, lags: np.ndarray) -> float:
    """The share of rows, int [k], close to one of those behind a lag, [k]; behind the last sample comes the first."""
    n = len(kinds[0].rows)
    close = np.zeros(len(rows), bool)
    for further in range(WINDOW):
        others = (rows + 1 + (lags + further) % (n - 1)) % n  # never the row itself
        close |= np.all([kind.close(rows, others) for kind in kinds], axis=0)
    return float(close.mean())


def by_appearance(labels: np.ndarray) -> np.ndarray:
    """Labels as numbers from 0 on, in the order in which they come first."""
    _, first, members = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[members]
