"""The requests of a benchmark: drawn from samples, in an order that resembles some traffic."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from gati.errors import SamplesError
from gati.repository.chain import Tensor, as_sent
from gati_client.workload import film, frames, hot, iid
from gati_export.samples.ragged import count, is_ragged, rows_at

WORKLOADS = ("iid", "hot", "frames")
MOST = 200_000
"""Requests before a sequence begins anew."""

Feeds = dict[str, np.ndarray]
"""One request, or all: inputs by name, as many rows each (gati_export.samples.ragged)."""


class Traffic:
    """Requests, one after the other, without end.

    `iid` are samples in random order; `hot` is as `gati_client.workload.hot` has it, on the backbone's answers;
    `frames` are runs of thirty near-duplicates as `gati_client.workload.jitter` makes them, for models with one input,
    an image, whose values are taken to range from the smallest to the largest of its channel.

    Args:
        workload: One of WORKLOADS.
        samples: Model inputs by name, [samples, ...].
        classes: The backbone's answers, [samples]; needed for `hot` alone.
        inputs: The model's inputs.
        seed: Of the sequence.

    Attributes:
        taken: How many requests were taken.
        compared: How many were before those that contenders' answers are compared on; `begin_comparing` sets it.
        measured: How many were before those that are measured; `begin_measuring` sets it.

    Raises:
        SamplesError: If `frames` is asked for and the model's input is no image, or `hot` and all answers are one.
    """

    def __init__(
        self, workload: str, samples: Feeds, classes: np.ndarray | None, inputs: Sequence[Tensor], seed: int
    ) -> None:
        self.taken = self.compared = self.measured = 0
        self._samples = {tensor.name: samples[tensor.name] for tensor in inputs}
        self._film = _filmed(*_pictures(samples, inputs), seed) if workload == "frames" else None
        if classes is not None and len(np.unique(classes)) < 2:
            raise SamplesError("The backbone gives all samples the same answer, and hot takes two to be popular.")
        self._index = iid(count(self._samples), MOST, seed) if classes is None else hot(classes, MOST, seed=seed)

    def take(self, number: int) -> Feeds:
        """The next requests, inputs by name, so many rows each."""
        start, self.taken = self.taken, self.taken + number
        if self._film is not None:
            rows = [next(self._film) for _ in range(number)]
            return {name: np.stack([row[name] for row in rows]) for name in self._samples}
        index = self._drawn(start, self.taken)
        return {name: values[index] for name, values in self._samples.items()}

    def begin_comparing(self) -> None:
        """From here on all contenders are asked all requests, and may remember them."""
        self.compared = self.taken

    def begin_measuring(self) -> None:
        """From here on requests are measured."""
        self.measured = self.taken

    @property
    def distinct(self) -> int:
        """How many different requests there are among those compared."""
        if self._film is not None:
            return self.measured - self.compared
        return len(np.unique(self._drawn(self.compared, self.measured)))

    @property
    def repeats(self) -> float:
        """Share of the requests measured whose like contenders had been asked before, measured or compared."""
        if self._film is not None or self.taken == self.measured:
            return 0.0
        _, first = np.unique(self._drawn(self.compared, self.taken), return_index=True)
        new = np.count_nonzero(first >= self.measured - self.compared)
        return 1 - new / (self.taken - self.measured)

    def _drawn(self, start: int, end: int) -> np.ndarray:
        return self._index.take(range(start, end), mode="wrap")


def _pictures(samples: Mapping[str, np.ndarray], inputs: Sequence[Tensor]) -> tuple[str, np.ndarray]:
    tensor = inputs[0]
    pool = samples[tensor.name]
    if is_ragged(pool):
        raise SamplesError(f"The workload frames is for pictures of one size; those of {tensor.name!r} have several.")
    if len(inputs) > 1 or pool.ndim != 4 or pool.dtype.kind != "f" or pool.shape[1] > min(pool.shape[2:]):
        raise SamplesError(
            "The workload frames is for models with one input of images [channels, height, width] of real numbers; "
            f"{tensor.name!r} is {tensor.dtype} {list(tensor.shape)}."
        )
    return tensor.name, pool


def _filmed(name: str, pool: np.ndarray, seed: int) -> Iterator[Feeds]:
    low, high = (reduce(pool, axis=(0, 2, 3), keepdims=True)[0] for reduce in (np.min, np.max))
    reach = np.maximum(high - low, np.finfo(np.float32).tiny)
    for again in itertools.count():
        scenes, numbers = frames(len(pool), MOST, seed=seed + again)
        for picture in film((pool - low) / reach, scenes, numbers, seed + again):
            yield {name: (picture * reach + low).astype(pool.dtype)}


def write_inputs(path: Path, requests: Feeds) -> None:
    """Writes requests as perf_analyzer's input data, one step a request."""
    steps = [
        {name: _encoded(as_sent(values)[0]) for name, values in rows_at(requests, [row]).items()}
        for row in range(count(requests))
    ]
    path.write_text(json.dumps({"data": steps}), encoding="ascii")


def _encoded(value: np.ndarray) -> dict[str, object]:
    return {"content": {"b64": base64.b64encode(value.tobytes()).decode()}, "shape": list(value.shape)}
