"""Training: heads for a chain, learned from the backbone's own answers, chosen by what they save, and certified.

Three parts of the samples have three jobs, and none has two: `train` fits predictors, `tune` fits selectors and chooses
heads and the thresholds to try, `calibrate` certifies. Selectors need no samples of their own: they have so few weights
that they judge those they were fitted to as well as others, and a choice among half as many samples is a worse one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from gati.repository.agreement import Agreement, check_classes, parse_agreement
from gati.repository.release import Certificate
from gati_export.certificates.certificate import Verdict, certify, refusal, safe, there_and_needed
from gati_export.certificates.groups import errors_allowed, samples_needed, wrong_within
from gati_export.certificates.splitting import Split, fingerprint, shares
from gati_export.certificates.train_samples import with_train_samples
from gati_export.certificates.views import with_views
from gati_export.composition.compose import EFFORT, QUICK, Limits, check_p99
from gati_export.composition.latency import Measured, Times, measure_segments
from gati_export.composition.replay import Said
from gati_export.families import chosen_families
from gati_export.learning.candidates import Candidate, Candidates, Heard, ask, fit_candidates
from gati_export.learning.choice import Choice, choose
from gati_export.learning.course import Course, course
from gati_export.learning.headfile import with_threshold
from gati_export.learning.task import Earlier, Task
from gati_export.learning.trained import Certified, Judged, NoHeads, Trained
from gati_export.progress import Progress, silent
from gati_export.samples.activations import collect, first_segment, learnable, open_segments
from gati_export.samples.ragged import count
from gati_export.terms import Terms

FEWEST_TRAIN, FEWEST_TUNE = 32, 8
SOME = 256
"""Samples that are run where they are too few to learn from."""
MANY = 0.2
"""Share of samples that resemble or repeat others, from which on a memory is tried."""
VIEW_SECONDS = 100.0
"""Of the backbone, that training samples may take once there are views among them."""


def train_heads(
    task: Task,
    progress: Progress,
    *,
    earlier: Earlier | None = None,
    extra: Mapping[str, np.ndarray] | None = None,
    known: Measured | None = None,
) -> Trained:
    """Trains, chooses and certifies heads; images are also shifted and mirrored to train on, where they are few.

    Args:
        task: What to learn.
        progress: Told what is being done and how far that is.
        earlier: Heads whose weights training goes on from where they fit, unless what trained them may certify now.
            They are asked, too, what they say to the calibration samples.
        extra: More samples to train on, and for nothing else.
        known: Times that need not be measured again.

    Returns:
        The heads. A chain without any, because samples are too few or nothing pays, is a result too.

    Raises:
        SamplesError: If activations or outputs are not finite, the backbone gives all samples the same answer, or
            epsilon or delta is not between 0 and 1.
        BackboneError: If a segment can't be read, or the backbone alone takes longer than 99 % of requests may.
        AgreementError: If agreement can't be judged as asked.
    """
    chain, terms, earlier = task.chain, task.terms, earlier or Earlier({})
    parse_agreement(terms.agreement)  # before the work, not after it
    check_classes(terms.agreement, chain.output.shape[0])
    families = chosen_families(terms.families, _resemble(task.split), terms.numbers)
    sessions = open_segments(task.segment_paths)
    measured = known or Measured(measure_segments(chain, task.segment_paths, task.samples), {})
    check_p99(measured.times.plain, terms.p99)
    missing = _too_few(task, extra)
    if missing:
        some = np.arange(min(count(task.samples), SOME))
        collect(chain, sessions, task.samples, {}, progress, some)  # fail now on NaN: more samples would not help
        return NoHeads(missing, Candidates([], {}, measured.times))
    start = _start(earlier, task.split)
    task = enlarged(task, measured.times, extra)
    candidates = fit_candidates(task, sessions, families, measured, progress, start)
    if not candidates.heads:
        first = next((note for notes in candidates.notes.values() for note in notes), "")
        return NoHeads(f"No family of heads fits any cut point. {first}".rstrip(), candidates)
    tune_outputs = candidates.outputs[len(task.split.train) :]
    tuned = ask(chain, sessions, candidates.heads, task.samples, task.split.tune, progress, tune_outputs)
    places = learnable(chain, task.samples)
    before = [Candidate(cut, "", model, 0.0) for cut, model in earlier.heads.items() if cut in places]
    said, outputs = ask(chain, sessions, [*candidates.heads, *before], task.samples, task.split.calibrate, progress)
    asked = len(candidates.heads)
    of_earlier = {head.cut: one for head, one in zip(before, said[asked:], strict=True)}
    return decide(task, candidates, tuned, Heard(said[:asked], outputs), of_earlier, progress)


def _start(earlier: Earlier, split: Split) -> Mapping[int, bytes]:
    """The heads whose weights training goes on from: none, where what trained them may certify now."""
    alike = earlier.way is None or earlier.way == split.way != ""
    return earlier.heads if alike and not _share_in_runs(split) else {}


def enlarged(task: Task, times: Times, extra: Mapping[str, np.ndarray] | None) -> Task:
    """With extra samples to train on, and with views as far as the terms ask and the backbone's time allows."""
    chain, samples, split, terms = task.chain, task.samples, task.split, task.terms
    if extra is not None:
        samples, split = with_train_samples(samples, split, extra)
    most = min(terms.views, int(VIEW_SECONDS / times.plain))
    images = chain.inputs if first_segment(chain, samples) == 0 else ()  # features can't be shifted like images
    samples, split = with_views(images, samples, split, most, terms.seed)
    return replace(task, samples=samples, split=split)


