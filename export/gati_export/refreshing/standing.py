"""The standing of the live release: how it does on the samples that certify the next one, which has to do better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gati.errors import RepositoryError
from gati.repository.agreement import parse_agreement
from gati.repository.chain import Chain
from gati.repository.release import SHUT, Certificate, Window, head_path
from gati.triton.tryout import newest_release
from gati_export.certificates.certificate import Fresh, certify, there_and_needed
from gati_export.certificates.refutation import refuted
from gati_export.certificates.splitting import Split
from gati_export.learning.candidates import Heard, Model, timed
from gati_export.learning.course import course
from gati_export.learning.evidence import measured_in
from gati_export.learning.headfile import with_threshold
from gati_export.learning.task import Task
from gati_export.learning.trained import Judged
from gati_export.progress import Progress, silent
from gati_export.releases.publish import Draft
from gati_export.report.data import Report, read
from gati_export.report.day import read_day
from gati_export.terms import Terms

LAPSE = 2
"""The live release is tested like a new one, with so many times the error probability, and is replaced if it fails.

Of many certified releases the fastest stays, and it may be so fast because it was certified by luck: each breaks its
promise with probability δ. So the release that stays has to pass on samples that did not choose it. With 2,000 new
samples of 20,000 a turn, what serves breaks the promise 12 % of the time where nothing is asked of it, and 3 % with
2 δ, for three times as many publications (`scripts/simulate_refreshes.py`).
"""


@dataclass(frozen=True, eq=False)
class Live:
    """The release that serves.

    Attributes:
        number: Its number.
        heads: ONNX files of its heads, by rising cut point.
        thresholds: Their thresholds, by cut point.
        report: The report of its training; None if that is not known.
        closed: Exits that answer nothing, because audits have closed them at some replica, as far as that is known.
        parts: How the samples were split that it was trained on.
        until: When the newest of these samples was served; None if that is not known.
    """

    number: int
    heads: Mapping[int, bytes]
    thresholds: Mapping[int, float]
    report: Report | None
    closed: Sequence[int] = ()
    parts: str = ""
    until: np.datetime64 | None = None

    @property
    def models(self) -> list[Model]:
        """The heads that are not closed."""
        families = {cut.index: cut.used for cut in self.report.cuts} if self.report else {}
        still = {index: model for index, model in self.heads.items() if index not in self.closed}
        return [(index, families.get(index) or "", model) for index, model in still.items()]


@dataclass(frozen=True)
class Standing:
    """How a release does on held-out samples.

    Attributes:
        seconds: Expected mean time of a request.
        differs: Share of answers that do not agree with the backbone's.
        broken: Whether the samples show, at the promise's own confidence, that the promise is not kept.
        lapsed: Whether the samples do not show that it is kept; see `LAPSE`.
        untenable: Whether it must be shut even if nothing can replace it: it is broken, or it has lapsed and more
            samples differ than was promised. If it has lapsed only for want of samples, it goes on.
    """

    seconds: float
    differs: float
    broken: bool
    lapsed: bool = False
    untenable: bool = False


def live_release(repository: Path, chain: Chain) -> Live | None:
    """The newest release that can serve; None if there is none."""
    release = newest_release(repository, chain)
    if release is None:
        return None
    indices = sorted(head.index for head in release.heads)
    heads = {index: head_path(repository, chain, index, release.number).read_bytes() for index in indices}
    try:
        report = read(repository, chain.model, release.origin)
    except RepositoryError:  # it was made elsewhere, or its report is gone
        report = None
    found = read_day(repository, chain.model, release=release.number).closed_exits(release.number)
    closed = sorted({*found} | ({*indices} - {*release.exits}))
    certificate, until = release.certificate, _moment(release.window.until)
    return Live(release.number, heads, certificate.thresholds, report, closed, certificate.parts, until)


def _moment(text: str | None) -> np.datetime64 | None:
    try:
        return None if text is None else np.datetime64(text.removesuffix("Z"), "s")
    except ValueError:  # the release was made elsewhere
        return None


def judge(
    live: Live,
    task: Task,
    judged: Judged,
    within: float,
    times: np.ndarray | None = None,
    progress: Progress = silent,
) -> Standing:
    """Judges the live release by the calibration samples, as the next one is judged.

    Exits that audits have closed answer nothing.

    Args:
        live: The release.
        task: The task of the training that went on from the release's heads.
        judged: The result of that training. It holds the scores and answers of the release's own heads, and times of
            heads of the same families; other times are taken from the release's report, or measured.
        within: How errors cluster within groups; see `standing`.
        times: When samples were served, [n]: those that may have trained the release can't testify to its promise.
        progress: Told how far it is.
    """
    candidates, split, terms = judged.candidates, task.split, task.terms
    measured = measured_in(live.report) if live.report else None
    known = {**(measured.heads if measured else {}), **{(h.cut, h.name): h.seconds for h in candidates.heads}}
    heads = timed(task.chain, task.segment_paths, live.models, task.samples, known)
    until = candidates.times.until_exits([(head.cut, head.seconds) for head in heads])
    held_out = Heard([judged.earlier[head.cut] for head in heads], judged.outputs)
    in_course = course(task, heads, held_out, candidates.outputs, progress)
    thresholds = [live.thresholds[head.cut] for head in heads]
    exits, wrong = in_course.served(thresholds, parse_agreement(terms.agreement))
    seconds = until[np.array([*(head.cut for head in heads), len(until) - 1])[exits]]
    witnesses = _unseen(live, times, split, terms)
    parts = replace(split, calibrate=split.calibrate[witnesses])
    groups, wrong = parts.groups[parts.calibrate], wrong[witnesses]
    found = standing(seconds[witnesses], wrong, groups, terms, parts.fresh, within)
    return replace(found, seconds=float(seconds.mean()))


def _unseen(live: Live, times: np.ndarray | None, split: Split, terms: Terms) -> np.ndarray:
    """Which of the samples that calibrate have not trained the live release, bool [calibrate].

    If its samples were split in the same way, none of these has. Otherwise the samples of later runs have not; if these
    are too few to tell anything, all samples are used.
    """
    everything = np.ones(len(split.calibrate), bool)
    if times is None or live.until is None or live.parts == split.way != "":
        return everything
    trained = split.groups[times < live.until + np.timedelta64(1, "s")]
    unseen = ~np.isin(split.groups[split.calibrate], trained)
    parts = replace(split, calibrate=split.calibrate[unseen])
    there, needed = there_and_needed(parts.groups[parts.calibrate], terms.epsilon, _lapse(terms), parts.fresh)
    return unseen if there >= needed else everything


def _lapse(terms: Terms) -> float:
    return min(LAPSE * terms.delta, 0.5)


def standing(
    seconds: np.ndarray,
    wrong: np.ndarray,
    groups: np.ndarray,
    terms: Terms,
    fresh: Fresh | None = None,
    within: float = 1.0,
) -> Standing:
    """The standing of a release, by its times and errors on held-out samples.

    Args:
        seconds: Time of each sample, [n].
        wrong: Which samples it answers otherwise than the backbone, bool [n].
        groups: The group of each sample, int [n]; samples of one group depend on each other.
        terms: What was promised.
        fresh: See gati_export.certificates.certificate.
        within: See gati_export.certificates.certificate; errors of the live release are taken to cluster as those of
            the next one.
    """
    lapsed = certify(wrong[None], groups, terms.epsilon, _lapse(terms), fresh, within) is None
    broken, differs = refuted(wrong, groups, terms), float(wrong.mean())
    return Standing(float(seconds.mean()), differs, broken, lapsed, broken or (lapsed and differs > terms.epsilon))


def shut(live: Live, standing: Standing, chain: Chain, calibrating: int, window: Window) -> Draft:
    """A draft of the live release with all heads shut, so that the backbone answers until others are certified.

    The heads stay in it, for the next training to go on from. They never answer, so that no answer differs.
    """
    heads = {index: with_threshold(model, SHUT) for index, model in live.heads.items()}
    certificate = Certificate(
        n=calibrating,
        observations=calibrating,
        errors=0,
        bound=0.0,
        epsilon=chain.epsilon,
        delta=chain.delta,
        thresholds=dict.fromkeys(heads, SHUT),
        hits=0.0,
        method=f"no head answers: they would differ on {standing.differs:.2%} of these samples",
        fingerprint="",
        agreement=chain.agreement,
        parts=live.parts,
    )
    return Draft(heads, certificate, window, "refresh", live.number)
