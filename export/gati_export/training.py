"""Training: heads for a chain, learned from the backbone's own answers, chosen by what they save, and certified.

Three parts of the samples have three jobs, and none has two: `train` fits predictors, `tune` fits selectors and chooses
heads and the thresholds to try, `calibrate` certifies. Selectors need no samples of their own: they have so few weights
that they judge those they were fitted to as well as others, and a choice among half as many samples is a worse one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from gati.agreement import Agreement, check_classes, parse_agreement
from gati.chain import Chain
from gati.release import Certificate
from gati_export.activations import collect, first_segment, learnable, open_segments
from gati_export.candidates import Candidate, Candidates, ask, fit_candidates
from gati_export.certificate import Verdict, certify, refusal, there_and_needed
from gati_export.choice import Choice, choose, walk
from gati_export.compose import EFFORT, QUICK, Limits, check_p99
from gati_export.extra import with_extra
from gati_export.families import chosen_families
from gati_export.groups import errors_allowed, samples_needed, wrong_within
from gati_export.headfile import with_threshold
from gati_export.latency import Measured, Times, measure_segments
from gati_export.progress import Progress
from gati_export.ragged import count
from gati_export.replay import Said
from gati_export.splitting import Split, fingerprint, shares
from gati_export.terms import Terms
from gati_export.views import with_views

FEWEST_TRAIN, FEWEST_TUNE = 32, 8
SOME = 256
"""Samples that are run where they are too few to learn from."""
MANY = 0.2
"""Share of samples that resemble or repeat others, from which on a memory is tried."""
VIEW_SECONDS = 100.0
"""Of the backbone, that training samples may take once there are views among them."""

Heard = tuple[list[Said], np.ndarray]
"""What each candidate says to n samples, and the backbone's outputs there, [n, classes]."""


@dataclass(frozen=True, eq=False)
class Trained:
    """Heads ready to be published, or why there are none.

    Attributes:
        heads: ONNX files of the heads in use, by cut point, thresholds inside.
        families: Their names, by cut point.
        certificate: What covers them together; None exactly when there are no heads.
        why_not: Why there are no heads, in one sentence; else None.
        segment_seconds: Time of each segment at batch 1.
        speedup: Time of the backbone ÷ mean time of the chain, on the calibration samples; 1 without heads.
        exits: Share of the calibration samples answered at each cut point, and last by the backbone.
        candidates: All that was tried.
        choice: What was chosen of it, and why; None where that was not reached.
        calibration: What each candidate said to the calibration samples, and where it agreed.
        wrong: Which calibration samples are not answered as by the backbone, bool [n].
        within: How errors come in groups, as tuning samples have it; see gati_export.groups.wrong_within.
        outputs: What the backbone says to them, [n, classes].
        earlier: What the earlier heads said to them that training went on from, by cut point.
    """

    heads: dict[int, bytes]
    families: dict[int, str]
    certificate: Certificate | None
    why_not: str | None
    segment_seconds: tuple[float, ...]
    speedup: float
    exits: tuple[float, ...]
    candidates: Candidates
    choice: Choice | None = None
    calibration: tuple[tuple[Said, np.ndarray], ...] = ()
    wrong: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    within: float = 1.0
    outputs: np.ndarray = field(default_factory=lambda: np.zeros(0))
    earlier: Mapping[int, Said] = field(default_factory=dict)


