"""The choice of heads, by what they say to the tuning samples, and the path of thresholds along which to certify."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from gati.repository.agreement import Agreement
from gati_export.composition.compose import QUICK, Composition, Limits, Option, compose, evaluate, seconds_until
from gati_export.composition.pareto import Point, explain, oracle, pareto
from gati_export.composition.replay import Said, replay
from gati_export.learning.candidates import Candidates
from gati_export.learning.threshold_path import threshold_path

STEPS, REPLAYED_STEPS = 256, 40
"""Settings that are tried in certification: more than enough, and what replays one by one leave time for."""
NEAR, MOST = 4.0, 0.8
"""Of the latter, most are spent where errors are within this factor of what is allowed."""
EPSILONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)


@dataclass(frozen=True, eq=False)
class Choice:
    """What was chosen, and what else there was.

    Attributes:
        composition: The heads in use, as places among the candidates.
        path: Thresholds to be certified, strictest first, [steps, heads].
        reasons: Why each candidate is used or not, in a sentence, by place.
        pareto: The best composition for several values of epsilon.
        oracle_seconds: Mean time if every request left at the first cut point where any head agrees, at no cost.
        gap: The best composition takes at most this share less than the chosen one, on the tuning samples; None where
            what heads say depends on each other, and compositions were compared by replay.
    """

    composition: Composition
    path: np.ndarray
    reasons: dict[int, str]
    pareto: tuple[Point, ...]
    oracle_seconds: float
    gap: float | None = None


def choose(
    candidates: Candidates,
    said: Sequence[Said],
    outputs: np.ndarray,
    agreement: Agreement,
    limits: Limits,
    effort: int = QUICK,
) -> Choice:
    """Chooses heads.

    Heads are composed as if what one says did not depend on the others. A memory's does: it takes in what is answered
    behind it, starves where heads before it answer, believes those after it, and leaves them the answers that are in
    doubt. So memories are also composed without other heads, and these without memories, the best memory is tried by
    itself, and the memories that do best with other heads behind them; the fastest in a replay is taken.

    Args:
        candidates: What there is.
        said: What each says to the tuning samples.
        outputs: The backbone's there, [n, classes].
        agreement: When an answer is as good as the backbone's.
        limits: What to keep to; its epsilon is what is left after certification.
        effort: How long to search for the best composition, as `compose` takes it.
    """
    seconds = candidates.times.segments
    options = _options(candidates, said, outputs, agreement)
    chooser = _Chooser(options, said, outputs, agreement, seconds, limits, effort)
    best = chooser.best()
    right = np.zeros((len(seconds) - 1, len(outputs)), bool)
    for option in options:
        right[option.cut] |= option.agree
    return Choice(
        composition=best.composition,
        path=best.path,
        reasons=explain(options, best.composition, seconds, limits),
        pareto=tuple(pareto(options, seconds, limits, EPSILONS, effort=QUICK)),
        oracle_seconds=oracle(right, seconds),
        gap=best.composition.gap if _stateless(said) else None,
    )


def _options(candidates: Candidates, said: Sequence[Said], outputs: np.ndarray, agreement: Agreement) -> list[Option]:
    return [
        Option(
            cut=head.cut,
            name=head.name,
            seconds=head.seconds + candidates.times.cuts[head.cut],
            bytes=len(head.model),
            scores=one.scores,
            agree=agreement(one.answers, outputs),
        )
        for head, one in zip(candidates.heads, said, strict=True)
    ]


class _Trial(NamedTuple):
    """A composition of some of the heads, with the path to certify it along.

    Attributes:
        composition: The heads, as places among all candidates.
        path: Thresholds, strictest first, [steps, heads].
        seconds: Mean time of a request in a replay; 0 where there is nothing to compare it with.
    """

    composition: Composition
    path: np.ndarray
    seconds: float


@dataclass(frozen=True, eq=False)
class _Chooser:
    """Composes sets of heads, and compares what comes of them; see `choose`."""

    options: Sequence[Option]
    said: Sequence[Said]
    outputs: np.ndarray
    agreement: Agreement
    seconds: np.ndarray
    limits: Limits
    effort: int

    def best(self) -> _Trial:
        """The composition to certify."""
        sets = self._sets()
        found = [self._tried(among, compared=len(sets) > 1) for among in sets]
        memories = [
            one for one in found if one.composition.chosen and all(map(self._remembers, one.composition.chosen))
        ]
        if memories:
            best = min(memories, key=lambda one: one.seconds).composition.chosen
            behind = [place for place, option in enumerate(self.options) if option.cut > self.options[best[-1]].cut]
            others = [place for place in behind if not self._remembers(place)]
            found += [self._tried([*best, *others], compared=True)] if others else []
        return min(found, key=lambda one: one.seconds)

    def _sets(self) -> list[list[int]]:
        """Places of the candidates to compose: all; with memories among them, also these, all others, the best one."""
        memories = [place for place in range(len(self.said)) if self._remembers(place)]
        others = [place for place in range(len(self.said)) if place not in memories]
        found = [[*range(len(self.said))]]
        if memories:
            best = min(memories, key=lambda place: self._composed([place]).expected_seconds)
            found += [memories, others, [best]]
        return [each for number, each in enumerate(found) if each and each not in found[:number]]

    def _remembers(self, place: int) -> bool:
        rows = self.said[place].rows
        return rows is not None and rows.remembers

    def _composed(self, among: Sequence[int]) -> Composition:
        """The best composition of some of the options, as places among all."""
        options = [self.options[place] for place in among]
        found = compose(options, self.seconds, self.limits, effort=self.effort)
        return replace(found, chosen=tuple(among[place] for place in found.chosen))

    def _tried(self, among: Sequence[int], *, compared: bool) -> _Trial:
        composition = self._composed(among)
        said = [self.said[place] for place in composition.chosen]
        steps = threshold_path(self.options, composition, self.seconds, STEPS)
        if not _stateless(said):
            steps = steps[self._worth_a_replay(composition, steps)]
        return _Trial(composition, steps, self._replayed_seconds(composition, said, steps) if compared else 0.0)

    def _worth_a_replay(self, composition: Composition, steps: np.ndarray) -> np.ndarray:
        """Places of a few steps of a path, the strictest among them: the last that passes should leave little unused.

        Most are taken where the tuning samples have about as many errors as are allowed, as far as that can be told
        without a replay: of CIFAR-10's frames, with one memory or three, it was within a half of what a replay gave
        wherever that was 0.3 to 2 %. Of what is much looser, it is told only that it is too loose.
        """
        cuts, allowed = len(self.seconds) - 1, self.limits.epsilon
        found = [evaluate(self.options, composition.chosen, step.tolist(), cuts).wrong.mean() for step in steps]
        near = (np.array(found) >= allowed / NEAR) & (np.array(found) <= allowed * NEAR)
        weights = np.ones(len(steps))
        if near.any() and not near.all():
            weights = np.where(near, MOST / near.sum(), (1 - MOST) / (~near).sum())
        reached = np.cumsum(weights) / weights.sum()
        places = np.searchsorted(reached, np.linspace(0, 1, REPLAYED_STEPS))
        return np.unique(np.minimum(places, len(steps) - 1))

    def _replayed_seconds(self, composition: Composition, said: Sequence[Said], steps: np.ndarray) -> float:
        """Mean time at the loosest step of a path with no more errors than are allowed, found by halving."""
        until = seconds_until([self.options[place] for place in composition.chosen], self.seconds)
        best, safe, unsafe = float(np.sum(self.seconds)), -1, len(steps)
        while unsafe - safe > 1:
            step = (safe + unsafe) // 2
            exits, served = replay(said, steps[step].tolist(), self.outputs)
            wrong = (exits < len(said)) & ~self.agreement(served, self.outputs)
            if wrong.mean() <= self.limits.epsilon:
                safe, best = step, float(until[exits].mean())
            else:
                unsafe = step
        return best


def _stateless(said: Sequence[Said]) -> bool:
    return all(one.rows is None for one in said)
