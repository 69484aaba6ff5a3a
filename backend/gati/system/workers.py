"""Worker threads, fed through a queue. A future for each request would cost more than its first segment."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue

Job = Callable[[], None]


class Workers:
    """A fixed number of threads, which take jobs in the order in which they come.

    `submit` lets no more jobs in than there are threads: further requests wait in Triton's own queue, where its
    policies and metrics see them. `add` has no such limit; its callers look at `waiting`.

    Args:
        count: How many threads; 0 if only `run` is used.
        failed: Called with what a job raises, on its thread.
        linger: Seconds that a thread waits for more jobs before it runs a lone one. Run together, they take less of the
            processor, and do not take it just when a request wants it.
        batch: As many waiting jobs end the wait.
        name: What the threads are called, with a number.
    """

    def __init__(
        self,
        count: int,
        failed: Callable[[Exception], None],
        linger: float = 0,
        batch: int = sys.maxsize,
        name: str = "gati-worker",
    ) -> None:
        self._failed = failed
        self._linger = linger
        self._batch = batch
        self._full = threading.Event()
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._free = threading.Semaphore(count)
        self._threads = [threading.Thread(target=self._work, name=f"{name}-{i}", daemon=True) for i in range(count)]
        for thread in self._threads:
            thread.start()

    def run(self, job: Job) -> None:
        """Runs a job on the caller's own thread."""
        try:
            job()
        except Exception as error:
            self._failed(error)

    def submit(self, job: Job) -> None:
        """Hands a job to a thread; waits until one is free."""
        self._free.acquire()
        self._jobs.put(partial(self._freeing, job))

    def add(self, job: Job) -> None:
        """Queues a job, and does not wait."""
        self._jobs.put(job)
        if self._linger and self.waiting >= self._batch:
            self._full.set()

    @property
    def waiting(self) -> int:
        """How many jobs no thread has taken yet."""
        return self._jobs.qsize()

    def close(self, patience: float | None = None) -> None:
        """Ends the threads when they have run all their jobs; waits `patience` seconds for each, None for ever."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join(patience)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if self._linger and not self.waiting:
                self._full.clear()
                self._full.wait(self._linger)
            self.run(job)

    def _freeing(self, job: Job) -> None:
        try:
            job()
        finally:
            self._free.release()
