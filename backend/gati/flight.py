"""Requests on their way through a chain: one batch, whose rows are answered at different exits."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from gati.chain import Tensor
from gati.errors import GatiError

BACKBONE = 0
"""The release that a request is said to be answered by when the backbone answered it."""
_NOBODY = np.empty(0)
"""What is known of the rows of a flight before the first is answered."""
ONE = [slice(0, 1)]
YES, NO = np.ones(1, np.bool_), np.zeros(1, np.bool_)


@dataclass(slots=True)
class Answer:
    """What a request is answered with: the output [rows, classes], and per row its exit and release."""

    output: np.ndarray
    exit: np.ndarray
    release: np.ndarray


@dataclass(slots=True)
class Request:
    """A request, free of Triton.

    Attributes:
        inputs: The model's inputs by name, each [rows, ...], owned by this object.
        exact: Whether only the backbone may answer.
        reply: Called exactly once, with the answer or with what went wrong, and with whether no other request of its
            flight waits any longer. Does not raise.
        arrived: When, as `time.time()`.
        started: The same as `time.perf_counter()`, to measure from.
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
        """Requests of equal signature can share a batch."""
        return tuple((name, value.shape[1:]) for name, value in self.inputs.items())


class Drawn(NamedTuple):
    """Rows drawn at random before anything was known of them, bool [rows], and what the breaker calls the draw.

    Held, none of them is told what a head says: the backbone answers, and shows at once whether that agrees. `price` is
    what each that is found to differ takes from the budget (gati.draws).
    """

    number: int
    rows: np.ndarray
    held: bool
    price: float

    @property
    def exists(self) -> bool:
        """Whether rows were drawn at all."""
        return len(self.rows) > 0

    def among(self, rows: np.ndarray) -> Drawn:
        """The draw as it is seen by some rows of the flight, bool [rows]."""
        return self._replace(rows=self.rows[rows]) if self.exists else self


NOT_DRAWN = Drawn(-1, np.zeros(0, np.bool_), held=False, price=0.0)
"""The draw of a flight of which no row was drawn; it has no rows."""


class Ran(NamedTuple):
    """A run of one stage, or of several joined.

    Attributes:
        segment: The last segment that ran.
        seconds: How long it took.
        joined: Whether several stages ran at once, perhaps with the lookups between them.
    """

    segment: int
    seconds: float
    joined: bool = False


