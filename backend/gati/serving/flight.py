"""Flights: requests on their way through a chain as one batch, whose rows are answered at different exits."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from gati.errors import GatiError
from gati.repository.chain import Tensor

BACKBONE = 0
"""The number that stands for the release where the backbone answered."""
_NOBODY = np.empty(0)
"""In place of a flight's exits, releases and answers before its first row is answered."""
ONE = [slice(0, 1)]
YES, NO = np.ones(1, np.bool_), np.zeros(1, np.bool_)
"""Shared by all flights of one row, to spare a call of NumPy; nobody writes to them."""


@dataclass(slots=True)
class Answer:
    """The answer to a request.

    Attributes:
        output: [rows, classes].
        exit: Int32 [rows, 1].
        release: Int64 [rows, 1], `BACKBONE` where the backbone answered.
    """

    output: np.ndarray
    exit: np.ndarray
    release: np.ndarray


@dataclass(slots=True)
class Request:
    """A request, free of Triton.

    Attributes:
        inputs: The model's inputs by name, each [rows, ...], owned by this object.
        exact: Whether only the backbone may answer.
        reply: Called exactly once: with the answer or the error, and with whether this is the last reply of its flight.
            Does not raise.
        arrived: When the request arrived, as `time.time()`, to be recorded.
        started: The same as `time.perf_counter()`, to measure latency from.
    """

    inputs: dict[str, np.ndarray]
    exact: bool
    reply: Callable[[Answer | GatiError, bool], None]
    arrived: float = field(default_factory=time.time)
    started: float = field(default_factory=time.perf_counter)

    @property
    def rows(self) -> int:
        """Size of its batch."""
        return len(next(iter(self.inputs.values())))

    @property
    def signature(self) -> tuple:
        """Names and shapes of its rows: requests of the same signature can share a batch."""
        return tuple((name, value.shape[1:]) for name, value in self.inputs.items())


class Drawn(NamedTuple):
    """Rows drawn at random for an audit, before anything was known of them (gati.promise.draws).

    Attributes:
        number: The draw's number, as the breaker gave it.
        rows: The drawn rows of the flight, bool [rows].
        held: Whether the backbone answers these rows, whatever heads say. That shows at once whether heads agree.
        price: What each row that is found to differ takes from the budget.
    """

    number: int
    rows: np.ndarray
    held: bool
    price: float

    @property
    def exists(self) -> bool:
        """Whether any rows were drawn."""
        return len(self.rows) > 0

    def among(self, rows: np.ndarray) -> Drawn:
        """The same draw for a part of the flight: the rows that are true in `rows`, bool [rows]."""
        return self._replace(rows=self.rows[rows]) if self.exists else self


NOT_DRAWN = Drawn(-1, np.zeros(0, np.bool_), held=False, price=0.0)
"""In place of a draw, for a flight of which no row was drawn. Its `rows` are empty."""


class StageRun(NamedTuple):
    """One run of a stage, or of several joined.

    Attributes:
        segment: The last segment that ran.
        seconds: How long it took.
        joined: Whether several stages ran as one, perhaps with lookups between them.
    """

    segment: int
    seconds: float
    joined: bool = False


