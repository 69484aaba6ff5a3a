"""A chain in the place of a model that Triton serves already: its clients, its labels, and ensembles with it go on."""

from __future__ import annotations

import json
import queue
import shutil
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.http as over_http
from conftest import Serve, Served
from graphs import Graph
from running import eventually

from gati.cli import main

NAME, CLASSES = "wide", 4
CONFIG = """
platform: "onnxruntime_onnx"
max_batch_size: 16
input [{ name: "point", data_type: TYPE_FP32, dims: [24] }]
output [{ name: "scores", data_type: TYPE_FP32, dims: [4], label_filename: "kinds.txt" }]
dynamic_batching { preferred_batch_size: [4, 16], priority_levels: 2, default_priority_level: 1 }
instance_group [{ kind: KIND_CPU, count: 1 }]
"""
ENSEMBLE = """
platform: "ensemble"
max_batch_size: 16
input [{ name: "POINT", data_type: TYPE_FP32, dims: [24] }]
output [{ name: "SCORES", data_type: TYPE_FP32, dims: [4] }]
ensemble_scheduling { step [{
  model_name: "wide", model_version: -1
  input_map { key: "point", value: "POINT" }
  output_map { key: "scores", value: "SCORES" }
}] }
"""
KINDS = ["ash", "birch", "cedar", "douglas fir"]


def points(count: int, seed: int) -> np.ndarray:
    """Points near one of twelve centres, [count, 24]."""
    centres = 3 * np.random.default_rng(0).normal(size=(12, 24))
    noise = np.random.default_rng(seed).normal(size=(count, 24))
    return (centres[np.arange(count) % 12] + 0.1 * noise).astype(np.float32)


