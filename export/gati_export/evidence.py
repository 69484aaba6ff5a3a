"""The evidence behind a release: from what training found to the report that is shown to people."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from gati.chain import Chain
from gati.release import Release
from gati_export.candidates import Candidate
from gati_export.latency import Measured, Times
from gati_export.replay import Said
from gati_export.report.curve import agreement_curve, covered
from gati_export.report.data import Cut, ParetoPoint, Report, TriedHead
from gati_export.terms import Terms
from gati_export.training import Trained


def backbone_bytes(segment_paths: Sequence[Path]) -> int:
    """Size of a chain's segments, which is the backbone's."""
    return sum(path.stat().st_size for path in segment_paths)


def report_of(chain: Chain, trained: Trained, terms: Terms, release: Release | None, whole: int) -> Report:
    """Puts together what was learned, chosen and certified.

    Args:
        chain: The chain.
        trained: What training found.
        terms: What it had to keep to.
        release: What became of it, if anything.
        whole: Bytes of the backbone.
    """
    plain = float(sum(trained.segment_seconds))
    size = sum(map(len, trained.heads.values()))
    choice = trained.choice
    return Report(
        model=chain.model,
        release=release.number if release else None,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        epsilon=terms.epsilon,
        delta=terms.delta,
        agreement=terms.agreement,
        backbone_seconds=plain,
        expected_seconds=plain / trained.speedup,
        speedup=trained.speedup,
        oracle_speedup=plain / choice.oracle_seconds if choice else 1.0,
        memory_bytes=size,
        memory_share=size / max(whole, 1),
        sentence=str(trained.certificate) if trained.certificate else f"No head serves: {trained.why_not}",
        certificate=trained.certificate,
        why_not=trained.why_not,
        cuts=tuple(_cut(chain, trained, index) for index in chain.heads),
        pareto=_points(trained),
        exits=trained.exits,
        gap=choice.gap if choice else None,
    )


def _cut(chain: Chain, trained: Trained, index: int) -> Cut:
    until = np.cumsum(trained.segment_seconds)
    options = [
        _option(trained, place, head) for place, head in enumerate(trained.candidates.heads) if head.cut == index
    ]
    options += [
        TriedHead("—", None, 0, None, note, used=False, threshold=None, coverage=(), agrees=())
        for note in dict.fromkeys(trained.candidates.notes.get(index, ()))
    ]
    return Cut(
        index=index,
        tensor=chain.segments[index].output.name,
        share=float(until[index] / until[-1]),
        hits=trained.exits[index],
        used=trained.families.get(index),
        options=tuple(options),
        cost=float(trained.candidates.times.cuts[index]),
    )


def measured_in(report: Report) -> Measured | None:
    """The times that a report's heads were chosen by; None where it does not say what cuts cost."""
    costs = [cut.cost for cut in report.cuts]
    known = [cost for cost in costs if cost is not None]
    if len(known) < len(costs):
        return None
    until = report.backbone_seconds * np.array([0.0, *(cut.share for cut in report.cuts), 1.0])
    heads = {
        (cut.index, option.family): option.seconds
        for cut in report.cuts
        for option in cut.options
        if option.seconds is not None
    }
    return Measured(Times(np.diff(until), np.array(known)), heads)


def _option(trained: Trained, place: int, head: Candidate) -> TriedHead:
    used = trained.families.get(head.cut) == head.name
    why = trained.choice.reasons.get(place, "") if trained.choice else trained.why_not or ""
    threshold = trained.certificate.thresholds[head.cut] if used and trained.certificate else None
    said, agree = trained.calibration[place] if trained.calibration else (None, np.empty(0, bool))
    scores = said.scores if isinstance(said, Said) else np.empty(0, np.float32)
    coverage, agrees = agreement_curve(scores, agree)
    return TriedHead(
        family=head.name,
        seconds=head.seconds,
        bytes=len(head.model),
        agreement=float(agree.mean()) if len(agree) else None,
        why=why,
        used=used,
        threshold=threshold,
        coverage=coverage,
        agrees=agrees,
        covered=covered(scores, threshold) if threshold is not None else None,
    )


def _points(trained: Trained) -> tuple[ParetoPoint, ...]:
    if trained.choice is None:
        return ()
    names = {place: (head.cut, head.name) for place, head in enumerate(trained.candidates.heads)}
    return tuple(
        ParetoPoint(point.epsilon, point.speedup, tuple(names[place] for place in point.chosen))
        for point in trained.choice.pareto
    )
