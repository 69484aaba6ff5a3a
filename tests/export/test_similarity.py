"""How alike samples are: what many are compared by is what two are, and no wild number hides the others."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from gati_export.certificates.runs import find_runs
from gati_export.certificates.similarity import Numbers, Words, kinds_of
from gati_export.samples.ragged import gathered

RUNS, LENGTH = 150, 8


def film(width: int = 16, dtype: type = np.float32) -> np.ndarray:
    """Rows in runs of eight, [1200, width]."""
    random = np.random.default_rng(0)
    scenes = np.repeat(random.normal(size=(RUNS, width)) * 2, LENGTH, axis=0)
    return (scenes + 0.02 * random.normal(size=scenes.shape)).astype(dtype)


def only_kind(samples: dict[str, np.ndarray]) -> Numbers | Words:
    (kind,) = kinds_of(samples, np.random.default_rng(0))
    assert isinstance(kind, Numbers | Words)
    return kind


@pytest.mark.parametrize(
    "value", [pytest.param(value, id=f"{value:g}") for value in (1e4, 1e18, 1e20, 9.96921e36, -np.inf, np.inf, np.nan)]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_wild_value_hides_no_run(value, dtype):
    rows = film(dtype=dtype)
    rows[603, 3] = value  # may be a run of its own, as what it shows is another thing
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_runs({"x": rows}).max() + 1 in (RUNS, RUNS + 1)


def test_wild_values_of_any_size_hide_no_run():
    rows = film(dtype=np.float64)
    rows[100], rows[200], rows[300, 0], rows[301, 0] = np.nan, np.inf, np.finfo(float).max, np.finfo(float).min
    assert RUNS <= find_runs({"x": rows}).max() + 1 <= RUNS + 4
    half = film(dtype=np.float16)
    half[603, 3] = 6e4
    assert RUNS <= find_runs({"x": half}).max() + 1 <= RUNS + 1
    lengths = np.random.default_rng(0).integers(12, 17, RUNS).repeat(LENGTH)
    ragged = [row[:length] for row, length in zip(film(), lengths, strict=True)]
    ragged[603][3] = 1e20
    assert RUNS <= find_runs({"x": gathered(ragged)}).max() + 1 <= RUNS + 1


def test_a_wild_value_in_one_input_hides_no_run_in_another():
    constant = np.ones((RUNS * LENGTH, 4), np.float32)
    constant[700, 0] = np.nan
    assert find_runs({"still": constant, "x": film()}).max() == RUNS - 1
    constant[700, 0] = 1e30
    assert RUNS <= find_runs({"still": constant, "x": film()}).max() + 1 <= RUNS + 1


def test_numbers_that_are_seldom_there_count():
    random = np.random.default_rng(0)
    counts = np.where(random.random((RUNS, 800)) < 0.005, random.integers(1, 50, (RUNS, 800)), 0).repeat(LENGTH, axis=0)
    assert np.median(counts) == np.quantile(counts, 0.99) == 0
    found = find_runs({"x": counts.astype(np.float32)})
    assert found.max() + 1 > 0.95 * RUNS, "a few are close to others"


def test_ordinary_numbers_are_standardised():
    kind = only_kind(
        {"x": np.random.default_rng(0).lognormal(1, 2, (500, 40)), "bytes": np.arange(500, dtype=np.uint8)}
    )
    assert kind.rows.dtype == np.float32 and abs(kind.rows.mean()) < 1e-5
    assert [round(float(part.std()), 3) for part in (kind.rows[:, :1], kind.rows[:, 1:])] == [1, 1]


@pytest.mark.parametrize("offset", [0, 1e4])
def test_distances_of_many_numbers_are_those_of_two(offset):
    random = np.random.default_rng(0)
    rows = random.normal(size=(300, 40)) + offset * random.normal(size=40)
    kind = only_kind({"x": rows})
    first, second = np.arange(0, 300, 7), np.arange(100)
    expected = np.sqrt(np.square(rows[first, None] - rows[second]).mean(axis=-1)) / rows.std()
    np.testing.assert_allclose(kind.distances(first, second), expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("width", [3, 60, 3000])
def test_distances_of_many_texts_are_nearly_those_of_two(width):
    random = np.random.default_rng(0)
    texts = random.zipf(1.3, (200, width)).clip(max=30_000)
    texts[1::2] = np.where(random.random((100, width)) < 0.3, texts[1::2], texts[::2])
    kind = only_kind({"x": texts})
    every = np.arange(200)
    expected = (texts[:, None] != texts).mean(axis=-1)
    apart = kind.distances(every, every)
    assert np.abs(apart - expected).max() < 0.2 and np.abs(apart - expected).mean() < 0.03
    assert (apart[expected == 0] == 0).all()
