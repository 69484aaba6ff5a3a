"""Training: from a chain and unlabelled samples to certified heads, or to the reason why there are none."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from graphs import Graph
from lessons import threshold_of

from gati.errors import AgreementError, BackboneError, SamplesError
from gati.inference.session import open_session
from gati.recording.content import inputs_of
from gati.repository.chain import Chain, Segment, Tensor, sha256_of
from gati.repository.release import Window
from gati_export.certificates.runs import find_runs
from gati_export.certificates.splitting import Split, fingerprint, split
from gati_export.certificates.train_samples import with_train_samples
from gati_export.families.family import Found, Lesson, Lookup
from gati_export.learning import lessons, training
from gati_export.learning.candidates import Candidate, ask
from gati_export.learning.evidence import measured_in, report_of
from gati_export.learning.lessons import Lessons
from gati_export.learning.task import Earlier, Task
from gati_export.learning.trained import Certified, Judged, NoHeads, Trained
from gati_export.learning.training import decide, train_heads
from gati_export.refreshing.standing import Live, judge
from gati_export.refreshing.trial import without_broken
from gati_export.samples.activations import collect, open_segments, run_batches
from gati_export.samples.ragged import count
from gati_export.samples.store import Recorded
from gati_export.terms import Terms

CLASSES, INPUTS, WIDTH = 4, 16, 1024
EPSILON, DELTA = 0.02, 0.05
TERMS = Terms(EPSILON, DELTA)


class Trial(NamedTuple):
    chain: Chain
    paths: list[Path]


def task(trial: Trial, rows: dict[str, np.ndarray], parts: Split | None = None, terms: Terms = TERMS) -> Task:
    return Task(*trial, rows, parts or split(rows), terms)


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
    heads = train_heads(task(trial, rows), lambda what, share: told.setdefault(what, []).append(share))
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
    assert isinstance(heads, Certified) and heads.heads and heads.seconds < heads.candidates.times.plain
    certificate = heads.certificate
    assert certificate.bound <= EPSILON
    assert certificate.fingerprint == fingerprint(rows, split(rows).calibrate)
    assert certificate.thresholds == {
        cut: pytest.approx(threshold_of(model), rel=1e-6) for cut, model in heads.heads.items()
    }
    assert {head.cut for head in heads.judged.chosen} == set(heads.heads)
    assert sum(heads.exits) == pytest.approx(1) and sum(heads.exits[:-1]) == pytest.approx(certificate.hits)
    assert {cut for cut in trial.chain.heads if heads.exits[cut]} <= set(heads.heads)  # one for few may meet none
    judged = heads.judged
    assert len(judged.said) == len(judged.agrees) == len(judged.candidates.heads) == len(judged.choice.reasons)
    assert all(len(agree) == certificate.n and agree.mean() > 0.8 for agree in judged.agrees)
    assert all("no image" in notes[0] for notes in heads.candidates.notes.values())  # the spatial family's
    assert len(heads.candidates.times.segments) == 3 and min(heads.candidates.times.segments) > 0
    for shares in told.values():  # each pass rises to 1
        assert shares[-1] == 1
        assert all(later >= earlier or earlier == 1 for earlier, later in pairwise(shares))

    answers, truth = serve(trial, heads.heads, samples(3000, 1))
    assert (answers >= 0).mean() == pytest.approx(certificate.hits, abs=0.05)
    assert ((answers >= 0) & (answers != truth)).mean() <= EPSILON


def test_same_seed_and_known_times_give_the_same_choice(trial, trained):
    heads, _, rows = trained
    known = measured_in(report_of(trial.chain, heads, TERMS, None, 1))
    assert known is not None
    again = train_heads(task(trial, rows), quiet, known=known)
    first, second = ([(h.cut, h.name, h.model, h.seconds) for h in one.candidates.heads] for one in (heads, again))
    assert first == second
    assert again.candidates.times.segments == pytest.approx(heads.candidates.times.segments)
    assert again.heads == heads.heads and again.seconds == pytest.approx(heads.seconds)


def live(trained: Certified, **changes: Any) -> Live:
    """What was trained, as the release that serves."""
    return replace(Live(1, trained.heads, trained.certificate.thresholds, None), **changes)


def gone_on(trial: Trial, heads: Certified, rows: dict[str, np.ndarray]) -> Judged:
    """What was trained, as if training had gone on from these same heads."""
    earlier = [Candidate(cut, "", model, 0.0) for cut, model in heads.heads.items()]
    said, outputs = ask(trial.chain, open_segments(trial.paths), earlier, rows, split(rows).calibrate, quiet)
    return replace(heads.judged, outputs=outputs, earlier=dict(zip(heads.heads, said, strict=True)))


def test_the_live_release_is_judged_by_samples_that_nothing_learned_from(trial, trained):
    heads, _, rows = trained
    parts = split(rows)
    args = task(trial, rows, parts), gone_on(trial, heads, rows), heads.within
    itself = judge(live(heads, report=report_of(trial.chain, heads, TERMS, None, 1)), *args)
    assert itself.seconds == pytest.approx(heads.seconds)
    assert itself.differs == pytest.approx(heads.certificate.errors / heads.certificate.n)
    assert not itself.broken and not itself.lapsed
    guessing = judge(live(heads, thresholds=dict.fromkeys(heads.heads, -np.inf)), *args)
    assert guessing.seconds < itself.seconds and guessing.differs > EPSILON and guessing.broken
    assert guessing.lapsed


def test_exits_that_audits_have_closed_save_the_live_release_no_time(trial, trained):
    heads, _, rows = trained
    args = task(trial, rows), gone_on(trial, heads, rows), heads.within
    known = report_of(trial.chain, heads, TERMS, None, 1)
    used = sorted(heads.heads)
    whole, less, shut = (judge(live(heads, report=known, closed=shut), *args) for shut in ([], used[-1:], used))
    assert whole.seconds < shut.seconds and less.seconds != whole.seconds
    assert shut.seconds == pytest.approx(heads.candidates.times.plain)
    assert shut.differs == 0 and not shut.broken


def test_scenes_count_once_in_judging_the_live_release(trial, trained):
    heads, _, rows = trained
    guessing = live(heads, thresholds=dict.fromkeys(heads.heads, -np.inf))
    parts = split(rows)
    one_scene = replace(parts, groups=np.zeros_like(parts.groups))
    assert not judge(guessing, task(trial, rows, one_scene), gone_on(trial, heads, rows), heads.within).broken


def test_samples_that_may_have_trained_the_live_release_do_not_speak_for_it(trial, trained):
    heads, _, rows = trained
    parts, n = split(rows), len(rows["x"])
    times = np.datetime64("2026-01-01T00:00:00", "us") + np.arange(n) * np.timedelta64(1, "s")
    gone = gone_on(trial, heads, rows)
    guessing = live(heads, thresholds=dict.fromkeys(heads.heads, -np.inf), parts=parts.way)

    def differs(last: int | None, way: str = "") -> float:
        until = None if last is None else times[last].astype("datetime64[s]")
        these = task(trial, rows, replace(parts, way=way))
        return judge(replace(guessing, until=until), these, gone, heads.within, times).differs

    wrong = np.zeros(n, bool)
    wrong[parts.calibrate] = served_wrong(heads, gone)
    everything = differs(None)
    assert everything == pytest.approx(wrong[parts.calibrate].mean())
    late = parts.calibrate[parts.calibrate > n // 3]
    assert differs(n // 3) == pytest.approx(wrong[late].mean()) != pytest.approx(everything)
    assert differs(n - 9) == everything, "too few came later to tell"
    assert differs(n // 3, parts.way) == everything, "what trained it does not calibrate"


def served_wrong(heads: Certified, gone: Judged) -> np.ndarray:
    """Where the first head answers otherwise than the backbone does, of the samples that calibrate."""
    first = gone.earlier[min(heads.heads)]
    return first.answers.argmax(axis=1) != gone.outputs.argmax(axis=1)


def test_inputs_that_are_asked_again_and_again_hinder_no_certificate(trial):
    popular = 1 / np.arange(1, 3001)
    asked = np.random.default_rng(0).choice(3000, 3000, p=popular / popular.sum())
    rows = {"x": samples(3000, 0)["x"][asked]}
    parts = split(rows)
    assert np.bincount(asked).max() > 0.1 * len(asked) and (parts.fresh.turns == 1).mean() < 0.5
    heads = train_heads(task(trial, rows, parts), quiet)
    assert isinstance(heads, Certified)
    assert f"all {len(parts.calibrate)} samples and for inputs that no training has seen" in heads.certificate.method
    chain, backbone = serve(trial, heads.heads, samples(1000, 2))
    answered = chain >= 0
    assert answered.mean() > 0.3 and (answered & (chain != backbone)).mean() <= EPSILON


def test_too_few_samples_leave_a_chain_without_heads(trial):
    rows = samples(60, 0)
    heads = train_heads(task(trial, rows), quiet)
    assert "of 60 that differ" in heads.why and "takes 149; give about" in heads.why
    assert heads.candidates.heads == [] and heads.judged is None
    report = report_of(trial.chain, heads, TERMS, None, 1)
    assert report.speedup == 1 and report.exits == (0, 0, 1) and report.why_not == heads.why
    every = np.arange(210)
    skewed = Split(every[:5], every[5:10], every[10:], every, every)
    assert "to learn from" in train_heads(task(trial, rows, skewed), quiet).why
    with pytest.raises(SamplesError, match="epsilon"):
        train_heads(task(trial, rows, terms=replace(TERMS, epsilon=0.0)), quiet)
    with pytest.raises(AgreementError, match=f"Any answer meets top-9 of {CLASSES}"):
        train_heads(task(trial, rows, terms=replace(TERMS, agreement="top-9")), quiet)


def test_a_backbone_that_could_not_be_cut_has_no_heads(trial, tmp_path):
    graph = Graph()
    graph.node("Identity", graph.linear(graph.input("x", ["batch", INPUTS]), INPUTS, CLASSES), name="y")
    path = graph.save(tmp_path / "0.onnx", "y")
    last = trial.chain.segments[-1]
    chain = replace(trial.chain, segments=(replace(last, index=0, inputs=("x",)),))
    rows = samples(800, 0)
    assert "could not be cut" in train_heads(task(Trial(chain, [path]), rows), quiet).why


def ending_in(trial: Trial, folder: Path, graph: Graph, last: str) -> Trial:
    """The trial, with another last one: a graph from `late` to a node."""
    graph.input("late", ["batch", WIDTH])
    graph.node("Identity", last, name="y")
    return trial._replace(paths=[*trial.paths[:2], graph.save(folder / "2.onnx", "y")])


def test_answers_that_cannot_be_foreseen_give_no_heads(trial, tmp_path):
    graph = Graph()  # bits of the activations that no small network learns
    noise = graph.node("Sin", graph.node("Mul", graph.linear("late", WIDTH, CLASSES), graph.constant(1e4, np.float32)))
    rows = samples(1000, 0)
    heads = train_heads(task(ending_in(trial, tmp_path, graph, noise), rows), quiet)
    assert isinstance(heads, NoHeads) and heads.why and heads.candidates.heads
    report = report_of(trial.chain, heads, TERMS, None, 1)
    assert report.certificate is None and report.speedup == 1 and report.exits == (0, 0, 1)


def test_samples_that_teach_nothing_are_refused(trial, tmp_path):
    one = {"x": samples(1, 0)["x"] + np.random.default_rng(0).normal(size=(1000, INPUTS)).astype(np.float32) / 100}
    with pytest.raises(SamplesError, match=r"same answer, class \d, to all \d+ samples; give"):
        train_heads(task(trial, one), quiet)
    graph, rows = Graph(), samples(1000, 0)
    nothing = graph.node("Mul", graph.linear("late", WIDTH, CLASSES), graph.constant(0, np.float32))
    constant = graph.node("Add", nothing, graph.constant(np.arange(CLASSES), np.float32))
    with pytest.raises(SamplesError, match="same output for all"):
        train_heads(task(ending_in(trial, tmp_path, graph, constant), rows), quiet)


@pytest.mark.parametrize("number", [20, 1000], ids=["too-few", "enough"])
def test_a_network_that_gives_no_numbers_is_refused(trial, tmp_path, number):
    graph, rows = Graph(), samples(number, 0)
    broken = graph.node("Log", graph.node("Neg", graph.node("Abs", graph.linear("late", WIDTH, CLASSES))))
    with pytest.raises(SamplesError, match=r"(\d+) of \1 samples .*in the backbone's output"):
        train_heads(task(ending_in(trial, tmp_path, graph, broken), rows), quiet)


def test_recorded_samples_that_the_network_breaks_on_are_left_out(trial):
    """One request in a window would end all learning else: a hit is recorded before anybody knows."""
    rows = samples(700, 6)["x"]
    broken = np.insert(rows, [0, 300, 700], np.float32(3e38), axis=0)
    window = Window("store", len(broken), "", "")
    recorded = Recorded(inputs_of(trial.chain), {"x": broken}, np.arange(len(broken)), window, "")
    terms, seen = replace(TERMS, families="pooled"), []

    def use(some: Recorded):
        seen.append(some.window.samples)
        return train_heads(task(trial, some.samples, terms=terms), quiet)

    left, heads = without_broken(recorded, use)
    np.testing.assert_array_equal(left.samples["x"], rows)
    assert heads.heads and seen[0] == 703 and seen[-1] == left.window.samples == 700
    with pytest.raises(SamplesError, match="NaN or infinite numbers"):
        without_broken(replace(recorded, samples={"x": broken[:1]}, window=replace(window, samples=1)), use_all(trial))


def use_all(trial: Trial):
    """Runs samples through the network."""
    sessions = open_segments(trial.paths)
    return lambda some: list(run_batches(trial.chain, sessions, some.samples, np.arange(count(some.samples)), quiet))


def test_earlier_heads_are_a_start(trial, trained):
    rows = samples(700, 3)
    parts = split(rows)
    few = replace(parts, train=parts.train[:40])
    terms = replace(TERMS, epsilon=0.1, families="pooled")
    cold, warm = (
        train_heads(task(trial, rows, few, terms), quiet, earlier=Earlier(heads)) for heads in ({}, trained[0].heads)
    )
    for place, head in enumerate(warm.candidates.heads):
        before, after = cold.judged.agrees[place], warm.judged.agrees[place]
        assert after.mean() > before.mean() + 0.05 if head.cut in trained[0].heads else (after == before).all()
    assert cold.judged.earlier == {} and set(warm.judged.earlier) == set(trained[0].heads)
    assert all(said.answers.shape == warm.judged.outputs.shape for said in warm.judged.earlier.values())


def test_a_memory_is_tried_and_heads_begin_anew_where_samples_come_in_runs(trial, monkeypatch):
    tried, begun = [], []

    def fit(_task, _sessions, families, _measured, _progress, start):
        tried.append(families)
        begun.append(start)
        raise SamplesError("That is enough.")

    monkeypatch.setattr(training, "fit_candidates", fit)
    scenes, random = samples(100, 4)["x"], np.random.default_rng(0)
    frames = np.repeat(scenes, 5, axis=0) + 0.03 * random.normal(size=(500, INPUTS)).astype(np.float32)
    film, others = {"x": frames}, samples(3000, 5)
    in_runs = split(film, find_runs(film))
    mixed = with_train_samples(film, in_runs, others)  # extra samples, and views, are no runs
    copies = {"x": np.tile(others["x"], (3, 1))}
    together, dealt_out = (split(copies, terms=Terms(epsilon=epsilon)) for epsilon in (0.5, 0.001))
    assert len(np.unique(together.groups)) == 3000 and len(np.unique(dealt_out.groups)) == 9000
    given = (film, in_runs), mixed, (others, split(others, find_runs(others))), (copies, together), (copies, dealt_out)
    for rows, parts in given:
        with pytest.raises(SamplesError, match="enough"):
            train_heads(task(trial, rows, parts, replace(TERMS, epsilon=0.5)), quiet, earlier=Earlier({1: b"live"}))
    assert [("recent" in families) for families in tried] == [True, True, False, True, True]
    assert begun == [{}, {}, *[{1: b"live"}] * 3], "copies go to the same part whenever they are seen"


TOLERANCE = 0.1


def test_numbers_are_kept_within_their_tolerance(trial):
    rows = samples(1600, 0)
    heads = train_heads(task(trial, rows, terms=replace(TERMS, agreement=f"within {TOLERANCE}")), quiet)
    assert isinstance(heads, Certified), heads.why
    assert set(heads.families.values()) == {"regression-pooled"}
    fresh, hits = samples(2000, 1), 0
    hidden, served = fresh["x"], np.full((2000, CLASSES), np.nan, np.float32)
    for segment, path in zip(trial.chain.segments, trial.paths, strict=True):
        hidden = np.asarray(open_session(path).run(None, {segment.inputs[0]: hidden})[0])
        if segment.index in heads.heads:
            head = open_session(heads.heads[segment.index])
            answer, hit = map(np.asarray, head.run(["y", "hit"], {segment.output.name: hidden}))
            take = hit & np.isnan(served).any(1)
            served[take], hits = answer[take], hits + take.sum()
    off = np.abs(served - hidden)[~np.isnan(served).any(1)].max(1)
    assert hits > 200
    assert (off > TOLERANCE).sum() <= EPSILON * 2000
    assert np.abs(hidden - hidden.mean(0)).max(1).mean() > TOLERANCE  # no constant answer would do


def test_budgets_are_kept(trial, trained):
    heads, _, rows = trained
    parts, sessions = split(rows), open_segments(trial.paths)
    tuned, held_out = (
        ask(trial.chain, sessions, heads.candidates.heads, rows, part, quiet) for part in (parts.tune, parts.calibrate)
    )

    def under(**budget: float) -> Trained:
        terms = replace(TERMS, **budget)
        return decide(task(trial, rows, parts, terms), heads.candidates, tuned, held_out)

    slow = replace(heads.candidates, heads=[replace(head, seconds=1.0) for head in heads.candidates.heads])
    never = decide(task(trial, rows, parts), slow, tuned, held_out)
    assert re.search(r"even if 5% .* network takes \d+ µs, and the quickest lookup 1000000\.", never.why)
    none = under(memory=100)
    least = min(len(head.model) for head in heads.candidates.heads)
    assert none.why == f"No head fits into the 100 bytes that are allowed: the smallest takes {least:,}."
    alone = re.compile(r"It would take \d+ bytes, and 100 are allowed\.")
    assert all(alone.fullmatch(why) for why in none.judged.choice.reasons.values())
    size = len(heads.candidates.heads[0].model)
    assert len(under(memory=size).heads) == 1
    assert sum(len(model) for model in under(memory=2 * size).heads.values()) <= 2 * size
    with pytest.raises(BackboneError, match="the backbone alone"):
        under(p99=1e-7)
    times = heads.candidates.times
    used = [(head.cut, head.seconds) for head in heads.judged.chosen]
    slowest = times.until_exits(used)[-1]  # without any hit, with a tenth of what that takes for lookups
    tight = under(p99=times.plain + 0.1 * (slowest - times.plain))
    assert isinstance(tight, NoHeads), "thresholds that are safe hit less than those that were composed"


def test_collect_keeps_order_and_runs_one_by_one_where_it_must(trial):
    rows = samples(50, 0)
    sizes: list[int] = []

    def first(hidden: np.ndarray) -> np.ndarray:
        sizes.append(len(hidden))
        return hidden[:, :3]

    picks = np.array([7, 3, 44, 3])
    sessions = open_segments(trial.paths)
    seen = collect(trial.chain, sessions, rows, {(1, "first"): first}, quiet)
    assert set(sizes) == {16, 2} and seen.features[1, "first"].shape == (50, 3) and seen.outputs.shape == (50, CLASSES)
    sizes.clear()
    single = collect(replace(trial.chain, max_batch=1), sessions, rows, {(1, "first"): first}, quiet, picks)
    assert sizes == [1] * 4
    np.testing.assert_allclose(single.features[1, "first"], seen.features[1, "first"][picks], rtol=1e-4, atol=1e-5)
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


class Slow(Lookup):
    """A lookup that learns in so many steps, and may fail at the third."""

    def __init__(self, steps: int, fails: bool = False) -> None:
        super().__init__()
        self.name, self.view, self.steps, self.fails, self.taken = "slow", "all", steps, fails, 0

    def learn(self, train: Lesson, *_: object) -> None:
        for step in range(self.steps):
            self.taken = step
            train.tell(step / self.steps)
            if self.fails and step == 2:
                raise BackboneError("It can't be learned.")
            time.sleep(0.01)

    def forward(self, features: torch.Tensor, _state: object) -> Found:
        return Found(features.new_zeros(len(features), 2), features.new_zeros(len(features)))


def learning(*lookups: Slow, tell: Callable[[float], None] = lambda _: None) -> list[tuple[int, Lookup]]:
    few = np.arange(2)
    training = Lessons(few, few, few, 0, {(0, "all"): np.zeros((4, 1))}, torch.zeros(4, 2))
    return training.train_all([(0, lookup) for lookup in lookups], {}, tell)


def test_how_far_heads_have_learned_is_told_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lessons, "TELL_SECONDS", 0.02)
    told, lookups = list[float](), [Slow(20), Slow(30)]
    assert [one for _, one in learning(*lookups, tell=told.append)] == lookups
    assert len(told) > 3 and told == sorted(told) and 0 < told[1] < told[-1] < 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_who_is_interrupted_waits_for_no_head_to_have_learned(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lessons, "TELL_SECONDS", 0.02)
    lookups = [Slow(10**6) for _ in range(10)]

    def interrupt(_: float) -> None:
        raise error

    with pytest.raises(error):
        learning(*lookups, tell=interrupt)
    assert sum(lookup.taken > 0 for lookup in lookups) < 10 and all(lookup.taken < 10**4 for lookup in lookups)


def test_a_head_that_can_not_be_learned_ends_the_others() -> None:
    lookups = [Slow(10**6, fails=True), *(Slow(10**6) for _ in range(3))]
    with pytest.raises(BackboneError, match="It can't be learned"):
        learning(*lookups)
    assert all(lookup.taken < 10**4 for lookup in lookups)


def test_where_no_family_fits_it_is_said_why(trial):
    found = train_heads(task(trial, samples(700, 3), terms=replace(TERMS, families="spatial")), quiet)
    assert isinstance(found, NoHeads)
    assert found.why.startswith("No family of heads fits any cut point. The cut tensor 'early' is no image")
