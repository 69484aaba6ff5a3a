"""Groups of samples that depend on each other, and tests of whether more than ε of all their samples are wrong.

A test is made for the sizes of the groups, before anything is known of errors: which of those that hold is taken, and
how it bets, hangs on how many errors it would bear, as they are expected to come.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import special  # scipy.stats says it in fewer words, and takes a third of a second to import

from gati.errors import SamplesError

BETS = 64
"""Bets that one is taken of, 1 − t² of the largest possible one: dense near that, which bears the fewest errors."""
FINER, FINEST = 0.99, 1000
"""Shares that a bound is one of: each so many times the one before, and how many there are."""


def check(epsilon: float, delta: float) -> None:
    """Refuses what no test can be made for.

    Raises:
        SamplesError: If one of them is not between 0 and 1.
    """
    if not (0 < epsilon < 1 and 0 < delta < 1):
        raise SamplesError(f"epsilon and delta must lie between 0 and 1, not at {epsilon} and {delta}.")


def samples_needed(epsilon: float, delta: float) -> int:
    """How many independent samples it takes to show an error of at most epsilon, if none of them is an error."""
    check(epsilon, delta)
    return math.ceil(math.log(delta) / math.log1p(-epsilon))


def errors_allowed(n: int, epsilon: float, delta: float) -> int:
    """How many errors among n independent samples still show at most epsilon; -1 if not even none does."""
    check(epsilon, delta)
    if not n:
        return -1
    most = math.ceil(special.bdtrik(delta, n, epsilon))
    return most if special.betaincc(most + 1, n - most, epsilon) <= delta else most - 1


def upper_bound(errors: int, n: int, delta: float) -> float:
    """Exact (Clopper–Pearson) one-sided upper bound on a share of which `errors` were seen among n."""
    return 1.0 if errors >= n else float(special.betaincinv(errors + 1, n - errors, 1 - delta))


def wrong_within(errors: np.ndarray, groups: np.ndarray, epsilon: float) -> float:
    """How much of a group is wrong where any of it is, as wrong samples have it on average, 0..1.

    One group that is wrong as a whole is added: few errors tell little.

    Args:
        errors: Of tuning samples along the path, bool [steps, n]; the last step with at most epsilon of them counts.
        groups: Of each tuning sample, int [n].
        epsilon: Largest share of answers that may differ.
    """
    few = errors[errors.sum(axis=1) <= epsilon * len(groups)]
    if not few.size:
        return 1.0
    members, sizes = np.unique(groups, return_inverse=True, return_counts=True)[1:]
    wrong = np.bincount(members, few[-1])
    return float(((wrong**2 / sizes).sum() + sizes.mean()) / (wrong.sum() + sizes.mean()))


def best_test(sizes: np.ndarray, epsilon: float, delta: float, within: float) -> Binomial | Betting:
    """The test that bears more errors, or without any takes fewer observations; that is decided by the sizes alone."""
    binomial = Binomial(sizes, epsilon, delta, within)
    if len(sizes) == sizes.sum():
        return binomial
    tests = binomial, Betting(sizes, epsilon, delta, within)
    return max(tests, key=lambda test: (max(test.bears, 0), -test.needed()))


def _expected(sizes: np.ndarray, within: float) -> np.ndarray:
    """How many samples of a group are wrong where any is."""
    return np.maximum(1, within * sizes)


class Binomial:
    """Counts groups in which anything is wrong: exact for samples that are all independent.

    Where more than ε of n samples are wrong, more groups are than as many of the largest as hold ε n. That is sharp
    where groups are of one size and wrong as a whole, and where there are few copies. That some groups are wrong more
    often than others makes few errors only less likely (Hoeffding 1956).

    Attributes:
        bears: How many errors would pass, about, if they come as is expected; below 0 where not even none would.
    """

    method = "exact binomial; Clopper-Pearson bound"

    def __init__(self, sizes: np.ndarray, epsilon: float, delta: float, within: float) -> None:
        self._delta, self._groups = delta, len(sizes)
        self._held = np.append(0, np.cumsum(np.sort(sizes)[::-1])) / sizes.sum()  # by so many of the largest groups
        self._rate = float(np.interp(epsilon, self._held, np.arange(self._groups + 1))) / self._groups
        self._allowed = errors_allowed(self._groups, self._rate, delta)
        self.bears = self._allowed * float(_expected(sizes, within).mean())

    def passes(self, wrong: np.ndarray) -> bool:
        """Whether so many errors of each group, int [groups], speak against more than epsilon of all."""
        return np.count_nonzero(wrong) <= self._allowed

    def bound(self, wrong: np.ndarray) -> float:
        """Upper bound on the share of errors, at confidence 1 − delta, where there are so many of each group."""
        share = upper_bound(np.count_nonzero(wrong), self._groups, self._delta)
        return float(np.interp(share * self._groups, np.arange(self._groups + 1), self._held))

    def needed(self) -> int:
        """How many groups of such sizes it takes, if no sample is an error."""
        return samples_needed(self._rate, self._delta)


class Betting:
    """Bets that a group has fewer errors than it is allowed; what the bet makes of 1 is the evidence.

    Group g of size m_g has k_g errors, and the allowances a_g ≥ 0 add up to ε n. Where more than ε of the answers are
    wrong, Σ E k_g ≥ Σ a_g. As groups are independent, the capital Π (1 − λ (k_g − a_g)) has the expectation
    Π (1 − λ (E k_g − a_g)) ≤ exp(−λ Σ (E k_g − a_g)) ≤ 1, for each bet λ that can't lose more than all, which is
    λ (m_g − a_g) ≤ 1. By Markov's inequality it reaches 1/δ with probability δ at most (betting as in Waudby-Smith and
    Ramdas, arXiv 2010.09686, but for sizes given, at once: the order of groups plays no part).

    Allowances are proportional to size, as errors tend to be, but a group larger than a bet can bear is allowed its
    excess, m_g − 1/λ: one group of 30 frames among 10,000 samples then costs 30 errors, not the factor 30 in samples.

    The bet is the one that bears most errors, if these come as is expected. Where groups are of one size and wrong as a
    whole, it is Chernoff's bound then, and where none may be wrong, the exact one.

    Attributes:
        bears: As of `Binomial`.
    """

    method = "betting on groups of dependent samples; bound by inversion"

    def __init__(self, sizes: np.ndarray, epsilon: float, delta: float, within: float) -> None:
        sizes, self._kinds, counts = np.unique(-sizes, return_inverse=True, return_counts=True)
        self._sizes, self._counts = -sizes.astype(float), counts
        self._samples = self._sizes @ counts
        self._held, self._up_to = np.cumsum(counts * self._sizes), np.cumsum(counts)
        self._others = self._samples - _from_zero(self._held)[:-1]
        self._expected = _expected(self._sizes, within)
        self._epsilon, self._goal = epsilon, -math.log(delta)
        self._bet, self._allowances, self.bears, growth = self._best(epsilon)
        self._needed = math.ceil(self._goal / growth * len(self._kinds) - 1e-9)

    def passes(self, wrong: np.ndarray) -> bool:
        """Whether so many errors of each group, int [groups], speak against more than epsilon of all."""
        return self._rejects(self._bet, self._allowances, wrong)

    def bound(self, wrong: np.ndarray) -> float:
        """The least of some shares that the errors seen speak against, each by its own bet.

        A bet against a share speaks as loud against all larger ones, so none between two of them was left out.
        """
        bound = 1.0
        for share in (self._epsilon if self.passes(wrong) else FINER) * FINER ** np.arange(FINEST):
            bet, allowances, *_ = self._best(share)
            if not self._rejects(bet, allowances, wrong):
                break
            bound = float(share)
        return bound

    def needed(self) -> int:
        """As of `Binomial`."""
        return self._needed

    def _rejects(self, bet: float, allowances: np.ndarray, wrong: np.ndarray) -> bool:
        """Whether errors, of each group, speak against the share that the allowances, of each size, stand for."""
        hurt = np.flatnonzero(wrong)  # few
        allowed = allowances[self._kinds[hurt]]
        clean = np.log1p(bet * allowances) @ self._counts - np.log1p(bet * allowed).sum()
        return clean + _log_factors(bet, wrong[hurt], allowed).sum() >= self._goal

    def _best(self, epsilon: float) -> tuple[float, np.ndarray, float, float]:
        """The bet against a share that bears most, what it allows groups of each size, how many errors it bears.

        And the logarithm of what the best bet would make of 1 if there are no errors.
        """
        total = epsilon * self._samples
        # the least τ with Σ max(0, m − τ) ≤ ε n: each sum over the largest groups has to keep to it
        least = ((self._held - total) / self._up_to).max()
        bets = (1 - (np.arange(BETS) / BETS) ** 2)[:, None] / least
        allowances = self._allow(total, bets)
        growth = np.log1p(bets * allowances) @ self._counts
        lost = growth - _log_factors(bets, self._expected, allowances) @ self._counts
        bears = (growth - self._goal) / lost * (self._expected @ self._counts)
        best = int(bears.argmax())
        return float(bets[best, 0]), allowances[best], float(bears[best]), float(growth.max())

    def _allow(self, total: float, bets: np.ndarray) -> np.ndarray:
        """Allowances max(s m, m − 1/λ) that add up to a total, [bets, sizes].

        Over every number of largest groups, Σ (m − 1/λ) over them + s Σ m over the others is at most the sum wanted,
        and for one it is equal: hence the least of the scales s that they give. It lies where sizes change.
        """
        excess = self._sizes - 1 / bets
        room = total - _from_zero(np.cumsum(self._counts * excess, axis=1))[:, :-1]
        scale = np.maximum((room / self._others).min(axis=1), 0)
        return np.maximum(scale[:, None] * self._sizes, excess)


def _from_zero(sums: np.ndarray) -> np.ndarray:
    """Sums along the last axis, and before them that over nothing."""
    return np.concatenate([np.zeros((*sums.shape[:-1], 1), sums.dtype), sums], axis=-1)


def _log_factors(bet: float | np.ndarray, wrong: np.ndarray, allowances: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):  # all is lost: log 0
        return np.log(np.maximum(1 - bet * (wrong - allowances), 0))