class Flight:
    """Requests of one signature as one batch; each is answered when the last of its rows is.

    Between two runs of a network, little that Python needs is left in the processor's caches, and each call of NumPy
    takes several times as long as it should: there are as few as can be where a batch leaves as a whole.

    Attributes:
        rows: How many rows there are.
        values: The inputs, [rows, ...] each.
        kept: What is recorded of each row, [rows, ...] each: the inputs, or hidden activations; None while those are
            not known, and where they are not to be had for all rows.
        finite: Rows whose inputs hold neither NaN nor Inf.
        cacheable: Rows that a head may answer: not asked to be exact, and finite. NaN is never a hit.
        answerable: Whether there is any such row.
        drawn: Rows drawn for an audit: hits among them are recorded with what the backbone says; or `NOT_DRAWN`.
        bypasses: Whether it goes past the heads, which do not pay now (gati.bypass).
        unjoined: Why a row went stage by stage though stages and heads are joined; None where it didn't.
        ran: What ran for it, in order.
        exit: Segment after which each row was answered, −1 while it was not; int32 [rows], empty before the first is.
        release: Release that answered each row; int64 [rows], likewise.
        output: The answers; rows that are not answered yet hold nothing of use.
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
        self.unjoined: Exception | None = None
        self.ran: list[Ran] = []
        self.exit, self.release, self.output = _NOBODY, _NOBODY, _NOBODY
        self._shape = output
        self._waiting = [*range(len(requests))]
        self._latencies: list[tuple[int, float]] = []

    @property
    def held(self) -> int:
        """How many rows were left to the backbone, whatever heads said."""
        return int(np.count_nonzero(self.drawn.rows)) if self.drawn.held else 0

    @property
    def bytes(self) -> int:
        """How much memory it holds."""
        kept = {} if self.kept is None or self.kept is self.values else self.kept
        return self.output.nbytes + sum(value.nbytes for part in (self.values, kept) for value in part.values())

    @property
    def replied(self) -> bool:
        """Whether no request waits for its reply any longer."""
        return not self._waiting

    @property
    def begun(self) -> bool:
        """Whether any row has its answer."""
        return self.exit is not _NOBODY

    def waiting_rows(self) -> np.ndarray:
        """Rows (indices) that have no answer yet."""
        return np.flatnonzero(self.exit < 0) if self.begun else np.arange(self.rows)

    def answered(self) -> Flight | None:
        """Those of its requests that were replied to, as if no others had come with them; None where none was."""
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
        """Rows of requests that were answered, bool [rows]."""
        found = np.ones(self.rows, np.bool_)
        for i in self._waiting:
            found[self.spans[i]] = False
        return found

    def finish(self, rows: np.ndarray, output: np.ndarray, exit_: int, release: int) -> None:
        """Answers rows (indices), and replies to the requests that were waiting for just these."""
        if self.rows == 1:
            self.finish_one(output, exit_, release)
            return
        if len(rows) == self.rows:
            self.output = output
            self.exit = np.full(self.rows, exit_, np.int32)
            self.release = np.full(self.rows, release, np.int64)
        else:
            if not self.begun:
                self.output = np.empty((self.rows, *self._shape.shape), self._shape.numpy)
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
            self._latencies.append((exit_, time.perf_counter() - request.started))

    def finish_one(self, output: np.ndarray, exit_: int, release: int) -> None:
        """Answers a flight of one row, with an output [1, classes]."""
        exits, releases, self.exit, self.release = _labels(exit_, release)
        self.output = output
        self._waiting = []
        request = self.requests[0]
        request.reply(Answer(output, exits, releases), True)
        self._latencies.append((exit_, time.perf_counter() - request.started))

    def kept_of(self, place: int) -> dict[str, np.ndarray]:
        """What is recorded of the request at this place, in arrays that hold no other request's rows."""
        if self.kept is self.values:
            return self.requests[place].inputs
        if len(self.requests) == 1:
            return self.kept or {}
        return {name: value[self.spans[place]].copy() for name, value in (self.kept or {}).items()}

    def latencies(self) -> list[tuple[int, float]]:
        """Of each answered request the exit of its last rows, and the seconds from its arrival to its reply."""
        return self._latencies

    def take_out(self) -> list[Request]:
        """Requests that wait for their reply, for somebody else to answer."""
        waiting, self._waiting = self._waiting, []
        return [self.requests[i] for i in waiting]


def _joined(requests: Sequence[Request]) -> dict[str, np.ndarray]:
    if len(requests) == 1:
        return dict(requests[0].inputs)
    return {name: np.concatenate([r.inputs[name] for r in requests]) for name in requests[0].inputs}


@lru_cache(1024)
def _labels(exit_: int, release: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Exit and release of one row, int32 and int64: [1, 1], and the same as [1]. Not to be written to."""
    exits, releases = np.full((1, 1), exit_, np.int32), np.full((1, 1), release, np.int64)
    exits.flags.writeable = releases.flags.writeable = False
    return exits, releases, exits[0], releases[0]


def _all_finite(values: Mapping[str, np.ndarray]) -> bool:
    """Whether a scalar product shows that no tensor holds NaN or Inf, at less than half of what sums cost.

    It does not show that of half precision, nor where squares overflow, as of numbers of 1e19: sums tell then.
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
    """Rows that hold neither NaN nor Inf in any of the tensors, bool [rows].

    A sum tells: it is finite only if every term is. One that overflows makes a miss of a legitimate row, no more.
    """
    finite: np.ndarray | None = None
    for value in values.values():
        if value.dtype.kind == "f":
            wide = value.dtype if value.dtype.itemsize >= 4 else np.float32
            with np.errstate(over="ignore", invalid="ignore"):
                sound = np.isfinite(value.reshape(len(value), -1).sum(axis=1, dtype=wide))
            finite = sound if finite is None else finite & sound
    return np.ones(len(next(iter(values.values()))), np.bool_) if finite is None else finite
