"""A server on a chain whose releases tests publish."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from conftest import MODEL, Exported, Serve, Served
from drafts import in_mode, marked_draft

from gati.cli import main
from gati.repository.chain import Chain, Mode
from gati.repository.release import Release, numbers_on_disk
from gati_client import Client
from gati_export.releases.control import Control
from gati_export.releases.rollout import publish_to
from gati_export.report.scrape import Reading, read_metrics

MODES: tuple[Mode, ...] = ("inline", "bls")
GATI = [sys.executable, "-c", "from gati.cli import main; main()"]
"""The command as a process of its own."""


@dataclass(frozen=True)
class Running:
    """A server on a chain, and images to ask it with."""

    served: Served
    chain: Chain
    images: np.ndarray

    @property
    def repository(self) -> Path:
        """The model repository."""
        return self.served.repository

    def put(self, mark: int = 0, thresholds: dict[int, float] | None = None) -> Release:
        """Publishes marked heads to the server."""
        draft = marked_draft(self.chain, mark, thresholds)
        return publish_to(self.repository, self.chain, draft, self.served.grpc).release

    def live(self) -> int:
        """The release that the server says it serves."""
        with Control(self.served.grpc, self.repository) as plane:
            return plane.live_release(self.chain)

    def marks(self) -> tuple[list[int], list[int]]:
        """The marks that four answers carry, and the releases that they name."""
        with Client(self.served.grpc, MODEL) as client:
            answer = client.infer(self.images[:4])
        assert answer.release is not None
        return [round(float(mark)) for mark in answer.output[:, 0]], answer.release.tolist()

    def reading(self) -> Reading:
        """The chain's metrics."""
        return read_metrics(self.served.metrics, MODEL)

    def next_number(self) -> int:
        """A number above all that lie in the repository."""
        return max(numbers_on_disk(self.repository, self.chain)) + 1

    def log(self) -> str:
        """The server's log."""
        return self.served.log()


def started(
    exported: Exported,
    serve: Serve,
    folder: Path,
    mode: Mode,
    repository: Path | None = None,
    *,
    plain: bool = False,
    **environment: str,
) -> Running:
    """Starts a server on a copy of the exported chain in `folder`, or on a repository; nothing audits or records."""
    quiet = {"GATI_AUDIT": "0", "GATI_STORE": "none"} | environment
    served = serve(repository or exported.copy(folder, mode, plain=plain), **quiet)
    return Running(served, in_mode(exported.chain, mode), exported.images)


def eventually(holds: Callable[[], bool], seconds: float = 60) -> bool:
    """Whether it holds within so many seconds."""
    deadline, pause = time.monotonic() + seconds, 0.002
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause = min(0.1, 2 * pause)
    return True


def until(holds: Callable[[], bool], seconds: float = 60) -> None:
    """Waits for what is bound to come."""
    assert eventually(holds, seconds), "it did not come"


def gati(*arguments: object) -> int:
    """Runs a command in this process; returns its exit code."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)
