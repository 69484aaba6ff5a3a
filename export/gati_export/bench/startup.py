"""How long a server takes to its first answer."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from gati.triton.ports import HOST, Ports
from gati.triton.server import Server
from gati_client import Client
from gati_export.bench.arena import Arena
from gati_export.releases.repository import models_of

STARTS = 3
"""Of each: one alone may be a tenth off."""


def seconds_to_answer(
    arena: Arena, names: Sequence[str], folder: Path, request: Mapping[str, np.ndarray], log: Path
) -> dict[str, float]:
    """From the start of a server that has only one contender to its first answer: the median, and they take turns.

    Args:
        arena: Where the contenders lie.
        names: Theirs.
        folder: Where repositories with each alone are to be; there must be none.
        request: Inputs by name, [1, ...].
        log: File for the servers' log.
    """
    taken: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        (folder / name).mkdir(parents=True)
        for model in models_of(arena.repository, name):
            (folder / name / model.name).symlink_to(model)
    for _ in range(STARTS):
        for name in names:
            taken[name].append(_once(folder / name, name, arena.environment, request, log))
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def _once(
    repository: Path, name: str, environment: Mapping[str, str], request: Mapping[str, np.ndarray], log: Path
) -> float:
    begun = time.perf_counter()
    with (
        Server(repository, Ports(0, 0, 0), environment, log) as server,
        Client(f"{HOST}:{server.ports.grpc}", name) as client,
    ):
        client.infer(dict(request))
        return time.perf_counter() - begun
