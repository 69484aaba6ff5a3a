"""Certificates: the promise holds as often as it says, on simulated traffic whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gati.errors import SamplesError
from gati_export.certificates.certificate import (
    Fresh,
    certify,
    refusal,
    there_and_needed,
)
from gati_export.certificates.groups import errors_allowed, samples_needed, upper_bound, wrong_within
from gati_export.certificates.splitting import split

EPSILON, DELTA = 0.01, 0.05


def observations_needed(groups: np.ndarray, epsilon: float, delta: float) -> int:
    """How many groups of such sizes it takes."""
    there, needed = there_and_needed(groups, epsilon, delta)
    assert there == len(np.unique(groups))
    return needed


def noise(runs: int) -> float:
    """Three standard deviations of the share of runs that break a promise, where δ of them do."""
    return 3 * math.sqrt(DELTA * (1 - DELTA) / runs)


def flagged(n: int, wrong: int) -> np.ndarray:
    """One step, on which the first samples are wrong, [1, n]."""
    return (np.arange(n) < wrong)[None]


def test_samples_needed():
    assert samples_needed(EPSILON, DELTA) == 299
    assert errors_allowed(299, EPSILON, DELTA) == 0
    assert errors_allowed(298, EPSILON, DELTA) == -1
    assert errors_allowed(0, EPSILON, DELTA) == -1
    with pytest.raises(SamplesError, match="between 0 and 1"):
        samples_needed(0, DELTA)
    with pytest.raises(SamplesError, match="between 0 and 1"):
        certify(flagged(9, 0), np.arange(9), EPSILON, 1)


@pytest.mark.parametrize("n", [1, 50, 299, 473, 1000, 12345])
def test_budget_and_bound_say_the_same(n):
    allowed = errors_allowed(n, EPSILON, DELTA)
    for errors in range(max(0, allowed - 1), allowed + 3):
        passes = stats.binom.cdf(errors, n, EPSILON) <= DELTA
        assert passes == (errors <= allowed) == (upper_bound(errors, n, DELTA) <= EPSILON)
    assert upper_bound(n, n, DELTA) == 1


@pytest.mark.parametrize(("errors", "n"), [(0, 299), (3, 773), (4, 1000)])
def test_independent_samples_are_judged_by_the_exact_binomial(errors, n):
    verdict = certify(flagged(n, errors), np.arange(n), EPSILON, DELTA)
    assert verdict is not None
    assert (verdict.n, verdict.observations, verdict.errors, verdict.step) == (n, n, errors, 0)
    assert verdict.bound == pytest.approx(upper_bound(errors, n, DELTA)) and "exact binomial" in verdict.method
    assert certify(flagged(n, errors + 1), np.arange(n), EPSILON, DELTA) is None


def test_walk_ends_at_the_first_step_that_fails():
    path = np.concatenate([flagged(1000, wrong) for wrong in (0, 3, 2, 40, 0)])
    verdict = certify(path, np.arange(1000), EPSILON, DELTA)
    assert verdict is not None and (verdict.step, verdict.errors) == (2, 2)
    assert "sequence of 5" in verdict.method
    assert certify(path[3:], np.arange(1000), EPSILON, DELTA) is None
    assert certify(path[:0], np.arange(1000), EPSILON, DELTA) is None
    assert certify(path[:, :0], np.arange(0), EPSILON, DELTA) is None


@pytest.mark.parametrize("size", [2, 30])
@pytest.mark.parametrize(("epsilon", "delta"), [(0.01, 0.05), (0.05, 0.1), (0.002, 0.01)])
def test_groups_of_one_size_take_little_more_than_as_many_independent_samples(size, epsilon, delta):
    needed = observations_needed(np.repeat(np.arange(50), size), epsilon, delta)
    assert needed == samples_needed(epsilon, delta)
    for count, safe in ((needed, True), (needed - 1, False)):
        groups = np.random.default_rng(0).permutation(np.repeat(np.arange(count), size))
        verdict = certify(flagged(len(groups), 0), groups, epsilon, delta)
        assert (verdict is not None) == safe
        if verdict is not None:
            assert verdict.observations == count and verdict.bound <= epsilon and "betting" in verdict.method


def test_the_bet_is_the_one_that_bears_errors_as_they_are_expected_to_come():
    """A few frames of a run are wrong, in 28 of 600; or a run as a whole, as copies of an input are."""
    groups = np.repeat(np.arange(600), 30)
    few, whole = (groups < 28) & (np.arange(18_000) % 30 < 3), groups < 1
    for wrong, within, other in ((few, 0.1, 1.0), (whole, 1.0, 0.1)):
        verdict = certify(wrong[None], groups, EPSILON, DELTA, within=within)
        assert verdict is not None and verdict.bound <= EPSILON
        assert certify(wrong[None], groups, EPSILON, DELTA, within=other) is None


def test_what_is_wrong_within_a_group():
    groups = np.repeat(np.arange(100), 10)
    none, whole, part = groups < 0, groups < 3, (groups < 60) & (np.arange(1000) % 10 < 3)
    assert wrong_within(np.array([none, part, whole]), groups, 0.1) == pytest.approx(1)
    assert wrong_within(np.array([none, whole, part]), groups, 0.2) == pytest.approx((180 * 0.3 + 10) / 190)
    assert wrong_within(np.array([none, part]), groups, 0.1) == 1 == wrong_within(part[None], groups, 0.1)
    assert wrong_within(none[None, :0], groups[:0], 0.1) == 1
    assert wrong_within((groups < 9)[None], np.arange(1000), 0.1) == 1, "single samples"


def test_a_few_copies_or_one_large_group_cost_little():
    assert observations_needed(np.arange(9999) % 9990, EPSILON, DELTA) <= 330
    assert observations_needed(np.maximum(np.arange(10_000), 30), EPSILON, DELTA) <= 450
    # but where one scene is 3 % of the traffic, nothing that is seen of the others shows what it will do
    assert observations_needed(np.maximum(np.arange(1000), 30), EPSILON, DELTA) > 5000


shapes = st.tuples(st.lists(st.integers(1, 40), min_size=5, max_size=60), st.integers(0, 2**32 - 1))


@settings(max_examples=60, deadline=None)
@given(shapes)
def test_more_errors_never_help_and_the_order_of_groups_plays_no_part(shape):
    sizes, seed = shape
    random = np.random.default_rng(seed)
    groups, epsilon, delta = np.repeat(np.arange(len(sizes)), sizes), 0.3, 0.4
    few = random.random((1, len(groups))) < 0.1
    more = few | (random.random((1, len(groups))) < 0.1)
    verdict, worse = (certify(each, groups, epsilon, delta) for each in (few, more))
    if worse is not None:
        assert verdict is not None and verdict.bound <= worse.bound + 1e-3 * epsilon
    order = random.permutation(len(groups))
    renamed = random.permutation(len(sizes))[groups] - 7
    again = certify(few[:, order], renamed[order], epsilon, delta)
    assert (again is None) == (verdict is None)
    if verdict is not None and again is not None:
        assert 0 < verdict.bound <= epsilon
        assert verdict.bound == pytest.approx(again.bound, rel=1e-3)


def draw(random: np.random.Generator, n: int, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Errors along a path of thresholds from 1 to 0.01, [steps, n], of two independent heads with uniform scores.

    A head is wrong with probability rate × (1 − score). Also the true error at each step.
    """
    thresholds = np.linspace(1, 0, 101)[1:-1, None]
    scores = random.random((2, n))
    wrong = random.random((2, n)) < rate * (1 - scores)
    answered = [score >= thresholds for score in scores]
    truth = rate * (1 - thresholds[:, 0]) ** 2 / 2 * (1 + thresholds[:, 0])
    return np.where(answered[0], wrong[0], answered[1] & wrong[1]), truth


