"""A closed-loop load generator: each worker sends its next request when its last one was answered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from gati_client.answer import Answer
from gati_client.client import Client
from gati_client.errors import ClientError

MakeClient = Callable[[], Client]

UNKNOWN = -1
"""Exit, release or answer of a row where there is none: a request failed, or the model does not say."""


@dataclass(frozen=True, eq=False)
class Observations:
    """What was seen of a sequence of requests, in the order in which they were asked for.

    One entry per request:
        start: FLOAT64 [n], seconds since the run began.
        latency: FLOAT64 [n], seconds until the answer (or the error) was there.
        error: [n], what went wrong in one sentence, or None.

    One entry per row of a request (for requests of one row, the same as above):
        request: INT64 [rows], the request of the row.
        exit: INT32 [rows], the segment after which it was answered, or -1.
        release: INT64 [rows], of the head that answered, 0 for the backbone, or -1.
        answer: INT64 [rows], the class with the highest output, or -1 (also where a model has several outputs).
    """

    start: np.ndarray
    latency: np.ndarray
    error: tuple[str | None, ...]
    request: np.ndarray
    exit: np.ndarray
    release: np.ndarray
    answer: np.ndarray

    def __len__(self) -> int:
        return len(self.latency)

    @property
    def ok(self) -> np.ndarray:
        """Bool [n], whether the request was answered."""
        return np.array([error is None for error in self.error], bool)

    @property
    def errors(self) -> int:
        """How many requests failed."""
        return len(self) - int(self.ok.sum())

    @property
    def seconds(self) -> float:
        """From the first request's start to the last one's end; 0 without requests."""
        return float((self.start + self.latency).max() - self.start.min()) if len(self) else 0.0


@dataclass(frozen=True)
class _Observation:
    number: int
    start: float
    latency: float
    error: str | None
    rows: np.ndarray
    """INT64 [rows, 3]: exit, release, answer."""


def drive(
    make_client: MakeClient, requests: Iterable[Any], concurrency: int = 1, *, exact: bool = False
) -> Observations:
    """Runs a sequence of requests, in order, from several threads; errors are counted and never stop it.

    Args:
        make_client: Makes a client; each thread gets its own, connected before its first request is timed.
        requests: What `Client.infer` takes: arrays, or mappings for models with several inputs. They are taken
            from the iterable when a worker is free, outside the time that is measured.
        concurrency: Threads, and so requests under way at a time.
        exact: Whether the backbone must answer them.

    Returns:
        What was seen.

    Raises:
        Exception: What `requests` or `make_client` raises.
    """
    queue = _Queue(requests)
    begin = time.perf_counter()

    def work() -> list[_Observation]:
        try:
            with make_client() as client:
                _connect(client)
                return [_observe(client, number, request, exact, begin) for number, request in queue]
        except BaseException:
            queue.stop()
            raise

    with ThreadPoolExecutor(concurrency) as pool:
        futures = [pool.submit(work) for _ in range(concurrency)]
        try:
            seen = [observation for future in futures for observation in future.result()]
        finally:
            queue.stop()
    return _columns(seen)


def alternate(
    make_first: MakeClient,
    make_second: MakeClient,
    requests: Iterable[Any],
    *,
    block: int = 1,
    exact: tuple[bool, bool] = (False, False),
) -> tuple[Observations, Observations]:
    """Sends each request to one target and to the other, one at a time, in turns: a block to A, the same to B.

    A machine that grows faster or slower does so for both, so that their latencies can be compared side by side. Where
    A and B share cores, choose blocks of some hundreds: each change of turns slows the next requests down, which
    happens in no real use (two cores, blocks of 1, 50 and 300: a mean of 4.8, 3.4 and 2.7 ms for the same model).

    Args:
        make_first: Makes the client of A.
        make_second: Makes the client of B.
        requests: As of `drive`.
        block: Requests to one target before it is the other's turn.
        exact: For A and B, whether the backbone must answer.

    Returns:
        What was seen of A and of B, the same request at the same place.

    Raises:
        Exception: What `requests` or a client's maker raises.
    """
    seen: tuple[list[_Observation], list[_Observation]] = ([], [])
    with make_first() as first, make_second() as second:
        _connect(first)
        _connect(second)
        begin = time.perf_counter()
        numbered = enumerate(requests)
        while turn := list(islice(numbered, block)):
            for client, told, mode in zip((first, second), seen, exact, strict=True):
                told += [_observe(client, number, request, mode, begin) for number, request in turn]
    return _columns(seen[0]), _columns(seen[1])


def summary(latencies: np.ndarray) -> dict[str, float]:
    """Mean, median and 99th percentile of latencies in seconds, as milliseconds.

    Raises:
        ValueError: If there are none.
    """
    if not len(latencies):
        raise ValueError("There are no latencies to sum up: no request was answered.")
    p50, p99 = np.percentile(latencies, [50, 99])
    return {"mean_ms": float(np.mean(latencies)) * 1e3, "p50_ms": float(p50) * 1e3, "p99_ms": float(p99) * 1e3}


class _Queue:
    """Numbered requests, handed to whichever thread asks next."""

    def __init__(self, requests: Iterable[Any]) -> None:
        self._requests = enumerate(requests)
        self._lock = threading.Lock()
        self._stopped = False

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        return self

    def __next__(self) -> tuple[int, Any]:
        with self._lock:
            if self._stopped:
                raise StopIteration
            return next(self._requests)

    def stop(self) -> None:
        self._stopped = True


def _connect(client: Client) -> None:
    """Connects and learns the model's inputs; where that fails, so will the requests, which say why."""
    try:
        client.metadata()
    except ClientError:
        return


def _observe(client: Client, number: int, request: Any, exact: bool, begin: float) -> _Observation:
    start = time.perf_counter()
    try:
        answer = client.infer(request, exact=exact)
    except ClientError as error:
        latency = time.perf_counter() - start
        rows = np.full((_rows_asked(request), 3), UNKNOWN, np.int64)
        return _Observation(number, start - begin, latency, str(error), rows)
    return _Observation(number, start - begin, time.perf_counter() - start, None, _rows(answer))


def _rows_asked(request: Any) -> int:
    shape = np.shape(next(iter(request.values()), 0) if isinstance(request, Mapping) else request)
    return max(1, shape[0]) if shape else 1


def _rows(answer: Answer) -> np.ndarray:
    batch = max((len(output) for output in answer.outputs.values() if output.ndim), default=1)
    rows = np.full((batch, 3), UNKNOWN, np.int64)
    for column, trace in enumerate((answer.exit, answer.release)):
        if trace is not None:
            rows[:, column] = trace
    if len(answer.outputs) == 1 and answer.output.size and answer.output.dtype.kind != "O":
        rows[:, 2] = answer.output.reshape(batch, -1).argmax(1)
    return rows


def _columns(seen: list[_Observation]) -> Observations:
    seen = sorted(seen, key=lambda observation: observation.number)
    rows = np.concatenate([np.empty((0, 3), np.int64), *(observation.rows for observation in seen)])
    return Observations(
        start=np.array([observation.start for observation in seen], float),
        latency=np.array([observation.latency for observation in seen], float),
        error=tuple(observation.error for observation in seen),
        request=np.repeat(np.arange(len(seen)), np.array([len(observation.rows) for observation in seen], int)),
        exit=rows[:, 0].astype(np.int32),
        release=rows[:, 1],
        answer=rows[:, 2],
    )
