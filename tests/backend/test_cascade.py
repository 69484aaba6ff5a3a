"""One graph does what stages and heads do one after another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import Exported
from handmade import draft, mixing_head, remembering_head, sure_head
from onnx import TensorProto, helper, numpy_helper

from gati.inference import shortcuts
from gati.inference.cascade import Cascade, assemble
from gati.inference.head import HeadSpec
from gati.inference.inline import InlineEngine
from gati.inference.session import open_session
from gati.inference.steps import Leave, MissedRows, Step, UnjoinableError
from gati.repository.chain import Tensor
from gati.serving.flight import Answer, Request
from gati.serving.live import LiveRelease
from gati.serving.orchestrator import Orchestrator
from gati.serving.watch import ReleaseWatch
from gati_export.learning.headfile import with_threshold
from gati_export.releases.publish import publish

OUTPUT = Tensor("y", "FP32", (2,))


class Deaf:
    """An observer that is not interested."""

    def __getattr__(self, name: str):
        return lambda *_: None


class Asked:
    """A release without its cascade, and with it: each in a watch of its own, with state of its own."""

    def __init__(self, repository: Path, exported: Exported) -> None:
        self.said: list[str] = []
        self.chain = exported.chain
        self.live: dict[bool, LiveRelease] = {}
        for cascade in (False, True):
            engine = InlineEngine(repository, self.chain, warn=self.said.append)
            watch = ReleaseWatch(repository, self.chain, engine, lambda *_: None, lambda _: None)
            for _ in range(1 + cascade):
                watch.look()
            self.live[cascade] = watch.live

    def answers(self, images: np.ndarray, *, cascade: bool) -> list[Answer]:
        live = self.live[cascade]
        orchestrator = Orchestrator(self.chain, lambda: live, Deaf(), lambda _: None)  # type: ignore[arg-type]
        answers: list[Answer] = []
        for image in images:
            request = Request({self.chain.inputs[0].name: image[None]}, False, lambda answer, _: answers.append(answer))
            orchestrator.serve([request])
        return answers


def test_a_release_has_a_cascade_a_moment_after_it_went_live(exported: Exported) -> None:
    asked = Asked(exported.repository, exported)
    assert asked.live[False].joined is None and asked.live[True].joined is not None
    assert not asked.said


def test_trained_heads_answer_the_same_in_one_graph(exported: Exported) -> None:
    asked = Asked(exported.repository, exported)
    asked.live[True] = replace(asked.live[True], stages=())  # or they might be what answers
    images = exported.images[:300]
    apart, together = (asked.answers(images, cascade=cascade) for cascade in (False, True))
    assert [one.exit.tolist() for one in together] == [one.exit.tolist() for one in apart]
    assert len({one.exit.item() for one in apart}) > 1, "or it proves little"
    assert [one.release.tolist() for one in together] == [one.release.tolist() for one in apart]
    for one, other in zip(together, apart, strict=True):
        np.testing.assert_allclose(one.output, other.output, rtol=1e-5, atol=1e-5)


def test_heads_with_state_live_through_the_same(exported: Exported, tmp_path: Path) -> None:
    repository, chain = exported.copy(tmp_path), exported.chain
    first, last = chain.heads[0], chain.heads[-1]
    heads = {first: remembering_head(chain, first), last: mixing_head(chain, last)}
    publish(repository, chain, draft(heads))
    asked = Asked(repository, exported)
    asked.live[True] = replace(asked.live[True], stages=())
    images = exported.images[[*range(30), 3, 29, *range(5, 25), *range(30, 50)]]
    apart, together = (asked.answers(images, cascade=cascade) for cascade in (False, True))
    exits = [one.exit.item() for one in apart]
    assert [one.exit.item() for one in together] == exits
    assert {first, len(chain.segments) - 1} <= set(exits), "or it proves little"
    for one, other in zip(together, apart, strict=True):
        np.testing.assert_allclose(one.output, other.output, rtol=1e-4, atol=1e-4)
    for index in heads:
        states = [asked.live[cascade].state[index].feeds() for cascade in (False, True)]
        for name, value in states[0].items():
            np.testing.assert_allclose(states[1][name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("hit_at", [0, 1, None])
def test_a_cascade_leaves_at_the_first_hit(exported: Exported, tmp_path: Path, hit_at: int | None) -> None:
    repository, chain = exported.copy(tmp_path), exported.chain
    sure = {i: sure_head(chain, i, i) for i in chain.heads[:2]}
    never = {i: with_threshold(head, float("inf")) for i, head in sure.items()}
    publish(repository, chain, draft({i: sure[i] if hit_at is not None and i >= hit_at else never[i] for i in sure}))
    asked = Asked(repository, exported)
    asked.live[True] = replace(asked.live[True], stages=())
    (answer,) = asked.answers(exported.images[:1], cascade=True)
    assert answer.exit.item() == (len(chain.segments) - 1 if hit_at is None else hit_at)
    assert answer.release.item() == (0 if hit_at is None else 2)


def test_what_is_larger_than_a_cascade_may_be_has_none(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortcuts, "LARGEST_JOINED", 0)
    asked = Asked(exported.repository, exported)
    assert asked.live[True].joined is None
    assert not asked.said


def test_a_cascade_that_does_something_else_is_not_used(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Cascade.run

    def lies(self: Cascade, inputs: dict, state: dict, leave: Leave) -> list[MissedRows]:
        return run(self, inputs, state, lambda rows, output, exit_: leave(rows, output + 1, exit_))

    monkeypatch.setattr(Cascade, "run", lies)
    asked = Asked(exported.repository, exported)
    assert asked.live[True].joined is None
    (said,) = asked.said
    assert said.endswith("joined, stages and heads answer otherwise than one by one")
    assert asked.answers(exported.images[:1], cascade=True)


def stage(given: str, wanted: str, version: int, *nodes: onnx.NodeProto) -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.float32(2), "w")
    last = nodes[-1].output[0] if nodes else given
    graph = helper.make_graph(
        [*nodes, helper.make_node("Mul", [last, "w"], [wanted])],
        "stage",
        [helper.make_tensor_value_info(given, TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info(wanted, TensorProto.FLOAT, None)],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=8)


def head(version: int, threshold: float) -> onnx.ModelProto:
    graph = helper.make_graph(
        [
            helper.make_node("Identity", ["h"], ["y"]),
            helper.make_node("ReduceMax", ["h", "axes"], ["score"], keepdims=0),
            helper.make_node("GreaterOrEqual", ["score", "threshold"], ["hit"]),
        ],
        "head",
        [helper.make_tensor_value_info("h", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("hit", TensorProto.BOOL, None)],
        [numpy_helper.from_array(np.array([1]), "axes"), numpy_helper.from_array(np.float32(threshold), "threshold")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=9)


def joined(before: onnx.ModelProto, version: int) -> Cascade:
    steps = [Step(0, before, head(version, 5), HeadSpec({}, ("y", "score", "hit"))), Step(1, stage("h", "y", 13))]
    return Cascade(open_session(assemble(steps, [Tensor("x", "FP32", (2,))], OUTPUT).SerializeToString()), steps)


def left(cascade: Cascade, x: np.ndarray) -> tuple:
    """What becomes of a row."""
    told = []
    assert not cascade.run(
        {"x": x}, {}, lambda rows, output, exit_: told.append((rows.tolist(), output.tolist(), exit_))
    )
    return told.pop()


def test_stages_in_a_format_of_old_are_joined() -> None:
    """Where weights had to be inputs of the graph, too, which those of an `If`'s branches can't be."""
    before, behind = stage("x", "h", 13), stage("h", "y", 13)
    for model in (before, behind):
        model.ir_version = 3
    steps = [Step(0, before, head(18, 5), HeadSpec({}, ("y", "score", "hit"))), Step(1, behind)]
    whole = assemble(steps, [Tensor("x", "FP32", (2,))], OUTPUT)
    cascade = Cascade(open_session(whole.SerializeToString()), steps)
    assert left(cascade, np.full((1, 2), 1.0, np.float32)) == ([0], [[4.0] * 2], 1)


@pytest.mark.parametrize("version", [18, 20, 21])
def test_versions_go_together_where_they_mean_the_same(version: int) -> None:
    """And stages may share a weight of one name."""
    cascade = joined(stage("x", "h", 13), version)
    for value, exit_, answer in ((1.0, 1, 4.0), (3.0, 0, 6.0)):
        assert left(cascade, np.full((1, 2), value, np.float32)) == ([0], [[answer] * 2], exit_)


def test_what_several_stages_make_for_themselves_is_made_once() -> None:
    """As the mask of a text, which is computed of the inputs wherever it is read."""
    mask = helper.make_node("Mul", ["x", "w"], ["mask"])
    before, behind = stage("x", "h", 18, mask), stage("h", "y", 18, mask, helper.make_node("Add", ["h", "mask"], ["s"]))
    behind.graph.input.extend(before.graph.input)
    steps = [Step(0, before, head(18, 5), HeadSpec({}, ("y", "score", "hit"))), Step(1, behind)]
    whole = assemble(steps, [Tensor("x", "FP32", (2,))], OUTPUT)
    cascade = Cascade(open_session(whole.SerializeToString()), steps)
    for value, exit_, answer in ((1.0, 1, 12.0), (3.0, 0, 12.0)):  # h is 4 x, and y is 2 (h + 2 x)
        assert left(cascade, np.full((1, 2), value, np.float32)) == ([0], [[answer] * 2], exit_)


def test_versions_that_do_not_go_together_are_refused() -> None:
    mean = helper.make_node("ReduceMean", ["x"], ["m"], axes=[1], keepdims=1)  # since version 18, axes are an input
    with pytest.raises(UnjoinableError, match="ReduceMean of version 13"):
        joined(stage("x", "h", 13, mean), 18)
