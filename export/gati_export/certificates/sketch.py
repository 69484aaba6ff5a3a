"""Sketches: a few numbers for each row of features, which are the same if the input was the same.

Features of equal inputs may differ in their last digits, since replicas have different processors, and a batch's size
changes the order of sums. So `splitting.split`, which recognises copies of an input by their bytes, gets sketches.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gati_export.samples.ragged import each, is_ragged

NUMBERS = 8
STEP = 1e-3
"""Rounding step, as a share of typical differences between samples; copies differ by a thousandth of it or less."""
ROWS = 256


def sketches(samples: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """For each tensor of floating point, sums over its values with random signs, as shares of their magnitude.

    Args:
        samples: By name, n rows each.

    Returns:
        By name, int64 [n, 8]; other tensors as they are.
    """
    return {name: each(value, _sketch) if _is_float(value) else value for name, value in samples.items()}


def _is_float(rows: np.ndarray) -> bool:
    return (rows[0] if is_ragged(rows) else rows).dtype.kind == "f"


def _sketch(value: np.ndarray) -> np.ndarray:
    rows = value.reshape(len(value), -1)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (rows.shape[1], NUMBERS))
    sums = np.empty((len(rows), NUMBERS))
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS].astype(np.float64)
        size = np.abs(part).sum(axis=1, keepdims=True)
        sums[start : start + ROWS] = part @ signs / np.maximum(size, np.finfo(np.float64).tiny)
    return np.rint(sums * np.sqrt(rows.shape[1]) / STEP).astype(np.int64)