class Flight:
    """Requests of one signature as one batch. A request is replied to when the last of its rows is answered.

    Only the thread that serves a flight changes it, and not after it was handed over to be counted (`answered`): from
    then on, other threads read it.

    A run of a network drives what Python needs out of the processor's caches, and a call of NumPy then takes several
    times as long as usual. So a flight of one row, and one that leaves as a whole, take as few calls as possible.

    Attributes:
        rows: Number of rows.
        values: The inputs, [rows, ...] each.
        kept: What is recorded of each row, [rows, ...] each: the inputs, or hidden activations. None until these are
            known, and for good if they are not known of all rows.
        finite: Rows whose inputs hold neither NaN nor infinity, bool [rows].
        cacheable: Rows that heads may answer, bool [rows]: those that are finite and not asked to be exact.
        answerable: Whether there is any such row.
        drawn: Rows drawn for an audit, or `NOT_DRAWN`. Hits among them are recorded with the backbone's answer.
        bypasses: Whether it goes past the heads because they do not pay now (gati.serving.bypass).
        joined_error: Why it went stage by stage although stages and heads are joined; None if it did not.
        runs: What was run for it, in order.
        exit: Exit of each row, int32 [rows]: −1 while it is not answered. Empty before the first row is answered.
        release: Release that answered each row, int64 [rows]; empty likewise.
        output: The answers, [rows, classes]; undefined for rows that are not answered yet.
        latencies: For each request that was replied to, the exit of its last rows, and seconds from arrival to reply.
    """

    def __init__(self, requests: Sequence[Request], output: Tensor) -> None:
        self.requests = requests
        first = requests[0]
        if len(requests) == 1 and first.rows == 1:
            self.rows, self.spans, self.values = 1, ONE, first.inputs
            self.finite = YES if _all_finite(first.inputs) or finite_rows(first.inputs)[0] else NO
            self.cacheable = NO if first.exact else self.finite
            self.answerable = self.cacheable is YES
        else:
            sizes = [request.rows for request in requests]
            ends = [*accumulate(sizes)]
            self.rows, self.values = ends[-1], _joined(requests)
            self.spans = [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]
            all_finite = _all_finite(self.values)
            self.finite = np.ones(self.rows, np.bool_) if all_finite else finite_rows(self.values)
            exact = [request.exact for request in requests]
            self.cacheable = self.finite & ~np.repeat(exact, sizes) if any(exact) else self.finite
            self.answerable = bool(self.cacheable.any())
        self.kept: dict[str, np.ndarray] | None = self.values
        self.drawn = NOT_DRAWN
        self.bypasses = False
        self.joined_error: Exception | None = None
        self.runs: list[StageRun] = []
        self.exit, self.release, self.output = _NOBODY, _NOBODY, _NOBODY
        self._output = output
        self._waiting = [*range(len(requests))]
        self.latencies: list[tuple[int, float]] = []

    @property
    def held(self) -> int:
        """How many rows were held for the backbone, whatever heads said."""
        return int(np.count_nonzero(self.drawn.rows)) if self.drawn.held else 0

    @property
    def bytes(self) -> int:
        """How much memory its arrays take."""
        kept = {} if self.kept is None or self.kept is self.values else self.kept
        return self.output.nbytes + sum(value.nbytes for part in (self.values, kept) for value in part.values())

    @property
    def replied(self) -> bool:
        """Whether all requests have had their reply."""
        return not self._waiting

    @property
    def begun(self) -> bool:
        """Whether any row is answered."""
        return self.exit is not _NOBODY

    def waiting_rows(self) -> np.ndarray:
        """Rows that are not answered yet, as indices."""
        return np.flatnonzero(self.exit < 0) if self.begun else np.arange(self.rows)

    def answered(self) -> Flight | None:
        """A flight of only those requests that were replied to; None if there are none."""
        if self.replied:
            return self
        places = [place for place in range(len(self.requests)) if place not in self._waiting]
        if not places:
            return None
        rows, part = self.replied_rows, copy(self)
        ends = [*accumulate(self.requests[place].rows for place in places)]
        part.requests, part.rows, part._waiting = [self.requests[place] for place in places], ends[-1], []
        part.spans = [slice(end - self.requests[place].rows, end) for place, end in zip(places, ends, strict=True)]
        part.values = {name: value[rows] for name, value in self.values.items()}
        if self.kept is not None:
            whole = self.kept is self.values
            part.kept = part.values if whole else {name: value[rows] for name, value in self.kept.items()}
        for name in ("finite", "cacheable", "exit", "release", "output"):
            setattr(part, name, getattr(self, name)[rows])
        part.drawn = self.drawn.among(rows)
        return part

    @property
    def replied_rows(self) -> np.ndarray:
        """Rows of requests that were replied to, bool [rows]."""
        found = np.ones(self.rows, np.bool_)
        for i in self._waiting:
            found[self.spans[i]] = False
        return found

    def finish(self, rows: np.ndarray, output: np.ndarray, exit_: int, release: int) -> None:
        """Answers rows, given as indices, and replies to requests of which no other row is open.

        Args:
            rows: The rows.
            output: Their answers, [rows, classes].
            exit_: The exit that all of them leave at.
            release: The release that answered, or `BACKBONE`.
        """
        if self.rows == 1:
            self._finish_one(output, exit_, release)
            return
        if len(rows) == self.rows:
            self.output = output
            self.exit = np.full(self.rows, exit_, np.int32)
            self.release = np.full(self.rows, release, np.int64)
        else:
            if not self.begun:
                self.output = np.empty((self.rows, *self._output.shape), self._output.numpy)
                self.exit = np.full(self.rows, -1, np.int32)
                self.release = np.full(self.rows, BACKBONE, np.int64)
            self.output[rows] = output
            self.exit[rows] = exit_
            self.release[rows] = release
        whole = len(rows) == self.rows
        still = [] if whole else [i for i in self._waiting if (self.exit[self.spans[i]] < 0).any()]
        answered = [i for i in self._waiting if i not in still]
        self._waiting = still
        for i in answered:
            request, span = self.requests[i], self.spans[i]
            request.reply(Answer(self.output[span], self.exit[span, None], self.release[span, None]), not still)
            self.latencies.append((exit_, time.perf_counter() - request.started))

    def _finish_one(self, output: np.ndarray, exit_: int, release: int) -> None:
        """The same for a flight of one row."""
        exits, releases, self.exit, self.release = _labels(exit_, release)
        self.output = output
        self._waiting = []
        request = self.requests[0]
        request.reply(Answer(output, exits, releases), True)
        self.latencies.append((exit_, time.perf_counter() - request.started))

    def kept_of(self, place: int) -> dict[str, np.ndarray]:
        """What is recorded of the request at this place, in arrays that keep no other request's rows in memory."""
        if self.kept is self.values:
            return self.requests[place].inputs
        if len(self.requests) == 1:
            return self.kept or {}
        return {name: value[self.spans[place]].copy() for name, value in (self.kept or {}).items()}

    def take_waiting(self) -> list[Request]:
        """Gives up the requests that wait for their reply: the caller is to reply to them."""
        waiting, self._waiting = self._waiting, []
        return [self.requests[i] for i in waiting]


