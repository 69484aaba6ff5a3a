"""Hidden state kept on a device: the processor, by the same bindings as a GPU; and a GPU, where there is one."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MODEL, Exported
from drafts import marked_draft, spread_thresholds
from handmade import draft, remembering_head
from onnx import helper

from gati.errors import RepositoryError, RequestError, UnavailableError
from gati.inference.device import DeviceArray, DeviceRunner, Runner, runner_on, usable
from gati.inference.inline import InlineEngine
from gati.inference.ladder import Ladder, _SizedRungs, sizes_up_to
from gati.inference.layout import nearly_equal
from gati.inference.session import CPU, Device, open_session, parse_device
from gati.inference.steps import UnjoinableError
from gati.promise.draws import Draws
from gati.repository.chain import Chain
from gati.serving.audits import Audit
from gati.serving.flight import Answer, Flight, Request, StageRun
from gati.serving.orchestrator import Orchestrator
from gati.serving.watch import ReleaseWatch
from gati.triton.ports import Ports
from gati.triton.server import Server
from gati_export.releases.publish import publish

GPU = Device("cuda")


@pytest.fixture(params=[CPU, GPU], ids=str)
def bound(request: pytest.FixtureRequest) -> DeviceRunner:
    """Keeps hidden state on a device."""
    if not usable(request.param):
        pytest.skip("there is no GPU that ONNX Runtime can use")
    return DeviceRunner(request.param)


class Walked:
    """What becomes of images: their answers, and what audits find, in NumPy.

    All hits are audited; by a ladder alone, none is, and nothing goes stage by stage.
    """

    def __init__(self, repository: Path, chain: Chain, runner: Runner, *, climbs: bool = False) -> None:
        self.audits: list[Audit] = []
        self.found: list[np.ndarray] = []
        engine = InlineEngine(repository, chain, runner)
        engine._as_run = False  # or the processor's would have other cuts
        watch = ReleaseWatch(repository, chain, engine, self._refused, lambda _: None)
        watch.look()
        live = watch.live
        if climbs:
            watch.look()
            live = replace(watch.live, stages=())
            assert isinstance(live.joined, Ladder)
        self.live = live
        draws = Draws(0.0 if climbs else 1.0, chain.epsilon)
        self._orchestrator = Orchestrator(chain, lambda: live, self, self.audits.append, draws)

    def ask(self, images: np.ndarray) -> Answer:
        told: list = []
        self._orchestrator.serve([Request({"image": images}, False, lambda answer, _: told.append(answer))])
        for audit in self.audits:
            self._orchestrator.audit(audit)
        assert isinstance(told[0], Answer), told
        return told[0]

    def timed(self, runs: Sequence[StageRun]) -> None: ...

    def served(self, flight: Flight) -> None: ...

    def head_failed(self, index: int, error: Exception) -> None:
        raise error

    def joined_failed(self, error: Exception) -> None:
        raise error

    def audited(self, audit: Audit, outputs: np.ndarray, agreed: np.ndarray) -> None:
        self.found.append(outputs)

    def _refused(self, number: int, reason: str) -> None:
        raise AssertionError(reason)


def same(one: Answer, other: Answer) -> bool:
    left = [(one.exit, other.exit), (one.release, other.release)]
    return nearly_equal(one.output, other.output) and all(np.array_equal(a, b) for a, b in left)


def test_answers_and_audits_are_the_same(exported: Exported, tmp_path: Path, bound: DeviceRunner) -> None:
    repository, images = exported.copy(tmp_path), exported.images[:24]
    publish(
        repository,
        exported.chain,
        marked_draft(exported.chain, 7, spread_thresholds(repository, exported.chain, images)),
    )
    host, there = (Walked(repository, exported.chain, runner) for runner in (Runner(), bound))
    for rows in (images, images[:1]):
        answer = host.ask(rows)
        assert same(there.ask(rows), answer)
        assert len(rows) == 1 or len(set(answer.exit.ravel())) == 3  # rows left at both heads, and some at the end
    assert [audit.index for audit in there.audits] == [audit.index for audit in host.audits] != []
    assert all(isinstance(value, DeviceArray) for audit in there.audits for value in audit.values.values())
    assert all(map(nearly_equal, there.found, host.found))


def test_a_ladder_does_what_stages_do(exported: Exported, tmp_path: Path, bound: DeviceRunner) -> None:
    repository, images = exported.copy(tmp_path), exported.images[:24]
    thresholds = spread_thresholds(repository, exported.chain, images)
    publish(repository, exported.chain, marked_draft(exported.chain, 7, thresholds))
    apart, ladder = (Walked(repository, exported.chain, bound, climbs=climbs) for climbs in (False, True))
    expected = apart.ask(images)
    for row, exit_ in enumerate(expected.exit):
        answer = ladder.ask(images[row : row + 1])
        assert nearly_equal(answer.output, expected.output[row : row + 1])
        assert answer.exit == exit_
    assert len(set(expected.exit.ravel())) == 3


@pytest.mark.parametrize("size", [2, 3, 5, 8, 24, 32])
def test_a_ladder_does_with_batches_what_stages_do(
    exported: Exported, tmp_path: Path, bound: DeviceRunner, size: int
) -> None:
    """Whatever fills them up, and however few are left of them at the second head."""
    repository, images = exported.copy(tmp_path), exported.images[: 3 * size]
    thresholds = spread_thresholds(repository, exported.chain, images)
    publish(repository, exported.chain, marked_draft(exported.chain, 7, thresholds))
    apart, ladder = (Walked(repository, exported.chain, bound, climbs=climbs) for climbs in (False, True))
    expected = apart.ask(images)
    for start in range(0, len(images), size):
        batch = slice(start, start + size)
        answer = ladder.ask(images[batch])
        assert nearly_equal(answer.output, expected.output[batch])
        assert np.array_equal(answer.exit, expected.exit[batch])
        assert np.array_equal(answer.release, expected.release[batch])
    assert len(set(expected.exit.ravel())) == 3


def test_what_is_left_of_a_batch_goes_on_among_fewer(
    exported: Exported, tmp_path: Path, bound: DeviceRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository, images = exported.copy(tmp_path), exported.images[:24]
    thresholds = spread_thresholds(repository, exported.chain, images)
    publish(repository, exported.chain, marked_draft(exported.chain, 7, thresholds))
    walked = Walked(repository, exported.chain, bound, climbs=True)
    ran, run = list[tuple[int, int]](), _SizedRungs.run
    monkeypatch.setattr(_SizedRungs, "run", lambda side, place: (ran.append((side.size, place)), run(side, place))[1])
    exits = walked.ask(images).exit.ravel()
    left = [np.count_nonzero(exits > index) for index in exported.chain.heads]
    assert left[0] == left[1] == 16 and left[2] == 8  # a third leaves at the first head, half of the rest at the last
    assert ran == [(32, 0), (16, 1), (8, 2)]


def test_a_ladder_takes_no_more_rows_than_it_has_room_for(
    exported: Exported, tmp_path: Path, bound: DeviceRunner
) -> None:
    repository = exported.copy(tmp_path)
    publish(repository, exported.chain, draft({0: remembering_head(exported.chain, 0)}))
    ladder = Walked(repository, exported.chain, bound, climbs=True).live.joined
    assert ladder is not None and ladder.rows == exported.chain.max_batch == 32
    with pytest.raises(ValueError, match="33 rows are more"):
        ladder.run({"image": np.repeat(exported.images[:1], 33, 0)}, {}, lambda *_: None)


def test_without_room_for_batches_rows_still_climb_alone(
    exported: Exported, tmp_path: Path, bound: DeviceRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = exported.copy(tmp_path)
    publish(repository, exported.chain, draft({0: remembering_head(exported.chain, 0)}))
    side = _SizedRungs.__init__

    def narrow(self: _SizedRungs, size: int, *rest: Any) -> None:
        if size > 8:
            raise MemoryError("no room on the GPU")
        side(self, size, *rest)

    monkeypatch.setattr(_SizedRungs, "__init__", narrow)
    said = list[str]()
    engine = InlineEngine(repository, exported.chain, bound, warn=said.append)
    engine._as_run = False
    watch = ReleaseWatch(repository, exported.chain, engine, lambda *_: None, lambda _: None)
    for _ in range(2):
        watch.look()
    assert said == ["batches can't be CUDA graphs, and start slower: no room on the GPU"]
    assert isinstance(watch.live.joined, Ladder) and watch.live.joined.rows == 1


@pytest.mark.parametrize(("rows", "sizes"), [(1, (1,)), (2, (1, 2)), (8, (1, 2, 4, 8)), (12, (1, 2, 4, 8, 12))])
def test_ladders_have_a_size_for_whatever_comes(rows: int, sizes: tuple[int, ...]) -> None:
    assert sizes_up_to(rows) == sizes


def test_a_ladder_is_fed_the_state_of_its_heads(exported: Exported, tmp_path: Path, bound: DeviceRunner) -> None:
    repository = exported.copy(tmp_path)
    publish(repository, exported.chain, draft({0: remembering_head(exported.chain, 0)}))
    ladder = Walked(repository, exported.chain, bound, climbs=True)
    assert [int(ladder.ask(exported.images[:1]).exit[0, 0]) for _ in range(2)] == [
        3,
        0,
    ]  # the second time, it remembers


def test_a_ladder_takes_no_other_shape(exported: Exported, tmp_path: Path, bound: DeviceRunner) -> None:
    repository = exported.copy(tmp_path)
    publish(repository, exported.chain, draft({0: remembering_head(exported.chain, 0)}))
    ladder = Walked(repository, exported.chain, bound, climbs=True).live.joined
    assert ladder is not None
    with pytest.raises(ValueError, match="another shape"):
        ladder.run({"image": np.moveaxis(exported.images[:1], 1, -1)}, {}, lambda *_: None)


def threads_of_ladders(expected: int) -> int:
    """How many there are, once there are as many as expected; or after some seconds."""
    deadline = time.monotonic() + 5
    while True:
        gc.collect()
        count = sum(thread.name.startswith("gati-ladder") for thread in threading.enumerate())
        if count == expected or time.monotonic() > deadline:
            return count
        time.sleep(0.01)


def test_a_ladder_leaves_no_thread_behind(exported: Exported, tmp_path: Path, bound: DeviceRunner) -> None:
    repository = exported.copy(tmp_path)
    publish(repository, exported.chain, draft({0: remembering_head(exported.chain, 0)}))
    assert threads_of_ladders(0) == 0
    ladder = Walked(repository, exported.chain, bound, climbs=True)
    assert threads_of_ladders(1) == 1
    del ladder
    assert threads_of_ladders(0) == 0


def test_what_varies_in_size_has_no_ladder(exported: Exported) -> None:
    varies = replace(exported.chain, inputs=(replace(exported.chain.inputs[0], shape=(1, -1, 16)),))
    with pytest.raises(UnjoinableError, match="no fixed size"):
        Ladder([], varies, DeviceRunner(CPU), captured=False)


def test_one_that_wants_a_device_alone_waits_for_the_others() -> None:
    runner, order = DeviceRunner(CPU), list[str]()

    def alone() -> None:
        with runner.alone():
            order.append("alone")

    thread = threading.Thread(target=alone)
    with runner.beside_others():
        thread.start()
        with runner.beside_others():
            time.sleep(0.05)
        order.append("beside")
    thread.join()
    assert order == ["beside", "alone"]


def test_a_head_with_state_is_fed_beside_what_stays(exported: Exported, tmp_path: Path, bound: DeviceRunner) -> None:
    repository, images = exported.copy(tmp_path), exported.images[:4]
    publish(repository, exported.chain, draft({0: remembering_head(exported.chain, 0)}))
    host, there = (Walked(repository, exported.chain, runner) for runner in (Runner(), bound))
    for _ in range(2):
        assert same(there.ask(images), answer := host.ask(images))
    assert (answer.exit == 0).all()  # the second time, it remembers


def test_what_a_stage_gives_stays_and_the_chains_answer_does_not(exported: Exported, bound: DeviceRunner) -> None:
    first, *_, last = InlineEngine(exported.repository, exported.chain, bound).load_stages(exported.chain.heads)
    hidden = first.run({"image": exported.images[:3]})
    assert isinstance(hidden, DeviceArray)
    assert np.asarray(hidden).shape == (3, *exported.chain.segments[0].output.shape)
    cut = exported.chain.segments[-2].output
    assert isinstance(last.run({cut.name: cut.zeros(2)}), np.ndarray)


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.float64, np.int64, np.uint8, np.bool_])
def test_rows_are_gathered_where_they_lie(kind: type, bound: DeviceRunner) -> None:
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "same",
        [helper.make_tensor_value_info("x", element, ["batch", 2, 3])],
        [helper.make_tensor_value_info("y", element, ["batch", 2, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    values = np.arange(24).reshape(4, 2, 3).astype(kind)
    kept = bound.keep(open_session(model.SerializeToString(), bound.device), ["y"], {"x": values})[0]
    for rows in (np.array([True, False, False, True]), np.array([2]), np.array([3, 0]), np.zeros(4, np.bool_)):
        some = kept[rows]
        assert isinstance(some, DeviceArray)
        assert np.array_equal(np.asarray(some), values[rows])
        assert np.asarray(some).dtype == kind


def test_inputs_that_do_not_fit_are_the_clients(exported: Exported, bound: DeviceRunner) -> None:
    stage = InlineEngine(exported.repository, exported.chain, bound).load_stages(())[0]
    with pytest.raises(RequestError, match="can't take these inputs"):
        stage.run({"image": np.zeros((1, 2, 16, 16), np.float32)})


@pytest.mark.parametrize("text", ["cpu", "cuda:0", "cuda:12"])
def test_devices_are_named_as_they_are_read(text: str) -> None:
    assert str(parse_device(text)) == text


def test_the_first_gpu_needs_no_number() -> None:
    assert parse_device("cuda") == Device("cuda", 0)


@pytest.mark.parametrize("text", ["", "gpu", "cpu:0", "cuda:", "cuda:-1", "cuda:0x"])
def test_what_is_no_device_is_said(text: str) -> None:
    with pytest.raises(RepositoryError, match="is no device to run on"):
        parse_device(text)


without_cuda = pytest.mark.skipif(usable(GPU), reason="there is a GPU here")


@without_cuda
def test_a_gpu_that_is_not_there_is_never_replaced_by_the_processor() -> None:
    with pytest.raises(UnavailableError, match="can't use cuda:3"):
        runner_on(Device("cuda", 3))


@without_cuda
@pytest.mark.triton
def test_a_chain_that_can_not_have_its_gpu_says_so_at_start(exported: Exported) -> None:
    with pytest.raises(RepositoryError, match=f"did not start: '{MODEL}'.*can't use cuda:0"):
        Server(exported.repository, Ports(0, 0, 0), {"GATI_DEVICE": "cuda"})
