"""What compositions trade: time against errors, and one head against another."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from gati.errors import SamplesError
from gati_export.composition.compose import Composition, Limits, Option, compose, evaluate
from gati_export.composition.descent import descend
from gati_export.composition.tree import PROOF, Tree, dominators


@dataclass(frozen=True)
class Point:
    """The best composition at one promise.

    Attributes:
        epsilon: Largest share of the samples whose answer may differ.
        seconds: Mean time of a request.
        speedup: Time without heads ÷ that.
        chosen: Indices of options.
    """

    epsilon: float
    seconds: float
    speedup: float
    chosen: tuple[int, ...]


def pareto(
    options: Sequence[Option],
    segment_seconds: np.ndarray,
    limits: Limits,
    epsilons: Iterable[float],
    *,
    effort: int,
) -> list[Point]:
    """Composes for several promises.

    Args:
        options: Heads to choose from.
        segment_seconds: Time of each segment, [cut points + 1].
        limits: What to keep to, whatever the promise; its epsilon is not looked at.
        epsilons: The promises.
        effort: For each of them, as `compose` takes it.

    Returns:
        One point for each promise, by rising epsilon; none is slower than the one before.

    Raises:
        SamplesError: As `compose` does.
        BackboneError: Likewise.
    """
    points: list[Point] = []
    for epsilon in sorted(epsilons):
        found = compose(options, segment_seconds, replace(limits, epsilon=epsilon), effort=effort)
        point = Point(epsilon, found.expected_seconds, found.plain_seconds / found.expected_seconds, found.chosen)
        if points and points[-1].seconds < point.seconds:  # where proofs are given up, the search may be unlucky
            point = replace(points[-1], epsilon=epsilon)
        points.append(point)
    return points


def oracle(options_agree: np.ndarray, segment_seconds: np.ndarray) -> float:
    """Mean time if every sample were answered by the first head that agrees, and lookups took no time.

    Args:
        options_agree: Whether a head at each cut point gives the backbone's answer, bool [cut points, n], n ≥ 1.
        segment_seconds: Time of each segment, [cut points + 1].

    Raises:
        SamplesError: If there are no samples, or times don't fit the cut points.
    """
    cuts, n = options_agree.shape
    if not n or len(segment_seconds) != cuts + 1:
        raise SamplesError(f"{cuts} cut points and {n} samples don't go with times of {len(segment_seconds)} segments.")
    first = np.concatenate([options_agree, np.ones((1, n), bool)]).argmax(axis=0)
    return float(np.cumsum(segment_seconds)[first].mean())


def explain(
    options: Sequence[Option], composition: Composition, segment_seconds: np.ndarray, limits: Limits
) -> dict[int, str]:
    """Says of every option why it was chosen, or why not.

    A head is judged with the chosen heads at the other cut points around it, any of which may be left out, with all
    thresholds tuned again by a descent from the composed ones.

    Args:
        options: Those that were composed.
        composition: What came of them.
        segment_seconds: Time of each segment, [cut points + 1].
        limits: What was kept to.

    Returns:
        One sentence for each option, by its index.
    """
    judge = _Judge(options, composition, np.asarray(segment_seconds, float), limits)
    superfluous = dominators(options)
    said = {}
    for index in range(len(options)):
        if index in composition.chosen:
            said[index] = judge.worth(index)
        elif not (options[index].scores >= 0).any():
            said[index] = "It hits none of the tuning samples."
        elif index in superfluous:
            said[index] = judge.dominated(superfluous[index])
        else:
            said[index] = judge.refusal(index)
    return said


@dataclass(frozen=True, eq=False)
class _Judge:
    """Compares a composition with others that have one head more, or less."""

    options: Sequence[Option]
    composition: Composition
    segment_seconds: np.ndarray
    limits: Limits

    def worth(self, index: int) -> str:
        """What a chosen option saves."""
        slower = self._seconds(self._others(index), None, self.limits) / self.composition.expected_seconds - 1
        return f"Requests would take {max(slower, 0):.1%} longer without it, with the other heads' thresholds re-tuned."

    def dominated(self, by: int) -> str:
        """Why not, if another option at the same cut point is never worse."""
        return (
            f"{self.options[by].name!r} at the same cut point takes no more time or memory, hits all that it hits, and "
            "is wrong on none that it is right on."
        )

    def refusal(self, index: int) -> str:
        """Why not, otherwise."""
        option, others = self.options[index], self._others(index)
        total = option.bytes + sum(self.options[other].bytes for other in others)
        if self.limits.memory is not None and total > self.limits.memory:
            it = "With the other heads it" if others else "It"
            return f"{it} would take {total} bytes, and {self.limits.memory} are allowed."
        seconds = self._seconds([*others, index], option.cut, self.limits)
        if seconds < math.inf:
            return self._slower(option, seconds / self.composition.expected_seconds - 1)
        if math.isfinite(self._seconds([*others, index], option.cut, replace(self.limits, p99=None))):
            return f"With it, what no head answers would take longer than {(self.limits.p99 or 0) * 1e3:.6g} ms."
        return "Beside the other heads it could hit nothing without more errors than are allowed."

    def _slower(self, option: Option, slower: float) -> str:
        there = [self.options[other].name for other in self.composition.chosen if self.options[other].cut == option.cut]
        how = f"in place of {there[0]!r}" if there else "added"
        if slower < -PROOF:
            return f"Requests would take {-slower:.1%} less with it {how}: the search for the best heads missed that."
        return (
            f"Requests would take {max(slower, 0):.1%} longer with it {how}, with the other heads' thresholds re-tuned."
        )

    def _others(self, index: int) -> list[int]:
        return [other for other in self.composition.chosen if self.options[other].cut != self.options[index].cut]

    def _seconds(self, among: list[int], must: int | None, limits: Limits) -> float:
        """Mean time with the best of some options, one for a cut point; infinite if the one that must be used can't."""
        tree = Tree([self.options[index] for index in among], self.segment_seconds, limits)
        if not tree.heads or (must is not None and not tree.at[must]):
            return tree.plain if must is None else math.inf
        heads = np.array([numbers[0] if numbers else -1 for numbers in tree.at])
        return descend(tree, heads, np.minimum(self._errors, tree.errors), must)[0].seconds / tree.n * tree.plain

    @cached_property
    def _errors(self) -> np.ndarray:
        """How many errors the composition makes at each cut point and before."""
        cuts = len(self.segment_seconds) - 1
        seen = evaluate(self.options, self.composition.chosen, self.composition.thresholds, cuts)
        return np.array([np.count_nonzero(seen.wrong & (seen.exits <= cut)) for cut in range(cuts)])
