"""The choice of heads, by what they say to the tuning samples, and the path of thresholds along which to certify."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gati.agreement import Agreement
from gati_export.candidates import Candidates
from gati_export.compose import Composition, Limits, Option, compose, evaluate, seconds_until
from gati_export.pareto import Point, explain, oracle, pareto
from gati_export.path import path
from gati_export.replay import Said, replay

STEPS, REPLAYED_STEPS = 256, 40
"""Settings that are tried in certification: more than enough, and what replays one by one leave time for."""
NEAR, MOST = 4.0, 0.8
"""Of the latter, most are spent where errors are within this factor of what is allowed."""
EFFORT = 2_000
"""How long the search for a composition may go on; a second or two."""
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
    """

    composition: Composition
    path: np.ndarray
    reasons: dict[int, str]
    pareto: tuple[Point, ...]
    oracle_seconds: float


def choose(
    candidates: Candidates, said: Sequence[Said], outputs: np.ndarray, agreement: Agreement, limits: Limits
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
    """
    seconds = candidates.times.segments
    options = [
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
    sets = _sets(options, said, seconds, limits)

    def tried(among: Sequence[int]) -> tuple[float, Composition, np.ndarray]:
        composition = _composed(options, among, seconds, limits)
        chosen = [said[place] for place in composition.chosen]
        steps = path(options, composition, seconds, STEPS)
        if not _stateless(chosen):
            steps = steps[_worth_a_replay(options, composition, seconds, steps, limits)]
        taken = 0.0
        if len(sets) > 1:
            used = [options[place] for place in composition.chosen]
            taken = _replayed_seconds(used, chosen, steps, outputs, agreement, seconds, limits)
        return taken, composition, steps

    found = [tried(among) for among in sets]
    memories = [each for each in found if each[1].chosen and all(_remembers(said[place]) for place in each[1].chosen)]
    if memories:
        best = min(memories, key=lambda each: each[0])[1].chosen
        others = _behind(options[best[-1]].cut, options, said)
        found += [tried([*best, *others])] if others else []
    _, composition, steps = min(found, key=lambda each: each[0])
    right = np.zeros((len(seconds) - 1, len(outputs)), bool)
    for option in options:
        right[option.cut] |= option.agree
    return Choice(
        composition=composition,
        path=steps,
        reasons=explain(options, composition, seconds, limits),
        pareto=tuple(pareto(options, seconds, limits, EPSILONS, effort=EFFORT)),
        oracle_seconds=oracle(right, seconds),
    )


def _stateless(said: Sequence[Said]) -> bool:
    return all(one.rows is None for one in said)


def _behind(cut: int, options: Sequence[Option], said: Sequence[Said]) -> list[int]:
    """Places of heads behind a cut point that remember nothing."""
    behind = [place for place, option in enumerate(options) if option.cut > cut]
    return [place for place in behind if not _remembers(said[place])]


def _remembers(said: Said) -> bool:
    return said.rows is not None and said.rows.remembers


def _worth_a_replay(
    options: Sequence[Option], composition: Composition, seconds: np.ndarray, steps: np.ndarray, limits: Limits
) -> np.ndarray:
    """Places of a few steps of a path, the strictest among them: the last that passes should leave little unused.

    Most are taken where the tuning samples have about as many errors as are allowed, as far as that can be told without
    a replay: of CIFAR-10's frames, with one memory or three, it was within a half of what a replay gave wherever that
    was 0.3 to 2 %. Of what is much looser, it is told only that it is too loose.
    """
    cuts = len(seconds) - 1
    wrong = [evaluate(options, composition.chosen, step.tolist(), cuts).wrong.mean() for step in steps]
    near = (np.array(wrong) >= limits.epsilon / NEAR) & (np.array(wrong) <= limits.epsilon * NEAR)
    weights = np.ones(len(steps))
    if near.any() and not near.all():
        weights = np.where(near, MOST / near.sum(), (1 - MOST) / (~near).sum())
    reached = np.cumsum(weights) / weights.sum()
    places = np.searchsorted(reached, np.linspace(0, 1, REPLAYED_STEPS))
    return np.unique(np.minimum(places, len(steps) - 1))


def _sets(options: Sequence[Option], said: Sequence[Said], seconds: np.ndarray, limits: Limits) -> list[list[int]]:
    """Places of the candidates to compose: all; with memories among them, also these, all others, and the best one."""
    memories = [place for place, one in enumerate(said) if _remembers(one)]
    others = [place for place in range(len(said)) if place not in memories]
    found = [[*range(len(said))]]
    if memories:
        best = min(memories, key=lambda place: _composed(options, [place], seconds, limits).expected_seconds)
        found += [memories, others, [best]]
    return [each for number, each in enumerate(found) if each and each not in found[:number]]


def _composed(options: Sequence[Option], among: Sequence[int], seconds: np.ndarray, limits: Limits) -> Composition:
    """The best composition of some of the options, as places among all."""
    found = compose([options[place] for place in among], seconds, limits, effort=EFFORT)
    return replace(found, chosen=tuple(among[place] for place in found.chosen))


def _replayed_seconds(
    used: Sequence[Option],
    said: Sequence[Said],
    steps: np.ndarray,
    outputs: np.ndarray,
    agreement: Agreement,
    seconds: np.ndarray,
    limits: Limits,
) -> float:
    """Mean time of a request at the loosest step of a path with no more errors than are allowed, found by halving."""
    until = seconds_until(used, seconds)
    best, safe, unsafe = float(np.sum(seconds)), -1, len(steps)
    while unsafe - safe > 1:
        step = (safe + unsafe) // 2
        exits, served = replay(said, steps[step].tolist(), outputs)
        wrong = (exits < len(said)) & ~agreement(served, outputs)
        if wrong.mean() <= limits.epsilon:
            safe, best = step, float(until[exits].mean())
        else:
            unsafe = step
    return best


def walk(
    said: Sequence[Said], path: np.ndarray, outputs: np.ndarray, agreement: Agreement, most: float
) -> tuple[np.ndarray, np.ndarray]:
    """What a chain's heads do to samples in the order of traffic, at each step of a path.

    Args:
        said: What each head says.
        path: Thresholds, strictest first, [steps, heads].
        outputs: The backbone's, [n, classes].
        agreement: When an answer is as good as the backbone's.
        most: Errors after which no further step is looked at: they are all taken to be wrong.

    Returns:
        The exit of each sample, int64 [steps, n]: the head's place, or their number for the backbone; and whether it
        was wrong there, bool [steps, n].
    """
    exits = np.full((len(path), len(outputs)), len(said))
    wrong = np.ones((len(path), len(outputs)), bool)
    for step, thresholds in enumerate(path):
        exits[step], served = replay(said, thresholds.tolist(), outputs)
        wrong[step] = (exits[step] < len(said)) & ~agreement(served, outputs)
        if wrong[step].sum() > most:
            break
    return exits, wrong
