"""Refutation: whether samples show that more answers differ than was promised. The reverse of a certificate.

Samples of one group (frames of one scene) depend on each other, and the promise is for requests: a scene of twenty
frames counts for twenty of them, and still is one observation. So it is bet, group by group, that more differ: group g
of m_g samples with k_g errors multiplies the capital by 1 + λ (k_g − ε m_g). Where the promise is kept, and groups are
independent draws of the traffic, the capital is not expected to grow, and reaches 1/δ with probability δ at most
(betting as in Waudby-Smith and Ramdas, arXiv 2010.09686).
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import betainc

from gati_export.certificates.runs import by_appearance
from gati_export.terms import Terms

LEAST_LEFT = 0.5
"""What a group without errors leaves of the capital, at least."""


def refuted(wrong: np.ndarray, groups: np.ndarray, terms: Terms) -> bool:
    """Whether so many errors are rarer than delta where the promise is kept.

    Args:
        wrong: Which samples are answered otherwise than by the backbone, bool [n].
        groups: Of each, int [n].
        terms: What was promised.
    """
    factors = _factors(wrong, groups, terms.epsilon)
    if len(factors) == len(wrong):  # independent: exactly, by the binomial distribution
        errors = wrong.sum()
        return bool(betainc(errors, len(wrong) - errors + 1, terms.epsilon) <= terms.delta)
    return bool(np.log(factors).sum() >= -math.log(terms.delta))


def refuted_since(wrong: np.ndarray, groups: np.ndarray, terms: Terms) -> bool:
    """Whether there are so many errors of late, be that among all or only the newest; else as `refuted`.

    It is bet on all groups, on the newer half of them, the newest quarter and so on, with equal shares of the capital.

    Args:
        wrong: In the order of traffic.
        groups: Likewise.
        terms: What was promised.
    """
    grown = np.cumsum(np.log(_factors(wrong, groups, terms.epsilon))[::-1])
    newest = len(grown) >> np.arange(len(grown).bit_length())
    return bool(len(newest) and np.exp(grown[newest - 1]).mean() >= 1 / terms.delta)


def _factors(wrong: np.ndarray, groups: np.ndarray, epsilon: float) -> np.ndarray:
    """What each group multiplies the capital by, in the order of their first samples, [groups].

    The bet is the one that gains most where groups are wrong as a whole, twice as often as promised, and of one size.
    """
    of = by_appearance(groups)
    sizes, errors = np.bincount(of), np.bincount(of, wrong)
    if not len(sizes):
        return np.ones(0)
    bet = min(sizes.sum() / (sizes**2).sum(), (1 - LEAST_LEFT) / (epsilon * sizes.max()))
    return 1 + bet * (errors - epsilon * sizes)
