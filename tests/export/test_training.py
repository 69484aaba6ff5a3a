"""Training: from a chain and unlabelled samples to certified heads, or to the reason why there are none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
from graphs import Graph

from gati.chain import Chain, Segment, Tensor, sha256_of
from gati.errors import BackboneError, SamplesError
from gati.session import open_session
from gati_export.activations import collect, open_segments
from gati_export.heads import threshold_of
from gati_export.samples import Split, fingerprint, split
from gati_export.training import train_heads

CLASSES, INPUTS, WIDTH = 4, 16, 1024
EPSILON, DELTA = 0.02, 0.05


class Trial(NamedTuple):
    chain: Chain
    paths: list[Path]


def quiet(_what: str, _share: float) -> None:
    pass


def samples(rows: int, seed: int) -> dict[str, np.ndarray]:
    """Points around a few centres: mostly easy to tell apart."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(size=(12, INPUTS)) * 3
    return {"x": (centres[random.integers(0, 12, rows)] + random.normal(size=(rows, INPUTS))).astype(np.float32)}


@pytest.fixture(scope="module")
def trial(tmp_path_factory) -> Trial:
    """Segments wide enough that a lookup is cheap beside them: each ends in a residual block of its own."""
    folder, paths, segments, name = tmp_path_factory.mktemp("chain"), [], [], "x"
    sizes = [(INPUTS, WIDTH), (WIDTH, WIDTH), (WIDTH, CLASSES)]
    outputs = [Tensor("early", "FP32", (WIDTH,)), Tensor("late", "FP32", (WIDTH,)), Tensor("y", "FP32", (CLASSES,))]
    for index, ((inner, outer), output) in enumerate(zip(sizes, outputs, strict=True)):
        graph = Graph(seed=index)
        hidden = graph.input(name, ["batch", inner])
        if inner == WIDTH:
            for _ in range(3):
                hidden = graph.node("Relu", graph.linear(hidden, WIDTH, WIDTH))
        hidden = graph.linear(hidden, inner, outer)
        graph.node("Relu" if outer == WIDTH else "Identity", hidden, name=output.name)
        path = graph.save(folder / f"{index}.onnx", output.name, shape=["batch", outer])
        paths.append(path)
        segments.append(Segment(index, (name,), output, sha256_of(path), (index + 1) / 3))
        name = output.name
    x = Tensor("x", "FP32", (INPUTS,))
    return Trial(Chain("m", "inline", (x,), outputs[-1], tuple(segments), EPSILON, DELTA, 16), paths)


@pytest.fixture(scope="module")
def trained(trial):
    told: dict[str, list[float]] = {}
    rows = samples(1600, 0)
    heads = train_heads(
        *trial, rows, split(rows), EPSILON, DELTA, lambda what, share: told.setdefault(what, []).append(share)
    )
    return heads, told, rows


