"""Bets on a share: an anytime-valid lower bound on how often something happens.

A test martingale by betting (Waudby-Smith and Ramdas, JRSS-B 2024, section 4): capital 1 is bet on "it happens at more
than this share", and while that is not so, the capital's expectation never grows. By Ville's inequality the chance that
it ever reaches 1/α is at most α, however often it is looked at. The shares whose capital has got there are refuted:
what lies below the bound.

The capital is spread over several bets, and over several starts: a bet that has lost for long on good requests would
take as long to win again when they turn bad, one that starts afresh takes no time (the mixture over starts of Shin,
Ramdas and Rinaldo's e-detectors, NEJSDS 2024, with weights that add up to 1, so that the bound holds for all time).
With each bet a fixed share of the largest one, capital depends on counts alone.
"""

from __future__ import annotations

import math

import numpy as np

BETS = np.array([0.003, 0.01, 0.03, 0.1, 0.3, 0.6, 0.9])
"""Shares of the largest bet, the one that can lose all: small ones tell close shares apart, large ones are quick."""
LOSS = np.log1p(-BETS)
ROUNDS = 4
PARTS = np.arange(33) / 32
"""Of the search for a bound: each round divides what is left there; to a millionth."""


def log_gains(shares: float | np.ndarray, drawn: np.ndarray, yes: np.ndarray) -> np.ndarray:
    """By what bets on "more often than this share" have multiplied their capital since each start, as logarithms.

    Args:
        shares: 0..1, without 0: one, or several, [...].
        drawn: How many were drawn since each start, [starts].
        yes: How many of them were a yes, [starts].

    Returns:
        One for each share and start, [..., starts].
    """
    win = np.log1p(BETS * (1 / np.asarray(shares)[..., None, None] - 1))
    return _log_sum(yes[:, None] * win + np.outer(drawn - yes, LOSS)) - math.log(len(BETS))


def refuted(
    shares: float | np.ndarray, drawn: np.ndarray, yes: np.ndarray, weights: np.ndarray, alpha: float
) -> np.ndarray:
    """Whether bets that put `weights`, at most 1 together, on their starts, have refuted that the share is no higher.

    Where it is no higher at any time, the chance that this ever says so is at most `alpha`.
    Shares and the result, bool, are [...].
    """
    return _log_sum(log_gains(shares, drawn, yes) + np.log(weights)) >= -math.log(alpha)


def lower_bound(drawn: np.ndarray, yes: np.ndarray, weights: np.ndarray, alpha: float) -> float:
    """The highest share that is refuted, 0 while there is none; what is refuted only shrinks with the share."""
    low, high = 0.0, 1.0
    for _ in range(ROUNDS):
        shares = low + (high - low) * PARTS
        known = np.count_nonzero(refuted(shares[1:-1], drawn, yes, weights, alpha))
        low, high = shares[known : known + 2]
    return float(low)


def _log_sum(logarithms: np.ndarray) -> np.ndarray:
    """The logarithm of the sum over the last axis."""
    top = logarithms.max(axis=-1, keepdims=True)
    return np.log(np.exp(logarithms - top).sum(axis=-1)) + top[..., 0]
