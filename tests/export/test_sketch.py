"""Sketches: one for an input, whatever the last digits of its features."""

from __future__ import annotations

import numpy as np
import pytest

from gati_export.certificates.runs import find_runs
from gati_export.certificates.sketch import sketches
from gati_export.certificates.splitting import split


@pytest.mark.parametrize("shape", [(64, 16, 16), (10, 32), (16,)])
def test_copies_that_differ_in_their_last_digits_are_one_input(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    rows = np.maximum(random.normal(size=(300, *shape)), 0).astype(np.float32)
    copies = (rows * (1 + 2e-7 * random.choice([-1, 1], rows.shape))).astype(np.float32)
    samples = {"cut": np.concatenate([rows, copies]), "mask": np.ones((600, 4), np.int64)}
    runs = find_runs(samples)
    assert len(np.unique(split(samples, runs).inputs)) > 450, "by their bytes, they are not"
    inputs = split(sketches(samples), runs).inputs
    together = (inputs[:300] == inputs[300:]).mean()
    assert together > 0.98 and len(np.unique(inputs[:300])) == 300


def test_rows_of_zeros_and_half_precision_have_sketches() -> None:
    features = np.zeros((3, 8), np.float16)
    features[2] = np.arange(8)
    first, second, third = sketches({"cut": features})["cut"]
    assert first.tolist() == second.tolist() == [0] * 8 != third.tolist()
