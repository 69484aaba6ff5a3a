"""Composition: no choice is better than the composed one where that is claimed, and it costs what a chain would pay."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from gati.errors import BackboneError, SamplesError
from gati_export.composition import compose as composing
from gati_export.composition import descent, prices
from gati_export.composition import tree as trees
from gati_export.composition.compose import Composition, Limits, Option, compose, evaluate, seconds_until
from gati_export.composition.pareto import explain, oracle, pareto
from gati_export.learning.threshold_path import _thresholds as prices_to_thresholds
from gati_export.learning.threshold_path import threshold_path


def walk(options, chosen, thresholds, segments) -> tuple[list[int], list[float], int]:
    """Exits, seconds and errors of a chain, one request and one step after another."""
    exits, seconds, errors = [], [], 0
    at = {options[index].cut: (options[index], threshold) for index, threshold in zip(chosen, thresholds, strict=True)}
    for sample in range(len(options[0].scores)):
        spent, cut = 0.0, 0
        for cut, segment in enumerate(segments):
            spent += segment
            if cut in at:
                option, threshold = at[cut]
                spent += option.seconds
                if option.scores[sample] >= threshold:
                    errors += not option.agree[sample]
                    break
        exits.append(cut)
        seconds.append(spent)
    return exits, seconds, errors


def within(options, chosen, segments, n, errors, limits) -> bool:
    """Whether that keeps to the limits."""
    longest = segments.sum() + sum(options[index].seconds for index in chosen)  # of what no head answers
    used = sum(options[index].bytes for index in chosen)
    in_time = longest <= (limits.p99 or math.inf) * (1 + 1e-9)
    return errors <= limits.epsilon * n + 1e-6 and used <= (limits.memory or math.inf) and in_time


def brute_force(options, segments, limits) -> float:
    """Least mean seconds of all heads at all scores."""
    menu = [[None] for _ in segments[:-1]]
    for index, option in enumerate(options):
        menu[option.cut] += [(index, float(level)) for level in np.unique(option.scores[option.scores >= 0])]
    best = math.inf
    for picks in itertools.product(*menu):
        chosen = [pick[0] for pick in picks if pick]
        seconds, errors = run(options, chosen, [pick[1] for pick in picks if pick], segments)
        if within(options, chosen, segments, len(seconds), errors, limits):
            best = min(best, float(seconds.mean()))
    return best


def run(options, chosen, thresholds, segments) -> tuple[np.ndarray, int]:
    """`walk`, all samples at once, for many choices."""
    n = len(options[0].scores)
    remains, seconds, errors = np.ones(n, bool), np.zeros(n), 0
    at = {options[index].cut: (options[index], threshold) for index, threshold in zip(chosen, thresholds, strict=True)}
    for cut, segment in enumerate(segments):
        seconds += segment * remains
        if cut in at:
            option, threshold = at[cut]
            seconds += option.seconds * remains
            hit = remains & (option.scores >= threshold)
            errors += int((hit & ~option.agree).sum())
            remains &= ~hit
    return seconds, errors


def traffic_of(seed: int) -> tuple[list[Option], np.ndarray, Limits]:
    """A few options on few samples, with ties, heads that never hit, and each limit or none."""
    random = np.random.default_rng(seed)
    cuts, n = int(random.choice([2, 3, 3])), int(random.choice([1, 4, 8, 12, 12]))
    values = np.array([0.5, 1, 0.25, 0.75, -1, 0], np.float32)[: random.choice([1, 3, 5, 6, 6])]
    dear, right = random.choice([0.0, 0.02, 0.05, 0.3]), random.choice([0.6, 0.9, 1.0])
    options = []
    for cut in range(cuts):
        shared = random.choice(values, n)  # hits at different cut points are correlated
        for name in range(random.choice([0, 1, 2, 2, 2]) if cut else 2):
            scores = np.where(random.random(n) < 0.3, shared, random.choice(values, n)).astype(np.float32)
            agree = random.random(n) < right + 0.3 * (scores - 0.6)
            options.append(Option(cut, f"f{name}", dear * random.random(), int(random.integers(1, 9)), scores, agree))
    random.shuffle(options)
    segments = random.random(cuts + 1) + np.where(np.arange(cuts + 1) > 0, 0.5, 0.0)
    slack = random.choice([math.inf, math.inf, 0.0, 0.01, 0.03])
    p99 = None if slack == math.inf else float(segments.sum() * (1 + slack))
    return (
        options,
        segments,
        Limits(random.choice([0.0, 0.1, 0.2, 0.3]), [None, None, 12, 8, 1][random.integers(5)], p99),
    )


traffic = st.integers(0, 10**9).map(traffic_of)
"""By a seed: left to itself, hypothesis likes cases in which there is nothing to choose."""


def check(case, found: Composition) -> float:
    """That a composition is what it says, within limits, and its gap is one; returns the best mean time."""
    options, segments, limits = case
    assert [options[index].cut for index in found.chosen] == sorted({options[index].cut for index in found.chosen})
    _, seconds, errors = walk(options, found.chosen, found.thresholds, segments)
    assert within(options, found.chosen, segments, len(options[0].scores), errors, limits)
    assert found.expected_seconds == pytest.approx(np.mean(seconds))
    assert found.plain_seconds == pytest.approx(segments.sum())
    best = brute_force(options, segments, limits)
    assert best <= found.expected_seconds * (1 + 1e-9)
    assert best >= found.expected_seconds * (1 - found.gap - 1e-9)
    return best


@given(traffic)
@settings(max_examples=150, deadline=None)
def test_equal_to_brute_force(case):
    found = compose(*case)
    assert found.gap == 0
    assert found.expected_seconds == pytest.approx(check(case, found))


@given(traffic)
@settings(max_examples=15, deadline=None)
def test_equal_to_brute_force_with_learned_prices(case):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(composing, "QUICK", 0)  # small problems would not get that far
        patch.setattr(prices, "COOLING", ((0.03, 15), (0.003, 15)))
        found = compose(*case)
    assert found.gap == 0
    assert found.expected_seconds == pytest.approx(check(case, found))


@given(traffic)
@settings(max_examples=15, deadline=None)
def test_descents_keep_to_the_limits(case):
    options, segments, limits = case
    grown = trees.Tree(options, segments, limits)
    assume(grown.heads)
    found = descent.descend_often(grown, 12)
    _, seconds, errors = walk(options, found.chosen, found.thresholds, segments)
    assert within(options, found.chosen, segments, len(options[0].scores), errors, limits)
    assert np.mean(seconds) == pytest.approx(found.seconds / grown.n * segments.sum())


@given(traffic, st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_gap_holds_when_the_search_is_cut_short(case, effort):
    check(case, compose(*case, effort=effort))


@given(traffic)
@settings(max_examples=150, deadline=None)
def test_a_search_that_drops_states_still_says_what_it_does_not_know(case):
    options, segments, _ = case
    grown = trees.Tree(*case)
    assume(grown.heads)
    nothing = trees.Choice(float(grown.n), (), ())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(composing, "BATCH", 1)
        patch.setattr(composing, "OPEN", 1)
        found, lower = composing.search(grown, prices.no_prices(grown), nothing, composing.QUICK)
    least = brute_force(*case) / segments.sum() * len(options[0].scores)
    assert lower * (1 - 1e-9) <= least <= found.seconds * (1 + 1e-9)


def difficulty(cuts: int, families: int, n: int, seed: int = 0) -> tuple[list[Option], np.ndarray]:
    """Samples that are hard for all heads alike; heads know more the later they sit, and the more they cost."""
    random = np.random.default_rng(seed)
    hard = random.random(n)
    options = []
    for cut, family in itertools.product(range(cuts), range(families)):
        ease = (0.15 + 0.75 * (cut + 1) / cuts + 0.05 * family - hard) * 8
        agree = random.random(n) < 1 / (1 + np.exp(-ease))
        scores = (1 / (1 + np.exp(-ease - 0.3 * random.logistic(size=n)))).astype(np.float32)
        options.append(Option(cut, f"f{family}", 0.02 * 2**family, 1000 * (family + 1), scores, agree))
    return options, np.ones(cuts + 1)


def test_learned_prices_prove_what_patience_proves(monkeypatch):
    options, segments = difficulty(5, 2, 200)
    limits = Limits(0.02, memory=6000)
    monkeypatch.setattr(composing, "QUICK", 10**6)
    patient = compose(options, segments, limits, effort=10**6)
    monkeypatch.setattr(composing, "QUICK", 0)
    monkeypatch.setattr(prices, "COOLING", ((0.03, 50), (0.01, 50), (0.003, 100)))
    learned = compose(options, segments, limits)
    assert learned.gap == patient.gap == 0
    assert learned.expected_seconds == pytest.approx(patient.expected_seconds)
    hasty = compose(options, segments, limits, effort=10)  # descents, and next to no search
    assert 0 < hasty.gap < 0.1
    assert hasty.expected_seconds * (1 - hasty.gap) <= patient.expected_seconds <= hasty.expected_seconds


def test_an_open_gap_is_stated_and_more_effort_closes_it():
    options, segments = difficulty(5, 2, 300, seed=1)
    hasty, patient = (compose(options, segments, Limits(0.02), effort=effort) for effort in (100, composing.QUICK))
    assert hasty.gap > patient.gap == 0
    assert hasty.expected_seconds * (1 - hasty.gap) <= patient.expected_seconds <= hasty.expected_seconds


def test_nine_cut_points_with_three_heads_each():
    options, segments = difficulty(9, 3, 1000)
    found = compose(options, segments, Limits(0.01), effort=composing.QUICK)
    seen = evaluate(options, found.chosen, found.thresholds, len(segments) - 1)
    assert found.plain_seconds / found.expected_seconds > 1.2 and seen.wrong.sum() <= 10 and found.gap < 0.5
    grown = trees.Tree(options, segments, Limits(0.01))
    nothing = trees.Choice(1000.0, (), ())
    searched, _ = composing.search(grown, prices.no_prices(grown), nothing, composing.QUICK)
    assert found.expected_seconds < 0.99 * searched.seconds / 1000 * 10  # thanks to descents


def option(
    cut: int, scores: ArrayLike, agree: ArrayLike = True, seconds: float = 0.05, size: int = 100, name: str = "linear"
) -> Option:
    given = np.asarray(scores, np.float32)
    return Option(cut, name, seconds, size, given, np.broadcast_to(np.asarray(agree, bool), given.shape).copy())


def test_no_heads_when_none_pays():
    surely = np.ones(50)
    for options in (
        [],
        [option(cut, surely, seconds=9.0) for cut in range(3)],
        [option(cut, surely, agree=False) for cut in range(3)],
        [option(cut, -surely) for cut in range(3)],
        [option(cut, surely, size=1000) for cut in range(3)],
    ):
        found = compose(options, np.ones(4), Limits(0.01, memory=500))
        assert found == Composition((), (), 4.0, 4.0, 0.0)
        assert threshold_path(options, found, np.ones(4), 9).shape == (0, 0)


def test_correlated_heads_are_not_paid_for_twice():
    random = np.random.default_rng(0)
    score = random.random(300).astype(np.float32)
    other = random.random(300).astype(np.float32)
    options = [option(0, score, score > 0.5), option(1, score, score > 0.5), option(2, other, other > 0.5)]
    found = compose(options, np.ones(4), Limits(0.01))
    assert found.chosen == (0, 2)  # 1 knows nothing that 0 does not


def test_all_scores_equal_hit_together_or_not_at_all():
    right = np.arange(100) >= 3
    options = [option(0, np.full(100, 0.5), right)]
    assert compose(options, np.ones(2), Limits(0.02)).chosen == ()
    found = compose(options, np.ones(2), Limits(0.03))
    assert found.thresholds == (0.5,) and found.expected_seconds == pytest.approx(1.05)


def test_a_threshold_is_as_loose_as_is_allowed():
    options = [option(0, [0.9, 0.8, 0.8, 0.7, 0.6, 0.5, 0.5, 0.4], [1, 1, 1, 1, 0, 1, 1, 0])]
    assert compose(options, np.ones(2), Limits(0.0)).thresholds == (pytest.approx(0.7),)
    assert compose(options, np.ones(2), Limits(1 / 8)).thresholds == (pytest.approx(0.5),)
    assert compose(options, np.ones(2), Limits(1.0)).thresholds == (pytest.approx(0.4),)


def test_errors_are_counted_where_the_sample_leaves():
    # head 1 is wrong only on what head 0 answers rightly before it
    options = [option(0, [0.9, 0.9, 0.1, 0.1], [1, 1, 0, 0]), option(1, [0.9, 0.8, 0.8, 0.8], [0, 0, 1, 1])]
    found = compose(options, np.ones(3), Limits(0.0))
    assert found.chosen == (0, 1) and found.expected_seconds == pytest.approx((2 * 1.05 + 2 * 2.1) / 4)


def test_memory_is_shared_by_the_heads():
    surely = np.ones(10)
    half = np.arange(10) < 5
    options = [option(0, np.where(half, 0.9, -1), size=60), option(1, surely, size=60), option(1, surely, 1, 0.2, 40)]
    assert compose(options, np.ones(4), Limits(0.0)).chosen == (0, 1)
    assert compose(options, np.ones(4), Limits(0.0, memory=100)).chosen == (0, 2)
    assert compose(options, np.ones(4), Limits(0.0, memory=60)).chosen == (1,)
    assert compose(options, np.ones(4), Limits(0.0, memory=0)).chosen == ()


def test_what_no_head_answers_keeps_to_p99_whatever_hits_here():
    options = [option(0, np.ones(300), seconds=0.5), option(1, np.ones(300), seconds=0.1)]
    assert compose(options, np.ones(3), Limits(0.0, p99=3.5)).chosen == (0,)
    assert compose(options, np.ones(3), Limits(0.0, p99=3.49)).chosen == (1,)
    assert compose(options, np.ones(3), Limits(0.0, p99=3.09)).chosen == ()
    half = [option(0, np.where(np.arange(300) % 2, 0.9, -1.0), seconds=0.05), *options[1:]]
    assert compose(half, np.ones(3), Limits(0.0, p99=3.15)).chosen == (0, 1)
    assert len(compose(half, np.ones(3), Limits(0.0, p99=3.14)).chosen) == 1  # together they take longer


def test_p99_below_the_backbones_time_is_refused():
    options = [option(0, np.ones(10))]
    with pytest.raises(BackboneError, match=r"within 1999 ms, since the backbone alone.* takes 2000 ms\.$"):
        compose(options, np.ones(2), Limits(0.0, p99=1.999))


@pytest.mark.parametrize(
    ("options", "segments", "limits", "match"),
    [
        ([option(0, [0.5, math.nan])], [1, 1], Limits(0.1), r"^The head 'linear' at cut point 0 gave .* not finite\.$"),
        ([option(0, [0.5, math.inf])], [1, 1], Limits(0.1), "not finite"),
        ([option(0, [0.5]), option(0, [0.5, 0.5])], [1, 1], Limits(0.1), r"has scores \[2\] and answers \[2\]"),
        ([option(0, [])], [1, 1], Limits(0.1), "one of each for every tuning sample"),
        ([Option(0, "f", 0, 1, np.ones(3), np.ones(3, bool))], [1, 1], Limits(0.1), "float64 scores and bool answers"),
        ([Option(0, "f", 0, 1, np.ones(3, "f4"), np.ones(3, int))], [1, 1], Limits(0.1), "int64 answers"),
        ([option(1, [0.5])], [1, 1], Limits(0.1), "has no place in a chain with 1 cut points"),
        ([option(0, [0.5], seconds=math.inf)], [1, 1], Limits(0.1), "can't take inf s"),
        ([option(0, [0.5], size=-1)], [1, 1], Limits(0.1), "-1 bytes"),
        ([option(0, [0.5])], [1, math.nan], Limits(0.1), "take a time each"),
        ([option(0, [0.5])], [0, 0], Limits(0.1), "some time together"),
        ([option(0, [0.5])], [1, 1], Limits(-0.1), "epsilon must lie between 0 and 1"),
    ],
)
def test_bad_input_is_named_in_one_sentence(options, segments, limits, match):
    with pytest.raises(SamplesError, match=match):
        compose(options, np.asarray(segments, float), limits)


@given(traffic)
@settings(max_examples=40, deadline=None)
def test_evaluation_is_what_a_chain_does(case):
    options, segments, _ = case
    first = {option.cut: index for index, option in enumerate(options)}
    chosen = [first[cut] for cut in sorted(first)]
    thresholds = [0.25 * (1 + cut) for cut in sorted(first)]
    exits, seconds, errors = walk(options, chosen, thresholds, segments)
    seen = evaluate(options, chosen, thresholds, len(segments) - 1)
    assert seen.exits.tolist() == exits and seen.wrong.sum() == errors
    until = seconds_until([options[index] for index in chosen], segments)
    assert until[np.searchsorted([*sorted(first), len(segments) - 1], exits)] == pytest.approx(seconds)


def test_the_oracle_leaves_at_the_first_head_that_agrees():
    agree = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0]], bool)
    assert oracle(agree, np.array([1.0, 2, 3, 4])) == pytest.approx((1 + 3 + 6 + 10) / 4)
    with pytest.raises(SamplesError):
        oracle(agree, np.ones(3))


@given(traffic, st.integers(1, 40))
@settings(max_examples=50, deadline=None)
def test_a_path_loosens_step_by_step(case, steps):
    options, segments, _ = case
    found = compose(*case)
    settings_ = threshold_path(options, found, segments, steps)
    if not found.chosen:
        assert settings_.size == 0
        return
    assert settings_.dtype == np.float32 and 1 <= len(settings_) <= steps and np.isfinite(settings_).all()
    assert (np.diff(settings_, axis=0) <= 0).all()
    assert (np.diff(settings_, axis=0) < 0).any(axis=1).all()


def test_a_path_begins_strict_and_ends_loose():
    options, segments = difficulty(4, 1, 1000)
    found = compose(options, segments, Limits(0.02), effort=composing.QUICK)
    assert len(found.chosen) > 1
    settings_ = threshold_path(options, found, segments, 128)

    def served(setting):
        seen = evaluate(options, found.chosen, setting.tolist(), len(segments) - 1)
        return (seen.exits < len(segments) - 1).mean(), seen.wrong.mean()

    hits, wrong = np.array([served(setting) for setting in settings_]).T
    assert hits[0] < 0.03 and wrong[0] == 0
    assert hits[-1] == 1 and wrong[-1] > 0.04
    assert max(np.diff(hits[wrong < 0.04])) < 0.05


@given(st.integers(0, 9999), st.floats(0.5, 50))
@settings(max_examples=50, deadline=None)
def test_the_threshold_of_a_single_head_is_the_best_at_its_price(seed, price):
    random = np.random.default_rng(seed)
    scores, risks = random.random((1, 40)), random.random((1, 40)) ** 3
    seconds = np.array([0.3, 1.0])
    threshold = prices_to_thresholds(scores, risks, seconds, price)[0]

    def spent(threshold):
        return np.where(scores[0] >= threshold, 0.3 + price * risks[0], 1.0).sum()

    best = min(spent(score) for score in scores[0])
    assert spent(threshold) == pytest.approx(best) if best < 40 else threshold == scores.max()


def test_a_path_does_not_follow_the_luck_of_a_few_samples():
    """Of equally good heads, one whose surest answers happen to be right is not trusted all the more."""
    random = np.random.default_rng(3)
    scores = np.sort(random.random(200))[::-1]
    lucky, unlucky = random.random(200) < scores, random.random(200) < scores
    lucky[:40], unlucky[10:12] = True, False
    thresholds = []
    for agree in (lucky, unlucky):
        options = [option(0, scores, agree=agree)]
        settings_ = threshold_path(options, Composition((0,), (0.5,), 1.0, 2.0, 0.0), np.ones(2), 50)
        thresholds.append(np.interp(0.5, np.linspace(0, 1, len(settings_)), settings_[:, 0]))
    assert thresholds[0] == pytest.approx(thresholds[1], abs=0.05)


def test_a_path_goes_from_sure_to_unsure_where_all_samples_agree():
    """Other samples will not all agree, and the least sure answers are the first to doubt."""
    scores = np.linspace(0.6, 0.999, 300, dtype=np.float32)
    options = [option(0, scores, agree=np.ones(300, bool))]
    settings_ = threshold_path(options, Composition((0,), (0.6,), 1.0, 2.0, 0.0), np.ones(2), 50)
    hits = (scores >= settings_).sum(axis=1)
    assert hits[0] < 30 and hits[-1] == 300 and (np.diff(hits) < 100).all()


@given(traffic)
@settings(max_examples=25, deadline=None)
def test_a_larger_epsilon_is_never_slower(case):
    options, segments, limits = case
    points = pareto(options, segments, limits, [0.3, 0.0, 0.1], effort=composing.EFFORT)
    assert [point.epsilon for point in points] == [0.0, 0.1, 0.3]
    for point in points:
        best = brute_force(options, segments, Limits(point.epsilon, limits.memory, limits.p99))
        assert point.seconds == pytest.approx(best)
        assert point.speedup == pytest.approx(segments.sum() / best)


def test_pareto_never_falls_back_when_searches_are_cut_short():
    options, segments = difficulty(4, 2, 100, seed=1)  # where one of the searches is less lucky than the one before
    points = pareto(options, segments, Limits(0.0), np.linspace(0, 0.2, 9), effort=1)
    speedups = [point.speedup for point in points]
    assert speedups == sorted(speedups) and speedups[0] < speedups[-1]


def test_every_option_is_explained():
    n = np.arange(100)
    easy, middle = n < 40, n < 70
    options = [
        option(0, np.where(easy, 0.9, 0.1), easy, name="linear"),
        option(0, np.where(easy, 0.9, 0.1), easy, seconds=0.1, name="mlp"),  # the same, and slower
        option(0, np.where(middle, 0.9, 0.1), middle, seconds=0.9, name="conv"),  # more, and much slower
        option(1, np.where(middle, 0.9, 0.1), middle, size=500, name="linear"),
        option(2, np.full(100, 0.9), True, size=900, name="linear"),
        option(2, np.full(100, 0.9), n % 2 == 0, name="bad"),
        option(2, np.full(100, -1.0), True, name="mute"),
        option(2, np.where(middle, 0.9, 0.1), middle, name="late"),  # knows nothing that the others don't
    ]
    segments, limits = np.ones(4), Limits(0.0, memory=1000)
    found = compose(options, segments, limits)
    assert found.chosen == (0, 3)
    said = explain(options, found, segments, limits)
    longer = (70 * 2.05 + 30 * 4.05) / (40 * 1.05 + 30 * 2.1 + 30 * 4.1) - 1
    assert said[0] == f"Requests would take {longer:.1%} longer without it, with the other heads' thresholds re-tuned."
    assert "longer without it" in said[3]
    assert said[1].startswith("'linear' at the same cut point takes no more time or memory")
    assert said[2].startswith("Requests would take ") and "longer with it in place of 'linear'" in said[2]
    assert said[4] == "With the other heads it would take 1500 bytes, and 1000 are allowed."
    assert said[5] == "Beside the other heads it could hit nothing without more errors than are allowed."
    assert said[6] == "It hits none of the tuning samples."
    assert said[7].startswith("Requests would take ") and "longer with it added" in said[7]
    assert set(said) == set(range(8)) and all(text.count(". ") == 0 and text.endswith(".") for text in said.values())


def test_explained_seconds_are_true():
    n = np.arange(100)
    options = [option(0, np.where(n < 50, 0.9, -1.0)), option(1, np.where(n >= 75, 0.9, -1.0), seconds=0.4)]
    segments, limits = np.array([1.0, 0.1, 1.0]), Limits(0.0)
    found = compose(options, segments, limits)
    assert found.chosen == (0, 1)
    first, both = 0.5 * 1.05 + 0.5 * 2.15, 0.5 * 1.05 + 0.25 * 1.55 + 0.25 * 2.55
    assert both < first
    assert f"{first / both - 1:.1%} longer without" in explain(options, found, segments, limits)[1]
    alone = Composition((0,), (float(np.float32(0.9)),), first, 2.1, 0.0)
    missed = explain(options, alone, segments, limits)[1]
    assert missed.startswith(f"Requests would take {1 - both / first:.1%} less with it added")
    tight = Limits(0.0, p99=2.16)
    assert "what no head answers would take longer than 2160 ms" in explain(options, alone, segments, tight)[1]