def test_promise_is_broken_no_more_often_than_it_says():
    random, runs, broken, used = np.random.default_rng(7), 500, 0, []
    for _ in range(runs):
        errors, truth = draw(random, 1000, 0.2)
        verdict = certify(errors, np.arange(1000), EPSILON, DELTA)
        assert verdict is not None and verdict.bound <= EPSILON
        broken += truth[verdict.step] > EPSILON
        used.append(truth[verdict.step])
    assert broken / runs <= DELTA + noise(runs)
    assert np.mean(used) > 0.3 * EPSILON  # and it is not merely timid


SIZES = {
    "singles": np.ones(1000, int),
    "a few copies": np.repeat([2, 1], [5, 990]),
    "scenes": np.full(500, 20),
    "scenes and singles": np.repeat([30, 1], [60, 4000]),
    "all lengths": np.random.default_rng(0).geometric(0.1, 2000),
}


def filled(sizes: np.ndarray, epsilon: float) -> np.ndarray:
    """Shares of wrong samples that make it likeliest to see none: all of a group beyond a length that groups share."""
    low, high = 0.0, float(sizes.max())
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if np.maximum(sizes - middle, 0).sum() < epsilon * sizes.sum() else (middle, high)
    return np.maximum(sizes - low, 0) / sizes


