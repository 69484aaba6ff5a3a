"""Keeps what was served, as Parquet shards, without ever making a request wait.

A sample is one row: the inputs, or hidden activations in their place (gati.content), the backbone's answer where it is
known (a miss or an audit), the exit, the release and the time. A shard is written under another name and renamed, so
that a half-written one is never read.
"""

from __future__ import annotations

import io
import json
import os
import secrets
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from gati.chain import Chain
from gati.content import Content, inputs_of
from gati.expiry import delete_older, number_of
from gati.objects import is_object_store, open_store, public

if TYPE_CHECKING:
    import pyarrow as pa

ANSWER, EXIT, RELEASE, TIME = "gati.answer", "gati.exit", "gati.release", "gati.time"
SHAPE = b"shape"
"""Field metadata of a column of flat values: a row's shape as JSON. Rows of several shapes are nested lists."""
QUEUE_BYTES = 64 << 20
SHARD_BYTES = 16 << 20
FLUSH_SECONDS = 2.0
OBJECT_STORE_FLUSHES = 15
"""How many times as long an object store waits for a shard: each costs a listing there, and small ones are many."""
OBJECTS = 1024
"""Bytes of a sample's Python objects."""
ABANDONED_NS = 600 * 10**9
"""A shard that is this much older than the newest, and still half-written, never will be whole."""
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
        self._pause = FLUSH_SECONDS * (OBJECT_STORE_FLUSHES if is_object_store(store) else 1)
        self._budget = budget
        self._dropped = dropped
        self._log = log
        self._content = content or inputs_of(chain)
        self._age = age
        self._sweep = time.monotonic()
        self._queue: deque[Sample] = deque()
        self._queued = 0
        self._wake = threading.Condition()
        self._closing = False
        self._complained: float | None = None
        self._thread = threading.Thread(target=self._work, name="gati-recorder", daemon=True)
        self._thread.start()

    def record(self, sample: Sample) -> None:
        """Takes a sample; drops it, and counts, when the writer is too far behind, or nothing is in it. Never waits."""
        empty = not all(value.size for value in sample.values.values())
        with self._wake:
            full = self._queued + sample.nbytes > QUEUE_BYTES
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
            write_shard(self._url, shard(self._chain, samples, self._content), self._budget)
        except Exception as error:  # whatever a store raises: serving goes on, the loss is counted
            self._complain(f"samples can't be written to {public(self._url)}: {public(str(error))}")
            self._dropped(sum(sample.rows for sample in samples))

    def _expire(self) -> None:
        """Deletes what is too old, every now and then."""
        if self._age is None or time.monotonic() < self._sweep:
            return
        self._sweep = time.monotonic() + min(self._age / SWEEPS, SWEEP_SECONDS)
        try:
            delete_older(self._url, self._age)
        except Exception as error:  # whatever a store raises: the next sweep tries again
            self._complain(f"samples that are too old can't be deleted from {public(self._url)}: {public(str(error))}")

    def _complain(self, what: str) -> None:
        """Says what is wrong, at most once a minute."""
        if self._complained is None or time.monotonic() - self._complained > 60:
            self._complained = time.monotonic()
            self._log(what)


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


def write_shard(url: str, table: pa.Table, budget: int) -> str:
    """Writes a shard and deletes the oldest ones that are over the budget; returns its path.

    Shards are numbered by time, and by more than any that is there: a clock that is set back changes no order. On a
    local disk, only their owner can read them.
    """
    fs, folder = open_store(url)
    try:
        files = {file["name"]: file["size"] for file in fs.ls(folder, detail=True)}
    except FileNotFoundError:
        files = {}
        _make(fs, folder)
    newest = max((number_of(name) for name in files), default=0)
    number = max(time.time_ns(), newest + 1)
    path = f"{folder}/{number:020d}-{secrets.token_hex(4)}.parquet"  # replicas may share a store
    (_put if is_object_store(url) else _write_beside)(fs, path, table)
    _prune(fs, files | {path: fs.size(path)}, budget)
    return path


def _make(fs: Any, folder: str) -> None:
    """Makes a model's folder. In an object store there are none, and its buckets are not ours to make."""
    if not is_object_store(fs.unstrip_protocol(folder)):
        fs.makedirs(folder, exist_ok=True)
    if "file" in fs.protocol:
        os.chmod(folder, 0o700)


def _put(fs: Any, path: str, table: pa.Table) -> None:
    """Writes a shard to an object store, which takes it whole or not at all; a rename there would be a copy."""
    buffer = io.BytesIO()
    _parquet().write_table(table, buffer, compression="zstd")
    fs.pipe_file(path, buffer.getvalue())


def _write_beside(fs: Any, path: str, table: pa.Table) -> None:
    """Writes a shard under another name and renames it."""
    folder, _, name = path.rpartition("/")
    partial = f"{folder}/.{name}.part"
    try:
        with fs.open(partial, "wb") as file:
            if "file" in fs.protocol:
                os.chmod(partial, 0o600)
            _parquet().write_table(table, file, compression="zstd")
        fs.mv(partial, path)
    except BaseException:
        if fs.exists(partial):
            fs.rm_file(partial)
        raise


def _parquet() -> Any:
    """pyarrow.parquet, also where the interpreter has no `ssl`.

    The stub of the pip wheel's Triton carries a libpython of its own, which can't load the `ssl` module of a newer
    patch release; pyarrow asks that module for its certificates as it is imported, and for nothing else.
    """
    try:
        import ssl  # noqa: F401
    except ImportError:
        paths = SimpleNamespace(cafile=None, capath=None)
        sys.modules["ssl"] = cast(ModuleType, SimpleNamespace(get_default_verify_paths=lambda: paths))
        try:
            import pyarrow.parquet as pq
        finally:
            del sys.modules["ssl"]
        return pq
    import pyarrow.parquet as pq

    return pq


def _prune(fs: Any, files: dict[str, int], budget: int) -> None:
    """Deletes the oldest shards until the rest fits the budget, and what writers that were killed have left."""
    shards = sorted((name for name in files if name.endswith(".parquet")), key=number_of)
    excess = sum(files[name] for name in shards) - budget
    abandoned = number_of(shards[-1]) - ABANDONED_NS
    old = [name for name in files if name.endswith(".part") and 0 < number_of(name) < abandoned]
    for name in shards[:-1]:
        if excess <= 0:
            break
        old.append(name)
        excess -= files[name]
    for name in old:
        with suppress(FileNotFoundError):  # another writer was first
            fs.rm_file(name)
