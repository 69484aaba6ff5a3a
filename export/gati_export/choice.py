"""The choice of heads, by what they say to the tuning samples, and the path of thresholds along which to certify."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gati.agreement import Agreement
from gati_export.candidates import Candidates
from gati_export.compose import Composition, Limits, Option, compose
from gati_export.pareto import Point, explain, oracle, pareto
from gati_export.path import path
from gati_export.replay import Said, replay

STEPS, REPLAYED_STEPS = 256, 40
"""Settings that are tried in certification: more than enough, and what replays one by one leave time for."""
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

    Args:
        candidates: What there is.
        said: What each says to the tuning samples.
        outputs: The backbone's there, [n, classes].
        agreement: When an answer is as good as the backbone's.
        limits: What to keep to; its epsilon is what is left after certification.
    """
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
    seconds = candidates.times.segments
    composition = compose(options, seconds, limits, effort=EFFORT)
    stateful = any(said[place].rows is not None for place in composition.chosen)
    steps = path(options, composition, seconds, REPLAYED_STEPS if stateful else STEPS)
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