def _joined(requests: Sequence[Request]) -> dict[str, np.ndarray]:
    if len(requests) == 1:
        return dict(requests[0].inputs)
    return {name: np.concatenate([r.inputs[name] for r in requests]) for name in requests[0].inputs}


@lru_cache(1024)
def _labels(exit_: int, release: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Exit and release of one row as arrays, int32 and int64: [1, 1], and the same as [1]. Shared, hence read-only."""
    exits, releases = np.full((1, 1), exit_, np.int32), np.full((1, 1), release, np.int64)
    exits.flags.writeable = releases.flags.writeable = False
    return exits, releases, exits[0], releases[0]


def _all_finite(values: Mapping[str, np.ndarray]) -> bool:
    """Whether a scalar product shows that no tensor holds NaN or infinity, in less than half the time of sums.

    False may also mean that it can't tell: of half precision, or where squares overflow, as those of 1e19 do.
    """
    for value in values.values():
        if value.dtype.kind == "f":
            if value.dtype.itemsize < 4:
                return False
            flat = value.ravel()
            square = float(flat.dot(flat))
            if square - square != 0:
                return False
    return True


def finite_rows(values: dict[str, np.ndarray]) -> np.ndarray:
    """Rows that hold neither NaN nor infinity in any of the tensors, bool [rows].

    A sum is finite only if every term is. One that overflows makes a row a miss, which does no harm.
    """
    finite: np.ndarray | None = None
    for value in values.values():
        if value.dtype.kind == "f":
            wide = value.dtype if value.dtype.itemsize >= 4 else np.float32
            with np.errstate(over="ignore", invalid="ignore"):
                sound = np.isfinite(value.reshape(len(value), -1).sum(axis=1, dtype=wide))
            finite = sound if finite is None else finite & sound
    return np.ones(len(next(iter(values.values()))), np.bool_) if finite is None else finite
