"""Trees: all choices of heads and thresholds within limits, on samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PROOF = 1e-9
"""Relative difference that is no difference, but rounding."""
STATE = [("bound", "f8"), ("seconds", "f8"), ("lookups", "f8"), ("bytes", "i8"), ("errors", "i8")]
"""What is known of a state: the time that it takes at least; and so far, the time of all samples, the lookups that each
that remains has been through, bytes, and errors."""


@dataclass(frozen=True, eq=False)
class Option:
    """A head that a cut point may get.

    Attributes:
        cut: The cut point.
        name: Of its family.
        seconds: Of a lookup, spent on a hit and on a miss alike.
        bytes: Of its file.
        scores: On n tuning samples, float32 [n]; what is below 0 never hits.
        agree: Whether its answer is the backbone's, bool [n].
    """

    cut: int
    name: str
    seconds: float
    bytes: int
    scores: np.ndarray
    agree: np.ndarray


@dataclass(frozen=True)
class Limits:
    """What a composition must keep to.

    Attributes:
        epsilon: Largest share of the samples whose answer may differ from the backbone's.
        memory: Largest sum of the heads' bytes, if any.
        p99: Longest time, in seconds, that 99 % of requests may take, if any. It is kept by what no head answers: how
            many that will be at the thresholds that are certified, or when exits close, is not known yet.
    """

    epsilon: float
    memory: int | None = None
    p99: float | None = None


@dataclass(frozen=True, eq=False)
class Prices:
    """How long it takes at least to answer samples from cut point k on.

    Attributes:
        samples: Each that remains before cut point k, [cut points + 1, n].
        rest: What comes on top for all together, [cut points + 1].
        error: What every error that is still allowed takes off.
        byte: What every byte that is still allowed takes off.
    """

    samples: np.ndarray
    rest: np.ndarray
    error: float
    byte: float


@dataclass(frozen=True)
class Choice:
    """Indices of options, their thresholds, and the time that all samples together take with them."""

    seconds: float
    chosen: tuple[int, ...]
    thresholds: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Head:
    """An option, on a grid of thresholds.

    Attributes:
        index: Of the option.
        seconds: Of a lookup, in units of the backbone's time.
        bytes: Of its file.
        first: Number of its first threshold, among those of all heads.
        thresholds: Strictest first.
        levels: Which of them hits each sample first, or their number if none does, [n].
        wrong: Whether a hit is an error, bool [n].
        order: Samples that some threshold hits, those of the strictest first.
        starts: Where in that order those begin that each threshold adds.
    """

    index: int
    seconds: float
    bytes: int
    first: int
    thresholds: np.ndarray
    levels: np.ndarray
    wrong: np.ndarray
    order: np.ndarray
    starts: np.ndarray

    @property
    def reach(self) -> np.ndarray:
        """Whether some threshold hits a sample, bool [n]."""
        return self.levels < len(self.thresholds)


class Tree:
    """All choices within limits. Times are in units of the backbone's, sums over samples.

    Attributes:
        heads: What there is to choose from.
        at: For each cut point, the numbers of its heads.
    """

    def __init__(self, options: Sequence[Option], segment_seconds: np.ndarray, limits: Limits) -> None:
        self.plain = float(np.sum(segment_seconds))
        self.segments = np.asarray(segment_seconds, float) / self.plain
        self.cuts, self.n = len(self.segments) - 1, len(options[0].scores) if options else 1
        self.errors = math.floor(limits.epsilon * self.n + 1e-6)  # k / n may be a bit too small for k errors
        self.bytes = math.inf if limits.memory is None else limits.memory
        self.longest = math.inf if limits.p99 is None else limits.p99 / self.plain * (1 + PROOF)
        self.heads: list[Head] = []
        self.at: list[list[int]] = []
        self._place(options)
        counts = [len(head.thresholds) for head in self.heads]
        self.owner = np.repeat(np.arange(len(counts)), counts)
        self.level = np.concatenate([np.arange(count) for count in [*counts, 0]])
        self.levels = np.array([head.levels for head in self.heads], np.int32)

    def _place(self, options: Sequence[Option]) -> None:
        """Gives cut points those heads that can have a part in a best choice."""
        superfluous, reached, first = dominators(options), np.zeros(self.n, bool), 0
        for cut in range(self.cuts):
            self.at.append([])
            for index, option in enumerate(options):
                if option.cut == cut and index not in superfluous and option.bytes <= self.bytes:
                    grid = _grid(option, reached, self.errors)
                    if len(grid[0]):
                        self.at[cut].append(len(self.heads))
                        self.heads.append(Head(index, option.seconds / self.plain, option.bytes, first, *grid))
                        first += len(grid[0])
            reached = np.any([reached, *(self.heads[number].reach for number in self.at[cut])], axis=0)

    def read(self, seconds: float, choice: np.ndarray) -> Choice:
        """The options and thresholds that were chosen by their numbers, -1 for none, [cut points]."""
        chosen = [(self.heads[self.owner[number]], self.level[number]) for number in choice if number >= 0]
        thresholds = tuple(float(head.thresholds[level]) for head, level in chosen)
        return Choice(float(seconds), tuple(head.index for head, _ in chosen), thresholds)

    def remaining(self, choices: np.ndarray) -> np.ndarray:
        """Which samples no choice [states, cut points] answers, bool [states, n]."""
        remains = np.ones((len(choices), self.n), bool)
        for number in choices.T:
            used = np.flatnonzero(number >= 0)
            if len(used):
                remains[used] &= self.levels[self.owner[number[used]]] > self.level[number[used]][:, None]
        return remains

    def root(self) -> np.ndarray:
        """The state in which nothing is chosen yet."""
        state = np.zeros(1, np.dtype([*STATE, ("choice", np.int32, (self.cuts,))]))
        state["choice"] = -1
        return state

    def expand(self, cut: int, states: np.ndarray, prices: Prices) -> np.ndarray:
        """What states before a cut point can become: without a head there, and with each."""
        remains = self.remaining(states["choice"])
        states["seconds"] += remains.sum(axis=1) * self.segments[cut]
        after = prices.samples[cut + 1]
        rest = remains @ after
        children = [self._bounded(cut + 1, states.copy(), rest, prices)]
        for head in (self.heads[number] for number in self.at[cut]):
            state, level, found = self._with(head, cut, states, remains)
            answered = _running(remains[:, head.order] * after[head.order], head.starts)
            children.append(self._bounded(cut + 1, found, rest[state] - answered[state, level], prices))
        return np.concatenate(children)

    def _with(
        self, head: Head, cut: int, states: np.ndarray, remains: np.ndarray, most: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """States with a head, at each threshold that is allowed, and than which no looser one is better.

        Args:
            head: The head.
            cut: Its cut point.
            states: Before it.
            remains: Their samples, bool [states, n].
            most: How many errors each may have then, [states], if only the loosest threshold is wanted.

        Returns:
            For each that there is now, where its state was, its threshold, and itself.
        """
        inside = remains[:, head.order]
        hits, wrong = _running(inside, head.starts), _running(inside & head.wrong[head.order], head.starts)
        errors = states["errors"][:, None] + wrong
        allowed = (hits > 0) & (states["bytes"][:, None] + head.bytes <= self.bytes)
        allowed &= 1 + states["lookups"][:, None] + head.seconds <= self.longest
        if most is None:
            allowed &= errors <= self.errors
            allowed[:, :-1] &= wrong[:, :-1] < wrong[:, 1:]  # else the next one answers more, and as well
        else:
            allowed &= errors <= most[:, None]
            allowed[:, :-1] &= ~allowed[:, 1:]
        state, level = np.nonzero(allowed)
        children = states[state]
        children["choice"][:, cut] = head.first + level
        children["seconds"] += remains.sum(axis=1)[state] * head.seconds
        children["lookups"] += head.seconds
        children["bytes"] += head.bytes
        children["errors"] = errors[state, level]
        return state, level, children

    def _bounded(self, cut: int, states: np.ndarray, rest: np.ndarray, prices: Prices) -> np.ndarray:
        """States before a cut point, with the time that they take at least; behind the last one, with just that."""
        bound = states["seconds"] + rest + prices.rest[cut]
        if cut < self.cuts:
            bound -= prices.error * (self.errors - states["errors"])
            bound -= prices.byte * (self.bytes - states["bytes"]) if prices.byte else 0.0
        states["bound"] = np.maximum(states["bound"], bound)
        return states

    def play(self, heads: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sets each head to the loosest threshold at which errors so far are as many as are allowed so far.

        Args:
            heads: Their numbers, -1 for none, [plays, cut points].
            errors: How many there may be at a cut point and before, [plays, cut points].

        Returns:
            Times [plays]; and thresholds by number, -1 for none or for a head beyond the limits, [plays, cut points].
        """
        states, remains = np.repeat(self.root(), len(heads)), np.ones((len(heads), self.n), bool)
        for cut, numbers in enumerate(self.at):
            states["seconds"] += remains.sum(axis=1) * self.segments[cut]
            for number in numbers:
                head, plays = self.heads[number], np.flatnonzero(heads[:, cut] == number)
                state, level, found = self._with(head, cut, states[plays], remains[plays], errors[plays, cut])
                states[plays[state]] = found
                remains[plays[state]] &= head.levels > level[:, None]
        seconds = states["seconds"] + remains.sum(axis=1) * self.segments[-1]
        return seconds, states["choice"]


