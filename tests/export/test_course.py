"""The course of traffic: heads with memories are certified among all that passes by, as they are served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from graphs import Graph
from onnxruntime import InferenceSession

from gati.repository.agreement import parse_agreement
from gati.repository.chain import Chain, Segment, Tensor, sha256_of
from gati_export.certificates.splitting import split
from gati_export.composition.latency import Measured, Times
from gati_export.composition.replay import Said
from gati_export.learning.candidates import Heard, ask
from gati_export.learning.course import Course, course
from gati_export.learning.task import Task
from gati_export.learning.trained import Certified
from gati_export.learning.training import train_heads
from gati_export.progress import silent
from gati_export.refreshing.standing import Live, judge
from gati_export.samples.activations import collect, open_segments
from gati_export.terms import Terms

INPUTS, CLASSES = 8, 4
FRAMES, SCENES, LATER, SHAKING = 4, 600, 6, 0.1
FAINT = 2.5 * SHAKING
"""How far from 0 the last number is, whose sign the answer hangs on: little, beside all that tells scenes apart."""
TERMS = Terms(epsilon=0.1, families="recent")
AGREEMENT = parse_agreement(TERMS.agreement)
TIMES = Measured(Times(np.array([0.1, 0.9]), np.zeros(1)), {(0, "recent"): 0.01})


def film(seed: int) -> dict[str, np.ndarray]:
    """Scenes, one in five of which was there six scenes before but for the number that the answer hangs on."""
    random = np.random.default_rng(seed)
    scenes = random.normal(size=(SCENES, INPUTS))
    scenes[:, -1] = FAINT * random.choice([-1, 1], SCENES)
    again = LATER + np.flatnonzero(np.arange(SCENES - LATER) % 10 < 2)
    scenes[again] = scenes[again - LATER] * np.where(np.arange(INPUTS) == INPUTS - 1, -1, 1)
    rows = scenes.repeat(FRAMES, axis=0)
    return {"x": (rows + SHAKING * random.normal(size=rows.shape)).astype(np.float32)}


def build(folder: Path) -> tuple[Chain, list[Path]]:
    """Two segments: a turn of the input, and what the signs of its first and last number say."""
    turn = np.random.default_rng(0).normal(size=(INPUTS, INPUTS)).astype(np.float32)
    early, late = Graph(), Graph()
    early.node("MatMul", early.input("x", ["batch", INPUTS]), early.constant(turn), name="hidden")
    back = np.linalg.inv(turn)[:, [0, -1]] * [3, 30]
    signs = late.node("MatMul", late.input("hidden", ["batch", INPUTS]), late.constant(back, np.float32))
    says = late.constant([[-1, -1, 1, 1], [-1, 1, -1, 1]], np.float32)
    late.node("MatMul", late.node("Tanh", signs), says, name="y")
    hidden, y = Tensor("hidden", "FP32", (INPUTS,)), Tensor("y", "FP32", (CLASSES,))
    segments, paths = [], []
    for index, (graph, name, output) in enumerate([(early, "x", hidden), (late, "hidden", y)]):
        path = graph.save(folder / f"{index}.onnx", output.name, shape=["batch", *output.shape])
        paths.append(path)
        segments.append(Segment(index, (name,), output, sha256_of(path), (index + 1) / 2))
    x = Tensor("x", "FP32", (INPUTS,))
    return Chain("m", "inline", (x,), y, tuple(segments), TERMS.epsilon, TERMS.delta, 16), paths


@dataclass(frozen=True)
class Trained:
    task: Task
    heads: Certified


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A memory behind the first of two segments, certified on a film."""
    chain, paths = build(tmp_path_factory.mktemp("chain"))
    rows = film(0)
    task = Task(chain, paths, rows, split(rows, np.arange(SCENES).repeat(FRAMES), terms=TERMS), TERMS)
    heads = train_heads(task, silent, known=TIMES)
    assert isinstance(heads, Certified), heads.why
    return Trained(task, heads)