def smaller_half(sizes: np.ndarray, epsilon: float) -> np.ndarray:
    small = sizes <= np.median(sizes)
    return small * epsilon * sizes.sum() / sizes[small].sum()


SHARED = {
    "alike": lambda sizes, epsilon: np.full(len(sizes), epsilon),
    "by the large": filled,
    "by the small": smaller_half,
}
"""Shares of wrong samples in groups of such sizes, which come to ε of all."""


@pytest.mark.parametrize("expected", [1.0, 0.3])
@pytest.mark.parametrize("within", [1.0, 0.2])
@pytest.mark.parametrize("shared", SHARED)
@pytest.mark.parametrize("sizes", SIZES)
def test_what_breaks_the_promise_passes_no_more_often_than_it_may(sizes, shared, within, expected):
    """Errors come in groups: in one that is bad, all samples are wrong, or one in five, whatever is expected."""
    random, runs, epsilon, passed = np.random.default_rng(1), 300, 0.02, 0
    counts = SIZES[sizes]
    groups = np.repeat(np.arange(len(counts)), counts)
    share = SHARED[shared](counts, 1.001 * epsilon)
    assert (share * counts).sum() > epsilon * len(groups) and share.max() <= 1
    inside = np.maximum(within, share)
    for _ in range(runs):
        wrong = (random.random(len(counts)) < share / inside)[groups] & (random.random(len(groups)) < inside[groups])
        passed += certify(wrong[None], groups, epsilon, DELTA, within=expected) is not None
    assert passed / runs <= DELTA + noise(runs)
    assert observations_needed(groups, epsilon, DELTA) < len(counts)  # it would pass without errors


def once(count: int, n: int) -> Fresh:
    """Of n samples, the first ask something each that no other does."""
    return Fresh((np.arange(n) < count).astype(int), np.arange(n))


def test_answers_that_are_always_the_same_do_not_vouch_for_fresh_ones():
    groups, fresh = np.arange(4000), once(400, 4000)
    few, many = (np.arange(4000) < count for count in (8, 3))  # 0.2 % of all and 2 % of the fresh, and 0.75 %
    assert certify(few[None], groups, EPSILON, DELTA) is not None
    assert certify(few[None], groups, EPSILON, DELTA, fresh) is None
    assert "8 of 400 calibration answers differ" in refusal(few[None], groups, EPSILON, DELTA, fresh)
    assert certify(many[None], groups, 0.02, DELTA, fresh) is not None
    popular = (groups > 3900)[None]  # one input, asked again and again
    assert certify(popular, groups, EPSILON, DELTA, fresh) is None
    assert "99 of 4000 calibration answers differ" in refusal(popular, groups, EPSILON, DELTA, fresh)
    right = certify(flagged(4000, 0), groups, EPSILON, DELTA, fresh)
    assert right is not None
    assert (right.n, right.observations, right.errors) == (400, 400, 0), "the larger bound is theirs"
    assert right.bound == pytest.approx(1 - DELTA ** (1 / 400))
    assert "no training has seen" in right.method
    often = certify((groups > 3974)[None], groups, EPSILON, DELTA, fresh)
    assert often is not None and (often.n, often.errors) == (4000, 25)
    said = refusal(flagged(4000, 0), groups, EPSILON, DELTA, once(200, 4000))
    assert said.startswith("There are 200 independent observations among the 4000 calibration samples (frames of one")
    assert there_and_needed(groups, EPSILON, DELTA, once(200, 4000)) == (200, 299)
    assert there_and_needed(groups, EPSILON, DELTA, once(0, 4000)) == (0, 299)


