"""How often the certificate's promise is broken on real heads: scripts/simulate_certificate.py SCORES.npz.

SCORES.npz holds, of heads in the order of the chain on samples that they were not trained on, `scores` [heads, n] and
`agree` [heads, n], and `groups` [n] where samples depend on each other. A third of the groups tunes: its scores give
the path, 256 thresholds common to all heads. The others are the population, whose risk at each step is known exactly.
From it, calibration sets are drawn again and again, group by group; each is certified, and the promise is broken where
the step that it certified has more than ε errors in the population.

The risk that counts is that of the whole population, and groups are drawn with replacement. Calibration sets are then
independent draws from a distribution whose truth is known, which is what the promise is about. The rest of a split
would be a noisy judge, whose own luck breaks half of all promises that are just kept; and if calibration sets were
parts of the population that they are judged by, they would know it better than served traffic can be known.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np

from gati.errors import GatiError, SamplesError
from gati.options import json_option, write_json
from gati_export.certificates.certificate import certify
from gati_export.certificates.groups import upper_bound, wrong_within

STEPS = 256


@dataclass(frozen=True)
class Scores:
    """What heads said: float32 and bool [heads, n], and the group of each sample, int [n]."""

    scores: np.ndarray
    agree: np.ndarray
    groups: np.ndarray

    def take(self, rows: np.ndarray) -> Scores:
        """These samples only."""
        return Scores(self.scores[:, rows], self.agree[:, rows], self.groups[rows])


@dataclass(frozen=True)
class Simulation:
    """What came of it.

    Attributes:
        splits: Calibration sets drawn.
        certified: How many had a step that is safe.
        violations: How many certified a step that is not: the promise is (at most δ of the splits).
        violations_at_most: Upper limit, at 95 % confidence, on the share of such splits, given that so many were seen.
        delta: The share promised.
        epsilon: Share of differing answers promised.
        calibration: Samples in a calibration set, on average.
        observations: Groups in it.
        unused: ε − risk, mean over the certified.
        hits: Share of the population answered by a head, mean over the certified.
        best_hits: At the loosest step of the path before the first that breaks the promise.
    """

    splits: int
    certified: int
    violations: int
    violations_at_most: float
    delta: float
    epsilon: float
    calibration: float
    observations: int
    unused: float | None
    hits: float | None
    best_hits: float

    def __str__(self) -> str:
        lines = [
            f"{self.splits} calibration sets of {self.calibration:.0f} samples, {self.observations} independent ones",
            f"promise broken  {self.violations / self.splits:6.2%} of them (up to {self.violations_at_most:.2%} at 95% "
            f"confidence); promised: at most {self.delta:.2%}",
            f"certified       {self.certified / self.splits:6.2%}",
        ]
        if self.unused is not None and self.hits is not None:
            lines += [
                f"unused budget   {self.unused:6.2%} of {self.epsilon:.2%}, on average",
                f"hits            {self.hits:6.2%}, and {self.best_hits:.2%} for one who knows the truth",
            ]
        return "\n".join(lines)


def read_scores(path: Path) -> Scores:
    """Reads SCORES.npz.

    Raises:
        SamplesError: If it can't be read, or its arrays don't fit each other.
    """
    try:
        arrays = dict(np.load(path, allow_pickle=False))
        scores, agree = arrays["scores"].astype(np.float32), arrays["agree"].astype(bool)
        groups = arrays.get("groups", np.arange(scores.shape[-1]))
    except Exception as error:  # NumPy raises what zipfile or its parser do
        raise SamplesError(f"{path.name} is no .npz file with numbers in `scores` and `agree` ({error}).") from error
    if scores.ndim != 2 or agree.shape != scores.shape or groups.shape != scores.shape[1:]:
        raise SamplesError(
            f"`scores` and `agree` must be [heads, n] and `groups` [n], not {list(scores.shape)}, {list(agree.shape)} "
            f"and {list(groups.shape)}."
        )
    return Scores(scores, agree, np.unique(groups, return_inverse=True)[1])


def common_path(scores: np.ndarray, steps: int = STEPS) -> np.ndarray:
    """Thresholds for all heads, the strictest first: scores above 0 that tuning samples reach, [at most steps]."""
    reached = np.unique(scores[scores > 0])[::-1]
    return reached[np.linspace(0, len(reached) - 1, min(steps, len(reached))).round().astype(int)]


def outcomes(said: Scores, path: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether samples are answered by a head, and wrongly, at each step: bool [steps, n] twice."""
    hit, wrong = np.empty((2, len(path), said.scores.shape[1]), bool)
    for step, threshold in enumerate(path):
        sure = said.scores >= threshold
        hit[step] = sure.any(axis=0)
        first = said.agree[sure.argmax(axis=0), np.arange(sure.shape[1])]
        wrong[step] = hit[step] & ~first
    return hit, wrong


