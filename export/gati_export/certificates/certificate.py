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

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gati.repository.release import Certificate
from gati_export.certificates.groups import best_test, check, samples_needed


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


def uncertified(epsilon: float, delta: float) -> Certificate:
    """What stands in a certificate's place where heads are published to be measured, whatever they answer."""
    return Certificate(0, 0, 0, 1.0, epsilon, delta, {}, 0.0, "none: made to be measured", "", "")


def there_and_needed(groups: np.ndarray, epsilon: float, delta: float, fresh: Fresh | None = None) -> tuple[int, int]:
    """How many groups there are, and how many of such sizes it takes to show that, if no sample is an error.

    Counts the fresh samples instead, if they fall further short. Arguments are as for `certify`.
    """
    check(epsilon, delta)
    tests = _tests(groups, fresh, epsilon, delta, 1.0)
    return min(((len(test.sizes), test.needed()) for test in tests), key=lambda pair: pair[0] / pair[1])


def safe(
    groups: np.ndarray, epsilon: float, delta: float, fresh: Fresh | None = None, within: float = 1.0
) -> Callable[[np.ndarray], bool]:
    """The test of one step: whether answers that are wrong, bool [n], still show that; arguments as for `certify`.

    Raises:
        SamplesError: If epsilon or delta is not between 0 and 1.
    """
    check(epsilon, delta)
    tests = _tests(groups, fresh, epsilon, delta, within)
    return lambda wrong: all(test.passes(wrong) for test in tests)


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
    check(epsilon, delta)
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
    check(epsilon, delta)
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
        self._test = best_test(self.sizes, epsilon, delta, within) if len(self.sizes) else None
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
        return self._test.needed() if self._test else self._fewest


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
