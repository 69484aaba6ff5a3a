"""Threads that answer requests, fed through a queue; a future a request would cost more than the first segment."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue

Job = Callable[[], None]


class Workers:
    """A fixed number of threads, and as many submitted jobs at a time.

    Further ones wait where they come from: in Triton's own queue, where its policies and metrics see them.

    Args:
        count: How many.
        failed: Called with what a job raises.
        pause: Seconds for which a thread that has found the only job there is leaves it: with others that come
            meanwhile, it takes less of the processor, and not just when requests want it.
        crowd: So many of them end the pause.
    """

    def __init__(
        self, count: int, failed: Callable[[Exception], None], pause: float = 0, crowd: int = sys.maxsize
    ) -> None:
        self._failed = failed
        self._pause = pause
        self._crowd = crowd
        self._crowded = threading.Event()
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._free = threading.Semaphore(count)
        self._threads = [
            threading.Thread(target=self._work, name=f"gati-worker-{i}", daemon=True) for i in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def run(self, job: Job) -> None:
        """Does a job on the caller's own thread."""
        try:
            job()
        except Exception as error:
            self._failed(error)

    def submit(self, job: Job) -> None:
        """Hands a job to a thread; waits while none is free."""
        self._free.acquire()
        self._jobs.put(partial(self._freeing, job))

    def add(self, job: Job) -> None:
        """Puts a job where a thread will find it, and does not wait."""
        self._jobs.put(job)
        if self._pause and self.waiting >= self._crowd:
            self._crowded.set()

    @property
    def waiting(self) -> int:
        """Jobs that no thread has taken yet."""
        return self._jobs.qsize()

    def close(self, patience: float | None = None) -> None:
        """Ends the threads when they have done what they were given; waits for each so many seconds, or without end."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join(patience)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if self._pause and not self.waiting:
                self._crowded.clear()
                self._crowded.wait(self._pause)
            self.run(job)

    def _freeing(self, job: Job) -> None:
        try:
            job()
        finally:
            self._free.release()