def members_of(groups: np.ndarray) -> list[np.ndarray]:
    """The samples of each group that has any, int [...] each, where these are samples' groups, int [n]."""
    found = np.split(np.argsort(groups, kind="stable"), np.cumsum(np.bincount(groups))[:-1])
    return [rows for rows in found if len(rows)]


def simulate(
    said: Scores,
    *,
    epsilon: float,
    delta: float,
    splits: int = 500,
    calibration: int | None = None,
    seed: int = 0,
    grouped: bool = True,
) -> Simulation:
    """Draws calibration sets, certifies them, and judges what was certified by the population.

    Args:
        said: What heads said of all samples.
        epsilon: Largest share of differing answers.
        delta: 1 − confidence.
        splits: Calibration sets to draw.
        calibration: Samples in each, about; a third of the population if None.
        seed: Of the draws.
        grouped: Whether the certificate is told of groups; if not, it takes every sample for an independent one.

    Raises:
        SamplesError: If there are too few groups to tune and to draw from.
    """
    random = np.random.default_rng(seed)
    names = random.permutation(said.groups.max(initial=-1) + 1)
    if len(names) < 3:
        raise SamplesError(f"There are {len(names)} groups of samples, and it takes 3 at least; give more.")
    tuning = np.isin(said.groups, names[: len(names) // 3])
    population = said.take(np.flatnonzero(~tuning))
    path = common_path(said.scores[:, tuning])
    hit, wrong = outcomes(population, path)
    tuned = said.take(np.flatnonzero(tuning))
    within = wrong_within(outcomes(tuned, path)[1], tuned.groups, epsilon)
    risk, hits = wrong.mean(axis=1), hit.mean(axis=1)
    members = members_of(population.groups)
    count = max(1, round(len(members) * (calibration / wrong.shape[1] if calibration else 1 / 3)))
    steps, sizes = [], []
    for _ in range(splits):
        drawn = [members[i] for i in random.integers(0, len(members), count)]
        rows = np.concatenate(drawn)
        groups = np.repeat(np.arange(count), [len(part) for part in drawn]) if grouped else np.arange(len(rows))
        verdict = certify(wrong[:, rows], groups, epsilon, delta, within=within)
        steps += [] if verdict is None else [verdict.step]
        sizes.append(len(rows))
    violations = int((risk[steps] > epsilon).sum())
    safe = np.logical_and.accumulate(risk <= epsilon)
    return Simulation(
        splits=splits,
        certified=len(steps),
        violations=violations,
        violations_at_most=upper_bound(violations, splits, 0.05),
        delta=delta,
        epsilon=epsilon,
        calibration=float(np.mean(sizes)),
        observations=count,
        unused=float((epsilon - risk[steps]).mean()) if steps else None,
        hits=float(hits[steps].mean()) if steps else None,
        best_hits=float(hits[safe].max(initial=0.0)),
    )


@click.command(help=(__doc__ or "").partition("\n\n")[0])
@click.argument("scores", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--splits", type=click.IntRange(1), default=500, show_default=True, help="Calibration sets to draw.")
@click.option("--calibration", type=click.IntRange(1), help="Samples in each.  [default: a third of the population]")
@click.option("--epsilon", type=float, default=0.01, show_default=True, help="Largest share of differing answers.")
@click.option("--delta", type=float, default=0.05, show_default=True, help="1 - confidence.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the draws.")
@json_option
def main(
    scores: Path,
    splits: int,
    calibration: int | None,
    epsilon: float,
    delta: float,
    seed: int,
    json_path: Path | None,
) -> None:
    """Simulates and prints."""
    try:
        said = read_scores(scores)
        seen = simulate(said, epsilon=epsilon, delta=delta, splits=splits, calibration=calibration, seed=seed)
    except GatiError as error:
        raise click.ClickException(str(error)) from error
    write_json(json_path, asdict(seen))
    click.echo(seen)


if __name__ == "__main__":
    main()
