"""How long a server takes to its first answer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gati.server import HOST, Ports, Server
from gati.session import DEVICE
from gati_client import Client
from gati_export.bench.contenders import Arena
from gati_export.repository import models_of


def seconds_to_answer(arena: Arena, name: str, folder: Path, request: Mapping[str, np.ndarray]) -> float:
    """From the start of a server that has only this contender to its first answer.

    Args:
        arena: Where the contender lies.
        name: The contender's.
        folder: Where a repository with it alone is to be; there must be none.
        request: Inputs by name, [1, ...].
    """
    folder.mkdir()
    for model in models_of(arena.repository, name):
        (folder / model.name).symlink_to(model)
    begun = time.perf_counter()
    environment = {DEVICE: str(arena.device)}
    with Server(folder, Ports(0, 0, 0), environment) as server, Client(f"{HOST}:{server.ports.grpc}", name) as client:
        client.infer(dict(request))
        return time.perf_counter() - begun
