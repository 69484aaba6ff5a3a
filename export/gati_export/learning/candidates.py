"""Candidates: heads of all families at all cut points, fitted and measured, and what they say about samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime as ort
import torch

from gati.errors import BackboneError, SamplesError
from gati.inference.head import SCORE
from gati.inference.session import CPU, open_session
from gati.repository.chain import Chain
from gati.system.resources import memory
from gati_export.composition.latency import Measured, Times, measure_heads, measured_on
from gati_export.composition.replay import Parts, Rows, Said, finite_scores, has_state, part, rehearse
from gati_export.families import lookups
from gati_export.families.blocks.distillation import Scale
from gati_export.families.family import Lookup
from gati_export.learning.heads import Head, head_model
from gati_export.learning.lessons import Lessons
from gati_export.learning.task import Task
from gati_export.progress import Progress
from gati_export.samples.activations import LARGE, Reducer, collect, learnable, run_batches

Model = tuple[int, str, bytes]
"""A head that is not yet timed: its cut point, its family and variant (empty if not known), and its ONNX file."""
FEATURES = 0.5
"""Share of the memory there is that features may take; what needs more takes another run of the backbone."""
BEFORE = "Only features from behind it are recorded, so that no head here can learn."
REHEARSED = 0.95
"""The score from which a head with state is taken to hit, before its threshold is known."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A head that could be used.

    Attributes:
        cut: Its cut point.
        name: Its family and variant.
        model: Its ONNX file, with a threshold that no score reaches.
        seconds: Time of a lookup at batch 1.
    """

    cut: int
    name: str
    model: bytes
    seconds: float


@dataclass
class Candidates:
    """What there is to choose from, and what it costs.

    Attributes:
        heads: Rising by cut point.
        notes: Why a family has no head at a cut point, in sentences.
        times: Of segments and cuts at batch 1.
        outputs: By the backbone, to the samples that train and then to those that tune, [samples, classes]; empty where
            there was nothing to fit.
    """

    heads: list[Candidate]
    notes: dict[int, list[str]]
    times: Times
    outputs: np.ndarray = field(default_factory=lambda: np.empty(0))


class Heard(NamedTuple):
    """What heads say to n samples.

    Attributes:
        said: By each.
        outputs: By the backbone, [n, classes].
    """

    said: list[Said]
    outputs: np.ndarray


def fit_candidates(
    task: Task,
    sessions: Sequence[ort.InferenceSession],
    families: Sequence[str],
    measured: Measured,
    progress: Progress,
    start: Mapping[int, bytes] | None = None,
) -> Candidates:
    """Fits heads of all families at all cut points and measures them; heads with state only for inline chains.

    Predictors learn from `split.train`, selectors from `split.tune`.

    Args:
        task: What to learn; of its terms, the agreement, which says whether answers are numbers, and the seed.
        sessions: The chain's segments.
        families: Names of families.
        measured: Times of the segments, to be kept with the heads', and of lookups that need not be measured.
        progress: Told what is being done and how far that is.
        start: Earlier heads by cut point, to go on from where they fit.

    Raises:
        SamplesError: If activations or outputs are not finite, or there is nothing to learn from them.
    """
    chain, samples, split, terms = task.chain, task.samples, task.split, task.terms
    plan, notes = _plan(chain, samples, families)
    lessons = Lessons(split.train, split.tune, split.groups, terms.seed)
    rows = np.concatenate([lessons.train, lessons.tune])
    learned: list[tuple[int, Lookup]] = []
    scale, outputs = Scale("logits"), np.empty(0)
    total, done = sum(map(len, plan.values())), 0
    for cuts in _passes(plan, chain, len(rows)):
        reducers = {(index, lookup.view): _reducer(lookup) for index in cuts for lookup in plan[index]}
        seen = collect(chain, sessions, samples, reducers, progress, rows)
        outputs = seen.outputs
        _check_outputs(outputs, terms.numbers)
        scale = scale if terms.numbers else Scale.of(outputs[: len(lessons.train)])
        lessons.logits = scale.logits(outputs)
        lessons.features = seen.features
        tasks = [(index, lookup) for index in cuts for lookup in plan[index]]
        tell = lambda shares, before=done: progress("Train heads", (before + shares) / total)  # noqa: E731
        found = lessons.train_all(tasks, start or {}, tell)
        learned += [(index, lookup) for index, lookup in found if not (lookup.state and chain.mode == "bls")]
        done += len(tasks)
        progress("Train heads", done / total)
        seen.features.clear()  # before those of the next pass are collected
    # only now: PyTorch's exporter is not to be run beside training
    models = _written(chain, learned, scale, notes, progress)
    heads = timed(chain, task.segment_paths, models, samples, measured.heads)
    return Candidates(heads, notes, measured.times, outputs)


def _plan(
    chain: Chain, samples: Mapping[str, np.ndarray], families: Sequence[str]
) -> tuple[dict[int, list[Lookup]], dict[int, list[str]]]:
    """Untrained lookups of all families by cut point, and why a family has none there."""
    plan, notes = dict[int, list[Lookup]](), dict[int, list[str]]()
    places = learnable(chain, samples)
    on_processor = chain.mode == "bls" or measured_on(chain) == CPU
    for index in chain.heads:
        found, why = lookups(families, chain.segments[index].output, chain.classes)
        if index not in places:
            found, why = [], [BEFORE]
        plan[index] = [lookup for lookup in found if not (lookup.state and chain.mode == "bls")]
        notes[index] = list(why)
        for lookup in plan[index]:
            lookup.integers = on_processor
    return plan, notes


def timed(
    chain: Chain,
    segment_paths: Sequence[Path],
    models: Sequence[Model],
    samples: Mapping[str, np.ndarray],
    known: Mapping[tuple[int, str], float],
) -> list[Candidate]:
    """Heads with what a lookup takes: as it is known, else as it is measured now.

    Args:
        chain: The chain.
        segment_paths: Its segments' files, in order.
        models: The heads.
        samples: Model inputs by name; a typical one is run.
        known: Seconds by cut point and name.
    """
    new = [(cut, model) for cut, name, model in models if (cut, name) not in known]
    measured = iter(measure_heads(chain, segment_paths, new, samples) if new else ())
    return [
        Candidate(cut, name, model, known[cut, name] if (cut, name) in known else next(measured))
        for cut, name, model in models
    ]


def _written(
    chain: Chain,
    learned: Sequence[tuple[int, Lookup]],
    scale: Scale,
    notes: Mapping[int, list[str]],
    progress: Progress,
) -> list[Model]:
    """The lookups as ONNX files; why some have none goes to the notes."""
    models: list[Model] = []
    for done, (index, lookup) in enumerate(learned, start=1):
        try:
            model = head_model(Head(lookup, scale, chain.output), chain.segments[index].output, chain.output)
            models.append((index, lookup.name, model))
        except BackboneError as error:
            notes[index].append(str(error))
        progress("Write heads", done / len(learned))
    return models


def _check_outputs(outputs: np.ndarray, numbers: bool) -> None:
    """Refuses samples that there is nothing to learn from.

    Raises:
        SamplesError: If the backbone gives all of them the same output, or the same answer.
    """
    if (outputs == outputs[0]).all():
        raise SamplesError(
            f"The backbone gives the same output for all {len(outputs)} samples, whatever its input; check its export."
        )
    classes = np.unique(outputs.argmax(axis=1))
    if not numbers and len(classes) == 1:
        raise SamplesError(
            f"The backbone gives the same answer, class {classes[0]}, to all {len(outputs)} samples; give samples as "
            "varied as the traffic, or, if its output is numbers and no scores, --agreement 'within X'."
        )


def _passes(plan: Mapping[int, Sequence[Lookup]], chain: Chain, rows: int) -> Iterator[list[int]]:
    """Cut points whose features fit into memory together."""
    group: list[int] = []
    held, most = 0, FEATURES * memory()
    for index, found in plan.items():
        cut = chain.segments[index].output
        sizes = {lookup.view: _reducer(lookup)(cut.zeros(1)).size for lookup in found}
        need = rows * sum(size * (2 if size > LARGE else 4) for size in sizes.values())
        if group and held + need > most:
            yield group
            group, held = [], 0
        if found:
            group.append(index)
            held += need
    if group:
        yield group


def _reducer(lookup: Lookup) -> Reducer:
    def reduce(hidden: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return lookup.reduce(torch.from_numpy(hidden).float()).numpy()

    return reduce


def ask(
    chain: Chain,
    sessions: Sequence[ort.InferenceSession],
    heads: Sequence[Candidate],
    samples: Mapping[str, np.ndarray],
    rows: np.ndarray,
    progress: Progress,
    known: np.ndarray | None = None,
) -> Heard:
    """Runs the heads' own files on samples: what is certified is what will be served, rounding and all.

    Args:
        chain: The chain.
        sessions: Its segments.
        heads: The heads.
        samples: Model inputs by name, [n, ...].
        rows: Indices of the samples, in the order of traffic, which matters to heads with state.
        progress: Told how far it is.
        known: What the backbone says to these samples, [rows, classes]; it is then run no further than to the last
            head. None if that is not known.
    """
    asked = [_Asked(head, chain.segments[head.cut].output.name, chain.output.name) for head in heads]
    last = chain.backbone_exit if known is None else max(head.cut for head in heads)
    outputs = np.empty((len(rows), *chain.output.shape), chain.output.numpy) if known is None else known
    tell = lambda _, share: progress("Try heads", share)  # noqa: E731
    for batch, hidden in run_batches(chain, sessions, samples, rows, tell, last):
        if known is None:
            outputs[batch] = hidden[-1]
        for one, head in zip(asked, heads, strict=True):
            one.add(batch, hidden[head.cut], len(rows))
    return Heard([one.said(outputs) for one in asked], outputs)


class _Asked:
    """Collects what one head gives, batch by batch: of a head with state, what its front gives."""

    def __init__(self, head: Candidate, cut: str, output: str) -> None:
        self._parts: Parts | None = part(head.model, output) if has_state(head.model) else None
        self._session = open_session(self._parts.front if self._parts else head.model)
        self._names = list(self._parts.boundary) if self._parts else [output, SCORE]
        self._cut = cut
        self._output = output
        self._kept: dict[str, np.ndarray] = {}

    def add(self, batch: np.ndarray, hidden: np.ndarray, total: int) -> None:
        """Runs a batch of activations."""
        for name, value in zip(self._names, self._session.run(self._names, {self._cut: hidden}), strict=True):
            array = np.asarray(value)
            if name not in self._kept:
                self._kept[name] = np.empty((total, *array.shape[1:]), array.dtype)
            self._kept[name][batch] = array

    def said(self, outputs: np.ndarray) -> Said:
        """What it says to all rows."""
        if self._parts is None:
            return Said(finite_scores(self._kept[SCORE]), self._kept[self._output])
        rows = Rows(self._parts, self._kept, self._output)
        return Said(*rehearse(rows, outputs, REHEARSED), rows)
