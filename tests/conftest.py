"""What tests share: a small chain on real digits, exported once, and real servers for it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

sys.path.insert(0, str(Path(__file__).parent))  # shared helpers: networks, graphs
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # PyTorch's threads wait busily else, on the servers' cores

from gati.errors import UnavailableError
from gati.repository.chain import Chain, Mode, chain_path, read_chain
from gati.triton.installation import find_triton
from gati.triton.ports import HOST, Ports
from gati.triton.server import Server
from gati_export.composition import latency

latency.SECONDS = 0.0  # a hundred rounds are enough where no test hangs on how long parts take
latency.PAUSE = 0.0

MODEL = "digits"
PLAIN = f"{MODEL}-plain"


def no_triton() -> str | None:
    """Why there is no Triton here, or None."""
    try:
        find_triton()
    except UnavailableError as error:
        return str(error)
    return None


LONG = (
    "test_bench",
    "test_families",
    "test_backbones",
    "test_faults",
    "test_refresh",
    "test_rollout",
    "test_publish",
    "test_export",
    "test_requests",
    "test_serve",
    "test_objects",
    "test_training",
    "test_load",
    "test_turns",
    "test_certificate",
    "test_live_breaker",
    "test_splitting",
    "test_scenes",
    "test_outputs",
    "test_segments",
    "test_poisoning",
    "test_replay",
)
"""Files that take longest: begun first, so that no worker is left with one when the others are done."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files come first; tests that need a server, or are marked so, say so where there is none."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))
    reason = no_triton()
    for item in items:
        if {"serve", "serve_module"}.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("triton")
        if reason and item.get_closest_marker("triton"):
            item.add_marker(pytest.mark.skip(reason=reason))


@dataclass(frozen=True)
class Exported:
    """A repository with a small chain (`digits`, inline) and its plain backbone (`digits-plain`), and new samples."""

    repository: Path
    chain: Chain
    images: np.ndarray
    """[1000, 1, 16, 16]: none of them among the samples that the heads were learned from."""

    def copy(self, folder: Path, mode: Mode = "inline", *, plain: bool = False) -> Path:
        """A copy to be changed, run in this mode, with the plain backbone where it is asked; returns its repository."""
        repository = folder / "models"
        shutil.copytree(self.repository, repository, ignore=None if plain else shutil.ignore_patterns(PLAIN))
        chain_path(repository, MODEL).write_text(replace(self.chain, mode=mode).to_json())
        return repository


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Trains a small network on digits, and exports it as a user would; once, and each worker has a copy."""
    from small import export_small

    several, base = "PYTEST_XDIST_WORKER" in os.environ, tmp_path_factory.getbasetemp()
    first = (base.parent if several else base) / "first-exported"
    with FileLock(f"{first}.lock"):
        if not (first / "images.npy").exists():
            first.mkdir()
            np.save(first / "images.npy", export_small(first, MODEL))
    folder = tmp_path_factory.mktemp("exported")
    shutil.copytree(first / "models", folder / "models")
    return Exported(folder / "models", read_chain(folder / "models", MODEL), np.load(first / "images.npy"))


@dataclass(frozen=True)
class Served:
    """A running server on a repository."""

    server: Server
    repository: Path

    @property
    def grpc(self) -> str:
        """HOST:PORT."""
        return f"{HOST}:{self.server.ports.grpc}"

    @property
    def http(self) -> str:
        """HOST:PORT."""
        return f"{HOST}:{self.server.ports.http}"

    @property
    def metrics(self) -> str:
        """HOST:PORT."""
        return f"{HOST}:{self.server.ports.metrics}"

    def log(self) -> str:
        """What the server has logged."""
        return self.server.log.read_text(errors="replace")


Serve = Callable[..., Served]


def serving() -> Iterator[Serve]:
    """Starts servers on free ports, and kills them: tests that hang on how a server ends stop it themselves.

    They ask their heads in any case: of a network of 0.1 ms, no head is sure to save anything on a busy machine.
    """
    running: list[Server] = []

    def start(repository: Path, **environment: str) -> Served:
        running.append(Server(repository, Ports(0, 0, 0), {"GATI_BYPASS": "0"} | environment))
        return Served(running[-1], repository)

    yield start
    for server in running:
        killed(server)


def killed(server: Server) -> None:
    """Ends a server that nobody needs any more, and all below it, at once; in peace it takes two seconds or more."""
    server._stubs.look()
    server.process.kill()
    server.process.wait()
    for pid in server._stubs._models:
        server._stubs.end(pid)
    server.stop()


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers on free ports: `serve(repository, **GATI_variables)`; they end with the test."""
    yield from serving()


@pytest.fixture(scope="module")
def serve_module() -> Iterator[Serve]:
    """Starts servers that a module's tests share; they end with the module."""
    yield from serving()