def _running(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Sums of values [states, samples in order] up to each threshold, [states, thresholds]."""
    kind = np.int64 if values.dtype == bool else np.float64
    return np.add.reduceat(values, starts, axis=1, dtype=kind).cumsum(axis=1)


def _grid(
    option: Option, reached: np.ndarray, errors: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Fields of a head from `thresholds` on, with those thresholds that matter.

    One matters if the next looser one hits something wrongly; and if, among the samples that no head before can have
    `reached`, it hits no more wrongly than is allowed.
    """
    usable, wrong = option.scores >= 0, ~option.agree
    negated, place = np.unique(-option.scores[usable].astype(np.float32), return_inverse=True)
    certain = np.bincount(place, (wrong & ~reached)[usable], len(negated)).cumsum()
    adds = np.bincount(place, wrong[usable], len(negated)) > 0
    allowed = np.count_nonzero(certain <= errors)
    kept = np.flatnonzero(np.r_[adds[1:allowed], True]) if allowed else np.empty(0, int)
    levels = np.full(len(wrong), len(kept))
    levels[usable] = np.searchsorted(kept, place)
    order = np.argsort(levels, kind="stable")[: np.count_nonzero(levels < len(kept))]
    return -negated[kept], levels, wrong, order, np.searchsorted(levels[order], np.arange(len(kept)))


def dominators(options: Sequence[Option]) -> dict[int, int]:
    """Indices of options that another one at the same cut point makes superfluous, and which one that is."""
    found: dict[int, int] = {}
    for index in reversed(range(len(options))):
        for other in range(len(options)):
            if other != index and other not in found and _dominates(options[other], options[index]):
                found[index] = other
                break
    return found


def _dominates(one: Option, other: Option) -> bool:
    """Whether for each of the other's thresholds, one has one at which it hits as much, and nothing more wrongly."""
    if one.cut != other.cut or one.seconds > other.seconds or one.bytes > other.bytes:
        return False
    order = np.argsort(-other.scores, kind="stable")
    order = order[other.scores[order] >= 0]
    needed = np.minimum.accumulate(one.scores[order])  # thresholds of one, from the other's strictest on
    if len(order) and needed[-1] < 0:
        return False
    wrong = ~one.agree & (one.scores >= (needed[-1] if len(order) else math.inf))
    first = np.searchsorted(-needed, -one.scores[wrong])  # where it is first hit
    return bool((~other.agree[wrong] & (other.scores[wrong] >= other.scores[order][first])).all())
