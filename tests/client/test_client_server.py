"""The client and the load generator against a real tritonserver."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from conftest import Serve, Served

from gati_client import (
    Answer,
    AsyncClient,
    Client,
    ClientClosed,
    ClientError,
    InvalidRequest,
    ModelNotFound,
    RequestTimeout,
    ServerError,
    ServerUnavailable,
)
from gati_client.load import alternate, drive, summary

MODEL = """
import json
import time

import numpy as np
import triton_python_backend_utils as pb


class TritonPythonModel:
    def initialize(self, args):
        self.name = args["model_name"]

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        arrays = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        if self.name == "pair":
            ids, mask = arrays["input_ids"], arrays["attention_mask"]
            total = (ids * mask).sum(1, keepdims=True)
            return pb.InferenceResponse([pb.Tensor("total", total), pb.Tensor("length", mask.sum(1, keepdims=True))])
        x = arrays["x"]
        if (x < 0).any():
            raise ValueError("a negative number")
        if self.name == "slow":
            time.sleep(float(x.max()))
        tensors = [pb.Tensor("y", x[:, ::-1] * np.float32(2))]
        if self.name == "chain":
            exact = json.loads(request.parameters())["gati_mode"] == "exact"
            exit = np.where(exact, 2, x[:, :1] % 2).astype(np.int32)
            tensors += [pb.Tensor("exit", exit), pb.Tensor("release", np.where(exit == 0, 7, 0).astype(np.int64))]
        return pb.InferenceResponse(tensors)
"""

CONFIG = 'name: "{name}"\nbackend: "python"\nmax_batch_size: 8\ninput [{inputs}]\noutput [{outputs}]\n'
X = '{ name: "x" data_type: TYPE_FP32 dims: [ 3 ] }'
Y = '{ name: "y" data_type: TYPE_FP32 dims: [ 3 ] }'
EXIT = '{ name: "exit" data_type: TYPE_INT32 dims: [ 1 ] }, { name: "release" data_type: TYPE_INT64 dims: [ 1 ] }'
PAIR = ", ".join(f'{{ name: "{n}" data_type: TYPE_INT64 dims: [ -1 ] }}' for n in ("input_ids", "attention_mask"))
SUMS = ", ".join(f'{{ name: "{n}" data_type: TYPE_INT64 dims: [ 1 ] }}' for n in ("total", "length"))
MODELS = {"plain": (X, Y), "slow": (X, Y), "chain": (X, f"{Y}, {EXIT}"), "pair": (PAIR, SUMS)}

ROWS = np.arange(6, dtype=np.float32).reshape(2, 3)


def address(served: Served, protocol: str) -> str:
    """Its URL."""
    return f"{protocol}://{getattr(served, protocol)}"


@pytest.fixture(scope="module")
def server(serve_module: Serve, tmp_path_factory: pytest.TempPathFactory) -> Served:
    repository = tmp_path_factory.mktemp("triton") / "models"
    for name, (inputs, outputs) in MODELS.items():
        (repository / name / "1").mkdir(parents=True)
        config = CONFIG.format(name=name, inputs=inputs, outputs=outputs)
        (repository / name / "config.pbtxt").write_text(config + "instance_group [{ kind: KIND_CPU count: 1 }]\n")
        (repository / name / "1" / "model.py").write_text(MODEL)
    return serve_module(repository)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass(frozen=True)
class Ask:
    """Calls a client's method by one protocol, blocking or asyncio."""

    protocol: str
    asynchronous: bool
    server: Served

    def __call__(self, model: str, method: str, *args: Any, url: str = "", **kwargs: Any) -> Any:
        url = url or address(self.server, self.protocol)
        if self.asynchronous:
            return asyncio.run(self._wait(url, model, method, *args, **kwargs))
        with Client(url, model) as client:
            return getattr(client, method)(*args, **kwargs)

    async def _wait(self, url: str, model: str, method: str, *args: Any, **kwargs: Any) -> Any:
        async with AsyncClient(url, model) as client:
            return await getattr(client, method)(*args, **kwargs)

    def nobody(self) -> str:
        """A URL where nothing listens."""
        return f"{self.protocol}://127.0.0.1:{_free_port()}"


@pytest.fixture(params=["grpc-sync", "grpc-async", "http-sync", "http-async"])
def ask(request: pytest.FixtureRequest, server: Served) -> Ask:
    protocol, style = request.param.split("-")
    return Ask(protocol, style == "async", server)


def refused(kind: type[ClientError], words: str, ask: Ask, model: str, *args: Any, **kwargs: Any) -> None:
    with pytest.raises(ClientError, match=words) as caught:
        ask(model, "infer", *args, **kwargs)
    message = str(caught.value)
    assert type(caught.value) is kind, message
    assert message.endswith(".") and "\n" not in message and ". " not in message, message


def test_a_plain_model_answers(ask: Ask) -> None:
    answer = ask("plain", "infer", ROWS)
    assert isinstance(answer, Answer)
    np.testing.assert_array_equal(answer.output, ROWS[:, ::-1] * 2)
    assert answer.output.dtype == np.float32
    assert (answer.exit, answer.release, answer.hit) == (None, None, None)