def train_heads(
    chain: Chain,
    segment_paths: Sequence[Path],
    samples: Mapping[str, np.ndarray],
    split: Split,
    terms: Terms,
    progress: Progress,
    init: Mapping[int, bytes] | None = None,
    extra: Mapping[str, np.ndarray] | None = None,
    known: Measured | None = None,
    way: str | None = None,
) -> Trained:
    """Trains, chooses and certifies heads; images are also shifted and mirrored to train on, where they are few.

    Args:
        chain: The chain.
        segment_paths: Its segments' files, in order.
        samples: Model inputs, or recorded features in their place, by name, [n, ...], n ≥ 1; no labels.
        split: Their parts.
        terms: What to keep to.
        progress: Told what is being done and how far that is.
        init: Earlier heads by cut point, whose weights training goes on from where they fit, unless what trained them
            may certify now (`Split.way`). They are asked, too, what they say to the calibration samples.
        extra: More samples to train on, and for nothing else.
        known: Times that need not be measured again.
        way: How the samples had been split that the earlier heads were learned from; None for as these are.

    Returns:
        The heads. A chain without any, because samples are too few or nothing pays, is a result too.

    Raises:
        SamplesError: If activations or outputs are not finite, the backbone gives all samples the same answer, or
            epsilon or delta is not between 0 and 1.
        BackboneError: If a segment can't be read, or the backbone alone takes longer than 99 % of requests may.
        AgreementError: If agreement can't be judged as asked.
    """
    parse_agreement(terms.agreement)  # before the work, not after it
    check_classes(terms.agreement, chain.output.shape[0])
    families = chosen_families(terms.families, _share_in_runs(split) > MANY or _has_copies(split), terms.numbers)
    sessions = open_segments(segment_paths)
    measured = known or Measured(measure_segments(chain, segment_paths, samples), {})
    times = measured.times
    check_p99(float(times.segments.sum()), terms.p99)
    missing = _too_few(chain, split, terms, extra)
    if missing:
        some = np.arange(min(count(samples), SOME))
        collect(chain, sessions, samples, {}, progress, some)  # fail now on NaN: more samples would not help
        return without_heads(chain, Candidates([], {}, times), missing)
    samples, split = enlarged(chain, samples, split, terms, times, extra)
    alike = way is None or way == split.way != ""
    start = init or {} if alike and not _share_in_runs(split) else {}
    candidates = fit_candidates(
        chain, segment_paths, sessions, samples, split, families, terms, measured, progress, start
    )
    if not candidates.heads:
        first = next((note for notes in candidates.notes.values() for note in notes), "")
        return without_heads(chain, candidates, f"No family of heads fits any cut point. {first}".rstrip())
    tuned = ask(chain, sessions, candidates.heads, samples, split.tune, progress)
    places = learnable(chain, samples)
    earlier = [Candidate(cut, "", model, 0.0) for cut, model in (init or {}).items() if cut in places]
    said, outputs = ask(chain, sessions, [*candidates.heads, *earlier], samples, split.calibrate, progress)
    held_out, before = (said[: len(candidates.heads)], outputs), said[len(candidates.heads) :]
    digest = fingerprint(samples, split.calibrate)
    trained = decide(chain, candidates, tuned, held_out, split, terms, digest)
    return replace(trained, outputs=outputs, earlier={head.cut: one for head, one in zip(earlier, before, strict=True)})


def enlarged(
    chain: Chain,
    samples: Mapping[str, np.ndarray],
    split: Split,
    terms: Terms,
    times: Times,
    extra: Mapping[str, np.ndarray] | None,
) -> tuple[Mapping[str, np.ndarray], Split]:
    """Samples with extra ones, and with views as far as the terms ask and the backbone's time allows, to train on."""
    if extra is not None:
        samples, split = with_extra(samples, split, extra)
    most = min(terms.views, int(VIEW_SECONDS / times.segments.sum()))
    images = chain.inputs if first_segment(chain, samples) == 0 else ()  # features can't be shifted like images
    return with_views(images, samples, split, most, terms.seed)


def _share_in_runs(split: Split) -> float:
    """How many inputs resemble others before them: views and extra samples, which only train, don't tell."""
    rows = split.held_out
    inputs = np.unique([split.groups[rows], split.inputs[rows]], axis=1)[0]  # of each group
    return 1 - len(np.unique(inputs)) / max(len(inputs), 1)


def _has_copies(split: Split) -> bool:
    """Whether many samples ask what others have asked."""
    return 1 - len(np.unique(split.inputs)) / len(split.inputs) > MANY


def _affordable(split: Split, terms: Terms) -> float:
    """The share of errors that as many calibration samples can certify: less than epsilon."""
    n = len(np.unique(split.fresh.groups[split.fresh.turns > 0]))
    return max(errors_allowed(n, terms.epsilon, terms.delta), 0) / max(n, 1)


