"""Agreement against coverage: how often a head is right when it answers only what it is surest of."""

from __future__ import annotations

import numpy as np

POINTS = 64


def agreement_curve(
    scores: np.ndarray, agree: np.ndarray, points: int = POINTS
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """A head's curve, from its surest answers to all that it may give.

    Args:
        scores: Of the head on each sample, [n]; below 0, or NaN, where it never answers.
        agree: Whether its answer is the backbone's, bool [n].
        points: How many to keep, at most.

    Returns:
        Shares of the samples that are answered, rising, and the share among them that agrees. Samples of the same
        score are answered together, for no threshold tells them apart. Both are empty if nothing is ever answered.
    """
    answers = np.flatnonzero(scores >= 0)
    if not len(answers):
        return (), ()
    order = answers[np.argsort(-scores[answers], kind="stable")]
    falls = np.diff(scores[order]) < 0
    last = np.append(np.flatnonzero(falls), len(order) - 1)  # of each score
    kept = last[np.unique(np.linspace(0, len(last) - 1, min(points, len(last))).round().astype(int))]
    right = np.cumsum(agree[order])[kept]
    return _rounded((kept + 1) / len(scores)), _rounded(right / (kept + 1))


def _rounded(shares: np.ndarray) -> tuple[float, ...]:
    return tuple(np.round(shares, 5).tolist())


def covered(scores: np.ndarray, threshold: float) -> float:
    """Share of the samples whose score, [n], reaches a threshold."""
    return float((scores >= np.float32(threshold)).mean())
