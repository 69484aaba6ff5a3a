"""A tritonserver that somebody starts with the options that OPERATING.md names, and publishes to."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import MODEL, Exported
from drafts import in_mode, marked_draft
from running import MODES, eventually

from gati.errors import PublishError
from gati.repository.chain import Mode
from gati.repository.workspace import workspace
from gati.triton.installation import find_triton
from gati.triton.model_control import is_ready
from gati.triton.ports import HOST, Ports, choose
from gati.triton.startup import startup_models
from gati_client import Client
from gati_export.releases.publish import publish, withdraw
from gati_export.releases.rollout import publish_to

APIS = "model-repository,shared-memory,logging,trace"
BACKEND = "import gati; print(gati.__path__[0])"
DOCUMENT = (Path(__file__).parents[2] / "OPERATING.md").read_text(encoding="utf-8")


@pytest.fixture
def started(tmp_path: Path) -> Iterator:
    """Starts tritonservers by their own options; they end with the test."""
    running: list[subprocess.Popen[bytes]] = []

    def start(repository: Path, *options: str) -> Ports:
        triton, ports, backends = find_triton(), choose(Ports(0, 0, 0), HOST), tmp_path / "backends"
        backends.mkdir()
        triton.prepare(backends)
        (backends / "gati").unlink()
        found = subprocess.check_output([sys.executable, "-c", BACKEND], text=True, cwd=tmp_path)
        (backends / "gati").symlink_to(found.strip())
        listening = [f"--{kind}-address={HOST}" for kind in ("http", "grpc", "metrics")]
        listening += [f"--http-port={ports.http}", f"--grpc-port={ports.grpc}", f"--metrics-port={ports.metrics}"]
        places = [f"--model-repository={repository}", f"--backend-directory={backends}"]
        command = [str(triton.executable), *places, *listening, *options]
        with (tmp_path / "server.log").open("wb") as log:
            environment = triton.environment(backends) | {"GATI_AUDIT": "0", "GATI_STORE": "none"}
            running.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        assert eventually(lambda: is_ready(ports.http)), (tmp_path / "server.log").read_text()
        return ports

    yield start
    for process in running:
        process.terminate()
        process.wait(60)


@pytest.mark.triton
@pytest.mark.parametrize("mode", MODES)
def test_it_serves_and_takes_releases(exported: Exported, started, tmp_path: Path, mode: Mode) -> None:
    repository = exported.copy(tmp_path, mode)
    secret = workspace(repository) / "token"
    secret.parent.mkdir()
    secret.write_text("secret\n")
    options = ["--model-control-mode=explicit", "--strict-readiness=false"]
    options += [f"--{kind}={APIS}:gati=secret" for kind in ("grpc-restricted-protocol", "http-restricted-api")]
    assert BACKEND in DOCUMENT
    assert all(option.partition("=")[0] in DOCUMENT for option in options)
    ports = started(repository, *options, *(f"--load-model={model}" for model in startup_models(repository)))
    chain, address = in_mode(exported.chain, mode), f"{HOST}:{ports.grpc}"
    for mark in (1, 2):  # so that one of the versions that were there is served no more
        number = publish_to(repository, chain, marked_draft(chain, mark), address).release.number
        with Client(address, MODEL) as client:
            assert set(client.infer(exported.images[:4]).release) == {number}
    assert is_ready(ports.http)
    secret.write_text("another\n")
    if mode == "bls":
        with pytest.raises(PublishError, match="is not that server's"):
            publish_to(repository, chain, marked_draft(chain, 3), address)


ALL = [("inline", []), ("bls", []), ("inline", ["--model-control-mode=poll"])]


@pytest.mark.triton
@pytest.mark.parametrize(("mode", "options"), ALL)
def test_it_starts_with_all_that_lies_there(
    exported: Exported, started, tmp_path: Path, mode: Mode, options: list[str]
) -> None:
    repository = exported.copy(tmp_path, mode)
    chain = in_mode(exported.chain, mode)
    for mark in (1, 2):
        publish(repository, chain, marked_draft(chain, mark))
    withdraw(repository, chain, 1)
    found = [index for index in chain.heads if (repository / chain.head_model(index)).exists()]
    assert found == list(chain.heads[:1]), "the others have no version"
    ports = started(repository, *options)
    with Client(f"{HOST}:{ports.grpc}", MODEL) as client:
        assert eventually(lambda: set(client.infer(exported.images[:4]).release) == {3})
        if mode == "inline":
            publish(repository, chain, marked_draft(chain, 3))
            assert eventually(lambda: set(client.infer(exported.images[:4]).release) == {4})
