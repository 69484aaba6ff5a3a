"""The path of thresholds along which a composition is certified, from very strict to clearly too loose.

A few tuning samples tell little about how often the surest answers are wrong: thresholds that are best for them are
hardly ever best for others. So the path has one parameter, the price of a wrong answer in seconds, and counts
probabilities of errors instead of errors; a logistic model of the score gives these (Platt 1999). At each price, a head
hits where that costs less than to go on, the expected price of an error included.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gati_export.composition.compose import Composition, Option, seconds_until
from gati_export.families.blocks.logistic import FREE, POSITIVE, platt_targets, regress

DEAREST, CHEAPEST = 1e4, 0.1
"""Prices of a wrong answer, in multiples of the backbone's time."""
ROUNDS = 3
"""Of iteration: the samples that reach a head depend on thresholds before it, and the cost to go on, on later ones."""


def threshold_path(
    options: Sequence[Option], composition: Composition, segment_seconds: np.ndarray, steps: int
) -> np.ndarray:
    """Settings of the thresholds, the strictest first.

    Args:
        options: The options that there were.
        composition: The heads that were chosen from them.
        segment_seconds: Time of each segment, [cut points + 1].
        steps: The most settings, at least 1.

    Returns:
        Float32 [settings, heads]: in each setting, no threshold is larger than in the one before, and at least one is
        smaller. There are fewer than `steps` where scores can't tell so many apart, and none without heads.
    """
    chosen = [options[index] for index in composition.chosen]
    if not chosen:
        return np.empty((0, 0), np.float32)
    seconds = seconds_until(chosen, segment_seconds)
    scores = np.stack([option.scores for option in chosen]).astype(np.float64)
    risks = np.stack([_risks(option) for option in chosen])
    prices = np.geomspace(DEAREST, CHEAPEST, steps) * float(np.sum(segment_seconds))
    settings = np.stack([_thresholds(scores, risks, seconds, price) for price in prices])
    settings = np.minimum.accumulate(settings).astype(np.float32)
    return settings[np.r_[True, (settings[1:] < settings[:-1]).any(axis=1)]]


def _risks(option: Option) -> np.ndarray:
    """Probability that each answer is wrong, by its score, [n]; 1 where the head never hits.

    The score itself is the prior of the probability to be right: where all samples agree, they do not tell which scores
    are surer.
    """
    known = option.scores >= 0
    if not known.any():
        return np.ones(len(known))
    score = np.clip(option.scores[known].astype(np.float64), 1e-6, 1 - 1e-6)
    rows = np.column_stack([np.log(score / (1 - score)), np.ones(len(score))])
    targets = platt_targets(option.agree[known])
    weights = regress(rows, targets, np.array([1.0, 0.0]), [POSITIVE, FREE], np.array([1.0, 0.0]))
    risks = np.ones(len(known))
    risks[known] = 1 / (1 + np.exp(rows @ weights))
    return risks


def _thresholds(scores: np.ndarray, risks: np.ndarray, seconds: np.ndarray, price: float) -> np.ndarray:
    """The best thresholds at a price; a head that is better not used gets its largest score.

    Args:
        scores: Scores of each head on the tuning samples, [heads, n].
        risks: Probabilities of an error, likewise.
        seconds: Time to an answer from each head, and from the backbone, [heads + 1].
        price: Price of an error, in seconds.
    """
    here = seconds[:-1, None] + price * risks
    best = scores.max(axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")
    for _ in range(ROUNDS):
        reached = np.cumprod(np.vstack([np.ones(scores.shape[1]), scores[:-1] < best[:-1, None]]), axis=0) > 0
        later = np.full(scores.shape[1], seconds[-1])
        for head in reversed(range(len(scores))):
            rows = order[head][reached[head][order[head]]]
            rows = rows[scores[head][rows] >= 0]
            spent = np.cumsum((here[head] - later)[rows])
            if len(rows) and spent.min() < 0:
                best[head] = scores[head][rows[spent.argmin()]]
            else:
                best[head] = scores[head].max()
            later = np.where(scores[head] >= best[head], here[head], later)
    return best
