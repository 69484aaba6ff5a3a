"""Bets on a share: anytime-valid bounds on how often something happens.

A test martingale by betting (Waudby-Smith and Ramdas, JRSS-B 2024, section 4): capital 1 is bet on "it happens at more
than this share", or at less, and while that is not so, the capital's expectation never grows. By Ville's inequality the
chance that it ever reaches 1/α is at most α, however often it is looked at. The shares whose capital has got there are
refuted: what lies below the lower bound, or above the upper one.

Each bet is the one that would grow fastest if the true share were some multiple of the share in question, as are the
likelihood ratios of Wald's test, so that capital depends on counts alone. It is spread over several multiples, and over
several starts: a bet that has lost for long on good requests would take as long to win again when they turn bad, one
that starts afresh takes no time (the mixture over starts of Shin, Ramdas and Rinaldo's e-detectors, NEJSDS 2024, with
weights that add up to 1, so that the bound holds for all time).

Draws that depend on one another, d at a time, as frames of a scene do, count for 1/d each, as if each bet were taken to
the power 1/d. Of d factors, however dependent, whose expectations are at most 1, the product to that power has one of
at most 1, too (Hölder's inequality).
"""

from __future__ import annotations

import math

import numpy as np

MORE = np.array([1.4, 2.0, 4.0, 10.0, 40.0])
"""Multiples of a share to bet on, for that it is more: small ones tell close shares apart, large ones are quick.

In the long run, a bet on twice the share loses where the true one is less than 1.44 times as large, one on 1.4 times
where it is less than 1.19 times as large.
"""
LESS = np.array([0.1, 0.4, 0.7])
"""For that it is less."""
ROUNDS = 4
PARTS = np.arange(33) / 32
"""Of the search for a bound: each round divides what is left there; to a millionth."""


def log_gains(
    shares: float | np.ndarray, drawn: np.ndarray, yes: np.ndarray, multiples: np.ndarray = MORE
) -> np.ndarray:
    """By what bets against shares have multiplied their capital since each start, as logarithms.

    Args:
        shares: Above 0 and below 1: one, or several, [...].
        drawn: How many were drawn since each start, parts of one being possible, [starts].
        yes: How many of them were a yes, likewise.
        multiples: Of a share, what is bet on; halfway from it to 1, where they are larger.

    Returns:
        One for each share and start, [..., starts].
    """
    share = np.asarray(shares)[..., None, None]
    other = np.minimum(multiples * share, (1 + share) / 2)
    win, loss = np.log(other) - np.log(share), np.log1p(-other) - np.log1p(-share)
    return _log_sum(yes[:, None] * win + (drawn - yes)[:, None] * loss) - math.log(len(multiples))


def refuted(
    shares: float | np.ndarray,
    drawn: np.ndarray,
    yes: np.ndarray,
    weights: np.ndarray,
    alpha: float,
    multiples: np.ndarray = MORE,
) -> np.ndarray:
    """Whether bets that put `weights`, at most 1 together, on their starts, have refuted that the share is no higher.

    Where it is no higher at any time, the chance that this ever says so is at most `alpha`. With multiples below 1, no
    lower. Shares and the result, bool, are [...].
    """
    return _log_sum(log_gains(shares, drawn, yes, multiples) + np.log(weights)) >= -math.log(alpha)


def lower_bound(drawn: np.ndarray, yes: np.ndarray, weights: np.ndarray, alpha: float) -> float:
    """The highest share that is refuted, 0 while there is none; what is refuted only shrinks with the share."""
    low, high = 0.0, 1.0
    for _ in range(ROUNDS):
        shares = low + (high - low) * PARTS
        known = np.count_nonzero(refuted(shares[1:-1], drawn, yes, weights, alpha))
        low, high = shares[known : known + 2]
    return float(low)


def upper_bound(drawn: np.ndarray, yes: np.ndarray, weights: np.ndarray, alpha: float) -> float:
    """The lowest share that is refuted by bets on less, 1 while there is none; all above it are, too."""
    low, high = 0.0, 1.0
    for _ in range(ROUNDS):
        shares = low + (high - low) * PARTS
        known = np.count_nonzero(~refuted(shares[1:-1], drawn, yes, weights, alpha, LESS))
        low, high = shares[known : known + 2]
    return float(high)


def _log_sum(logarithms: np.ndarray) -> np.ndarray:
    """The logarithm of the sum over the last axis."""
    top = logarithms.max(axis=-1, keepdims=True)
    return np.log(np.exp(logarithms - top).sum(axis=-1)) + top[..., 0]
