"""A network that gives more than its scores, and reads one number a row, end to end."""

from __future__ import annotations

import shutil
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import networks
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.http as over_http
from conftest import Serve, Served
from running import eventually

from gati.cli import main
from gati.errors import GatiError
from gati.repository.chain import Chain, chain_path, read_chain
from gati_client import Answer, Client

NAME, PLAIN = "labelled", "labelled-plain"
OUTPUTS = ["probabilities", "label", "best"]
MODULE = """
import networks

def build():
    return networks.labelled().module
"""
ROWS = networks.resembling(networks.labelled(), 32, seed=1)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network exported as a user would."""
    folder = tmp_path_factory.mktemp("outputs")
    np.savez(folder / "rows.npz", **networks.resembling(networks.labelled(), 1500))
    (folder / "own_labelled_net.py").write_text(MODULE)
    options = ["--samples", "rows.npz", "--repository", "models", "--name", NAME, "--mode", "inline", "--plain"]
    options += ["--families", "pooled", "--cut-points", "2"]
    said = StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), pytest.raises(SystemExit) as end:
        patch.chdir(folder)
        patch.setattr(sys, "path", [*sys.path])
        main(["export", "own_labelled_net:build", *options])
    assert not end.value.code
    assert "follows what else is served: probabilities, label, best." in said.getvalue()
    return folder / "models"


@pytest.fixture(scope="module")
def chain(repository: Path) -> Chain:
    return read_chain(repository, NAME)


@pytest.fixture(scope="module", params=["inline", "bls"])
def served(
    request, serve_module: Serve, repository: Path, chain: Chain, tmp_path_factory: pytest.TempPathFactory
) -> Served:
    copy = tmp_path_factory.mktemp(request.param) / "models"
    shutil.copytree(repository, copy)
    chain_path(copy, NAME).write_text(replace(chain, mode=request.param).to_json())
    running = serve_module(copy, GATI_STORE="none", GATI_AUDIT="0")
    assert eventually(lambda: some_hit(running))  # heads of BLS mode are taken in a moment later
    return running


def some_hit(served: Served) -> bool:
    hit = asked(served, NAME).hit
    return hit is not None and bool(hit.any())


def asked(served: Served, model: str, *, exact: bool = False) -> Answer:
    with Client(served.grpc, model) as client:
        return client.infer(ROWS, exact=exact)


def test_all_outputs_are_the_networks(served: Served) -> None:
    exact, plain = asked(served, NAME, exact=True), asked(served, PLAIN)
    assert [*exact.outputs] == [*plain.outputs] == OUTPUTS
    for name in OUTPUTS:
        np.testing.assert_allclose(exact.outputs[name], plain.outputs[name], rtol=1e-4)
        assert exact.outputs[name].dtype == plain.outputs[name].dtype
    assert exact.outputs["label"].shape == (32, 1)


def test_what_heads_answer_has_all_outputs_as_well(served: Served) -> None:
    answer, plain = asked(served, NAME), asked(served, PLAIN)
    assert answer.hit.any() and not answer.hit.all()
    odds = answer.outputs["probabilities"]
    np.testing.assert_allclose(odds.sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(answer.outputs["label"][:, 0], odds.argmax(1))
    np.testing.assert_array_equal(answer.outputs["best"], np.argsort(-odds, 1)[:, :2])
    assert (answer.outputs["label"] == plain.outputs["label"]).mean() > 0.95
    np.testing.assert_allclose(odds[~answer.hit], plain.outputs["probabilities"][~answer.hit], rtol=1e-4)


def test_the_chain_is_described_as_the_plain_model_is(served: Served) -> None:
    with triton.InferenceServerClient(served.grpc) as client:
        metadata = [client.get_model_metadata(name, as_json=True) for name in (NAME, PLAIN)]
    assert metadata[0]["inputs"] == metadata[1]["inputs"]
    assert metadata[0]["outputs"][:-2] == metadata[1]["outputs"]
    assert [output["name"] for output in metadata[0]["outputs"]] == [*OUTPUTS, "exit", "release"]


def test_only_what_is_asked_for_comes(served: Served) -> None:
    with over_http.InferenceServerClient(served.http) as client:
        inputs = []
        for name, kind, rows in (("x", "FP32", ROWS["x"][:3]), ("loudness", "FP32", ROWS["loudness"][:3, None])):
            inputs.append(over_http.InferInput(name, rows.shape, kind))
            inputs[-1].set_data_from_numpy(rows)
        wanted = [over_http.InferRequestedOutput(name) for name in ("label", "release")]
        response = client.infer(NAME, inputs, outputs=wanted).get_response()
    assert {output["name"]: output["shape"] for output in response["outputs"]} == {"label": [3, 1], "release": [3, 1]}


def test_a_tail_that_is_not_the_chains_is_refused(serve: Serve, repository: Path, chain: Chain, tmp_path: Path) -> None:
    shutil.copytree(repository, tmp_path / "models")
    chain.tail_path(tmp_path / "models").write_bytes(b"nothing")
    with pytest.raises(GatiError, match=r"tail\.onnx is not the one that chain\.json names"):
        serve(tmp_path / "models")


def test_it_learns_from_what_was_served(
    serve: Serve, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "models"
    shutil.copytree(repository, copy)
    running = serve(copy, GATI_AUDIT="0")
    rows = networks.resembling(networks.labelled(), 1600, seed=2)
    with Client(running.grpc, NAME) as client:
        for start in range(0, 1600, 16):
            client.infer({name: values[start : start + 16] for name, values in rows.items()})
    assert eventually(lambda: len(list(tmp_path.rglob("*.parquet"))) > 0)
    with pytest.raises(SystemExit) as end:
        main(["refresh", NAME, "--repository", str(copy), "--server", running.grpc, "--always"])
    assert not end.value.code, capsys.readouterr().err
    answer = asked(running, NAME)
    assert set(answer.release.tolist()) == {0, 2}
    np.testing.assert_array_equal(answer.outputs["label"][:, 0], answer.outputs["probabilities"].argmax(1))
