"""What Triton makes of a model's folder and its configuration, and gati with it."""

from __future__ import annotations

import json
import shutil
import urllib.request
from pathlib import Path

import pytest
from conftest import MODEL, Exported, Serve, killed
from graphs import Graph
from running import MODES

from gati.errors import RepositoryError
from gati.repository.chain import Mode
from gati.repository.secret import read_or_create_token
from gati.triton.ports import Ports
from gati.triton.server import Server
from gati_export.releases.deployed import read_deployed

CONFIG = """
backend: "onnxruntime"
max_batch_size: 8
input [{ name: "x", data_type: TYPE_FP32, dims: [6] }]
output [{ name: "y", data_type: TYPE_FP32, dims: [4] }]
instance_group [{ kind: KIND_CPU }]
"""
POLICIES = {
    "none": "",
    "latest": "latest { num_versions: 2 }",
    "all": "all { }",
    "specific": "specific { versions: [1, 7] }",
}
NAME = "h100"
"""What the server is told to take configurations of."""
WARM_UP = """
model_warmup [{ name: "zeros", batch_size: 1, inputs {
  key: "image" value: { data_type: TYPE_FP32, dims: [1, 16, 16], zero_data: true }
} }]
"""


def put(repository: Path, name: str, policy: str) -> Path:
    """A model in versions 0, 1 and 3; others are in folders that Triton overlooks."""
    folder = repository / name
    for version in ("0", "1", "03", "old"):
        (folder / version).mkdir(parents=True)
        graph = Graph()
        graph.linear(graph.node("Relu", graph.linear(graph.input("x", ["batch", 6]), 6, 6)), 6, 4, name="y")
        graph.save(folder / version / "model.onnx", "y", shape=["batch", 4])
    shutil.move(folder / "03", repository.parent / f"{name}-3")
    (folder / "3").symlink_to(repository.parent / f"{name}-3")
    (folder / "config.pbtxt").write_text(CONFIG + (policy and f"version_policy {{ {policy} }}"))
    return folder


@pytest.mark.triton
def test_versions_are_those_that_triton_serves(tmp_path: Path) -> None:
    repository = tmp_path / "production"
    for name, policy in POLICIES.items():
        put(repository, name, policy)
    named = put(repository, "named", "") / "configs"
    named.mkdir()
    (named / f"{NAME}.pbtxt").write_text(f"{CONFIG} version_policy {{ specific {{ versions: [1] }} }}")
    server = Server(repository, Ports(0, 0, 0), options=[f"--model-config-name={NAME}"])
    try:
        served = _served(server, read_or_create_token(repository))
    finally:
        killed(server)
    found = {model: read_deployed(repository / model, NAME) for model in (*POLICIES, "named")}
    assert {model: {deployed.version, *deployed.others} for model, deployed in found.items()} == served
    assert served["named"] == {1}
    assert read_deployed(repository / "named").version == 3


def _served(server: Server, token: str) -> dict[str, set[int]]:
    """Versions of each model that a server says are ready."""
    url = f"http://127.0.0.1:{server.ports.http}/v2/repository/index"
    request = urllib.request.Request(url, b'{"ready": true}', {"gati": token}, method="POST")
    served = dict[str, set[int]]()
    for entry in json.loads(urllib.request.urlopen(request, timeout=10).read()):
        served.setdefault(entry["name"], set()).add(int(entry["version"]))
    return served


@pytest.mark.parametrize("mode", MODES)
def test_a_chain_is_not_warmed_by_triton(exported: Exported, serve: Serve, tmp_path: Path, mode: Mode) -> None:
    repository = exported.copy(tmp_path, mode)
    with (repository / MODEL / "config.pbtxt").open("a") as file:
        file.write(WARM_UP)
    with pytest.raises(RepositoryError, match=f"{MODEL}: Triton's warm-up is recorded.*take model_warmup out of its"):
        serve(repository)
