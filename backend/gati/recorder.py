"""Keeps what was served, as Parquet shards, without ever making a request wait.

A sample is one row: the inputs, or hidden activations in their place (gati.content), the backbone's answer where it is
known (a miss or an audit), the exit, the release and the time. Where shards lie is gati.shelf's business.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gati.chain import Chain
from gati.content import Content, inputs_of
from gati.objects import is_object_store, public
from gati.once import WarnOnce
from gati.shelf import Shelf

if TYPE_CHECKING:
    import pyarrow as pa

ANSWER, EXIT, RELEASE, TIME = "gati.answer", "gati.exit", "gati.release", "gati.time"
SHAPE = b"shape"
"""Field metadata of a column of flat values: a row's shape as JSON. Rows of several shapes are nested lists."""
QUEUE_BYTES = 64 << 20
SHARD_BYTES = 16 << 20
FLUSH_SECONDS = 2.0
OBJECT_STORE_FLUSHES = 15
"""How many times as long an object store waits for a shard: each costs requests there, and small ones are many."""
COMPLAINT_SECONDS = 60.0
"""Between two complaints, whatever they are about, at least."""
OBJECTS = 1024
"""Bytes of a sample's Python objects."""
SWEEPS, SWEEP_SECONDS = 100, 600.0
"""How often the store is swept within the age that samples may reach, and seconds between two sweeps at most."""


@dataclass(frozen=True)
class Sample:
    """Rows of one request, all [rows, ...]; `answer` is None where the backbone's answer is not known.

    `values` is what is kept of the request, by name; see gati.content.
    """

    values: dict[str, np.ndarray]
    answer: np.ndarray | None
    exit: np.ndarray
    release: np.ndarray
    time: float

    @property
    def rows(self) -> int:
        """How many."""
        return len(self.exit)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes while it waits."""
        arrays = (*self.values.values(), self.exit, self.release, *(() if self.answer is None else (self.answer,)))
        return OBJECTS + sum(array.nbytes for array in arrays)


class Recorder:
    """Takes samples from requests and writes them in a thread of its own.

    Args:
        chain: Whose samples.
        store: fsspec URL of the folder above the model's.
        budget: Bytes that the model's shards may take.
        dropped: Called with the number of samples that could not be kept.
        log: Called with what went wrong.
        content: What samples hold; the model's inputs, unless given.
        age: Seconds after which a shard is deleted, whether or not requests come; None keeps any age.
    """

    def __init__(
        self,
        chain: Chain,
        store: str,
        budget: int,
        dropped: Callable[[int], None],
        log: Callable[[str], None],
        content: Content | None = None,
        age: float | None = None,
    ) -> None:
        self._chain = chain
        self._url = f"{store.rstrip('/')}/{chain.model}"
        self._shelf = Shelf(self._url)
        self._pause = FLUSH_SECONDS * (OBJECT_STORE_FLUSHES if is_object_store(store) else 1)
        self._budget = budget
        self._dropped = dropped
        self._warn_once = WarnOnce(log, COMPLAINT_SECONDS)
        self._content = content or inputs_of(chain)
        self._age = age
        self._sweep = time.monotonic()
        self._queue: deque[Sample] = deque()
        self._queued = 0
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="gati-recorder", daemon=True)
        self._thread.start()

    def record(self, sample: Sample) -> None:
        """Takes a sample; drops it, and counts, when the writer is too far behind, or nothing is in it. Never waits."""
        empty = not all(value.size for value in sample.values.values())
        with self._wake:
            full = bool(self._queued) and self._queued + sample.nbytes > QUEUE_BYTES  # one alone may be larger
            if not full and not empty:
                self._queue.append(sample)
                self._queued += sample.nbytes
                if self._queued > SHARD_BYTES:
                    self._wake.notify()
        if full or empty:
            self._dropped(sample.rows)

    def close(self) -> None:
        """Writes what is left and ends the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(timeout=10)

    def _work(self) -> None:
        while self._turn():
            _trim()  # the samples are let go of by now

    def _turn(self) -> bool:
        """Writes what has come for a while, and sweeps; returns whether to go on."""
        with self._wake:
            if not self._closing and self._queued <= SHARD_BYTES:
                self._wake.wait(self._pause)
            samples = self._take()
            closed = self._closing and not self._queue
        with suppress(Exception):  # not even a loss that can't be counted ends the thread
            if samples:
                self._write(samples)
        with suppress(Exception):
            self._expire()
        return not closed

    def _take(self) -> list[Sample]:
        """The oldest that wait, as many as make a shard: a long queue does not become as large a table."""
        samples: list[Sample] = []
        size = 0
        while self._queue and size < SHARD_BYTES:
            samples.append(self._queue.popleft())
            size += samples[-1].nbytes
        self._queued -= size
        return samples

    def _write(self, samples: list[Sample]) -> None:
        try:
            self._shelf.write(shard(self._chain, samples, self._content), self._budget)
        except Exception as error:  # whatever a store raises: serving goes on, the loss is counted
            self._warn_once(f"samples can't be written to {public(self._url)}: {public(str(error))}")
            self._dropped(sum(sample.rows for sample in samples))

    def _expire(self) -> None:
        """Deletes what is too old, every now and then."""
        if self._age is None or time.monotonic() < self._sweep:
            return
        self._sweep = time.monotonic() + min(self._age / SWEEPS, SWEEP_SECONDS)
        try:
            self._shelf.sweep(self._age)
        except Exception as error:  # whatever a store raises: the next sweep tries again
            self._warn_once(f"samples that are too old can't be deleted from {public(self._url)}: {public(str(error))}")


