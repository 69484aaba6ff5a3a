"""Certificates: the promise holds as often as it says, on simulated traffic whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from gati.errors import SamplesError
from gati_export.certificate import (
    certify,
    count_errors,
    errors_allowed,
    exits,
    refusal,
    samples_needed,
    threshold_grid,
    upper_bound,
)

EPSILON, DELTA = 0.01, 0.05
GRID = np.linspace(1, 0, 101)[1:].astype(np.float32)


def test_samples_needed():
    assert samples_needed(EPSILON, DELTA) == 299
    assert errors_allowed(299, EPSILON, DELTA) == 0
    assert errors_allowed(298, EPSILON, DELTA) == -1
    assert errors_allowed(0, EPSILON, DELTA) == -1
    with pytest.raises(SamplesError, match="between 0 and 1"):
        samples_needed(0, DELTA)


@pytest.mark.parametrize("n", [1, 50, 299, 473, 1000, 12345])
def test_budget_and_bound_say_the_same(n):
    allowed = errors_allowed(n, EPSILON, DELTA)
    for errors in range(max(0, allowed - 1), allowed + 3):
        passes = stats.binom.cdf(errors, n, EPSILON) <= DELTA
        assert passes == (errors <= allowed) == (upper_bound(errors, n, DELTA) <= EPSILON)
    assert upper_bound(n, n, DELTA) == 1


def test_first_head_that_is_sure_answers():
    scores = np.array([[0.9, 0.2, 0.9, -1], [0.9, 0.8, 0.1, 0.1]], np.float32)
    agree = np.array([[True, True, False, False], [False, False, True, False]])
    assert exits(scores, 0.5).tolist() == [0, 1, 0, 2]
    assert count_errors(scores, agree, 0.5) == 2
    assert count_errors(scores, agree, 0.95) == 0


def test_grid_falls_strictly_and_skips_refused_rows():
    scores = np.random.default_rng(0).random((3, 500)).astype(np.float32)
    scores[0, :400] = -1
    grid = threshold_grid(scores, 100)
    assert grid.dtype == np.float32 and len(grid) == 100 and (np.diff(grid) < 0).all()
    assert grid[0] == scores.max() and grid[-1] == scores[scores > 0].min()
    assert not len(threshold_grid(np.full((2, 5), -1.0)))


def draw(random: np.random.Generator, n: int, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Two independent heads with uniform scores, wrong with probability rate × (1 − score)."""
    scores = random.random((2, n)).astype(np.float32)
    return scores, random.random((2, n)) >= rate * (1 - scores)


def true_error(threshold: float, rate: float) -> float:
    """Of the chain of `draw`: by the first head, or past it by the second."""
    return rate * (1 - threshold) ** 2 / 2 * (1 + threshold)


def test_promise_is_broken_no_more_often_than_it_says():
    random, runs, broken, used = np.random.default_rng(7), 500, 0, []
    for _ in range(runs):
        certificate = certify(*draw(random, 1000, 0.2), GRID, EPSILON, DELTA, "f")
        assert certificate is not None and certificate.bound <= EPSILON
        truth = true_error(certificate.threshold, 0.2)
        broken += truth > EPSILON
        used.append(truth)
    assert broken <= DELTA * runs + 3 * math.sqrt(runs * DELTA * (1 - DELTA))
    assert np.mean(used) > 0.3 * EPSILON  # and it is not merely timid


def test_nothing_is_certified_where_every_threshold_breaks_the_promise():
    random, runs, passed = np.random.default_rng(8), 500, 0
    for _ in range(runs):
        agree = random.random((1, 1000)) >= 1.05 * EPSILON
        passed += certify(np.ones((1, 1000), np.float32), agree, GRID, EPSILON, DELTA, "f") is not None
    assert passed <= DELTA * runs + 3 * math.sqrt(runs * DELTA * (1 - DELTA))


def test_certificate_states_its_counts():
    scores, agree = draw(np.random.default_rng(0), 2000, 0.1)
    certificate = certify(scores, agree, GRID, EPSILON, DELTA, "abc")
    assert certificate is not None
    assert certificate.n == 2000 and certificate.fingerprint == "abc"
    assert certificate.errors == count_errors(scores, agree, certificate.threshold)
    assert certificate.hits == pytest.approx((scores >= np.float32(certificate.threshold)).any(axis=0).mean())
    assert certificate.bound == upper_bound(certificate.errors, 2000, DELTA)


def test_refusals_say_what_would_help():
    few = (np.ones((1, 40)), np.ones((1, 40), bool), GRID, EPSILON, DELTA)
    assert certify(*few, "") is None
    assert "at least 299" in refusal(*few)
    wrong = (np.ones((1, 400)), np.zeros((1, 400), bool), GRID, EPSILON, DELTA)
    assert certify(*wrong, "") is None
    assert "400 of 400" in refusal(*wrong)
    silent = (np.full((1, 400), -1.0), np.zeros((1, 400), bool), GRID[:0], EPSILON, DELTA)
    assert certify(*silent, "") is None
    assert "No head gave a usable score" in refusal(*silent)
