"""Training: heads for a chain, learned from the backbone's own answers, chosen by what they save, and certified.

Three parts of the samples have three jobs and never mix: `train` fits predictors, `tune` fits selectors (one half) and
chooses heads and thresholds to try (the other), `calibrate` certifies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gati.chain import Chain
from gati.release import Certificate
from gati_export.activations import Progress, open_segments
from gati_export.candidates import Answers, Candidates, ask, fit_candidates, measure_chain
from gati_export.certificate import certify, errors_allowed, refusal, samples_needed, threshold_grid
from gati_export.compose import Composition, Evaluation, compose, evaluate
from gati_export.heads import with_threshold
from gati_export.samples import TRAIN, TUNE, Split, fingerprint

FEWEST_TRAIN, FEWEST_TUNE = 32, 8


@dataclass(frozen=True)
class CutReport:
    """What became of a cut point.

    Attributes:
        index: The cut point.
        tensor: Its name.
        agreement: Share of the calibration samples on which its head's answer is the backbone's; None without a head.
        hits: Share of them that its head answers.
        seconds: Time of a lookup at batch 1; None without a head.
        used: Whether its head takes part.
        note: Why not, in one sentence; else None.
    """

    index: int
    tensor: str
    agreement: float | None
    hits: float
    seconds: float | None
    used: bool
    note: str | None


@dataclass(frozen=True)
class Trained:
    """Heads ready to be published, or why there are none.

    Attributes:
        cuts: What became of each cut point.
        heads: ONNX files of the heads in use, by cut point, thresholds inside.
        certificate: What covers them together; None exactly when there are no heads.
        why_not: Why there are no heads, in one sentence; else None.
        segment_seconds: Time of each segment at batch 1.
        speedup: Time of the backbone ÷ mean time of the chain, expected from the calibration samples; 1 without heads.
    """

    cuts: tuple[CutReport, ...]
    heads: dict[int, bytes]
    certificate: Certificate | None
    why_not: str | None
    segment_seconds: tuple[float, ...]
    speedup: float

    def as_json(self) -> dict[str, Any]:
        """For `--json`: all but the heads' files, whose sizes stand for them."""
        fields = asdict(self) | {"heads": {str(index): len(model) for index, model in self.heads.items()}}
        return fields | {"cuts": [asdict(cut) for cut in self.cuts], "segment_seconds": list(self.segment_seconds)}


def train_heads(
    chain: Chain,
    segment_paths: Sequence[Path],
    samples: Mapping[str, np.ndarray],
    split: Split,
    epsilon: float,
    delta: float,
    progress: Progress,
    seed: int = 0,
    init: Mapping[int, bytes] | None = None,
) -> Trained:
    """Trains, chooses and certifies heads.

    Args:
        chain: The chain.
        segment_paths: Its segments' files, in order.
        samples: Model inputs by name, [n, ...], n ≥ 1; no labels.
        split: Their parts.
        epsilon: Largest share of requests whose answer may differ from the backbone's.
        delta: 1 − confidence of that.
        progress: Told what is being done and how far that is.
        seed: The same seed, samples and machine speed give the same heads.
        init: Earlier heads by cut point, whose weights training goes on from where they fit.

    Returns:
        The heads. A chain without any, because samples are too few or nothing pays, is a result too.

    Raises:
        SamplesError: If activations or outputs are not finite, or epsilon or delta not between 0 and 1.
        BackboneError: If a segment can't be read.
    """
    sessions = open_segments(segment_paths)
    missing = _too_few(chain, split, epsilon, delta)
    if missing:
        seconds = measure_chain(chain, sessions, {}, samples)
        return _without_heads(chain, missing, Candidates({}, {}, *seconds), None)
    candidates = fit_candidates(chain, sessions, samples, split, progress, seed, init or {})
    chosen = np.concatenate([split.tune[1::2], split.calibrate])
    answers = ask(chain, sessions, candidates.models, samples, chosen, progress)
    tuned = len(chosen) - len(split.calibrate)
    tune, calibrate = answers[:tuned], answers[tuned:]
    return _decide(chain, candidates, tune, calibrate, epsilon, delta, fingerprint(samples, split.calibrate))


