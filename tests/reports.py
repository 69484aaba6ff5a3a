"""Reports made up for tests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from handmade import toy_chain, toy_release

from gati.repository.chain import Chain
from gati.repository.release import Certificate
from gati_export.report.curve import agreement_curve, covered
from gati_export.report.data import Cut, ParetoPoint, Report, TriedHead
from gati_export.report.live import LiveChain

MODEL = "resnet18"
FAMILIES = "pooled", "conv", "attention", "memory", "prior", "linear"
SAVES = "Requests would take 12.3% longer without it."
SLOWER = "It would save nothing beside the heads in use (requests would take 1.2% longer)."


def realistic(cuts: int = 4, families: int = 3, release: int = 2) -> Report:
    """A report as training on easy and hard samples gives it: every other cut point has a head in use."""
    rng = np.random.default_rng(0)
    difficulty, left = rng.random(2000), np.ones(2000, bool)
    made: list[Cut] = []
    for index in range(cuts):
        share = (index + 1) / (cuts + 1)
        options = [_option(rng, difficulty, share, family, index % 2 == 0) for family in FAMILIES[:families]]
        taken = left & (difficulty < 0.7 * share) & (index % 2 == 0)
        left &= ~taken
        used = FAMILIES[0] if index % 2 == 0 else None
        made.append(Cut(index, f"/layer{index}/Relu_output_0", share, float(taken.mean()), used, tuple(options)))
    exits = (*(cut.hits for cut in made), float(left.mean()))
    speedup = 1 / sum(x * s for x, s in zip(exits, [*(cut.share for cut in made), 1], strict=True))
    certificate = Certificate(
        n=2412,
        observations=1876,
        errors=9,
        bound=0.0084,
        epsilon=0.01,
        delta=0.05,
        thresholds={cut.index: 0.875 + cut.index / 100 for cut in made if cut.used},
        hits=1 - exits[-1],
        method="Learn then Test, fixed sequence of 128 steps, betting on groups",
        fingerprint="9f2c" * 16,
        agreement="top-1",
    )
    heads = tuple((cut.index, cut.used) for cut in made if cut.used)
    return Report(
        model=MODEL,
        release=release,
        created="2026-03-01T12:30:00+00:00",
        epsilon=0.01,
        delta=0.05,
        agreement="top-1",
        backbone_seconds=0.00402,
        expected_seconds=0.00402 / speedup,
        speedup=speedup,
        oracle_speedup=speedup * 1.7,
        memory_bytes=412_000,
        memory_share=0.0092,
        sentence=str(certificate),
        certificate=certificate,
        why_not=None,
        cuts=tuple(made),
        pareto=tuple(
            ParetoPoint(e, 1 + (speedup - 1) * (e / 0.01) ** 0.4, heads[: 1 + i // 2])
            for i, e in enumerate((0.001, 0.002, 0.005, 0.01, 0.02, 0.05))
        ),
        exits=exits,
    )


def live(release: int = 2, reason: str = "refresh") -> LiveChain:
    """What the repository tells of a chain that has a report like `realistic`."""
    chain = chain_of(realistic())
    made = replace(toy_release(chain, release, reason), certificate=realistic().certificate)
    return LiveChain(chain, made)


def chain_of(report: Report) -> Chain:
    """A chain with the cut points of a report."""
    return toy_chain(report.model, len(report.cuts) + 1)


def _option(rng: np.random.Generator, difficulty: np.ndarray, share: float, family: str, serves: bool) -> TriedHead:
    skill = share + 0.25 - 0.06 * FAMILIES.index(family)
    margin = (skill - difficulty) * 8
    agree = rng.random(len(difficulty)) < 1 / (1 + np.exp(-margin))
    scores = (1 / (1 + np.exp(-margin - rng.normal(0, 0.5, len(margin))))).astype(np.float32)
    used = serves and family == FAMILIES[0]
    coverage, agrees = agreement_curve(scores, agree)
    threshold = 0.875 if used else None
    seconds, size_ = 2.1e-5 * (1 + FAMILIES.index(family)), 68_000 * (1 + FAMILIES.index(family))
    reached = covered(scores, threshold) if threshold else None
    why = SAVES if used else SLOWER
    return TriedHead(family, seconds, size_, float(agree.mean()), why, used, threshold, coverage, agrees, reached)


def without_heads(
    why: str = "Too few samples: 120 of 480 are for calibration, and to promise 1 % takes 299.",
) -> Report:
    """What an export leaves that led to no release, before any head was tried."""
    known = realistic()
    cuts = tuple(replace(cut, used=None, hits=0.0, options=()) for cut in known.cuts)
    nothing = {"release": None, "certificate": None, "pareto": (), "memory_bytes": 0, "memory_share": 0.0}
    alone = {"speedup": 1.0, "expected_seconds": known.backbone_seconds, "exits": (0.0,) * len(cuts) + (1.0,)}
    return replace(known, **nothing, **alone, sentence=f"No promise: {why}", why_not=why, cuts=cuts)


def refused(why: str = "No threshold is safe.") -> Report:
    """What an export leaves whose heads could not be certified."""
    idle = [
        replace(
            cut,
            options=tuple(replace(option, used=False, threshold=None, covered=None, why=why) for option in cut.options),
        )
        for cut in realistic().cuts
    ]
    cuts = tuple(replace(cut, used=None, hits=0.0) for cut in idle)
    return replace(without_heads(why), cuts=cuts, pareto=realistic().pareto)
