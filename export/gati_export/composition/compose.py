"""Composition: which heads to use, and from which score on each is believed, so that requests are answered soonest.

Hits at different cut points are correlated, so compositions are judged on samples, never by products of hit rates.

A good composition is found by descents: heads are exchanged, and the errors that are allowed are moved from one cut
point to another, as long as that helps. How much better the best one can be is found by branch and bound, from the
first cut point to the last: a state says what was chosen at the cut points before, and a bound says how soon its
remaining samples can be answered at best. Bounds come from prices, by Lagrangian decomposition: every sample chooses
heads, and whether they hit it, for itself alone, but pays for that; every cut point chooses one head and threshold
for all, and earns what they pay. Whatever the prices, that takes no longer than the best composition. Prices that
were learned, by gradient ascent on the bound, make both sides want nearly the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gati.errors import BackboneError, SamplesError
from gati_export.composition.descent import DESCENT, descend_often
from gati_export.composition.prices import learn_prices, no_prices
from gati_export.composition.tree import PROOF, Choice, Limits, Option, Prices, Tree

__all__ = ["Composition", "Evaluation", "Limits", "Option", "compose", "evaluate", "seconds_until"]

EFFORT = 40_000
"""States that are tried before a proof is given up."""
QUICK = 2_000
"""Those of them that are tried before anything else, which is all that small problems need."""
BATCH, OPEN = 64, 50_000
"""States that are taken on together, and that may wait, at a cut point; if more do, those with the worst bounds go."""


@dataclass(frozen=True)
class Composition:
    """A choice of heads and thresholds.

    Attributes:
        chosen: Indices of options, by rising cut point, at most one for each; empty if no head pays.
        thresholds: Of each: the lowest score that hits, a float32.
        expected_seconds: Mean time of a request with them.
        plain_seconds: Time of a request without heads.
        gap: The best choice takes at most this share less than `expected_seconds`; 0 if this is proved to be it.
    """

    chosen: tuple[int, ...]
    thresholds: tuple[float, ...]
    expected_seconds: float
    plain_seconds: float
    gap: float


class Evaluation(NamedTuple):
    """What a composition does to n samples.

    Attributes:
        exits: Where each was answered: cut point of the head, or number of cut points for the backbone, [n].
        wrong: Whether the answer differs from the backbone's, bool [n].
    """

    exits: np.ndarray
    wrong: np.ndarray


def compose(
    options: Sequence[Option],
    segment_seconds: np.ndarray,
    limits: Limits,
    *,
    effort: int = EFFORT,
) -> Composition:
    """Chooses heads and thresholds with the least mean time, within limits.

    Args:
        options: Heads to choose from; several, or none, for a cut point.
        segment_seconds: Time of each segment, [cut points + 1].
        limits: What to keep to.
        effort: States to try before a proof is given up, at least 1. By default it may take some 20 s; up to 2,000, a
            few seconds, for a composition that is hardly worse, but a gap that is far from sharp.

    Returns:
        The composition; without heads if none pays.

    Raises:
        SamplesError: If options are not about the same samples, or a score or another number is out of range.
        BackboneError: If the backbone alone, which may have to answer any request, takes longer than `limits.p99`.
    """
    _check(options, segment_seconds, limits)
    tree = Tree(options, segment_seconds, limits)
    if not tree.heads:
        return Composition((), (), tree.plain, tree.plain, 0.0)
    best, lower = search(tree, no_prices(tree), Choice(float(tree.n), (), ()), min(effort, QUICK))
    if lower < best.seconds:
        best = min(best, descend_often(tree, effort // DESCENT), key=lambda choice: choice.seconds)
    if lower < best.seconds and effort > QUICK:
        best, bound = search(tree, learn_prices(tree), best, effort - QUICK)
        lower = max(lower, bound)
    gap = max(0.0, 1 - lower / best.seconds)
    return Composition(best.chosen, best.thresholds, best.seconds / tree.n * tree.plain, tree.plain, gap)


def _check(options: Sequence[Option], segment_seconds: np.ndarray, limits: Limits) -> None:
    seconds = np.asarray(segment_seconds, float)
    plain = float(seconds.sum())
    if not (seconds.ndim == 1 and (seconds >= 0).all() and 0 < plain < math.inf):
        raise SamplesError(f"Segments should take a time each, and some time together, not {seconds} s.")
    if not 0 <= limits.epsilon <= 1:
        raise SamplesError(f"epsilon must lie between 0 and 1, not at {limits.epsilon}.")
    for option in options:
        _check_option(option, len(seconds) - 1, options[0].scores.shape)
    check_p99(plain, limits.p99)


def check_p99(plain: float, p99: float | None) -> None:
    """Refuses a limit, in seconds, that no heads can keep to.

    Raises:
        BackboneError: If the backbone alone, in `plain` seconds, takes longer.
    """
    if p99 is not None and not plain <= p99 * (1 + PROOF):
        raise BackboneError(
            f"99 % of requests can't be promised an answer within {p99 * 1e3:.6g} ms, since the backbone alone, "
            f"which answers what no head does, takes {plain * 1e3:.6g} ms."
        )


def _check_option(option: Option, cuts: int, shape: tuple[int, ...]) -> None:
    what = f"The head {option.name!r} at cut point {option.cut}"
    if not 0 <= option.cut < cuts:
        raise SamplesError(f"{what} has no place in a chain with {cuts} cut points.")
    if not (len(shape) == 1 and shape[0] and option.scores.shape == option.agree.shape == shape):
        given = f"scores {list(option.scores.shape)} and answers {list(option.agree.shape)}"
        raise SamplesError(f"{what} has {given}; all heads should have one of each for every tuning sample.")
    if option.scores.dtype != np.float32 or option.agree.dtype != bool:
        raise SamplesError(
            f"{what} has {option.scores.dtype} scores and {option.agree.dtype} answers, not float32, bool."
        )
    if not np.isfinite(option.scores).all():
        raise SamplesError(f"{what} gave scores that are not finite.")
    if not (0 <= option.seconds < math.inf and option.bytes >= 0):
        raise SamplesError(f"{what} can't take {option.seconds} s and {option.bytes} bytes.")


def seconds_until(used: Sequence[Option], segment_seconds: np.ndarray) -> np.ndarray:
    """Time until an answer of each head, by rising cut point, and of the backbone, [heads + 1]."""
    added = np.zeros(len(segment_seconds))
    added[[option.cut for option in used]] = [option.seconds for option in used]
    return np.cumsum(np.asarray(segment_seconds, float) + added)[[*(option.cut for option in used), -1]]


def evaluate(options: Sequence[Option], chosen: Sequence[int], thresholds: Sequence[float], cuts: int) -> Evaluation:
    """Runs heads on samples by their scores.

    Args:
        options: Heads, at least one, which need not be in use.
        chosen: Indices of those in use, by rising cut point.
        thresholds: Of each of them; rounded to float32, as they are inside a head's file.
        cuts: How many cut points there are.
    """
    n = len(options[0].scores)
    exits, wrong = np.full(n, cuts), np.zeros(n, bool)
    for index, threshold in zip(chosen, thresholds, strict=True):
        option = options[index]
        hit = (option.scores >= np.float32(threshold)) & (exits == cuts)
        exits[hit], wrong[hit] = option.cut, ~option.agree[hit]
    return Evaluation(exits, wrong)


def search(tree: Tree, prices: Prices, best: Choice, effort: int) -> tuple[Choice, float]:
    """Searches for a better choice than the best so far.

    At every cut point in turn, the states with the lowest bounds are taken on: each round is a beam search, and all
    rounds together are a proof.

    Args:
        tree: What there is to choose from.
        prices: For bounds.
        best: What to be better than.
        effort: States to try.

    Returns:
        The best choice known, and a time that none takes less than.
    """
    width, lost, goal = min(BATCH, effort), math.inf, best.seconds * (1 - PROOF)
    waiting = [tree.root(), *(tree.root()[:0] for _ in range(tree.cuts))]
    while effort > 0 and any(map(len, waiting)):
        for cut in range(tree.cuts):
            front, waiting[cut] = _lowest(waiting[cut], width)
            effort -= len(front)
            children = tree.expand(cut, front, prices)
            children = np.concatenate([waiting[cut + 1], children[children["bound"] < goal]])
            waiting[cut + 1], dropped = _lowest(children, OPEN)
            lost = dropped["bound"].min(initial=lost)
        leaves = waiting.pop()
        if len(leaves):
            leaf = leaves[leaves["bound"].argmin()]
            best = tree.read(leaf["bound"], leaf["choice"])
            goal = best.seconds * (1 - PROOF)
        waiting = [*(states[states["bound"] < goal] for states in waiting), leaves[:0]]
    return best, min([lost, best.seconds, *(states["bound"].min(initial=math.inf) for states in waiting)])


def _lowest(states: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The states with the lowest bounds, and the others."""
    if len(states) <= count:
        return states, states[:0]
    order = np.argpartition(states["bound"], count)
    return states[order[:count]], states[order[count:]]
