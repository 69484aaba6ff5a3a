"""Logistic regression with its own penalty and bound for every weight, which libraries have for all alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize

Bound = tuple[float | None, float | None]
POSITIVE: Bound = (0, None)
FREE: Bound = (None, None)


def platt_targets(agree: np.ndarray) -> np.ndarray:
    """How likely each of n samples agrees, 0..1, [n], given that it did, bool [n] (Platt 1999).

    The answers, smoothed by one sample of either kind, so that samples that all agree, or none, give a probability
    short of 1, or above 0, and no infinite weights.
    """
    right = int(agree.sum())
    return np.where(agree, (right + 1) / (right + 2), 1 / (len(agree) - right + 2))


def regress(
    rows: np.ndarray,
    targets: np.ndarray,
    penalties: np.ndarray,
    bounds: Sequence[Bound],
    prior: np.ndarray | None = None,
) -> np.ndarray:
    """Finds the weights w of P = 1 / (1 + exp(−rows · w)).

    Args:
        rows: What is known of each sample, [n, weights], n ≥ 1; a column of ones for a bias.
        targets: How likely each is, 0..1, [n].
        penalties: Of each weight: roughly, how many samples it takes to believe in it.
        bounds: The least and the largest value of each weight, or None.
        prior: What weights are believed to be before any sample, [weights]; 0 if None.

    Returns:
        Float64 [weights].
    """
    before = np.zeros(rows.shape[1]) if prior is None else prior

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        odds = rows @ weights
        residuals = 0.5 * (1 + np.tanh(odds / 2)) - targets
        off = weights - before
        value = np.sum(np.logaddexp(0, odds) - targets * odds) + penalties @ off**2 / 2
        return float(value) / len(rows), (rows.T @ residuals + penalties * off) / len(rows)

    return minimize(loss, before, jac=True, method="L-BFGS-B", bounds=bounds).x
