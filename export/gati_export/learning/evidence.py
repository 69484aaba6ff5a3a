"""The evidence behind a release: turns the result of training into the report that people read."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from gati.repository.chain import Chain
from gati.repository.release import Release
from gati_export.composition.latency import Measured, Times
from gati_export.learning.trained import Certified, Judged, Trained
from gati_export.report.curve import agreement_curve, covered
from gati_export.report.data import Cut, ParetoPoint, Report, TriedHead
from gati_export.terms import Terms


def backbone_bytes(segment_paths: Sequence[Path]) -> int:
    """Size of a chain's segments, which is the backbone's."""
    return sum(path.stat().st_size for path in segment_paths)


def report_of(chain: Chain, trained: Trained, terms: Terms, release: Release | None, whole: int) -> Report:
    """The report of a training: what was tried, chosen and certified.

    Args:
        chain: The chain.
        trained: The result of training.
        terms: The terms that it had to keep.
        release: The release that was made of it; None without one.
        whole: Size of the backbone in bytes.
    """
    plain = trained.candidates.times.plain
    choice = trained.judged.choice if trained.judged else None
    certified = trained if isinstance(trained, Certified) else None
    why_not = None if isinstance(trained, Certified) else trained.why
    seconds = certified.seconds if certified else plain
    size = sum(map(len, certified.heads.values())) if certified else 0
    exits = certified.exits if certified else (*(0.0 for _ in chain.heads), 1.0)
    return Report(
        model=chain.model,
        release=release.number if release else None,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        epsilon=terms.epsilon,
        delta=terms.delta,
        agreement=terms.agreement,
        backbone_seconds=plain,
        expected_seconds=seconds,
        speedup=plain / seconds,
        oracle_speedup=plain / choice.oracle_seconds if choice else 1.0,
        memory_bytes=size,
        memory_share=size / max(whole, 1),
        sentence=str(certified.certificate) if certified else f"No head serves: {why_not}",
        certificate=certified.certificate if certified else None,
        why_not=why_not,
        cuts=tuple(_cut(chain, trained, index, exits[index]) for index in chain.heads),
        pareto=_points(trained.judged) if trained.judged else (),
        exits=exits,
        gap=choice.gap if choice else None,
    )


def _cut(chain: Chain, trained: Trained, index: int, hits: float) -> Cut:
    times, heads = trained.candidates.times, trained.candidates.heads
    until = np.cumsum(times.segments)
    certified = trained if isinstance(trained, Certified) else None
    threshold = certified.certificate.thresholds.get(index) if certified else None
    used = certified.families.get(index) if certified else None
    options = [
        _option(trained.judged, place, threshold if head.name == used else None)
        for place, head in enumerate(heads)
        if trained.judged and head.cut == index
    ]
    options += [
        TriedHead("—", None, 0, None, note, used=False, threshold=None, coverage=(), agrees=())
        for note in dict.fromkeys(trained.candidates.notes.get(index, ()))
    ]
    return Cut(
        index=index,
        tensor=chain.segments[index].output.name,
        share=float(until[index] / until[-1]),
        hits=hits,
        used=used,
        options=tuple(options),
        cost=float(times.cuts[index]),
    )


def measured_in(report: Report) -> Measured | None:
    """The times by which a report's heads were chosen; None if it does not have the cost of cuts."""
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


def _option(judged: Judged, place: int, threshold: float | None) -> TriedHead:
    """The report's entry about a candidate; with a threshold, it is in use."""
    head, scores, agree = judged.candidates.heads[place], judged.said[place].scores, judged.agrees[place]
    coverage, agrees = agreement_curve(scores, agree)
    return TriedHead(
        family=head.name,
        seconds=head.seconds,
        bytes=len(head.model),
        agreement=float(agree.mean()) if len(agree) else None,
        why=judged.choice.reasons.get(place, ""),
        used=threshold is not None,
        threshold=threshold,
        coverage=coverage,
        agrees=agrees,
        covered=covered(scores, threshold) if threshold is not None else None,
    )


def _points(judged: Judged) -> tuple[ParetoPoint, ...]:
    names = {place: (head.cut, head.name) for place, head in enumerate(judged.candidates.heads)}
    return tuple(
        ParetoPoint(point.epsilon, point.speedup, tuple(names[place] for place in point.chosen))
        for point in judged.choice.pareto
    )
