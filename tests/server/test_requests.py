"""The way of a request, by the plain tritonclient, against real servers in both modes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import MODEL, PLAIN, Exported, Serve, Served
from google.protobuf import text_format
from handmade import draft, mixing_head, remembering_head, sure_head
from running import MODES, until
from tritonclient import grpc, http
from tritonclient.grpc import model_config_pb2 as pb
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from gati.inference.head import KEY
from gati.inference.state import CLASS_MIX, MEMORY_ANSWERS, MEMORY_KEYS
from gati.repository.chain import Mode, read_chain
from gati_export.releases.rollout import publish_to
from gati_export.report.scrape import read_metrics
from gati_export.samples.samples import load_samples
from gati_export.samples.store import default_store, read_recent

PROTOCOLS = ("grpc", "http")
OUTPUT = "output"

Outputs = dict[str, np.ndarray]


def infer(
    served: Served,
    inputs: Outputs,
    *,
    model: str = MODEL,
    outputs: list[str] | None = None,
    mode: str | None = None,
    about: int | str | None = None,
    protocol: str = "grpc",
) -> Outputs:
    """One request by the plain tritonclient, and all that was answered."""
    api: ModuleType = {"grpc": grpc, "http": http}[protocol]
    sent = []
    for name, value in inputs.items():
        sent.append(api.InferInput(name, list(value.shape), np_to_triton_dtype(value.dtype)))
        sent[-1].set_data_from_numpy(value)
    wanted = None if outputs is None else [api.InferRequestedOutput(name) for name in outputs]
    with api.InferenceServerClient(getattr(served, protocol)) as client:
        parameters = {"gati_mode": mode, "gati_release": about}
        given = {name: value for name, value in parameters.items() if value is not None}
        result = client.infer(model, sent, outputs=wanted, parameters=given or None)
    response = result.get_response()
    names = [o["name"] for o in response["outputs"]] if protocol == "http" else [o.name for o in response.outputs]
    return {name: result.as_numpy(name) for name in names}


def ask(served: Served, images: np.ndarray, **how: Any) -> Outputs:
    return infer(served, {"image": images}, **how)


def release(served: Served, images: np.ndarray) -> int:
    return int(ask(served, images[:1], mode="probe")["release"][0, 0])


def one_sentence(message: str) -> None:
    """Holds what a client is told against how gati speaks: no traceback, no code, no paths."""
    assert message
    assert "\n" not in message.strip()
    for leak in ("Traceback", ".py", "line ", ".onnx", "site-packages", "/tmp", "onnxruntime"):
        assert leak not in message, message


@pytest.fixture(scope="module")
def servers(exported: Exported, serve_module: Serve, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Served]:
    """The exported repository in both modes, without audits."""
    found: dict[str, Served] = {}
    for mode in MODES:
        found[mode] = serve_module(exported.copy(tmp_path_factory.mktemp(mode), mode, plain=True), GATI_AUDIT="0")
        until(lambda served=found[mode]: release(served, exported.images) == 1)
    return found


@pytest.fixture(params=MODES)
def served(request: pytest.FixtureRequest, servers: dict[str, Served]) -> Served:
    return servers[request.param]


def batches(images: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(images), size):
        yield images[start : start + size]


@pytest.mark.parametrize(("size", "inputs"), [(1, 300), (7, 1000), (32, 1000)])
def test_both_modes_answer_alike_on_a_thousand_inputs(
    exported: Exported, servers: dict[str, Served], size: int, inputs: int
) -> None:
    mixed = 0
    for batch in batches(exported.images[:inputs], size):
        inline, bls = (ask(servers[mode], batch) for mode in MODES)
        for name in ("exit", "release"):
            np.testing.assert_array_equal(inline[name], bls[name], err_msg=name)
        np.testing.assert_allclose(inline[OUTPUT], bls[OUTPUT], atol=1e-4, rtol=1e-5)  # inline, segments are fused
        hits = inline["release"][:, 0] > 0
        assert (hits == (inline["exit"][:, 0] < exported.chain.backbone_exit)).all()
        mixed += 0 < hits.sum() < len(hits)
    assert mixed or size == 1


def test_exact_answers_are_the_plain_models(exported: Exported, served: Served) -> None:
    for batch in batches(exported.images, 32):
        exact = ask(served, batch, mode="exact")
        np.testing.assert_allclose(exact[OUTPUT], ask(served, batch, model=PLAIN)[OUTPUT], atol=1e-5, rtol=1e-5)
        assert (exact["exit"] == exported.chain.backbone_exit).all()
        assert (exact["release"] == 0).all()


def test_cached_answers_agree_with_the_plain_model_as_promised(exported: Exported, served: Served) -> None:
    cached = np.concatenate([ask(served, b)[OUTPUT].argmax(1) for b in batches(exported.images, 32)])
    plain = np.concatenate([ask(served, b, model=PLAIN)[OUTPUT].argmax(1) for b in batches(exported.images, 32)])
    assert (cached == plain).mean() > 0.97


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_client_of_the_plain_model_needs_no_change(exported: Exported, served: Served, protocol: str) -> None:
    chain, plain = (ask(served, exported.images[:4], model=model, protocol=protocol) for model in (MODEL, PLAIN))
    assert list(plain) == [OUTPUT]
    assert list(chain) == [OUTPUT, "exit", "release"]
    assert (chain[OUTPUT].shape, chain[OUTPUT].dtype) == (plain[OUTPUT].shape, plain[OUTPUT].dtype)
    assert (chain["exit"].dtype, chain["release"].dtype) == (np.int32, np.int64)
    assert chain["exit"].shape == chain["release"].shape == (4, 1)


@pytest.mark.parametrize("outputs", [[OUTPUT], ["exit"], ["release", OUTPUT]], ids=", ".join)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_only_what_was_asked_for_is_answered(
    exported: Exported, served: Served, outputs: list[str], protocol: str
) -> None:
    assert set(ask(served, exported.images[:2], outputs=outputs, protocol=protocol)) == set(outputs)


def test_the_chain_describes_itself_as_the_backbone(served: Served) -> None:
    with http.InferenceServerClient(served.http) as client:
        chain, plain = client.get_model_metadata(MODEL), client.get_model_metadata(PLAIN)
        config, bare = client.get_model_config(MODEL), client.get_model_config(PLAIN)
    assert chain["inputs"] == plain["inputs"]
    assert chain["outputs"][:1] == plain["outputs"]
    assert [output["name"] for output in chain["outputs"][1:]] == ["exit", "release"]
    assert (config["input"], config["max_batch_size"]) == (bare["input"], bare["max_batch_size"])


def test_a_probe_tells_the_release_and_runs_nothing(exported: Exported, served: Served) -> None:
    before = settled(served).total("gati_requests_total")
    answer = ask(served, exported.images[:3], mode="probe")
    assert answer["exit"].tolist() == [[-1]] * 3
    assert answer["release"].tolist() == [[1]] * 3
    assert not answer[OUTPUT].any()
    assert settled(served).total("gati_requests_total") == before


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_probe_about_a_release_fails_only_where_that_is_refused(
    protocol: str, exported: Exported, served: Served
) -> None:
    for number in (1, 2):  # live, and not there
        answer = ask(served, exported.images[:1], mode="probe", about=number, protocol=protocol)
        assert answer["release"].tolist() == [[1]]
    with pytest.raises(InferenceServerException, match="gati_release is the number of a release, not 'first'") as bad:
        ask(served, exported.images[:1], mode="probe", about="first", protocol=protocol)
    assert bad.value.status() in ("StatusCode.INVALID_ARGUMENT", "400")


IMAGE = np.zeros((1, 1, 16, 16), np.float32)
BAD = {
    "wrong shape": ({"inputs": {"image": IMAGE[..., :9]}}, "INVALID_ARGUMENT", "400"),
    "no batch": ({"inputs": {"image": IMAGE[0]}}, "INVALID_ARGUMENT", "400"),
    "wrong dtype": ({"inputs": {"image": IMAGE.astype(np.float64)}}, "INVALID_ARGUMENT", "400"),
    "wrong name": ({"inputs": {"picture": IMAGE}}, "INVALID_ARGUMENT", "400"),
    "surplus input": ({"inputs": {"image": IMAGE, "mask": IMAGE}}, "INVALID_ARGUMENT", "400"),
    "no input": ({"inputs": {}}, "INVALID_ARGUMENT", "400"),
    "empty batch": ({"inputs": {"image": IMAGE[:0]}}, "INVALID_ARGUMENT", "400"),
    "large batch": ({"inputs": {"image": IMAGE.repeat(33, 0)}}, "INVALID_ARGUMENT", "400"),
    "unknown mode": ({"inputs": {"image": IMAGE}, "mode": "fast"}, "INVALID_ARGUMENT", "400"),
    "mode of another kind": ({"inputs": {"image": IMAGE}, "mode": 7}, "INVALID_ARGUMENT", "400"),
    "unknown output": ({"inputs": {"image": IMAGE}, "outputs": ["colour"]}, "INVALID_ARGUMENT", "400"),
    "unknown model": ({"inputs": {"image": IMAGE}, "model": "ghost"}, "NOT_FOUND", "404"),
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_bad_request_gets_its_status_and_one_sentence(
    exported: Exported, served: Served, protocol: str, what: str
) -> None:
    request, on_grpc, on_http = BAD[what]
    with pytest.raises(InferenceServerException) as caught:
        infer(served, **request, protocol=protocol)
    assert str(caught.value.status()).removeprefix("StatusCode.") == {"grpc": on_grpc, "http": on_http}[protocol]
    one_sentence(caught.value.message())
    assert ask(served, exported.images[:1])[OUTPUT].shape == (1, 10), "the server goes on"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_bad_number_is_never_a_hit(exported: Exported, served: Served, protocol: str, bad: float) -> None:
    answer = ask(served, exported.images[:32])
    hits = np.flatnonzero(answer["release"][:, 0] > 0)[:4]
    images = exported.images[:32][hits].copy()
    images[2, 0, 3, 3] = bad
    spoiled = ask(served, images, protocol=protocol)
    assert spoiled["release"][:, 0].tolist() == [1, 1, 0, 1]
    assert spoiled["exit"][2, 0] == exported.chain.backbone_exit
    np.testing.assert_allclose(
        spoiled[OUTPUT][2], ask(served, images, model=PLAIN)[OUTPUT][2], atol=1e-5, rtol=1e-5, equal_nan=True
    )
    clean = [0, 1, 3]
    np.testing.assert_allclose(spoiled[OUTPUT][clean], answer[OUTPUT][hits[clean]], atol=1e-5, rtol=1e-5)


@dataclass(frozen=True)
class Counted:
    """What /metrics says of a chain."""

    samples: list[tuple[str, dict[str, str], float]]

    def total(self, name: str, **labels: str) -> float:
        return sum(v for n, found, v in self.samples if n == name and labels.items() <= found.items())

    def labels(self, name: str, label: str) -> set[str]:
        return {found[label] for n, found, _ in self.samples if n == name}


def count(served: Served) -> Counted:
    with urllib.request.urlopen(f"http://{served.metrics}/metrics", timeout=5) as response:
        lines = re.findall(r"^(gati_\w+)\{([^}]*)\} (\S+)$", response.read().decode(), re.MULTILINE)
    samples = [(name, dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(value)) for name, labels, value in lines]
    return Counted([sample for sample in samples if sample[1]["model"] == MODEL])


def settled(served: Served) -> Counted:
    """The same, when all that was sent is counted: a page is not made at one moment, and names are counted in turn."""
    before, now = None, count(served)
    while before is None or now != before:
        time.sleep(0.6)
        before, now = now, count(served)
    return now


def test_what_was_sent_is_counted(exported: Exported, served: Served) -> None:
    before = settled(served)
    answers = [ask(served, batch) for batch in batches(exported.images[:100], 5)]
    exits = np.concatenate([answer["exit"][:, 0] for answer in answers])
    until(lambda: count(served).total("gati_request_seconds_count") - before.total("gati_request_seconds_count") == 20)
    after = settled(served)
    for segment in range(len(exported.chain.segments)):
        label = str(segment)
        sent = after.total("gati_requests_total", exit=label) - before.total("gati_requests_total", exit=label)
        assert sent == (exits == segment).sum()
    name = "gati_segment_seconds_count"
    assert after.total(name, segment="0") - before.total(name, segment="0") == 20
    assert after.total("gati_segment_seconds_sum") > before.total("gati_segment_seconds_sum")
    assert after.total("gati_release") == 1
    assert after.total("gati_breaker_open") == 0
    assert after.total("gati_audits_total") == 0
    assert after.total("gati_samples_dropped_total") == 0
    assert after.labels("gati_requests_total", "exit") == {str(s.index) for s in exported.chain.segments}


def test_latency_is_a_summary(exported: Exported, served: Served) -> None:
    ask(served, exported.images[:1])
    until(lambda: "0.99" in count(served).labels("gati_request_seconds", "quantile"))
    found = count(served)
    values = [found.total("gati_request_seconds", quantile=q) for q in ("0.5", "0.9", "0.95", "0.99")]
    assert 0 < values[0] <= values[1] <= values[2] <= values[3]
    assert found.total("gati_request_seconds_count") > 0


def test_what_was_served_is_recorded_but_bad_numbers_are_not(exported: Exported, serve: Serve, tmp_path: Path) -> None:
    chain, images = exported.chain, exported.images[:64].copy()
    images[5, 0, 0, 0] = np.nan
    served = serve(exported.copy(tmp_path), GATI_AUDIT="0")
    exits = np.concatenate([ask(served, batch)["exit"][:, 0] for batch in batches(images, 8)])
    store = default_store(served.repository)
    served.server.stop()
    recorded = read_recent(store, chain, 1000)
    assert recorded.window.samples == 63
    good = np.arange(64) != 5
    assert _sorted(recorded.samples["image"]) == _sorted(images[good])
    assert _sorted(load_samples(Path(store) / MODEL, inputs=chain.inputs)["image"]) == _sorted(images[good])
    import pyarrow.parquet as pq

    table = pq.read_table(Path(store) / MODEL)
    known = np.array([answer is not None for answer in table["gati.answer"].to_pylist()])
    np.testing.assert_array_equal(known, table["gati.exit"].to_numpy() == chain.backbone_exit)
    assert sorted(table["gati.exit"].to_pylist()) == sorted(exits[good].tolist())


def _sorted(images: np.ndarray) -> list[bytes]:
    return sorted(image.tobytes() for image in images)


def test_a_store_that_can_not_be_written_costs_samples_and_nothing_else(
    exported: Exported, serve: Serve, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    served = serve(exported.copy(tmp_path), GATI_STORE=str(tmp_path / "file"), GATI_AUDIT="0")
    ask(served, exported.images[:8])
    until(lambda: read_metrics(served.metrics, MODEL).dropped == 8)
    ask(served, exported.images[:8])
    until(lambda: read_metrics(served.metrics, MODEL).dropped == 16)
    assert served.log().count("samples can't be written") == 1


@pytest.mark.parametrize("mode", MODES)
def test_requests_that_triton_batches_get_their_own_answers(
    exported: Exported, serve: Serve, tmp_path: Path, mode: Mode
) -> None:
    repository = exported.copy(tmp_path, mode, plain=True)
    path = repository / MODEL / "config.pbtxt"
    config = text_format.Parse(path.read_text(), pb.ModelConfig())
    config.dynamic_batching.max_queue_delay_microseconds = 20_000
    path.write_text(text_format.MessageToString(config))
    served = serve(repository, GATI_AUDIT="0")
    until(lambda: release(served, exported.images) == 1)
    images = exported.images[:240]
    alone = [ask(served, image[None]) for image in images[:40]]
    sizes = [1, 2, 3] * 40
    starts = np.cumsum([0, *sizes])
    with ThreadPoolExecutor(16) as pool:
        parts = [images[a:b] for a, b in pairwise(starts)]
        answers = list(pool.map(lambda part: ask(served, part), parts))
    plain = np.concatenate([ask(served, batch, model=PLAIN)[OUTPUT] for batch in batches(images, 30)])
    together = {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}
    assert [len(answer[OUTPUT]) for answer in answers] == sizes
    for i, answer in enumerate(alone):
        np.testing.assert_allclose(together[OUTPUT][i], answer[OUTPUT][0], atol=1e-4, rtol=1e-4)
    missed = together["release"][:, 0] == 0
    assert 0 < missed.sum() < len(missed)
    np.testing.assert_allclose(together[OUTPUT][missed], plain[missed], atol=1e-4, rtol=1e-4)
    with http.InferenceServerClient(served.http) as client:
        stats = client.get_inference_statistics(MODEL)["model_stats"][0]
    assert stats["execution_count"] < stats["inference_stats"]["success"]["count"], "Triton did batch"


def test_a_request_that_can_not_be_read_costs_nobody_else_an_answer(
    exported: Exported, servers: dict[str, Served]
) -> None:
    """Triton's HTTP front end lets text through that is no UTF-8, and batches it with others' requests."""
    served, image = servers["inline"], exported.images[:1]

    def post(parameters: bytes) -> tuple[int, str]:
        tensor = {"name": "image", "shape": list(image.shape), "datatype": "FP32", "data": image.ravel().tolist()}
        body = b'{"inputs": [' + json.dumps(tensor).encode() + b'], "parameters": ' + parameters + b"}"
        try:
            with urllib.request.urlopen(f"http://{served.http}/v2/models/{MODEL}/infer", body, timeout=30) as response:
                return response.status, ""
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(errors="replace")

    kinds = [b"{}", b'{"gati_mode": "probe"}', b'{"other": "\xff"}', b'{"gati_mode": "none"}'] * 50
    with ThreadPoolExecutor(16) as pool:
        told = list(pool.map(post, kinds))
    assert [code for code, _ in told] == [200, 200, 400, 400] * 50
    assert all("the request's parameters are no UTF-8." in message for _, message in told[2::4])
    assert not any("Traceback" in message or ".py" in message for _, message in told)


def test_requests_that_wait_are_batched(exported: Exported, servers: dict[str, Served]) -> None:
    served, images = servers["inline"], exported.images[:200]

    def executed(model: str) -> tuple[int, int]:
        """How often Triton has run a model, and for how many rows."""
        with http.InferenceServerClient(served.http) as client:
            (stats,) = client.get_inference_statistics(model)["model_stats"]
        return stats["execution_count"], stats["inference_count"]

    for model in (MODEL, PLAIN):
        alone = np.concatenate([ask(served, batch, model=model)[OUTPUT] for batch in batches(images, 1)])
        before = executed(model)
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda image, name=model: ask(served, image[None], model=name)[OUTPUT], images))
        np.testing.assert_allclose(np.concatenate(answers), alone, atol=1e-4, rtol=1e-4)
        executions, rows = np.subtract(executed(model), before)
        assert executions < rows


def _declare(repository: Path, heads: dict[int, dict[str, tuple[int, ...]]]) -> None:
    """Declares the heads' state, and what they remember by, in the heads' configurations."""
    for index, state in heads.items():
        path = repository / f"{MODEL}-head-{index}" / "config.pbtxt"
        config = text_format.Parse(path.read_text(), pb.ModelConfig())
        for name, shape in state.items():
            tensors = config.output if name == KEY else config.input
            tensors.add(name=name, data_type=pb.TYPE_FP32, dims=shape)
        path.write_text(text_format.MessageToString(config))


@pytest.mark.parametrize("mode", MODES)
def test_heads_may_remember_and_forget_with_their_release(
    exported: Exported, serve: Serve, tmp_path: Path, mode: Mode
) -> None:
    repository, image = exported.copy(tmp_path, mode), exported.images[:1]
    chain = read_chain(repository, MODEL)
    width = chain.segments[0].output.shape[0]
    memory = {MEMORY_KEYS: (4, width), MEMORY_ANSWERS: (4, chain.classes), KEY: (-1, width)}
    _declare(repository, {0: memory, 1: {CLASS_MIX: (chain.classes,)}})
    served = serve(repository, GATI_AUDIT="0", GATI_WORKERS="1")  # state is updated after the answer has left
    until(lambda: release(served, image) == 1)
    publish_to(repository, chain, draft({0: remembering_head(chain, 0, 4)}), served.grpc)
    first, second = ask(served, image), ask(served, image)
    assert (first["release"][0, 0], second["release"][0, 0]) == (0, 2)
    np.testing.assert_array_equal(first[OUTPUT], second[OUTPUT])
    for other in exported.images[1:5]:
        ask(served, other[None])
    assert ask(served, image)["release"][0, 0] == 0, "four newer entries took its place"
    publish_to(repository, chain, draft({0: remembering_head(chain, 0, 4)}), served.grpc)
    assert ask(served, image)["release"][0, 0] == 0, "a new release starts empty"
    publish_to(repository, chain, draft({1: mixing_head(chain, 1)}), served.grpc)
    answers = [ask(served, image) for _ in range(60)]
    exits = [int(answer["exit"][0, 0]) for answer in answers]
    assert exits[0] == chain.backbone_exit
    assert exits[-1] == 1, "what was often answered is answered early"
    assert answers[-1][OUTPUT].argmax() == answers[0][OUTPUT].argmax()


@pytest.mark.parametrize("mode", MODES)
def test_heads_that_lie_are_found_out_and_the_next_release_opens_again(
    exported: Exported, serve: Serve, tmp_path: Path, mode: Mode
) -> None:
    repository, images = exported.copy(tmp_path, mode, plain=True), exported.images
    chain = read_chain(repository, MODEL)
    served = serve(repository, GATI_AUDIT="1", GATI_WORKERS="8")
    until(lambda: release(served, images) == 1)
    hits = 0
    for part in batches(images[:40], 8):  # no more at a time than there are workers: audits never make one wait
        hits += sum(int((ask(served, image[None])["release"] > 0).sum()) for image in part)
        until(lambda expected=hits: count(served).total("gati_audits_total") == expected)
    truthful = count(served)
    assert truthful.total("gati_audits_total", agreed="true") >= 0.9 * truthful.total("gati_audits_total")
    assert truthful.total("gati_breaker_open") == 0

    publish_to(repository, chain, draft({1: sure_head(chain, 1, 3)}), served.grpc)
    first = ask(served, images[:8])
    assert (first["release"] == 2).all()
    assert (first[OUTPUT].argmax(1) == 3).all()
    until(lambda: not ask(served, images[:8])["release"].any())
    until(lambda: count(served).total("gati_breaker_open") == 1)
    np.testing.assert_allclose(
        ask(served, images[:32])[OUTPUT], ask(served, images[:32], model=PLAIN)[OUTPUT], atol=1e-5, rtol=1e-5
    )
    found = count(served)
    assert found.total("gati_audits_total", exit="1", agreed="false") > 0
    assert found.total("gati_release") == 2

    publish_to(repository, chain, draft({1: sure_head(chain, 1, 3)}), served.grpc)
    assert (ask(served, images[:1])["release"] == 3).all()
    until(lambda: recorded_audits(default_store(repository)) == hits)


def recorded_audits(store: str) -> int:
    """Hits of the first release: all of them audited, so that each is recorded once, with the backbone's answer."""
    import pyarrow.parquet as pq

    rows = [row for path in Path(store, MODEL).glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    assert all(row["gati.answer"] is not None for row in rows if row["gati.release"] == 1)
    return sum(row["gati.release"] == 1 for row in rows)


def test_perf_analyzer_measures_the_chain_without_a_failure(
    exported: Exported, servers: dict[str, Served], tmp_path: Path
) -> None:
    binary = Path(sys.executable).with_name("perf_analyzer")
    if not binary.exists():
        pytest.skip("perf_analyzer is not installed (scripts/install-perf-analyzer.sh)")
    data = tmp_path / "images.json"
    data.write_text(json.dumps({"data": [{"image": image.ravel().tolist()} for image in exported.images[:50]]}))
    report = tmp_path / "report.csv"
    options = ["-i", "grpc", "-u", servers["inline"].grpc, "-m", MODEL, "--input-data", data, "-f", report]
    limits = ["--concurrency-range", "1", "--request-count", "300", "--measurement-interval", "1000"]
    done = subprocess.run([binary, *options, *limits], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Failed" not in done.stdout
    header, row = report.read_text().splitlines()[:2]
    measured = dict(zip(header.split(","), row.split(","), strict=True))
    assert float(measured["Inferences/Second"]) > 0