def _too_few(chain: Chain, split: Split, terms: Terms, extra: Mapping[str, np.ndarray] | None) -> str | None:
    """Why no head can come of these samples, before any is trained."""
    if not chain.heads:
        return "The backbone could not be cut, so there is no place for a head."
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
    chain: Chain,
    candidates: Candidates,
    tuned: Heard,
    held_out: Heard,
    split: Split,
    terms: Terms,
    digest: str,
) -> Trained:
    """Chooses heads by the tuning samples, then certifies them, and judges them, by the calibration samples.

    Args:
        chain: The chain.
        candidates: What there is to choose from.
        tuned: What they say to the tuning samples that no selector was fitted to, and the backbone's outputs there.
        held_out: The same of the calibration samples.
        split: The parts of the samples.
        terms: What to keep to.
        digest: SHA-256 over the calibration samples.

    Raises:
        BackboneError: If not even the backbone keeps to the terms.
        AgreementError: If agreement can't be judged as asked.
    """
    agreement = parse_agreement(terms.agreement)
    limits = Limits(_affordable(split, terms), terms.memory, terms.p99)
    groups, fresh = split.groups[split.calibrate], split.fresh
    choice = choose(candidates, *tuned, agreement, limits, EFFORT if terms.proof else QUICK)
    said, outputs = held_out
    agrees = tuple((one, agreement(one.answers, outputs)) for one in said)
    refused = partial(without_heads, chain, candidates, choice=choice, calibration=agrees)
    used = [candidates.heads[place] for place in choice.composition.chosen]
    if not used:
        return refused(_none_pays(terms, candidates, choice))
    chosen = [said[place] for place in choice.composition.chosen]
    most = 3 * terms.epsilon * len(outputs)  # beyond that nothing passes, and replays take time
    exits, errors = walk(chosen, choice.path, outputs, agreement, most)
    within = _within(tuned, choice, agreement, split, terms)
    asked = errors, groups, terms.epsilon, terms.delta, fresh, within
    verdict = certify(*asked)
    if verdict is None:
        return refused(refusal(*asked))
    where = np.array([*(head.cut for head in used), chain.backbone_exit])[exits[verdict.step]]
    shares = np.bincount(where, minlength=len(chain.segments)) / len(where)
    plain = float(candidates.times.segments.sum())
    mean = float(candidates.times.until_exits([(head.cut, head.seconds) for head in used]) @ shares)
    if mean >= plain:
        hits = 1 - shares[-1]
        return refused(f"At thresholds that are safe, {hits:.1%} of requests would hit, too few to pay for lookups.")
    thresholds = {head.cut: float(t) for head, t in zip(used, choice.path[verdict.step], strict=True)}
    return Trained(
        heads={head.cut: with_threshold(head.model, thresholds[head.cut]) for head in used},
        families={head.cut: head.name for head in used},
        certificate=_certificate(verdict, thresholds, float(1 - shares[-1]), terms, digest, split),
        why_not=None,
        segment_seconds=tuple(candidates.times.segments.tolist()),
        speedup=plain / mean,
        exits=tuple(shares.tolist()),
        candidates=candidates,
        choice=choice,
        calibration=agrees,
        wrong=errors[verdict.step],
        within=within,
    )


def _within(tuned: Heard, choice: Choice, agreement: Agreement, split: Split, terms: Terms) -> float:
    """How errors come in groups, as tuning samples have it."""
    said, outputs = tuned
    chosen = [said[place] for place in choice.composition.chosen]
    errors = walk(chosen, choice.path, outputs, agreement, terms.epsilon * len(outputs))[1]
    return wrong_within(errors, split.groups[split.tune], terms.epsilon)


def _none_pays(terms: Terms, candidates: Candidates, choice: Choice) -> str:
    loosest = max(choice.pareto, key=lambda point: point.epsilon)
    if not loosest.chosen and terms.memory is None and terms.p99 is None:
        whole, quickest = candidates.times.segments.sum(), min(head.seconds for head in candidates.heads)
        return (
            f"No head saves more than it costs, even if {loosest.epsilon:.0%} of answers might differ: the network "
            f"takes {whole * 1e6:.0f} µs, and the quickest lookup {quickest * 1e6:.0f}."
        )
    limits = [f"in {terms.memory:,} bytes"] if terms.memory is not None else []
    limits += [f"with 99 % answered in {terms.p99 * 1e3:.3g} ms"] if terms.p99 is not None else []
    asked = "".join(f", {limit}" for limit in limits)
    return f"No head saves more than it costs, with so few errors as can be promised{asked}; more samples may help."


def _certificate(
    verdict: Verdict, thresholds: dict[int, float], hits: float, terms: Terms, digest: str, split: Split
) -> Certificate:
    return Certificate(
        n=verdict.n,
        observations=verdict.observations,
        errors=verdict.errors,
        bound=verdict.bound,
        epsilon=terms.epsilon,
        delta=terms.delta,
        thresholds=thresholds,
        hits=hits,
        method=verdict.method,
        fingerprint=digest,
        agreement=terms.agreement,
        together=split.together,
        parts=split.way,
    )


def without_heads(
    chain: Chain,
    candidates: Candidates,
    why: str,
    *,
    choice: Choice | None = None,
    calibration: tuple[tuple[Said, np.ndarray], ...] = (),
) -> Trained:
    """A chain that answers from the backbone, until a refresh has more to learn from, whatever heads were chosen."""
    if choice is not None:
        choice = replace(choice, reasons=choice.reasons | dict.fromkeys(choice.composition.chosen, why))
    seconds = tuple(candidates.times.segments.tolist())
    exits = (*(0.0 for _ in chain.heads), 1.0)
    return Trained({}, {}, None, why, seconds, 1.0, exits, candidates, choice, calibration)