def test_fresh_inputs_count_as_often_as_they_are_asked_unless_few_would_count_for_most():
    asked = np.concatenate([np.repeat(np.arange(2000), 3), np.full(3000, 2000)])
    first = np.searchsorted(asked, asked)
    fresh = Fresh(1 + np.arange(9000) - first, asked)
    verdict = certify(flagged(9000, 0), np.arange(9000), EPSILON, DELTA, fresh)
    assert verdict is not None and 6000 <= verdict.n <= 6032 and verdict.observations == 2001
    wrong = (asked % 100 == 0) & (asked < 1500)  # 15 of 2,001 inputs, all of what they are asked
    again = certify(wrong[None], np.arange(9000), EPSILON, DELTA, fresh)
    assert again is None and "45 of 60" in refusal(wrong[None], np.arange(9000), EPSILON, DELTA, fresh)
    few = asked < 400
    rare = certify(flagged(1200, 0), np.arange(1200), EPSILON, DELTA, Fresh(fresh.turns[few], asked[few]))
    assert rare is not None and (rare.n, rare.observations) == (400, 400), "three times each would take too many"


@pytest.mark.parametrize("where", [(0, 30), (20, 400), (2000, 20_000)])
def test_the_promise_holds_where_inputs_are_asked_again_and_again(where):
    """Requests by Zipf's law, certified as they are split, while heads are wrong where inputs are so popular."""
    random, runs, epsilon, broken, used = np.random.default_rng(4), 80, 0.02, 0, []
    popular = 1 / np.arange(1, 20_001)
    popular /= popular.sum()
    within = (np.arange(20_000) >= where[0]) & (np.arange(20_000) < where[1])
    thresholds = np.linspace(1, 0, 61)[1:-1, None]
    for _ in range(runs):
        scores = random.random(20_000)
        wrong = random.random(20_000) < np.where(within, 0.5, 0.05) * (1 - scores)
        asked = random.choice(20_000, 6000, p=popular)
        parts = split({"x": (asked + random.integers(2**40))[:, None]})
        held_out = asked[parts.calibrate]
        errors = (scores[held_out] >= thresholds) & wrong[held_out]
        verdict = certify(errors, parts.groups[parts.calibrate], epsilon, DELTA, parts.fresh)
        if verdict is not None:
            differs = popular[wrong & (scores >= thresholds[verdict.step])].sum()
            broken += differs > epsilon
            used.append(differs)
    assert broken / runs <= DELTA + noise(runs)
    assert len(used) > 0.8 * runs and np.mean(used) > 0.1 * epsilon


def test_bound_is_below_the_truth_no_more_often_than_it_may():
    random, runs, below = np.random.default_rng(3), 300, 0
    groups, truth = np.repeat(np.arange(600), SIZES["all lengths"][:600]), 0.03
    for _ in range(runs):
        wrong = (random.random(600) < truth / 0.3)[groups] & (random.random(len(groups)) < 0.3)
        verdict = certify(wrong[None], groups, 0.1, DELTA)
        assert verdict is not None and wrong.mean() < verdict.bound < 0.1
        below += verdict.bound < truth
    assert below / runs <= DELTA + noise(runs)


def test_taking_frames_for_independent_would_break_the_promise():
    random, runs, passed = np.random.default_rng(2), 300, 0
    groups = np.repeat(np.arange(300), 20)
    for _ in range(runs):
        wrong = (random.random(300) < 1.01 * EPSILON)[groups]
        passed += certify(wrong[None], np.arange(6000), EPSILON, DELTA) is not None
    assert passed / runs > 0.3


def test_refusals_say_what_would_help():
    few = (flagged(40, 0), np.arange(40), EPSILON, DELTA)
    assert certify(*few) is None
    assert "at least 299; collect more" in refusal(*few)
    frames = (flagged(6000, 0), np.arange(6000) // 30, EPSILON, DELTA)
    assert certify(*frames) is None
    assert "200 independent observations among the 6000" in refusal(*frames)
    assert "largest such group has 30" in refusal(*frames) and "at least 299" in refusal(*frames)
    wrong = (flagged(400, 400), np.arange(400), EPSILON, DELTA)
    assert certify(*wrong) is None
    assert "400 of 400 calibration answers differ" in refusal(*wrong) and "100.00%" in refusal(*wrong)
    scenes = (flagged(12_000, 600), np.arange(12_000) // 30, EPSILON, DELTA)
    assert certify(*scenes) is None
    assert "600 of 12000 calibration answers, 400 independent ones among them, differ" in refusal(*scenes)
    silent = (np.zeros((0, 400), bool), np.arange(400), EPSILON, DELTA)
    assert certify(*silent) is None
    assert "No head gave a usable score" in refusal(*silent)
    assert "There are 0 calibration samples" in refusal(np.zeros((3, 0), bool), np.arange(0), EPSILON, DELTA)
