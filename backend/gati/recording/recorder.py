"""Records samples of what was served, without ever making a request wait: a bounded queue, and a thread that writes.

What a shard looks like is said in gati.recording.shard; which shards are kept, and for how long, in
gati.recording.shard_folder.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from gati.recording.content import Content, inputs_of
from gati.recording.objects import is_object_store, public
from gati.recording.shard import Sample, shard
from gati.recording.shard_folder import ShardFolder
from gati.repository.chain import Chain
from gati.system.warn_once import WarnOnce

QUEUE_BYTES = 64 << 20
SHARD_BYTES = 16 << 20
FLUSH_SECONDS = 2.0
OBJECT_STORE_FLUSHES = 15
"""How many times as long to wait between two shards in an object store, where each costs requests."""
COMPLAINT_SECONDS = 60.0
"""At least so long between two complaints, whatever they are about."""
SWEEPS, SWEEP_SECONDS = 100, 600.0
"""How often old shards are looked for within the age that samples may reach, and the most seconds between two times."""


class Recorder:
    """Takes samples from the threads that serve, and writes them in a thread of its own.

    `_wake` guards the queue, its size and `_closing`; the rest is the writing thread's alone.

    Args:
        chain: Whose samples.
        store: fsspec URL of the folder above the model's.
        budget: Bytes that the model's shards may take.
        dropped: Called with the number of samples that could not be kept, on either thread.
        warn: Called with what went wrong.
        content: What samples hold; the model's inputs, unless given.
        age: Seconds after which a shard is deleted, whether or not requests come; None keeps any age.
    """

    def __init__(
        self,
        chain: Chain,
        store: str,
        budget: int,
        dropped: Callable[[int], None],
        warn: Callable[[str], None],
        content: Content | None = None,
        age: float | None = None,
    ) -> None:
        self._chain = chain
        self._url = f"{store.rstrip('/')}/{chain.model}"
        self._folder = ShardFolder(self._url)
        self._pause = FLUSH_SECONDS * (OBJECT_STORE_FLUSHES if is_object_store(store) else 1)
        self._budget = budget
        self._dropped = dropped
        self._warn_once = WarnOnce(warn, COMPLAINT_SECONDS)
        self._content = content or inputs_of(chain)
        self._age = age
        self._sweep_due = time.monotonic()
        self._queue: deque[Sample] = deque()
        self._queued = 0
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="gati-recorder", daemon=True)
        self._thread.start()

    def record(self, sample: Sample) -> None:
        """Queues a sample. Drops and counts it if the writer is too far behind, or if it is empty. Never waits."""
        empty = not all(value.size for value in sample.values.values())
        with self._wake:
            full = bool(self._queued) and self._queued + sample.nbytes > QUEUE_BYTES  # a lone sample may be larger
            if not full and not empty:
                self._queue.append(sample)
                self._queued += sample.nbytes
                if self._queued > SHARD_BYTES:
                    self._wake.notify()
        if full or empty:
            self._dropped(sample.rows)

    def close(self) -> None:
        """Writes what is left and ends the thread; gives up waiting for it after 10 s."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(timeout=10)

    def _work(self) -> None:
        while self._turn():
            _trim()  # by now nothing refers to the samples

    def _turn(self) -> bool:
        """Waits for samples, writes a shard, deletes old ones; returns whether to go on."""
        with self._wake:
            if not self._closing and self._queued <= SHARD_BYTES:
                self._wake.wait(self._pause)
            samples = self._take()
            closed = self._closing and not self._queue
        with suppress(Exception):  # `_write` handles its own; what fails while it does must not end the thread
            if samples:
                self._write(samples)
        with suppress(Exception):
            self._expire()
        return not closed

    def _take(self) -> list[Sample]:
        """Takes the oldest samples off the queue, at most a shard of them, so that a long queue is no huge table."""
        samples: list[Sample] = []
        size = 0
        while self._queue and size < SHARD_BYTES:
            samples.append(self._queue.popleft())
            size += samples[-1].nbytes
        self._queued -= size
        return samples

    def _write(self, samples: list[Sample]) -> None:
        try:
            self._folder.write(shard(self._chain, samples, self._content), self._budget)
        except Exception as error:  # whatever a store raises: serving goes on, the loss is counted
            self._warn_once(f"samples can't be written to {public(self._url)}: {public(str(error))}")
            self._dropped(sum(sample.rows for sample in samples))

    def _expire(self) -> None:
        """Deletes shards that are too old, every now and then."""
        if self._age is None or time.monotonic() < self._sweep_due:
            return
        self._sweep_due = time.monotonic() + min(self._age / SWEEPS, SWEEP_SECONDS)
        try:
            self._folder.sweep(self._age)
        except Exception as error:  # whatever a store raises: the next sweep tries again
            self._warn_once(f"samples that are too old can't be deleted from {public(self._url)}: {public(str(error))}")


def _trim() -> None:
    """Gives Arrow's unused memory back to the system: a burst of samples takes much of it for a moment."""
    if pa := sys.modules.get("pyarrow"):
        pa.default_memory_pool().release_unused()