def serve(trial: Trial, heads: dict[int, bytes], rows: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The chain's and the backbone's classes; -1 in the chain's where only the backbone answers."""
    hidden, answers = rows["x"], np.full(len(rows["x"]), -1)
    for segment, path in zip(trial.chain.segments, trial.paths, strict=True):
        session = open_session(path)
        hidden = np.asarray(session.run(None, {session.get_inputs()[0].name: hidden})[0])
        if segment.index in heads:
            answer, _, hit = open_session(heads[segment.index]).run(
                ["y", "score", "hit"], {segment.output.name: hidden}
            )
            answers = np.where(hit & (answers < 0), answer.argmax(axis=1), answers)
    return answers, hidden.argmax(axis=1)


def test_heads_are_certified_and_keep_their_promise_on_new_samples(trial, trained):
    heads, told, rows = trained
    assert heads.why_not is None and heads.heads and heads.speedup > 1
    certificate = heads.certificate
    assert certificate is not None and certificate.bound <= EPSILON
    assert certificate.fingerprint == fingerprint(rows, split(rows).calibrate)
    assert {threshold_of(model) for model in heads.heads.values()} == {certificate.threshold}
    assert [cut.index for cut in heads.cuts if cut.used] == sorted(heads.heads)
    assert sum(cut.hits for cut in heads.cuts) == pytest.approx(certificate.hits)
    assert all((cut.note is None) == cut.used and cut.agreement > 0.8 for cut in heads.cuts)
    assert len(heads.segment_seconds) == 3 and min(heads.segment_seconds) > 0
    json.dumps(heads.as_json())
    for shares in told.values():
        assert shares == sorted(shares) and shares[-1] == 1

    answers, truth = serve(trial, heads.heads, samples(3000, 1))
    assert (answers >= 0).mean() == pytest.approx(certificate.hits, abs=0.05)
    assert ((answers >= 0) & (answers != truth)).mean() <= EPSILON


def test_same_seed_gives_the_same_heads(trial, trained):
    heads, _, rows = trained
    again = train_heads(*trial, rows, split(rows), EPSILON, DELTA, quiet)
    assert [cut.agreement for cut in again.cuts] == [cut.agreement for cut in heads.cuts]
    common = heads.heads.keys() & again.heads.keys()  # which heads pay depends on measured times
    first, second = ([strip_threshold(each.heads[index]) for index in sorted(common)] for each in (heads, again))
    assert first == second


def strip_threshold(model: bytes) -> bytes:
    proto = onnx.ModelProto.FromString(model)
    kept = [tensor for tensor in proto.graph.initializer if tensor.name != "threshold"]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    return proto.SerializeToString(deterministic=True)


def test_too_few_samples_leave_a_chain_without_heads(trial):
    rows = samples(60, 0)
    heads = train_heads(*trial, rows, split(rows), EPSILON, DELTA, quiet)
    assert heads.heads == {} and heads.certificate is None and heads.speedup == 1
    assert "takes 149; give about 700" in (heads.why_not or "")
    assert len(heads.segment_seconds) == 3
    assert [cut.used for cut in heads.cuts] == [False, False]
    everything = np.arange(60)
    skewed = Split(everything[:5], everything[5:10], np.resize(everything, 200))
    assert "to learn from" in (train_heads(*trial, rows, skewed, EPSILON, DELTA, quiet).why_not or "")
    with pytest.raises(SamplesError, match="epsilon"):
        train_heads(*trial, rows, split(rows), 0.0, DELTA, quiet)


def test_a_backbone_that_could_not_be_cut_has_no_heads(trial, tmp_path):
    graph = Graph()
    graph.node("Identity", graph.linear(graph.input("x", ["batch", INPUTS]), INPUTS, CLASSES), name="y")
    path = graph.save(tmp_path / "0.onnx", "y")
    last = trial.chain.segments[-1]
    chain = replace(trial.chain, segments=(replace(last, index=0, inputs=("x",)),))
    rows = samples(800, 0)
    assert "could not be cut" in (train_heads(chain, [path], rows, split(rows), EPSILON, DELTA, quiet).why_not or "")


def test_answers_that_cannot_be_foreseen_give_no_heads(trial, tmp_path):
    graph = Graph()  # bits of the activations that no small network learns
    noise = graph.node("Sin", graph.node("Mul", graph.linear("late", WIDTH, CLASSES), graph.constant(1e4, np.float32)))
    graph.input("late", ["batch", WIDTH])
    graph.node("Identity", noise, name="y")
    path = graph.save(tmp_path / "2.onnx", "y")
    rows = samples(1000, 0)
    heads = train_heads(trial.chain, [*trial.paths[:2], path], rows, split(rows), EPSILON, DELTA, quiet)
    assert heads.heads == {} and heads.certificate is None and heads.why_not
    assert all(cut.agreement is not None and cut.note for cut in heads.cuts)


def test_samples_of_one_class_are_fine_and_earlier_heads_a_start(trial, trained):
    one = samples(1, 0)["x"] + np.random.default_rng(0).normal(size=(1000, INPUTS)).astype(np.float32) / 100
    heads = train_heads(*trial, {"x": one}, split({"x": one}), EPSILON, DELTA, quiet, seed=1, init=trained[0].heads)
    assert heads.certificate is not None and heads.certificate.hits > 0.9


def test_collect_keeps_order_and_runs_one_by_one_where_it_must(trial):
    rows = samples(50, 0)
    sizes: list[int] = []

    def first(hidden: np.ndarray) -> np.ndarray:
        sizes.append(len(hidden))
        return hidden[:, :3]

    picks = np.array([7, 3, 44, 3])
    sessions = open_segments(trial.paths)
    seen = collect(trial.chain, sessions, rows, {1: first}, quiet)
    assert set(sizes) == {16, 2} and seen.features[1].shape == (50, 3) and seen.outputs.shape == (50, CLASSES)
    sizes.clear()
    single = collect(replace(trial.chain, max_batch=1), sessions, rows, {1: first}, quiet, picks)
    assert sizes == [1] * 4
    np.testing.assert_allclose(single.features[1], seen.features[1][picks], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(single.outputs, seen.outputs[picks], rtol=1e-4, atol=1e-5)


def test_numbers_that_are_not_finite_are_named(trial):
    rows = samples(50, 0)
    rows["x"][[3, 40], 0] = np.inf
    with pytest.raises(SamplesError, match=r"2 of 50 samples .* cut point 0 \('early'\)"):
        collect(trial.chain, open_segments(trial.paths), rows, {}, quiet)
    with pytest.raises(SamplesError, match="no samples"):
        collect(trial.chain, open_segments(trial.paths), rows, {}, quiet, np.arange(0))


def test_damaged_segment_is_named(trial, tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"no")
    with pytest.raises(BackboneError, match="Segment 1"):
        open_segments([trial.paths[0], tmp_path / "bad.onnx"])
