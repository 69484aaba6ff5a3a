"""Replay: what is certified, row by row on samples, is what the orchestrator serves, request by request."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import Graph
from handmade import toy_release
from hypothesis import given, settings
from hypothesis import strategies as st
from lessons import fitted_to

from gati.inference.inline import InlineEngine
from gati.inference.session import open_session, run
from gati.inference.state import HeadState
from gati.promise.breaker import Breaker
from gati.repository.chain import Chain, Segment, Tensor, sha256_of
from gati.repository.release import HeadFile, head_path
from gati.serving.audits import Audit
from gati.serving.flight import Answer, Flight, Request, StageRun
from gati.serving.live import LiveRelease
from gati.serving.orchestrator import Orchestrator
from gati_export.certificates.splitting import Split
from gati_export.composition.latency import Measured, measure_segments
from gati_export.composition.replay import Rows, Said, finite_scores, has_state, part, rehearse, replay
from gati_export.families import adaptive
from gati_export.learning import candidates
from gati_export.learning.candidates import Candidate, ask, fit_candidates
from gati_export.learning.headfile import with_threshold
from gati_export.learning.task import Task
from gati_export.samples import activations
from gati_export.samples.activations import Activations, open_segments
from gati_export.terms import Terms

CLASSES, INPUTS, WIDTH, SAMPLES = 5, 8, 12, 300

TERMS = Terms()


def quiet(_what: str, _share: float) -> None:
    pass


def film(rows: int, seed: int) -> dict[str, np.ndarray]:
    """Frames of scenes, four at a time; in the second half of them, others are popular than in the first."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(size=(10, INPUTS))
    scenes = rows // 4
    popular = random.integers(0, 4, scenes) + 5 * (np.arange(scenes) > scenes // 2)
    scene = centres[popular] + 0.6 * random.normal(size=(scenes, INPUTS))
    frames = scene[np.arange(rows) // 4] + 0.05 * random.normal(size=(rows, INPUTS))
    return {"x": frames.astype(np.float32)}


@dataclass(frozen=True)
class Trial:
    """A chain in a repository, trained heads for it, and what each says to the samples."""

    repository: Path
    chain: Chain
    heads: list[Candidate]
    said: list[Said]
    samples: dict[str, np.ndarray]
    outputs: np.ndarray

    def place(self, name: str, cut: int) -> int:
        return next(i for i, head in enumerate(self.heads) if (head.name, head.cut) == (name, cut))


def build(folder: Path, kind: str) -> tuple[Chain, list[Path]]:
    names, width = ["x", "early", "late", "y"], [INPUTS, WIDTH, WIDTH, CLASSES]
    chain = Chain("m", "inline", (Tensor("x", "FP32", (INPUTS,)),), Tensor("y", "FP32", (CLASSES,)), (), 0.01, 0.05, 4)
    segments, paths = [], []
    for index in range(3):
        graph = Graph(seed=index)
        hidden = graph.linear(graph.input(names[index], ["batch", width[index]]), width[index], width[index + 1])
        if index == 2:
            hidden = graph.node("Mul", hidden, graph.constant(6, np.float32))
        graph.node("Tanh" if index < 2 else kind, hidden, name=names[index + 1])
        path = chain.segment_path(folder, index)
        path.parent.mkdir(parents=True)
        graph.save(path, names[index + 1], shape=["batch", width[index + 1]])
        output = Tensor(names[index + 1], "FP32", (width[index + 1],))
        segments.append(Segment(index, (names[index],), output, sha256_of(path), (index + 1) / 3))
        paths.append(path)
    return replace(chain, segments=tuple(segments)), paths


@pytest.fixture(scope="module", params=["Identity", "Softmax"])
def trial(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trial:
    folder = tmp_path_factory.mktemp("models")
    chain, paths = build(folder, request.param)
    rows = film(1600, 0)
    order = np.arange(1600)
    groups = order // 4
    split = Split(order[groups % 4 < 2], order[groups % 4 == 2], order[groups % 4 == 3], groups, order)
    sessions, times = open_segments(paths), Measured(measure_segments(chain, paths, rows), {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adaptive, "TELLING", -np.inf)
        found = fit_candidates(Task(chain, paths, rows, split, TERMS), sessions, ["pooled", "recent"], times, quiet)
    samples = film(SAMPLES, 1)
    said, outputs = ask(chain, sessions, found.heads, samples, np.arange(SAMPLES), quiet)
    return Trial(folder, chain, found.heads, said, samples, outputs)


def test_little_memory_takes_more_passes_and_gives_the_same_heads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain, paths = build(tmp_path, "Identity")
    rows, order = film(120, 0), np.arange(120)
    split = Split(order[:80], order[80:], order[:0], order, order)
    sessions, times = open_segments(paths), Measured(measure_segments(chain, paths, rows), {})
    collected: list[Activations] = []

    def collect(*arguments: Any) -> Activations:
        assert not any(earlier.features for earlier in collected), "of one pass at a time"
        collected.append(activations.collect(*arguments))
        return collected[-1]

    monkeypatch.setattr(candidates, "collect", collect)

    def fit(room: int) -> tuple[list[tuple[int, bytes]], int]:
        monkeypatch.setattr(candidates, "memory", lambda: room)
        collected.clear()
        found = fit_candidates(Task(chain, paths, rows, split, TERMS), sessions, ["pooled"], times, quiet)
        return [(head.cut, head.model) for head in found.heads], len(collected)

    (much, once), (little, twice) = fit(1 << 30), fit(0)
    assert (once, twice) == (1, 2)
    assert much == little


class Client:
    """Sends one request after another, and keeps the answers; told of nothing else."""

    def __init__(
        self, trial: Trial, places: Sequence[int], thresholds: Sequence[float], *, cascade: bool = False
    ) -> None:
        shutil.rmtree(trial.repository / trial.chain.head_model(0), ignore_errors=True)
        shutil.rmtree(trial.repository / trial.chain.head_model(1), ignore_errors=True)
        files = {}
        for place, threshold in zip(places, thresholds, strict=True):
            head = trial.heads[place]
            path = head_path(trial.repository, trial.chain, head.cut, 1)
            path.parent.mkdir(parents=True)
            path.write_bytes(fitted_to(trial.chain, with_threshold(head.model, threshold)))
            files[head.cut] = HeadFile(head.cut, sha256_of(path))
        engine = InlineEngine(trial.repository, trial.chain, warn=pytest.fail)
        heads, specs = engine.load_heads(replace(toy_release(trial.chain), heads=tuple(files.values())))
        states = {index: HeadState(spec.state) for index, spec in specs.items()}
        breaker = Breaker(0.01, 0.05, [*specs])
        live = LiveRelease(1, engine.load_stages([*specs]), heads, states, breaker)
        if cascade:
            live = replace(live, stages=(), shortcuts=heads.load_shortcuts())
        self.orchestrator = Orchestrator(trial.chain, lambda: live, self, lambda _: None)
        self.answers: list[Answer] = []

    def timed(self, runs: Sequence[StageRun]) -> None: ...

    def head_failed(self, index: int, error: Exception) -> None:
        raise error

    def joined_failed(self, error: Exception) -> None:
        raise error

    def served(self, flight: Flight) -> None: ...

    def audited(self, audit: Audit, outputs: np.ndarray, agreed: np.ndarray) -> None:
        raise AssertionError("nothing is audited at a share of 0")

    def send(self, row: np.ndarray) -> None:
        def reply(answer: object, _: bool) -> None:
            assert isinstance(answer, Answer)
            self.answers.append(answer)

        self.orchestrator.serve([Request({"x": row[None]}, exact=False, reply=reply)])


CHAINS = {
    "memory": [("recent", 0)],
    "mix": [("pooled+mix", 1)],
    "memory_then_mix": [("recent", 0), ("pooled+mix", 1)],
    "mix_then_memory": [("pooled+mix", 0), ("recent", 1)],
    "two_memories": [("recent", 0), ("recent", 1)],
    "memory_behind_a_plain_head": [("pooled", 0), ("recent", 1)],
    "memory_before_a_plain_head": [("recent", 0), ("pooled", 1)],
    "no_state": [("pooled", 0), ("pooled", 1)],
}


@pytest.mark.parametrize("heads", CHAINS.values(), ids=CHAINS)
@pytest.mark.parametrize("quantile", [0.2, 0.7])
@pytest.mark.parametrize("cascade", [False, True], ids=["stage by stage", "cascade"])
def test_replay_is_what_the_orchestrator_serves(
    trial: Trial, heads: list[tuple[str, int]], quantile: float, cascade: bool
) -> None:
    places = [trial.place(*head) for head in heads]
    said = [trial.said[place] for place in places]
    later = np.arange(len(said)) + 1  # heads that judge alike leave nothing to one that asks for as much
    thresholds = [float(np.quantile(one.scores, share)) for one, share in zip(said, quantile / later, strict=True)]
    exits, served = replay(said, thresholds, trial.outputs)
    client = Client(trial, places, thresholds, cascade=cascade)
    for row in trial.samples["x"]:
        client.send(row)

    cuts = np.array([*(cut for _, cut in heads), len(trial.chain.heads)])
    np.testing.assert_array_equal([answer.exit[0, 0] for answer in client.answers], cuts[exits])
    answered = np.concatenate([answer.output for answer in client.answers])
    np.testing.assert_allclose(answered, served, rtol=1e-4, atol=1e-5)
    counts = np.bincount(exits, minlength=len(cuts))
    assert (counts > 5).all(), f"a trivial replay proves nothing: {counts}"
    again, _ = replay(said, thresholds, trial.outputs)
    np.testing.assert_array_equal(again, exits)  # nothing is left of the replay before


def test_a_replay_is_none_of_independent_heads(trial: Trial) -> None:
    """What a head with state says depends on who answered before: scores of a head alone would not do."""
    said = [trial.said[trial.place("pooled", 0)], trial.said[trial.place("recent", 1)]]
    thresholds = [float(np.quantile(one.scores, 0.5)) for one in said]
    exits, _ = replay(said, thresholds, trial.outputs)
    alone = [Said(one.scores, one.answers) for one in said]
    assert (replay(alone, thresholds, trial.outputs)[0] != exits).any()


def whole(model: bytes, rows: np.ndarray, cut: str, state: dict[str, np.ndarray]) -> list[np.ndarray]:
    return run(open_session(model), ["y", "score"], {cut: rows, **state})


@pytest.mark.parametrize(("name", "cut"), [("recent", 0), ("pooled+mix", 1)])
def test_front_and_back_are_the_whole_head(trial: Trial, name: str, cut: int) -> None:
    model = trial.heads[trial.place(name, cut)].model
    tensor = trial.chain.segments[cut].output.name
    hidden = np.random.default_rng(0).uniform(-1, 1, (40, WIDTH)).astype(np.float32)
    hidden[7, 3] = np.nan
    parts = part(model, "y")
    assert has_state(model) and not has_state(parts.front)
    assert parts.key == ("key" if name == "recent" else None)
    front = dict(zip(parts.boundary, run(open_session(parts.front), parts.boundary, {tensor: hidden}), strict=True))
    assert all(len(value) == 40 for value in front.values())
    rows = Rows(parts, front, "y")
    random = np.random.default_rng(1)
    for row in range(40):
        answer, score = rows.ask(row)
        expected, how_sure = whole(model, hidden[row : row + 1], tensor, rows.state.feeds())
        np.testing.assert_allclose(answer, expected[0], rtol=1e-5, atol=1e-6)
        assert score == pytest.approx(finite_scores(how_sure)[0], abs=1e-5)
        said = random.dirichlet(np.ones(CLASSES), 1).astype(np.float32)
        rows.state.count(said)
        key = rows.key(row)
        assert (key is None) == (name != "recent")
        if key is not None:
            known = run(open_session(model), ["key"], {tensor: hidden[row : row + 1], **rows.state.feeds()})[0]
            np.testing.assert_allclose(key, known, atol=1e-5)
            rows.state.remember(key, said)
    assert rows.ask(7)[1] == -1
    rows.restart()
    assert all((value == HeadState(parts.state).feeds()[key]).all() for key, value in rows.state.feeds().items())


def test_a_head_without_state_is_not_cut(trial: Trial) -> None:
    place = trial.place("pooled", 0)
    assert not has_state(trial.heads[place].model)
    assert trial.said[place].rows is None and trial.said[trial.place("recent", 0)].rows is not None


def test_rehearsal_is_a_replay_of_one_head(trial: Trial) -> None:
    for name, cut in (("recent", 0), ("pooled+mix", 1)):
        rows = trial.said[trial.place(name, cut)].rows
        assert rows is not None
        scores, answers = rehearse(rows, trial.outputs, 0.7)
        exits, served = replay([Said(scores, answers, rows)], [0.7], trial.outputs)
        hit = scores >= np.float32(0.7)
        np.testing.assert_array_equal(exits == 0, hit)
        np.testing.assert_array_equal(served, np.where(hit[:, None], answers, trial.outputs))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 3), st.integers(1, 20))
def test_without_state_the_first_sure_head_answers(seed: int, heads: int, rows: int) -> None:
    random = np.random.default_rng(seed)
    outputs = random.normal(size=(rows, 3)).astype(np.float32)
    said = [
        Said(random.choice(np.linspace(-0.25, 1, 6), rows).astype(np.float32), random.normal(size=(rows, 3)))
        for _ in range(heads)
    ]
    thresholds = random.choice(np.linspace(0, 1.25, 6), heads)
    exits, served = replay(said, thresholds.tolist(), outputs)
    for row in range(rows):
        sure = [place for place in range(heads) if said[place].scores[row] >= np.float32(thresholds[place])]
        assert exits[row] == (sure[0] if sure else heads)
        expected = said[sure[0]].answers[row] if sure else outputs[row]
        np.testing.assert_allclose(served[row], expected, rtol=1e-6)