def _resemble(split: Split) -> bool:
    """Whether many samples resemble others before them, or ask what others have asked: what a memory is for."""
    return _share_in_runs(split) > MANY or 1 - len(np.unique(split.inputs)) / len(split.inputs) > MANY


def _share_in_runs(split: Split) -> float:
    """How many inputs resemble others before them: views and extra samples, which only train, don't tell."""
    rows = split.held_out
    inputs = np.unique([split.groups[rows], split.inputs[rows]], axis=1)[0]  # of each group
    return 1 - len(np.unique(inputs)) / max(len(inputs), 1)


def _affordable(split: Split, terms: Terms) -> float:
    """The share of errors that as many calibration samples can certify: less than epsilon."""
    n = len(np.unique(split.fresh.groups[split.fresh.turns > 0]))
    return max(errors_allowed(n, terms.epsilon, terms.delta), 0) / max(n, 1)


def _too_few(task: Task, extra: Mapping[str, np.ndarray] | None) -> str | None:
    """Why no head can come of these samples, before any is trained."""
    if not task.chain.heads:
        return "The backbone could not be cut, so there is no place for a head."
    split, terms = task.split, task.terms
    there = min(len(np.unique(names)) for names in (split.groups, split.inputs))
    fewest = samples_needed(terms.epsilon, terms.delta)
    groups, fresh = split.groups[split.calibrate], split.fresh
    calibrating, needed = there_and_needed(groups, terms.epsilon, terms.delta, fresh)
    if calibrating < needed:
        kept = 1 - sum(shares(split.groups, extra=extra is not None))
        total = int(np.ceil(1.1 * needed / kept / 100) * 100)
        alike = f", as some come in runs or as copies ({fewest} if none did)" if needed > fewest else ""
        more = f"give about {total} in all that differ" if there < total else "give more that differ"
        return (
            f"Too few samples: {calibrating} of {there} that differ are for calibration, and to promise "
            f"{terms.epsilon:.2%} at {1 - terms.delta:.0%} confidence takes {needed}{alike}; {more}."
        )
    train = len(split.train) + (count(extra) if extra else 0)
    if train < FEWEST_TRAIN or len(split.tune) < FEWEST_TUNE:
        return f"Too few samples to learn from: {train} to train, {len(split.tune)} to tune; give more."
    return None


def decide(
    task: Task,
    candidates: Candidates,
    tuned: Heard,
    held_out: Heard,
    earlier: Mapping[int, Said] | None = None,
    progress: Progress = silent,
) -> Trained:
    """Chooses heads by the tuning samples, then certifies them, and judges them, by the calibration samples.

    Heads with state are certified in the course of all traffic; see gati_export.learning.course. They are chosen by the
    tuning samples alone: what calibrates has no say in that, and the path reaches well beyond what is allowed.

    Args:
        task: What was to be learned.
        candidates: What there is to choose from, one at least.
        tuned: What they say to the tuning samples that no selector was fitted to, and the backbone's outputs there.
        held_out: The same of the calibration samples.
        earlier: What earlier heads say to these, by cut point.
        progress: Told how far it is.

    Raises:
        BackboneError: If not even the backbone keeps to the terms.
        AgreementError: If agreement can't be judged as asked.
    """
    terms, agreement = task.terms, parse_agreement(task.terms.agreement)
    limits = Limits(_affordable(task.split, terms), terms.memory, terms.p99)
    choice = choose(candidates, *tuned, agreement, limits, EFFORT if terms.proof else QUICK)
    said, outputs = held_out
    agrees = [agreement(one.answers, outputs) for one in said]
    judged = Judged(candidates, choice, said, agrees, outputs, earlier or {})
    if not judged.chosen:
        return judged.refused(_none_pays(terms, candidates, choice))
    in_use = Heard([said[place] for place in choice.composition.chosen], outputs)
    in_course = course(task, judged.chosen, in_use, candidates.outputs, progress)
    return _certified(task, judged, in_course, _within(task, tuned, choice, agreement), agreement)


