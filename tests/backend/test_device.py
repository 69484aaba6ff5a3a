"""Hidden state kept on a device. The device is the processor here, by the same bindings; no GPU has run this."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import MODEL, Exported
from drafts import marked_draft, spread_thresholds
from handmade import draft, remembering_head
from onnx import helper

from gati.chain import Chain
from gati.device import DeviceArray, DeviceRunner, Runner, runner_on, usable
from gati.errors import RepositoryError, RequestError, UnavailableError
from gati.flight import Answer, Flight, Ran, Request
from gati.inline import InlineEngine
from gati.orchestrator import Audit, Orchestrator
from gati.server import Ports, Server
from gati.session import CPU, Device, open_session, parse_device
from gati.watch import ReleaseWatch
from gati_export.publish import publish

BOUND = DeviceRunner(CPU)


class Walked:
    """What becomes of images: their answers, and what audits find, in NumPy."""

    def __init__(self, repository: Path, chain: Chain, runner: Runner) -> None:
        self.audits: list[Audit] = []
        self.found: list[np.ndarray] = []
        watch = ReleaseWatch(repository, chain, InlineEngine(repository, chain, runner), self._refused, lambda _: None)
        watch.look()
        self._orchestrator = Orchestrator(chain, lambda: watch.live, self, 1.0, self.audits.append)

    def ask(self, images: np.ndarray) -> Answer:
        told: list = []
        self._orchestrator.serve([Request({"image": images}, False, lambda answer, _: told.append(answer))])
        for audit in self.audits:
            self._orchestrator.audit(audit)
        assert isinstance(told[0], Answer), told
        return told[0]

    def timed(self, ran: Sequence[Ran]) -> None: ...

    def served(self, flight: Flight) -> None: ...

    def head_failed(self, index: int, error: Exception) -> None:
        raise error

    def audited(self, audit: Audit, outputs: np.ndarray, agreed: np.ndarray) -> None:
        self.found.append(outputs)

    def _refused(self, number: int, reason: str) -> None:
        raise AssertionError(reason)


def same(one: Answer, other: Answer) -> bool:
    pairs = [(one.output, other.output), (one.exit, other.exit), (one.release, other.release)]
    return all(np.array_equal(a, b) for a, b in pairs)


def test_answers_and_audits_are_the_same_bit_for_bit(exported: Exported, tmp_path: Path) -> None:
    repository, images = exported.copy(tmp_path), exported.images[:24]
    publish(
        repository,
        exported.chain,
        marked_draft(exported.chain, 7, spread_thresholds(repository, exported.chain, images)),
    )
    host, bound = (Walked(repository, exported.chain, runner) for runner in (Runner(), BOUND))
    for rows in (images, images[:1]):
        answer = host.ask(rows)
        assert same(bound.ask(rows), answer)
        assert len(rows) == 1 or len(set(answer.exit.ravel())) == 3  # rows left at both heads, and some at the end
    assert [audit.index for audit in bound.audits] == [audit.index for audit in host.audits] != []
    assert all(isinstance(value, DeviceArray) for audit in bound.audits for value in audit.values.values())
    assert all(map(np.array_equal, bound.found, host.found))


def test_a_head_with_state_is_fed_beside_what_stays(exported: Exported, tmp_path: Path) -> None:
    repository, images = exported.copy(tmp_path), exported.images[:4]
    publish(repository, exported.chain, draft({0: remembering_head(exported.chain, 0)}))
    host, bound = (Walked(repository, exported.chain, runner) for runner in (Runner(), BOUND))
    for _ in range(2):
        assert same(bound.ask(images), answer := host.ask(images))
    assert (answer.exit == 0).all()  # the second time, it remembers


def test_what_a_stage_gives_stays_and_the_chains_answer_does_not(exported: Exported) -> None:
    first, *_, last = InlineEngine(exported.repository, exported.chain, BOUND).load_stages(exported.chain.heads)
    hidden = first.run({"image": exported.images[:3]})
    assert isinstance(hidden, DeviceArray)
    assert np.asarray(hidden).shape == (3, *exported.chain.segments[0].output.shape)
    cut = exported.chain.segments[-2].output
    assert isinstance(last.run({cut.name: cut.zeros(2)}), np.ndarray)


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.float64, np.int64, np.uint8, np.bool_])
def test_rows_are_gathered_where_they_lie(kind: type) -> None:
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "same",
        [helper.make_tensor_value_info("x", element, ["batch", 2, 3])],
        [helper.make_tensor_value_info("y", element, ["batch", 2, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    values = np.arange(24).reshape(4, 2, 3).astype(kind)
    kept = BOUND.keep(open_session(model.SerializeToString()), ["y"], {"x": values})[0]
    for rows in (np.array([True, False, False, True]), np.array([2]), np.array([3, 0]), np.zeros(4, np.bool_)):
        some = kept[rows]
        assert isinstance(some, DeviceArray)
        assert np.array_equal(np.asarray(some), values[rows])
        assert np.asarray(some).dtype == kind


def test_inputs_that_do_not_fit_are_the_clients(exported: Exported) -> None:
    stage = InlineEngine(exported.repository, exported.chain, BOUND).load_stages(())[0]
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


without_cuda = pytest.mark.skipif(usable(Device("cuda")), reason="there is a GPU here")


@without_cuda
def test_a_gpu_that_is_not_there_is_never_replaced_by_the_processor() -> None:
    with pytest.raises(UnavailableError, match="can't use cuda:3"):
        runner_on(Device("cuda", 3))


@without_cuda
@pytest.mark.triton
def test_a_chain_that_can_not_have_its_gpu_says_so_at_start(exported: Exported) -> None:
    with pytest.raises(RepositoryError, match=f"did not start: '{MODEL}'.*can't use cuda:0"):
        Server(exported.repository, Ports(0, 0, 0), {"GATI_DEVICE": "cuda"})