def _too_few(chain: Chain, split: Split, epsilon: float, delta: float) -> str | None:
    """Why no head can come of these samples, before any is trained."""
    needed = samples_needed(epsilon, delta)
    if not chain.heads:
        return "The backbone could not be cut, so there is no place for a head."
    if len(split.calibrate) < needed:
        there = len(split.train) + len(split.tune) + len(split.calibrate)
        total = int(np.ceil(1.1 * needed / (1 - TRAIN - TUNE) / 100) * 100)
        # the same input is always in the same part, so that copies of it don't fill the others
        more = f"give about {total} in all" if there < total else "many are the same, so give more that differ"
        return (
            f"Too few samples: {len(split.calibrate)} of {there} are for calibration, and to promise {epsilon:.2%} at "
            f"{1 - delta:.0%} confidence takes {needed}; {more}."
        )
    if len(split.train) < FEWEST_TRAIN or len(split.tune) < FEWEST_TUNE:
        return f"Too few samples to learn from: {len(split.train)} to train, {len(split.tune)} to tune; give more."
    return None


def _decide(
    chain: Chain,
    candidates: Candidates,
    tune: Answers,
    calibrate: Answers,
    epsilon: float,
    delta: float,
    digest: str,
) -> Trained:
    """Chooses heads on the tuning samples, then certifies them, and judges them, on the calibration samples."""
    seconds = (candidates.segment_seconds, candidates.head_seconds)
    n = calibrate.scores.shape[1]
    # what n samples can certify is less than epsilon: heads are chosen for the errors that will be left to them
    chosen = compose(tune.scores, tune.agree, *seconds, errors_allowed(n, epsilon, delta) / n)
    used = list(chosen.heads)
    agreement = {index: float(calibrate.agree[index].mean()) for index in candidates.models}
    if not used:
        why = "No head saves more than its lookups cost, with so few errors as can be promised; more samples may help."
        return _without_heads(chain, why, candidates, agreement)
    grid = threshold_grid(tune.scores[used])
    promised = (grid, epsilon, delta)
    certificate = certify(calibrate.scores[used], calibrate.agree[used], *promised, digest)
    if certificate is None:
        why = refusal(calibrate.scores[used], calibrate.agree[used], *promised)
        return _without_heads(chain, why, candidates, agreement)
    seen = evaluate(chosen.heads, certificate.threshold, calibrate.scores, calibrate.agree, *seconds)
    if seen.speedup <= 1:
        why = (
            f"At the threshold that is safe, {certificate.hits:.1%} of requests would hit, too few to pay for lookups."
        )
        return _without_heads(chain, why, candidates, agreement)
    return Trained(
        cuts=_reports(chain, candidates, agreement, chosen, seen),
        heads={index: with_threshold(candidates.models[index], certificate.threshold) for index in used},
        certificate=certificate,
        why_not=None,
        segment_seconds=tuple(candidates.segment_seconds.tolist()),
        speedup=seen.speedup,
    )


def _reports(
    chain: Chain, candidates: Candidates, agreement: Mapping[int, float], chosen: Composition, seen: Evaluation
) -> tuple[CutReport, ...]:
    reports = []
    for index in chain.heads:
        used, note = index in chosen.heads, candidates.notes.get(index)
        if not used and note is None:
            slower = chosen.toggled_seconds[index] / chosen.expected_seconds - 1
            note = (
                f"It would save nothing beside the heads in use (requests would take {slower:.1%} longer)."
                if np.isfinite(slower)
                else "Beside the heads in use it would cause more errors than can be promised."
            )
        reports.append(_report(chain, candidates, agreement, index, seen.hits.get(index, 0.0), note))
    return tuple(reports)


def _report(
    chain: Chain,
    candidates: Candidates,
    agreement: Mapping[int, float],
    index: int,
    hits: float,
    note: str | None,
) -> CutReport:
    seconds = float(candidates.head_seconds[index]) if index in candidates.models else None
    name = chain.segments[index].output.name
    return CutReport(index, name, agreement.get(index), hits, seconds, note is None, note)


def _without_heads(chain: Chain, why: str, candidates: Candidates, agreement: Mapping[int, float] | None) -> Trained:
    """A chain that answers from the backbone, until a refresh has more to learn from."""
    cuts = [
        _report(chain, candidates, agreement or {}, index, 0.0, candidates.notes.get(index, why))
        for index in chain.heads
    ]
    return Trained(tuple(cuts), {}, None, why, tuple(candidates.segment_seconds.tolist()), 1.0)
