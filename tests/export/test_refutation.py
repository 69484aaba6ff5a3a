"""That more differs than was promised is said where it is so, and where it is not, as rarely as said."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from gati_export.certificates.refutation import refuted, refuted_since
from gati_export.terms import Terms

TERMS = Terms(epsilon=0.01, delta=0.05)
STREAMS = 200


def alone(_random: np.random.Generator) -> np.ndarray:
    return np.ones(2000, int)


def runs(_random: np.random.Generator) -> np.ndarray:
    return np.full(800, 30)


def glimpses(random: np.random.Generator) -> np.ndarray:
    """Scenes of which half are one frame."""
    return np.where(random.random(800) < 0.5, 1, random.integers(2, 21, 800))


@pytest.mark.parametrize("test", [refuted, refuted_since])
@pytest.mark.parametrize("sizes", [alone, runs, glimpses])
def test_what_keeps_its_promise_is_refuted_as_rarely_as_said(test, sizes) -> None:
    times = 0
    for seed in range(STREAMS):
        random = np.random.default_rng(seed)
        scenes = sizes(random)
        groups = np.repeat(np.arange(len(scenes)), scenes)
        times += test((random.random(len(scenes)) < TERMS.epsilon)[groups], groups, TERMS)
    assert times <= binom.ppf(0.999, STREAMS, TERMS.delta)


@pytest.mark.parametrize("test", [refuted, refuted_since])
def test_a_glimpse_does_not_count_like_a_scene(test) -> None:
    for seed in range(20):
        random = np.random.default_rng(seed)
        sizes = glimpses(random)
        groups = np.repeat(np.arange(len(sizes)), sizes)
        wrong = ((sizes == 1) & (random.random(len(sizes)) < 0.05))[groups]
        assert wrong.mean() < TERMS.epsilon
        assert not test(wrong, groups, TERMS)


@pytest.mark.parametrize("sizes", [alone, runs, glimpses])
def test_what_differs_five_times_as_often_is_refuted(sizes) -> None:
    random = np.random.default_rng(0)
    scenes = sizes(random)
    groups = np.repeat(np.arange(len(scenes)), scenes)
    wrong = (random.random(len(scenes)) < 5 * TERMS.epsilon)[groups]
    assert refuted(wrong, groups, TERMS) and refuted_since(wrong, groups, TERMS)


def test_it_is_enough_that_the_newest_differ() -> None:
    random = np.random.default_rng(0)
    wrong = np.r_[np.zeros(4500, bool), random.random(500) < 0.06]
    rows = np.arange(len(wrong))
    assert wrong.mean() < TERMS.epsilon
    assert refuted_since(wrong, rows, TERMS) and not refuted(wrong, rows, TERMS)
    assert not refuted_since(random.permutation(wrong), rows, TERMS)


def test_one_scene_and_none_at_all_show_nothing() -> None:
    for test in (refuted, refuted_since):
        assert not test(np.ones(500, bool), np.zeros(500, int), TERMS)
        assert not test(np.zeros(0, bool), np.zeros(0, int), TERMS)
