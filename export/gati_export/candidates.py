"""Candidates: a head for every cut point, fitted and measured, and what those heads say about samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
import torch

from gati.chain import Chain
from gati.errors import BackboneError
from gati.session import open_session
from gati_export.activations import Progress, Reducer, collect
from gati_export.distillation import Scale, distil, one_thread
from gati_export.heads import Head, head_model, weights_of
from gati_export.latency import measure
from gati_export.predictor import PooledPredictor, Predictor
from gati_export.samples import Split
from gati_export.selector import Selector, fit_selector


@dataclass
class Candidates:
    """A head for every cut point that could get one, and what they cost.

    Attributes:
        models: Their ONNX files by cut point, with thresholds that no score reaches.
        notes: Why other cut points have none, in one sentence each.
        segment_seconds: Time of each segment at batch 1.
        head_seconds: Time of a lookup at each cut point; infinite where there is no head.
    """

    models: dict[int, bytes]
    notes: dict[int, str]
    segment_seconds: np.ndarray
    head_seconds: np.ndarray


@dataclass
class Answers:
    """What heads said about n samples.

    Attributes:
        scores: Float32 [cut points, n]; -1 where there is no head.
        agree: Whether the answer was the backbone's, bool [cut points, n].
    """

    scores: np.ndarray
    agree: np.ndarray

    def __getitem__(self, rows: slice) -> Answers:
        return Answers(self.scores[:, rows], self.agree[:, rows])


def fit_candidates(
    chain: Chain,
    sessions: Sequence[ort.InferenceSession],
    samples: Mapping[str, np.ndarray],
    split: Split,
    progress: Progress,
    seed: int,
    init: Mapping[int, bytes],
) -> Candidates:
    """Fits a head at every cut point, predictors on `train` and selectors on every other row of `tune`; measures them.

    Raises:
        SamplesError: If activations or outputs are not finite.
    """
    predictors, notes = _predictors(chain)
    rows = np.concatenate([split.train, split.tune[::2]])
    models: dict[int, bytes] = {}
    with one_thread():
        seen = collect(chain, sessions, samples, {k: _reducer(p) for k, p in predictors.items()}, progress, rows)
        scale = Scale.of(seen.outputs[: len(split.train)])
        targets = scale.logits(seen.outputs)
        for done, (index, predictor) in enumerate(predictors.items()):
            progress("Train heads", done / len(predictors))
            features = seen.features.pop(index)  # tens of MB that nobody needs afterwards
            start = weights_of(init[index]) if index in init else None
            selector = _fit(predictor, features, targets, len(split.train), seed * 1000 + index, start)
            head = Head(predictor, selector, scale, chain.output)
            try:
                models[index] = head_model(head, chain.segments[index].output, chain.output)
            except BackboneError as error:
                notes[index] = str(error)
        progress("Train heads", 1.0)
    return Candidates(models, notes, *measure_chain(chain, sessions, models, samples))


def _predictors(chain: Chain) -> tuple[dict[int, Predictor], dict[int, str]]:
    """A predictor for every cut point that can have one; why not, for the others."""
    predictors: dict[int, Predictor] = {}
    notes: dict[int, str] = {}
    for index in chain.heads:
        try:
            predictors[index] = PooledPredictor(chain.segments[index].output, chain.classes)
        except BackboneError as error:
            notes[index] = str(error)
    return predictors, notes


def _fit(
    predictor: Predictor,
    features: np.ndarray,
    targets: torch.Tensor,
    count: int,
    seed: int,
    start: Mapping[str, torch.Tensor] | None,
) -> Selector:
    """Trains a predictor on the first `count` rows, and fits its selector on the others."""
    distil(predictor, features[:count], targets[:count], seed, start)
    with torch.no_grad():
        logits = predictor(torch.from_numpy(features[count:]))
    return fit_selector(logits, (logits.argmax(1) == targets[count:].argmax(1)).numpy())


def _reducer(predictor: Predictor) -> Reducer:
    def reduce(hidden: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return predictor.reduce(torch.from_numpy(hidden).float()).numpy()

    return reduce


def measure_chain(
    chain: Chain,
    sessions: Sequence[ort.InferenceSession],
    models: Mapping[int, bytes],
    samples: Mapping[str, np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of each segment, and of a lookup at each cut point (infinite without a head), at batch 1."""
    values = {tensor.name: samples[tensor.name][:1] for tensor in chain.inputs}
    turns: list[tuple[ort.InferenceSession, dict[str, np.ndarray]]] = []
    for segment, session in zip(chain.segments, sessions, strict=True):
        turns.append((session, {name: values[name] for name in segment.inputs}))
        hidden = np.asarray(session.run([segment.output.name], turns[-1][1])[0])
        values[segment.output.name] = hidden
        if segment.index in models:  # right behind its segment, with the caches as it will find them
            turns.append((open_session(models[segment.index]), {segment.output.name: hidden}))
    seconds = iter(measure([session for session, _ in turns], [feeds for _, feeds in turns]))
    segment_seconds = np.empty(len(chain.segments))
    head_seconds = np.full(len(chain.heads), np.inf)
    for segment in chain.segments:
        segment_seconds[segment.index] = next(seconds)
        if segment.index in models:
            head_seconds[segment.index] = next(seconds)
    return segment_seconds, head_seconds


def ask(
    chain: Chain,
    sessions: Sequence[ort.InferenceSession],
    models: Mapping[int, bytes],
    samples: Mapping[str, np.ndarray],
    rows: np.ndarray,
    progress: Progress,
) -> Answers:
    """Runs the heads' own files on samples: what is certified is what will be served, rounding and all."""
    reducers = {k: _lookup(open_session(model), chain.segments[k].output.name) for k, model in models.items()}
    seen = collect(chain, sessions, samples, reducers, lambda _, share: progress("Try heads", share), rows)
    scores = np.full((len(chain.heads), len(rows)), -1, np.float32)
    agree = np.zeros(scores.shape, bool)
    for index, said in seen.features.items():
        scores[index] = said[:, 0]
        agree[index] = said[:, 1] == seen.outputs.argmax(axis=1)
    return Answers(scores, agree)


def _lookup(session: ort.InferenceSession, cut: str) -> Reducer:
    def look_up(hidden: np.ndarray) -> np.ndarray:
        answer, score, _ = session.run(None, {cut: hidden})
        return np.stack([np.asarray(score), np.asarray(answer).argmax(axis=1)], axis=1)

    return look_up