def test_a_chain_says_where(ask: Ask) -> None:
    answer = ask("chain", "infer", x=ROWS)
    assert list(answer.outputs) == ["y"]
    assert (answer.exit.tolist(), answer.exit.dtype) == ([0, 1], np.int32)
    assert (answer.release.tolist(), answer.release.dtype) == ([7, 0], np.int64)
    assert answer.hit.tolist() == [True, False]


def test_exact_reaches_the_model(ask: Ask) -> None:
    assert ask("chain", "infer", ROWS, exact=True).exit.tolist() == [2, 2]


def test_two_inputs_and_two_outputs(ask: Ask) -> None:
    ids, mask = np.array([[1, 2, 3]], np.int32), np.array([[True, True, False]])
    for answer in (
        ask("pair", "infer", {"input_ids": ids, "attention_mask": mask}),
        ask("pair", "infer", input_ids=ids, attention_mask=mask),
    ):
        assert {name: array.tolist() for name, array in answer.outputs.items()} == {"total": [[3]], "length": [[2]]}
        with pytest.raises(InvalidRequest, match="total, length"):
            _ = answer.output


def test_metadata(ask: Ask) -> None:
    metadata = ask("pair", "metadata")
    assert metadata.model == "pair" and metadata.versions == ("1",)
    assert [str(spec) for spec in metadata.inputs] == ["INT64 [batch, any]"] * 2
    assert [spec.name for spec in metadata.outputs] == ["total", "length"]


def test_is_ready(ask: Ask) -> None:
    assert ask("plain", "is_ready") is True
    assert ask("nope", "is_ready") is False
    assert ask("plain", "is_ready", url=ask.nobody()) is False


def test_requests_that_do_not_fit_are_refused(ask: Ask) -> None:
    refused(InvalidRequest, "shape", ask, "plain", np.zeros((2, 4), np.float32))
    refused(InvalidRequest, "without a batch dimension", ask, "plain", np.zeros(3, np.float32))
    refused(InvalidRequest, "dtype", ask, "pair", input_ids=[[0.5]], attention_mask=[[1]])
    refused(InvalidRequest, "no input 'z'", ask, "plain", z=ROWS)
    refused(InvalidRequest, "empty batch", ask, "plain", ROWS[:0])
    refused(ModelNotFound, "'nope'", ask, "nope", ROWS)


def test_the_server_refuses_what_the_client_can_not_know(ask: Ask) -> None:
    refused(InvalidRequest, "batch-size must be <= 8", ask, "plain", np.zeros((9, 3), np.float32))
    refused(InvalidRequest, "expected 2 inputs but got 1", ask, "pair", input_ids=[[1]])
    refused(InvalidRequest, "batch size does not match", ask, "pair", input_ids=[[1]], attention_mask=[[1], [1]])


def test_a_failing_model_is_a_server_error_without_its_traceback(ask: Ask) -> None:
    refused(ServerError, "a negative number", ask, "plain", -ROWS)


def test_a_server_that_is_down(ask: Ask) -> None:
    refused(ServerUnavailable, "is unavailable", ask, "plain", ROWS, url=ask.nobody())


def test_a_host_that_does_not_exist(ask: Ask) -> None:
    refused(ServerUnavailable, "is unavailable", ask, "plain", ROWS, url=f"{ask.protocol}://host.invalid:1", timeout=20)


def test_the_other_protocols_port(ask: Ask, server: Served) -> None:
    other = server.http if ask.protocol == "grpc" else server.grpc
    refused(ServerUnavailable, "is unavailable", ask, "plain", ROWS, url=f"{ask.protocol}://{other}", timeout=5)


