"""The mode of a chain: the one that is faster on this machine's own server, as measured there."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton

from gati.errors import GatiError, UnavailableError
from gati.repository.chain import Chain, Mode, as_sent
from gati.settings import NO_STORE, STORE
from gati.triton.installation import find_triton
from gati.triton.ports import HOST, Ports
from gati.triton.server import Server
from gati_export.progress import Progress
from gati_export.releases.repository import write_repository
from gati_export.samples.ragged import rows_at

REQUESTS, WARM_UP = 60, 10

CLEARLY = 0.9
"""Share of the time inline that BLS mode has to keep within to be taken: less is what else runs here meanwhile."""


def faster_mode(
    staged: Path, chain: Chain, samples: Mapping[str, np.ndarray], progress: Progress
) -> tuple[Mode, dict[str, float]]:
    """Serves a chain in both modes, one after the other, and inline again if it seems slower.

    Args:
        staged: A repository that holds this chain alone.
        chain: The chain.
        samples: Inputs to ask, n rows each, one at a time.
        progress: Told how far it is.

    Returns:
        BLS mode if it is clearly faster, else inline, and the mean seconds a request in each; inline and nothing where
        there is no server here.
    """
    try:
        find_triton()
    except UnavailableError:
        return "inline", {}
    seconds: dict[str, float] = {}
    turns: tuple[Mode, ...] = ("inline", "bls", "inline")
    for done, mode in enumerate(turns):
        if seconds and faster(seconds) == mode == "inline":
            break  # it has been asked already, and needs no second chance
        progress("Measure both modes", done / len(turns))
        write_repository(staged, replace(chain, mode=mode))
        # A mode that this machine's server can't run is not the faster one.
        with suppress(GatiError), Server(staged, Ports(0, 0, 0), {STORE: NO_STORE}) as server:
            taken = _mean_seconds(f"{HOST}:{server.ports.grpc}", chain, samples)
            seconds[mode] = min(taken, seconds.get(mode, math.inf))
    progress("Measure both modes", 1)
    return faster(seconds), seconds


def faster(seconds: Mapping[str, float]) -> Mode:
    """The mode to run a chain in, whose mean seconds a request are these; a mode that can't be run is missing."""
    inline = seconds.get("inline", math.inf)
    return "bls" if seconds.get("bls", math.inf) < CLEARLY * inline else "inline"


def _mean_seconds(address: str, chain: Chain, samples: Mapping[str, np.ndarray]) -> float:
    count = len(samples[chain.inputs[0].name])
    with triton.InferenceServerClient(address) as client:
        taken = []
        for i in range(WARM_UP + REQUESTS):
            one = rows_at(samples, [i % count])
            rows = {tensor: as_sent(one[tensor.name]) for tensor in chain.inputs}
            inputs = [_input(tensor.name, tensor.dtype, value) for tensor, value in rows.items()]
            start = time.perf_counter()
            client.infer(chain.model, inputs)
            taken.append(time.perf_counter() - start)
            if i == WARM_UP // 2:
                time.sleep(1)  # in BLS mode heads are taken in after the first request
    return float(np.mean(taken[WARM_UP:]))


def _input(name: str, dtype: str, value: np.ndarray) -> triton.InferInput:
    tensor = triton.InferInput(name, list(value.shape), dtype)
    tensor.set_data_from_numpy(value)
    return tensor