def served(trained: Trained, rows: Mapping[str, np.ndarray], which: np.ndarray) -> np.ndarray:
    """Which of these rows are answered otherwise than by the backbone, one after another, bool [n]."""
    task, judged = trained.task, trained.heads.judged
    heard = ask(task.chain, open_segments(task.segment_paths), judged.chosen, rows, which, silent)
    return Course(*heard).served([*trained.heads.certificate.thresholds.values()], AGREEMENT)[1]


def test_a_memory_is_certified_for_all_that_passes_by(trained: Trained) -> None:
    """Of scenes with a near-duplicate, three in four have it in another part, which a memory is served as well."""
    everything, calibrate = np.arange(SCENES * FRAMES), trained.task.split.calibrate
    certificate = trained.heads.certificate
    assert certificate.n == len(calibrate) and certificate.hits > 0.5
    alone = served(trained, trained.task.samples, calibrate).mean()
    told = trained.heads.wrong.mean()
    for seed in (1, 2):
        differs = served(trained, film(seed), everything).mean()
        assert 2 * alone < differs <= TERMS.epsilon
    assert 2 * alone < told <= certificate.bound
    np.testing.assert_array_equal(served(trained, trained.task.samples, everything)[calibrate], trained.heads.wrong)


def test_the_live_release_is_judged_among_all_that_passes_by(trained: Trained) -> None:
    heads = trained.heads
    (place,) = heads.judged.choice.composition.chosen
    gone_on = replace(heads.judged, earlier={0: heads.judged.said[place]})
    live = Live(1, heads.heads, heads.certificate.thresholds, None)
    standing = judge(live, trained.task, gone_on, heads.within)
    assert standing.differs == heads.wrong.mean() and not standing.lapsed


def heard_in_course(trained: Trained, task: Task) -> Course:
    """What the heads of a training say in the course of a task's traffic."""
    judged, split = trained.heads.judged, task.split
    sessions = open_segments(task.segment_paths)
    held_out = ask(task.chain, sessions, judged.chosen, task.samples, split.calibrate, silent)
    learned = collect(task.chain, sessions, task.samples, {}, silent, np.concatenate([split.train, split.tune]))
    return course(task, judged.chosen, held_out, learned.outputs, silent)


def test_views_do_not_pass_by(trained: Trained) -> None:
    task = trained.task
    more = {"x": np.concatenate([task.samples["x"], film(3)["x"][:50]])}
    grown = replace(task, samples=more, split=task.split.grown(20).grown(30))
    plain, with_views = (heard_in_course(trained, each) for each in (task, grown))
    np.testing.assert_array_equal(with_views.outputs, plain.outputs)
    assert with_views.judges is grown.split.calibrate


def test_what_the_backbone_has_said_is_not_asked_again(trained: Trained) -> None:
    """But of samples that are in no part, which pass by as others do."""
    task, judged = trained.task, trained.heads.judged
    early, late = open_segments(task.segment_paths)
    asked: list[int] = []

    class Late:
        def run(self, names: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
            asked.append(len(feeds["hidden"]))
            return late.run(names, feeds)

    fewer = replace(task, split=replace(task.split, train=task.split.train[40:]))
    whole, without = (heard_in_course(trained, each) for each in (task, fewer))
    np.testing.assert_array_equal(without.outputs, whole.outputs)
    np.testing.assert_array_equal(without.served([0.9], AGREEMENT), whole.served([0.9], AGREEMENT))
    sessions, known = cast(list[InferenceSession], [early, Late()]), whole.outputs
    heard = ask(task.chain, sessions, judged.chosen, task.samples, task.split.traffic, silent, known)
    assert not asked and heard.outputs is known
    ask(task.chain, sessions, judged.chosen, task.samples, task.split.traffic, silent)
    assert sum(asked) == len(known)


def test_heads_without_state_are_not_run_again(trained: Trained) -> None:
    one = Said(np.ones(3, np.float32), np.eye(3, CLASSES))
    heard, nothing = Heard([one], one.answers), np.empty(0)
    found = course(replace(trained.task, segment_paths=[]), [], heard, nothing, silent)
    assert found.said == [one] and len(found.served([0.5], AGREEMENT)[1]) == 3