@pytest.fixture(scope="module")
def production(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a costly network, in two versions, and an ensemble of it."""
    repository = tmp_path_factory.mktemp("production") / "production"
    for version in (1, 3):
        graph = Graph(seed=version)
        h = graph.linear(graph.input("point", ["batch", 24]), 24, 1024)
        for _ in range(4):
            h = graph.linear(graph.node("Relu", h), 1024, 1024)
        graph.linear(graph.node("Relu", h), 1024, CLASSES, name="scores")
        folder = repository / NAME / str(version)
        folder.mkdir(parents=True)
        graph.save(folder / "model.onnx", "scores", shape=["batch", CLASSES])
    (repository / NAME / "config.pbtxt").write_text(CONFIG)
    (repository / NAME / "kinds.txt").write_text("\n".join(KINDS) + "\n")
    (repository / "pipeline" / "1").mkdir(parents=True)
    (repository / "pipeline" / "config.pbtxt").write_text(ENSEMBLE)
    return repository


@pytest.fixture(scope="module")
def told(production: Path) -> str:
    """What the export says, which makes `models` beside it; the ensemble is moved there by hand."""
    folder = production.parent
    np.savez(folder / "points.npz", point=points(1400, seed=1))
    options = ["--samples", "points.npz", "--repository", "models", "--mode", "inline", "--cut-points", "1"]
    said = StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), pytest.raises(SystemExit) as end:
        patch.chdir(folder)
        main(["export", f"production/{NAME}/", *options, "--families", "pooled"])
    assert not end.value.code
    shutil.copytree(production / "pipeline", folder / "models" / "pipeline")
    return said.getvalue()


@pytest.fixture(scope="module")
def before(serve_module: Serve, production: Path) -> Served:
    return serve_module(production)


@pytest.fixture(scope="module")
def after(serve_module: Serve, production: Path, told: str) -> Served:
    served = serve_module(production.parent / "models", GATI_STORE="none", GATI_AUDIT="0")
    assert eventually(lambda: bool(ask(served, points(16, 2), "release").as_numpy("release").any()))
    return served


def ask(served: Served, rows: np.ndarray, *outputs: str, model: str = NAME, **named: object) -> triton.InferResult:
    with triton.InferenceServerClient(served.grpc) as client:
        tensor = triton.InferInput("POINT" if model == "pipeline" else "point", rows.shape, "FP32")
        tensor.set_data_from_numpy(rows)
        return client.infer(model, [tensor], outputs=[triton.InferRequestedOutput(name) for name in outputs], **named)


def test_what_is_different_is_said(told: str) -> None:
    assert "Not taken over from wide's configuration: instance_group." in told
    assert "Clients and ensembles that ask for version 3 by its number are to ask for 1, or for none." in told
    assert "Release 1: expected speed-up" in told
    assert "refused" not in told


def test_the_newest_version_answers(before: Served, after: Served) -> None:
    rows = points(16, seed=3)
    scores = [ask(served, rows, "scores").as_numpy("scores") for served in (before, after)]
    assert (scores[0].argmax(1) == scores[1].argmax(1)).mean() >= 0.9
    exact = ask(after, rows, "scores", parameters={"gati_mode": "exact"}).as_numpy("scores")
    np.testing.assert_allclose(exact, scores[0], rtol=1e-4, atol=1e-5)


def test_clients_find_the_same_inputs_and_outputs(before: Served, after: Served) -> None:
    said = []
    for served in (before, after):
        with triton.InferenceServerClient(served.grpc) as client:
            config = client.get_model_config(NAME, as_json=True)["config"]
            said.append((client.get_model_metadata(NAME, as_json=True), config))
    (old, old_config), (new, new_config) = said
    assert new["inputs"] == old["inputs"]
    assert new["outputs"][:1] == old["outputs"]
    assert new_config["max_batch_size"] == old_config["max_batch_size"] == 16
    assert new_config["dynamic_batching"]["preferred_batch_size"] == [4, 16]


def test_answers_are_named_by_the_same_labels(before: Served, after: Served) -> None:
    rows = points(12, seed=4)
    named = []
    for served in (before, after):
        with over_http.InferenceServerClient(served.http) as client:
            tensor = over_http.InferInput("point", rows.shape, "FP32")
            tensor.set_data_from_numpy(rows)
            wanted = [over_http.InferRequestedOutput("scores", class_count=1)]
            answer = client.infer(NAME, [tensor], outputs=wanted).as_numpy("scores")
        named.append([text.decode().split(":")[2] for text in answer[:, 0]])
    assert set(named[1]) <= set(KINDS)
    assert np.mean([old == new for old, new in zip(*named, strict=True)]) >= 0.9


def test_a_request_may_have_a_priority_and_a_timeout(after: Served) -> None:
    given = {"priority": 2, "timeout": 1}
    assert ask(after, points(1, seed=5), "scores", **given).as_numpy("scores").shape == (1, CLASSES)


def test_requests_that_wait_do_not_wait_for_triton(after: Served) -> None:
    """Which takes half a second for each batch that waits for an only instance where there are priorities."""
    tensor = triton.InferInput("point", [16, 24], "FP32")
    tensor.set_data_from_numpy(points(16, seed=7))
    ended = queue.Queue[object]()
    begun = time.monotonic()
    with triton.InferenceServerClient(after.grpc) as client:
        for _ in range(60):
            client.async_infer(NAME, [tensor], callback=lambda result, error: ended.put(error))
        assert [ended.get(timeout=60) for _ in range(60)] == [None] * 60
    assert time.monotonic() - begun < 5


def test_an_ensemble_goes_on(before: Served, after: Served) -> None:
    rows = points(16, seed=6)
    scores = [ask(served, rows, "SCORES", model="pipeline").as_numpy("SCORES") for served in (before, after)]
    assert (scores[0].argmax(1) == scores[1].argmax(1)).mean() >= 0.9
    direct = ask(after, rows, "scores").as_numpy("scores")
    np.testing.assert_allclose(scores[1], direct, rtol=1e-4, atol=1e-5)


def test_labels_go_with_the_chain(production: Path, told: str) -> None:
    manifest = json.loads((production.parent / "models" / NAME / "1" / "chain.json").read_text())
    assert len(manifest["labels"]) == 1
    kept = production.parent / "models" / NAME / "labels-0.txt"
    assert kept.read_text() == (production / NAME / "kinds.txt").read_text()