def test_a_server_without_tls(ask: Ask, server: Served) -> None:
    url = address(server, ask.protocol).replace("://", "s://")
    refused(ServerUnavailable, "is unavailable", ask, "plain", ROWS, url=url, timeout=5)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_server_that_says_nothing_makes_no_caller_wait_for_another(protocol: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"{protocol}://127.0.0.1:{silent.getsockname()[1]}"
        with Client(url, "plain") as client, ThreadPoolExecutor(1) as others:
            patient = others.submit(client.infer, ROWS, timeout=4)
            time.sleep(0.3)
            begun = time.monotonic()
            with pytest.raises(ServerUnavailable, match=r"within 0\.5 s"):
                client.infer(ROWS, timeout=0.5)
            assert time.monotonic() - begun < 2.5
            with pytest.raises(ServerUnavailable):
                patient.result()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_timeout_costs_its_request_only(server: Served, protocol: str) -> None:
    with Client(address(server, protocol), "slow") as client:
        with pytest.raises(RequestTimeout, match=r"did not answer within 0.2 s\.$"):
            client.infer(ROWS[:1] * 0 + 0.5, timeout=0.2)
        for value in (0.01, 0.02):
            assert client.infer(np.full((1, 3), value, np.float32)).output[0, 0] == np.float32(value * 2)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_an_async_timeout_costs_its_request_only(server: Served, protocol: str) -> None:
    async def run() -> float:
        async with AsyncClient(address(server, protocol), "slow") as client:
            with pytest.raises(RequestTimeout, match=r"did not answer within 0.2 s\.$"):
                await client.infer(ROWS[:1] * 0 + 0.5, timeout=0.2)
            return (await client.infer(np.full((1, 3), 0.01, np.float32))).output[0, 0]

    assert asyncio.run(run()) == np.float32(0.02)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_closed_client_says_so(server: Served, protocol: str) -> None:
    client = Client(address(server, protocol), "plain")
    client.infer(ROWS)
    client.close()
    client.close()
    for call in (lambda: client.infer(ROWS), client.metadata, client.is_ready):
        with pytest.raises(ClientClosed, match=r"was closed; make another\.$"):
            call()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_fifty_requests_at_a_time_each_get_their_own_answer(server: Served, protocol: str) -> None:
    async def run() -> list[Answer]:
        async with AsyncClient(address(server, protocol), "chain") as client:
            return await asyncio.gather(*(client.infer(np.full((1, 3), i, np.float32)) for i in range(50)))

    answers = asyncio.run(run())
    assert [answer.output[0, 0] for answer in answers] == [2 * i for i in range(50)]
    assert [int(answer.exit[0]) for answer in answers if answer.exit is not None] == [i % 2 for i in range(50)]


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_one_client_serves_several_threads(server: Served, protocol: str) -> None:
    wrong = []

    def work(client: Client, number: int) -> None:
        for i in range(20):
            value = number * 100 + i
            if client.infer(np.full((1, 3), value, np.float32)).output[0, 0] != 2 * value:
                wrong.append(value)

    with Client(address(server, protocol), "plain") as client:
        threads = [threading.Thread(target=work, args=(client, number)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("concurrency", [1, 4])
def test_drive_sees_every_request_in_order_and_counts_errors(server: Served, protocol: str, concurrency: int) -> None:
    rows = np.tile(np.arange(40, dtype=np.float32)[:, None], 3)
    rows[:, 1] = np.where(rows[:, 0] == 7, -1, 0)
    seen = drive(lambda: Client(address(server, protocol), "chain"), (row[None] for row in rows), concurrency)
    assert len(seen) == 40 and seen.request.tolist() == list(range(40))
    assert seen.errors == 1 and "a negative number" in (seen.error[7] or "")
    assert seen.exit.tolist() == [-1 if i == 7 else i % 2 for i in range(40)]
    assert seen.release.tolist() == [-1 if i == 7 else 0 if i % 2 else 7 for i in range(40)]
    assert (seen.answer[seen.ok] == 0).all() and seen.answer[7] == -1
    assert (seen.latency > 0).all() and seen.seconds >= seen.latency.max()
    if concurrency == 1:
        assert (np.diff(seen.start) >= seen.latency[:-1]).all(), "the next begins when the last has ended"


def test_drive_counts_rows_of_batches(server: Served) -> None:
    seen = drive(lambda: Client(server.grpc, "chain"), [ROWS, -ROWS, ROWS[:1]])
    assert seen.request.tolist() == [0, 0, 1, 1, 2]
    assert seen.exit.tolist() == [0, 1, -1, -1, 0]


def test_drive_exactly(server: Served) -> None:
    assert drive(lambda: Client(server.grpc, "chain"), [ROWS], exact=True).exit.tolist() == [2, 2]


def test_drive_survives_a_server_that_is_down() -> None:
    seen = drive(lambda: Client(f"grpc://127.0.0.1:{_free_port()}", "m"), [ROWS] * 3, concurrency=2)
    assert (len(seen), seen.errors) == (3, 3)


def test_drive_does_not_hide_a_bug_in_the_requests(server: Served) -> None:
    def requests() -> Iterator[np.ndarray]:
        yield ROWS
        raise KeyError("bug")

    with pytest.raises(KeyError, match="bug"):
        drive(lambda: Client(server.grpc, "chain"), requests(), concurrency=3)


def test_alternate_asks_both_in_turn(server: Served) -> None:
    targets = (lambda: Client(server.grpc, "plain"), lambda: Client(address(server, "http"), "chain"))
    first, second = alternate(*targets, [ROWS[i % 2][None] for i in range(10)], exact=(False, True))
    np.testing.assert_array_equal(first.answer, second.answer)
    assert (first.exit == -1).all() and (second.exit == 2).all()
    starts = np.stack([first.start, second.start], 1).reshape(-1)
    assert (np.diff(starts) > 0).all()


def test_summary() -> None:
    assert summary(np.array([0.001, 0.002, 0.003])) == pytest.approx({"mean_ms": 2, "p50_ms": 2, "p99_ms": 2.98})
    with pytest.raises(ValueError, match="no latencies"):
        summary(np.array([]))


def test_nothing_to_drive() -> None:
    seen = drive(lambda: Client("grpc://127.0.0.1:1", "m"), [])
    assert (len(seen), seen.errors, seen.seconds) == (0, 0, 0.0)
