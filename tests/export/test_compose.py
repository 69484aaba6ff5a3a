"""Composition: no set of heads is better than the chosen one, and its cost is what a chain would pay."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gati.errors import BackboneError
from gati_export.certificate import threshold_grid
from gati_export.compose import compose, evaluate


def walk(heads, threshold, scores, agree, segments, lookups) -> tuple[float, int]:
    """Mean seconds and errors of a chain, one request and one step after another."""
    seconds, errors = 0.0, 0
    for sample in range(scores.shape[1]):
        for k, segment in enumerate(segments):
            seconds += segment
            if k in heads:
                seconds += lookups[k]
                if scores[k, sample] >= threshold:
                    errors += not agree[k, sample]
                    break
    return seconds / scores.shape[1], errors


def brute_force(scores, agree, segments, lookups, epsilon) -> float:
    best = float(sum(segments))
    count = len(scores)
    for size in range(1, count + 1):
        for heads in itertools.combinations(range(count), size):
            for threshold in threshold_grid(scores)[::-1]:
                seconds, errors = walk(heads, threshold, scores, agree, segments, lookups)
                if errors <= epsilon * scores.shape[1]:
                    best = min(best, seconds)
                    break  # the loosest threshold that is safe
    return best


@st.composite
def traffic(draw):
    heads, n = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    scores = random.choice(np.linspace(-0.2, 1, 7), (heads, n)).astype(np.float32)
    agree = random.random((heads, n)) < draw(st.floats(0.3, 1))
    lookups = random.random(heads) * draw(st.sampled_from([0.0, 0.1, 3.0]))
    return scores, agree, random.random(heads + 1), lookups, draw(st.sampled_from([0.0, 0.1, 0.3]))


@given(traffic())
@settings(max_examples=60, deadline=None)
def test_equal_to_brute_force(case):
    scores, agree, segments, lookups, epsilon = case
    chosen = compose(*case)
    assert chosen.expected_seconds == pytest.approx(brute_force(*case))
    seconds, errors = walk(chosen.heads, chosen.threshold, scores, agree, segments, lookups)
    assert seconds == pytest.approx(chosen.expected_seconds)
    assert errors <= epsilon * scores.shape[1]
    assert min(chosen.toggled_seconds) >= chosen.expected_seconds

    seen = evaluate(chosen.heads, chosen.threshold, scores, agree, segments, lookups)
    assert seen.mean_seconds == pytest.approx(seconds) and seen.errors == errors
    assert seen.speedup == pytest.approx(segments.sum() / seconds)
    assert sum(seen.hits.values()) == pytest.approx((seen.exits < len(scores)).mean())


def test_no_heads_when_none_pays():
    scores, agree = np.ones((3, 50), np.float32), np.ones((3, 50), bool)
    dear = compose(scores, agree, np.ones(4), np.full(3, 9.0), 0.01)
    assert dear.heads == () and dear.expected_seconds == 4
    wrong = compose(scores, ~agree, np.ones(4), np.zeros(3), 0.01)
    assert wrong.heads == ()
    silent = compose(-scores, agree, np.ones(4), np.zeros(3), 0.01)
    assert silent.heads == () and evaluate((), 1.0, -scores, agree, np.ones(4), np.zeros(3)).speedup == 1


def test_a_cut_point_without_a_head_is_never_chosen():
    scores, agree = np.full((2, 50), 0.9, np.float32), np.ones((2, 50), bool)
    scores[0] = -1
    chosen = compose(scores, agree, np.ones(3), np.array([np.inf, 0.1]), 0.01)
    assert chosen.heads == (1,)
    assert chosen.toggled_seconds[0] == np.inf


def test_correlated_heads_are_not_paid_for_twice():
    random = np.random.default_rng(0)
    score = random.random(300).astype(np.float32)
    scores = np.stack([score, score, random.random(300).astype(np.float32)])
    agree = scores > 0.5
    chosen = compose(scores, agree, np.ones(4), np.full(3, 0.05), 0.01)
    assert chosen.heads == (0, 2)  # 1 knows nothing that 0 does not


def test_twelve_cut_points_are_composed_and_more_refused():
    random = np.random.default_rng(0)
    scores = random.random((12, 400)).astype(np.float32)
    agree = random.random((12, 400)) < scores
    chosen = compose(scores, agree, np.ones(13), np.full(12, 0.01), 0.05, threshold_grid(scores, 20))
    assert chosen.heads and chosen.expected_seconds < 13
    with pytest.raises(BackboneError, match="at most 12"):
        compose(np.ones((13, 5)), np.ones((13, 5), bool), np.ones(14), np.ones(13), 0.01)
