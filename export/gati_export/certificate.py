"""Certificates: the loosest setting of a chain at which it is still shown to agree with its backbone.

Learn then Test with fixed-sequence testing (Angelopoulos et al., arXiv 2110.01052). Settings are tried along a path
from the strictest to the loosest, decided before the calibration samples are looked at. Each is tested against "more
than ε of the answers differ" at level δ, until the first one fails. To pass any setting that breaks the promise, the
first such on the path must be passed, and that happens with probability δ at most; so having tried many costs nothing.

Samples of one group (frames of one scene) depend on each other; groups must be independent draws of the traffic that
is promised for. The promise is for traffic whose groups are as large as these: tests hold for the sizes given.

Where inputs are asked again and again, two things are tested at each setting, and have to hold: that no more than ε of
all requests are answered otherwise, of which some inputs make up many; and that no more than ε of those for fresh
inputs are, of which none counts so often that few of them would vouch for the rest. Inputs that train are in the first
test only as far as they were asked again: enough as long as heads err on what they were trained on no more often than
otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from gati.errors import SamplesError

BETS = 64
"""Bets that one is taken of, 1 − t² of the largest possible one: dense near that, which bears the fewest errors."""
FINER, FINEST = 0.99, 1000
"""Shares that a bound is one of: each so many times the one before, and how many there are."""
BEYOND = 10**9
"""More observations than anybody will have."""


@dataclass(frozen=True)
class Fresh:
    """Which calibration samples ask what none that trains or tunes asks.

    Attributes:
        turns: 1 for the first that asks it, 2 for the next and so on; 0 for the others, int [n].
        groups: Of each sample, copies being of one, int [n].
    """

    turns: np.ndarray
    groups: np.ndarray


@dataclass(frozen=True)
class Verdict:
    """The loosest setting that passed, and what it rests on.

    Attributes:
        step: Its place on the path.
        n: Calibration samples: all, or the fresh ones where these give the larger bound.
        observations: Groups among them, which are independent.
        errors: Those on which the chain's answer differs from the backbone's at this step.
        bound: Upper bound on the share of such answers, at confidence 1 − delta; at most epsilon.
        method: How the step was chosen and the bound computed.
    """

    step: int
    n: int
    observations: int
    errors: int
    bound: float
    method: str


def samples_needed(epsilon: float, delta: float) -> int:
    """How many independent samples it takes to show an error of at most epsilon, if none of them is an error."""
    _check(epsilon, delta)
    return math.ceil(math.log(delta) / math.log1p(-epsilon))


def there_and_needed(groups: np.ndarray, epsilon: float, delta: float, fresh: Fresh | None = None) -> tuple[int, int]:
    """How many groups there are, and how many of such sizes it takes to show that, if no sample is an error.

    Of fresh ones, if more of these are missing. Arguments are as for `certify`.
    """
    _check(epsilon, delta)
    tests = _tests(groups, fresh, epsilon, delta, 1.0)
    return min(((len(test.sizes), test.needed()) for test in tests), key=lambda pair: pair[0] / pair[1])


def errors_allowed(n: int, epsilon: float, delta: float) -> int:
    """How many errors among n independent samples still show at most epsilon; -1 if not even none does."""
    _check(epsilon, delta)
    most = int(stats.binom.ppf(delta, n, epsilon))
    return most if stats.binom.cdf(most, n, epsilon) <= delta else most - 1


def upper_bound(errors: int, n: int, delta: float) -> float:
    """Exact (Clopper–Pearson) one-sided upper bound on a share of which `errors` were seen among n."""
    return 1.0 if errors >= n else float(stats.beta.ppf(1 - delta, errors + 1, n - errors))


def certify(
    errors: np.ndarray,
    groups: np.ndarray,
    epsilon: float,
    delta: float,
    fresh: Fresh | None = None,
    within: float = 1.0,
) -> Verdict | None:
    """Finds the loosest step of a path that is safe; None if the first one is not (see `refusal`).

    Args:
        errors: Whether the chain's answer differs from the backbone's, for each step of the path, the strictest first,
            on each calibration sample, bool [steps, n]. The path must not depend on these samples.
        groups: Of each sample, int [n]; samples of one group count as one observation.
        epsilon: Largest share of answers that may differ.
        delta: 1 − confidence.
        fresh: Which samples ask what no training has seen; None if all do, and each something else.
        within: How much of a group is wrong where any of it is, by other samples (see `wrong_within`). The test that
            bears most such errors is taken; the promise holds whatever it is.

    Raises:
        SamplesError: If epsilon or delta is not between 0 and 1.
    """
    _check(epsilon, delta)
    tests = _tests(groups, fresh, epsilon, delta, within)
    if not all(len(test.sizes) for test in tests):
        return None
    passed = -1
    for wrong in errors:
        if not all(test.passes(wrong) for test in tests):
            break
        passed += 1
    if passed < 0:
        return None
    wrong = errors[passed]
    test = max(tests, key=lambda test: test.bound(wrong))
    both = f"; the larger bound of those for all {len(groups)} samples and for inputs that no training has seen"
    return Verdict(
        step=passed,
        n=len(test.members),
        observations=len(test.sizes),
        errors=int(test.of(wrong).sum()),
        bound=test.bound(wrong),
        method=f"Learn then Test, fixed sequence of {len(errors)} settings; {test.method}{both * (len(tests) > 1)}",
    )


def refusal(
    errors: np.ndarray,
    groups: np.ndarray,
    epsilon: float,
    delta: float,
    fresh: Fresh | None = None,
    within: float = 1.0,
) -> str:
    """Why `certify` found no safe step, and what would help, in one sentence; arguments as there."""
    _check(epsilon, delta)
    promise = f"at most {epsilon:.2%} differing answers with {1 - delta:.0%} confidence"
    tests = _tests(groups, fresh, epsilon, delta, within)
    for test in tests:
        n, observations, needed = len(test.members), len(test.sizes), test.needed()
        if observations < needed and observations == len(groups):
            return f"There are {n} calibration samples, and {promise} takes at least {needed}; collect more."
        if observations < needed:
            largest = f"; the largest such group has {test.sizes.max()}" if observations < n else ""
            return (
                f"There are {observations} independent observations among the {len(groups)} calibration samples "
                f"(frames of one scene, and copies, count as one, and what trains as none{largest}), and {promise} "
                f"takes at least {needed}; collect more that differ."
            )
    if not len(errors):
        return "No head gave a usable score on the tuning samples; check that the samples are like the traffic."
    test = next((test for test in tests if not test.passes(errors[0])), tests[0])
    n, observations = len(test.members), len(test.sizes)
    independent = f", {observations} independent ones among them," if observations < n else ""
    return (
        f"No setting is safe: with the strictest one, {int(test.of(errors[0]).sum())} of {n} calibration "
        f"answers{independent} differ from the backbone's, which shows at most {test.bound(errors[0]):.2%} and not "
        f"{promise}; give more samples, or a larger epsilon."
    )


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


class _Tested:
    """Samples that are tested together.

    Attributes:
        sizes: Of their groups.
        members: The group of each.
        method: How they are tested.
    """

    def __init__(
        self, groups: np.ndarray, rows: np.ndarray | slice, epsilon: float, delta: float, within: float
    ) -> None:
        self.members, self.sizes = np.unique(groups[rows], return_inverse=True, return_counts=True)[1:]
        self._rows = rows
        self._fewest = samples_needed(epsilon, delta)
        self._test = _test(self.sizes, epsilon, delta, within) if len(self.sizes) else None
        self.method = self._test.method if self._test else ""

    def of(self, wrong: np.ndarray) -> np.ndarray:
        """Errors in each group, [groups], where samples are wrong, bool [n] of all there are."""
        return np.bincount(self.members[wrong[self._rows]], minlength=len(self.sizes))

    def passes(self, wrong: np.ndarray) -> bool:
        """Whether that is safe."""
        return self._test is not None and self._test.passes(self.of(wrong))

    def bound(self, wrong: np.ndarray) -> float:
        """Upper bound on the share of errors."""
        return self._test.bound(self.of(wrong)) if self._test else 1.0

    def needed(self) -> int:
        """How many groups of such sizes it takes, if no sample is an error."""
        return int(min(self._test.needed(), BEYOND)) if self._test else self._fewest


def _tests(groups: np.ndarray, fresh: Fresh | None, epsilon: float, delta: float, within: float) -> list[_Tested]:
    """What is tested: all samples, and fresh ones where there are others.

    An input counts as often as it was asked, up to so many times that a quarter of the groups would be enough; or else
    once. That is decided by the groups' sizes alone.
    """
    found = [_Tested(groups, slice(None), epsilon, delta, within)]
    if fresh is None or ((fresh.turns > 0).all() and len(np.unique(fresh.groups)) == len(found[0].sizes)):
        return found
    most = 1 << int(fresh.turns.max(initial=0)).bit_length()
    while most > 1:
        test = _Tested(fresh.groups, (fresh.turns > 0) & (fresh.turns <= most), epsilon, delta, within)
        if 4 * test.needed() <= len(test.sizes):
            return [*found, test]
        most //= 2
    return [*found, _Tested(fresh.groups, fresh.turns == 1, epsilon, delta, within)]


def _test(sizes: np.ndarray, epsilon: float, delta: float, within: float) -> _Binomial | _Betting:
    """The test that bears more errors, or without any takes fewer observations; that is decided by the sizes alone."""
    binomial = _Binomial(sizes, epsilon, delta, within)
    if len(sizes) == sizes.sum():
        return binomial
    tests = binomial, _Betting(sizes, epsilon, delta, within)
    return max(tests, key=lambda test: (max(test.bears, 0), -test.needed()))


def _expected(sizes: np.ndarray, within: float) -> np.ndarray:
    """How many samples of a group are wrong where any is."""
    return np.maximum(1, within * sizes)


class _Binomial:
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
        return np.count_nonzero(wrong) <= self._allowed

    def bound(self, wrong: np.ndarray) -> float:
        share = upper_bound(np.count_nonzero(wrong), self._groups, self._delta)
        return float(np.interp(share * self._groups, np.arange(self._groups + 1), self._held))

    def needed(self) -> int:
        return samples_needed(self._rate, self._delta)


class _Betting:
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
        bears: As of `_Binomial`.
    """

    method = "betting on groups of dependent samples; bound by inversion"

    def __init__(self, sizes: np.ndarray, epsilon: float, delta: float, within: float) -> None:
        sizes, self._kinds, counts = np.unique(-sizes, return_inverse=True, return_counts=True)
        self._sizes, self._counts = -sizes.astype(float), counts
        self._expected = _expected(self._sizes, within)
        self._epsilon, self._goal = epsilon, -math.log(delta)
        self._bet, self._allowances, self.bears, growth = self._best(epsilon)
        self._needed = math.ceil(self._goal / growth * len(self._kinds) - 1e-9)

    def passes(self, wrong: np.ndarray) -> bool:
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
        total = epsilon * (self._sizes @ self._counts)
        # the least τ with Σ max(0, m − τ) ≤ ε n: each sum over the largest groups has to keep to it
        least = ((np.cumsum(self._counts * self._sizes) - total) / np.cumsum(self._counts)).max()
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
        room = total - np.pad(np.cumsum(self._counts * excess, axis=1), ((0, 0), (1, 0)))
        rest = self._sizes @ self._counts - np.pad(np.cumsum(self._counts * self._sizes), (1, 0))[:-1]
        scale = np.maximum((room[:, :-1] / rest).min(axis=1), 0)
        return np.maximum(scale[:, None] * self._sizes, excess)


def _log_factors(bet: float | np.ndarray, wrong: np.ndarray, allowances: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):  # all is lost: log 0
        return np.log(np.maximum(1 - bet * (wrong - allowances), 0))


def _check(epsilon: float, delta: float) -> None:
    if not (0 < epsilon < 1 and 0 < delta < 1):
        raise SamplesError(f"epsilon and delta must lie between 0 and 1, not at {epsilon} and {delta}.")
