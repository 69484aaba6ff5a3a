"""Certificates: the loosest threshold at which a chain is still shown to agree with its backbone.

Learn then Test with fixed-sequence testing (Angelopoulos et al., arXiv 2110.01052). Thresholds are tried from the
strictest to the loosest, in an order decided before the calibration samples are looked at. Each is tested against
"more than ε of the answers differ" at level δ, by the exact binomial, until the first one fails. To pass any threshold
that breaks the promise, the first such in the order must be passed, and that happens with probability δ at most; so
having tried many costs nothing. Samples must be independent draws of the traffic that is promised for.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from gati.errors import SamplesError
from gati.release import Certificate

GRID = 256


def samples_needed(epsilon: float, delta: float) -> int:
    """How many calibration samples it takes to show an error of at most epsilon, if none of them is an error."""
    _check(epsilon, delta)
    return math.ceil(math.log(delta) / math.log1p(-epsilon))


def errors_allowed(n: int, epsilon: float, delta: float) -> int:
    """How many errors among n samples still show at most epsilon at confidence 1 − delta; -1 if not even none does."""
    _check(epsilon, delta)
    most = int(stats.binom.ppf(delta, n, epsilon))
    return most if stats.binom.cdf(most, n, epsilon) <= delta else most - 1


def upper_bound(errors: int, n: int, delta: float) -> float:
    """Exact (Clopper–Pearson) one-sided upper bound on a share of which `errors` were seen among n."""
    return 1.0 if errors >= n else float(stats.beta.ppf(1 - delta, errors + 1, n - errors))


def threshold_grid(scores: np.ndarray, size: int = GRID) -> np.ndarray:
    """Thresholds to try, strictest first: scores [...] that samples *other than the calibration ones* reach.

    Returns:
        Float32, falling, at most `size` of them and each above 0; empty if no score is.
    """
    reached = np.unique(scores[scores > 0].astype(np.float32))[::-1]
    picks = np.linspace(0, len(reached) - 1, min(size, len(reached))).round().astype(int)
    return reached[picks]


def exits(scores: np.ndarray, threshold: float) -> np.ndarray:
    """Where samples are answered: the first head whose score reaches the threshold, or the backbone.

    Args:
        scores: Of each head, in the order of the chain, [heads, n].
        threshold: Of all heads.

    Returns:
        Row of the head, or the number of heads for the backbone, [n].
    """
    backbone = np.ones((1, scores.shape[1]), bool)
    return np.concatenate([scores >= np.float32(threshold), backbone]).argmax(axis=0)


def count_errors(scores: np.ndarray, agree: np.ndarray, threshold: float) -> int:
    """On how many samples the chain's answer differs from the backbone's; scores and agree are [heads, n]."""
    right = np.concatenate([agree, np.ones((1, agree.shape[1]), bool)])
    where = exits(scores, threshold)
    return int((~right[where, np.arange(len(where))]).sum())


def certify(
    scores: np.ndarray, agree: np.ndarray, grid: np.ndarray, epsilon: float, delta: float, fingerprint: str
) -> Certificate | None:
    """Chooses the threshold for all heads of a chain and certifies it; None if no threshold is safe (see `refusal`).

    Args:
        scores: Of each head in use, in the order of the chain, on the calibration samples, [heads, n].
        agree: Whether its answer is the backbone's, bool [heads, n].
        grid: Thresholds, strictest first; must not depend on the calibration samples.
        epsilon: Largest share of answers that may differ.
        delta: 1 − confidence.
        fingerprint: SHA-256 over the calibration samples.
    """
    n = scores.shape[1]
    allowed = errors_allowed(n, epsilon, delta)
    threshold, errors = None, 0
    for candidate in grid.tolist():
        seen = count_errors(scores, agree, candidate)
        if seen > allowed:
            break
        threshold, errors = candidate, seen
    if threshold is None:
        return None
    return Certificate(
        n=n,
        errors=errors,
        bound=upper_bound(errors, n, delta),
        epsilon=epsilon,
        delta=delta,
        threshold=threshold,
        hits=float((exits(scores, threshold) < len(scores)).mean()),
        method=f"Learn then Test, fixed sequence of {len(grid)} thresholds, exact binomial; Clopper-Pearson bound",
        fingerprint=fingerprint,
    )


def refusal(scores: np.ndarray, agree: np.ndarray, grid: np.ndarray, epsilon: float, delta: float) -> str:
    """Why `certify` found no safe threshold, and what would help, in one sentence."""
    n, needed = scores.shape[1], samples_needed(epsilon, delta)
    promise = f"at most {epsilon:.2%} differing answers with {1 - delta:.0%} confidence"
    if n < needed:
        return f"There are {n} calibration samples, and {promise} takes at least {needed}; collect more."
    if not len(grid):
        return "No head gave a usable score on the tuning samples; check that the samples are like the traffic."
    seen = count_errors(scores, agree, float(grid[0]))
    return (
        f"No threshold is safe: with the strictest one, {seen} of {n} calibration answers differ from the backbone's, "
        f"and {promise} allows {errors_allowed(n, epsilon, delta)}; give more samples, or a larger epsilon."
    )


def _check(epsilon: float, delta: float) -> None:
    if not (0 < epsilon < 1 and 0 < delta < 1):
        raise SamplesError(f"epsilon and delta must lie between 0 and 1, not at {epsilon} and {delta}.")