def _trim() -> None:
    """Gives memory that nobody uses back to the system, that of samples too: much of it came at once, and goes."""
    if pa := sys.modules.get("pyarrow"):
        pa.default_memory_pool().release_unused()


def shard(chain: Chain, samples: list[Sample], content: Content | None = None) -> pa.Table:
    """Samples as a table: a list column per tensor that is kept, and what was served."""
    import pyarrow as pa

    pa.set_memory_pool(pa.system_memory_pool())  # Arrow's own keeps what it once had
    content = content or inputs_of(chain)
    columns: dict[str, Any] = {}
    fields = []
    for tensor in content.tensors:
        values = [sample.values[tensor.name] for sample in samples]
        shapes = {some.shape[1:] for some in values}
        alike = len(shapes) == 1
        columns[tensor.name] = _flat_lists(np.concatenate(values)) if alike else _nested_lists(values)
        shape = {SHAPE: json.dumps(shapes.pop()).encode()} if alike else None
        fields.append(pa.field(tensor.name, columns[tensor.name].type, metadata=shape))
    columns[ANSWER] = _answers(chain, samples)
    columns[EXIT] = pa.array(np.concatenate([sample.exit for sample in samples]))
    columns[RELEASE] = pa.array(np.concatenate([sample.release for sample in samples]))
    times = np.repeat([int(sample.time * 1e6) for sample in samples], [sample.rows for sample in samples])
    columns[TIME] = pa.array(times, pa.timestamp("us", tz="UTC"))
    fields += [pa.field(name, columns[name].type) for name in (ANSWER, EXIT, RELEASE, TIME)]
    return pa.table(columns, schema=pa.schema(fields, content.metadata))


def _answers(chain: Chain, samples: list[Sample]) -> pa.Array:
    """The backbone's answers as lists of FP32, null where they are not known."""
    import pyarrow as pa

    unknown = np.repeat([sample.answer is None for sample in samples], [sample.rows for sample in samples])
    known = [np.empty((0, *chain.output.shape)), *(s.answer for s in samples if s.answer is not None)]
    offsets = np.concatenate([[0], np.cumsum(~unknown)]) * np.prod(chain.output.shape, dtype=np.int64)
    values = np.concatenate(known).astype(np.float32).reshape(-1)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values), mask=pa.array(unknown))


def _flat_lists(values: np.ndarray) -> pa.Array:
    import pyarrow as pa

    return pa.FixedSizeListArray.from_arrays(
        pa.array(values.reshape(-1)), int(np.prod(values.shape[1:], dtype=np.int64))
    )


def _nested_lists(values: Sequence[np.ndarray]) -> pa.Array:
    """Rows of several shapes, [rows, ...] of each: as many levels of lists as a row has dimensions."""
    import pyarrow as pa

    lists = pa.array(np.concatenate([some.reshape(-1) for some in values]))
    for axis in reversed(range(1, values[0].ndim)):
        counts = [int(np.prod(some.shape[:axis])) for some in values]
        lengths = np.repeat([some.shape[axis] for some in values], counts)
        lists = pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32()), lists)
    return lists