def _certified(task: Task, judged: Judged, in_course: Course, within: float, agreement: Agreement) -> Trained:
    """The heads that were chosen, at the loosest thresholds that are safe; none where none are, or where few hit."""
    terms, split, times = task.terms, task.split, judged.candidates.times
    used, path = judged.chosen, judged.choice.path
    asked = split.groups[split.calibrate], terms.epsilon, terms.delta, split.fresh, within
    exits, errors = in_course.walk(path, agreement, safe(*asked))
    verdict = certify(errors, *asked)
    if verdict is None:
        return judged.refused(refusal(errors, *asked))
    where = np.array([*(head.cut for head in used), task.chain.backbone_exit])[exits[verdict.step]]
    shares = np.bincount(where, minlength=len(task.chain.segments)) / len(where)
    seconds = float(times.until_exits([(head.cut, head.seconds) for head in used]) @ shares)
    hits = float(1 - shares[-1])
    if seconds >= times.plain:
        why = f"At thresholds that are safe, {hits:.1%} of requests would hit, too few to pay for lookups."
        return judged.refused(why)
    thresholds = {head.cut: float(t) for head, t in zip(used, path[verdict.step], strict=True)}
    return Certified(
        judged=judged,
        heads={head.cut: with_threshold(head.model, thresholds[head.cut]) for head in used},
        certificate=_certificate(task, verdict, thresholds, hits),
        seconds=seconds,
        exits=tuple(shares.tolist()),
        wrong=errors[verdict.step],
        within=within,
    )


def _within(task: Task, tuned: Heard, choice: Choice, agreement: Agreement) -> float:
    """How errors come in groups, as tuning samples have it."""
    said, outputs = tuned
    chosen = Course([said[place] for place in choice.composition.chosen], outputs)
    most = task.terms.epsilon * len(outputs)
    errors = chosen.walk(choice.path, agreement, lambda wrong: wrong.sum() <= most)[1]
    return wrong_within(errors, task.split.groups[task.split.tune], task.terms.epsilon)


def _none_pays(terms: Terms, candidates: Candidates, choice: Choice) -> str:
    least = min(len(head.model) for head in candidates.heads)
    if terms.memory is not None and least > terms.memory:
        return f"No head fits into the {terms.memory:,} bytes that are allowed: the smallest takes {least:,}."
    loosest = max(choice.pareto, key=lambda point: point.epsilon)
    if not loosest.chosen and terms.memory is None and terms.p99 is None:
        whole, quickest = candidates.times.plain, min(head.seconds for head in candidates.heads)
        return (
            f"No head saves more than it costs, even if {loosest.epsilon:.0%} of answers might differ: the network "
            f"takes {whole * 1e6:.0f} µs, and the quickest lookup {quickest * 1e6:.0f}."
        )
    limits = [f"in {terms.memory:,} bytes"] if terms.memory is not None else []
    limits += [f"with 99 % answered in {terms.p99 * 1e3:.3g} ms"] if terms.p99 is not None else []
    asked = "".join(f", {limit}" for limit in limits)
    return f"No head saves more than it costs, with so few errors as can be promised{asked}; more samples may help."


def _certificate(task: Task, verdict: Verdict, thresholds: dict[int, float], hits: float) -> Certificate:
    return Certificate(
        n=verdict.n,
        observations=verdict.observations,
        errors=verdict.errors,
        bound=verdict.bound,
        epsilon=task.terms.epsilon,
        delta=task.terms.delta,
        thresholds=thresholds,
        hits=hits,
        method=verdict.method,
        fingerprint=fingerprint(task.samples, task.split.calibrate),
        agreement=task.terms.agreement,
        together=task.split.together,
        parts=task.split.way,
    )
