"""A flight's way through the chain: stage, head, stage, head, until every row has its answer.

`serve` takes requests of one signature and makes a flight of them. Rows are drawn for an audit before anything is known
of them. The flight then goes one of three ways: joined (`_run_joined`: stages and heads as one graph), stage by stage
(`_run_stages`), or through the whole backbone in one stage if no head is asked. When its answers have left, the
observer is told, and drawn hits are handed over to be audited: `audit` runs them on to the end, on another thread.

All methods may run on several threads at once. What these share is in the live release: the heads' state, the breaker
and the bypass, which are made for that.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from gati.errors import GatiError
from gati.inference.device import Hidden
from gati.inference.engine import Heads, Stage
from gati.inference.head import Prediction
from gati.inference.state import HeadState
from gati.promise.breaker import Breaker
from gati.promise.draws import Draws
from gati.repository.agreement import parse_agreement
from gati.repository.chain import Chain
from gati.serving.audits import Audit, DrawnHits
from gati.serving.flight import BACKBONE, Drawn, Flight, Request, StageRun
from gati.serving.live import LiveRelease


class Observer(Protocol):
    """Is told what was served, after the answers have left; called from any thread that serves or audits."""

    def timed(self, runs: Sequence[StageRun]) -> None:
        """Takes the runs of an audit; those of a flight are in `Flight.runs`."""
        ...

    def head_failed(self, index: int, error: Exception) -> None:
        """Notes that a head could not be run: its rows went on as misses."""
        ...

    def joined_failed(self, error: Exception) -> None:
        """Notes that stages and heads could not be run joined: a flight went stage by stage instead."""
        ...

    def served(self, flight: Flight) -> None:
        """Takes a flight whose requests were all replied to."""
        ...

    def audited(self, audit: Audit, outputs: np.ndarray, agreed: np.ndarray) -> None:
        """Takes audited hits: the backbone's outputs, [rows, classes], and where these agree, bool [rows]."""
        ...


class Orchestrator:
    """Runs flights through a chain.

    Args:
        chain: The chain.
        live: Gives the live release.
        observer: Is told what was served.
        later: Takes audits, and calls `audit` with each later, perhaps on another thread.
        draws: Decides which requests are drawn for an audit; without it, none is.
        cut: Cut point whose activations are recorded in place of the inputs: a stage ends there. None records inputs.
    """

    def __init__(
        self,
        chain: Chain,
        live: Callable[[], LiveRelease],
        observer: Observer,
        later: Callable[[Audit], None],
        draws: Draws | None = None,
        cut: int | None = None,
    ) -> None:
        self._chain = chain
        self._live = live
        self._observer = observer
        self._later = later
        self._draws = draws or Draws(0.0, chain.epsilon)
        self._cut = cut
        self._agreement = parse_agreement(chain.agreement)
        self._last = chain.backbone_exit
        self._read_later = [
            {name for segment in chain.segments[index + 1 :] for name in segment.inputs}
            for index in range(self._last + 1)
        ]

    def serve(self, requests: Sequence[Request]) -> None:
        """Answers requests of one signature. The live release is looked up once, here, and answers all of them.

        If they can't be run together, they are run one by one: only one of them may be at fault, say with a token that
        the network does not know, and engines report that in many ways.
        """
        flight: Flight | None = None
        try:
            flight = Flight(requests, self._chain.output)
            if self._cut is not None:
                flight.kept = None
            self._run(flight, self._live())
        except Exception as error:
            waiting = [*requests] if flight is None else flight.take_waiting()
            if len(requests) > 1 and waiting:
                self._serve_alone(waiting)
                return
            known = isinstance(error, GatiError)
            told = (
                error
                if known
                else GatiError(f"{self._chain.model} failed on this request; the server's log says more.")
            )
            for request in waiting:
                request.reply(told, True)
            if not known:
                raise

    def _serve_alone(self, requests: Sequence[Request]) -> None:
        """Answers each by itself; raises the last unforeseen error when all have had their turn."""
        unforeseen: Exception | None = None
        for request in requests:
            try:
                self.serve([request])
            except Exception as error:
                unforeseen = error
        if unforeseen is not None:
            raise unforeseen

    def _run(self, flight: Flight, release: LiveRelease) -> None:
        """Runs a flight to its end, whichever way it goes, and sees to what follows from it."""
        heads = release.heads if release.breaker.open_exits and flight.answerable else None
        if heads is not None and release.bypass.takes(flight.rows):
            heads, flight.bypasses = None, True
        if heads is not None:
            self._draw(flight, release.breaker)
        hits = DrawnHits(flight, release, self._chain.output.name, self._last)
        held = flight.drawn.held
        try:
            if heads is None or held or not self._run_joined(flight, release, hits):
                self._run_stages(flight, release, heads, hits)
            if heads is not None and not held:  # the exits of held rows do not tell what heads said
                release.bypass.saw((flight.exit if flight.rows == 1 else flight.exit[flight.cacheable]).tolist())
            if flight.joined_error is not None:  # and stage by stage it could be run: not the request's fault
                self._observer.joined_failed(flight.joined_error)
        finally:
            if (answered := flight.answered()) is not None:  # some may have left early before the rest failed
                self._observer.served(answered)
            if heads is not None:
                self._follow_up(flight, release.breaker, hits)

    def audit(self, audit: Audit) -> None:
        """Runs drawn hits on to the end, and tells the breaker and the observer where the backbone agrees."""
        values, runs = audit.values, list[StageRun]()
        for stage in audit.release.stages:
            if stage.last > audit.at:
                values = self._advance(stage, values, runs)
        outputs = np.asarray(values[self._chain.output.name])
        agreed = self._agreement(audit.served, outputs)
        good = int(np.count_nonzero(agreed))
        differ = len(agreed) - good
        audit.release.breaker.settle(audit.drawn.number, good, differ, audit.index, audit.drawn.price)
        self._observer.timed(runs)
        self._observer.audited(audit, outputs, agreed)

    def _draw(self, flight: Flight, breaker: Breaker) -> None:
        """Draws rows that heads may answer, each with the same chance, before anything is known of them."""
        cacheable = flight.cacheable
        share, held, price = self._draws.chance(breaker)
        if not share:
            return
        rows = [row for row in range(flight.rows) if random.random() < share and cacheable[row]]
        if rows:
            chosen = np.zeros(flight.rows, np.bool_)
            chosen[rows] = True
            flight.drawn = Drawn(breaker.draw(len(rows)), chosen, held, price)

    def _follow_up(self, flight: Flight, breaker: Breaker, hits: DrawnHits) -> None:
        """Hands drawn hits over to be audited; other drawn rows count as agreeing, since the backbone answered them.

        Rows that were not answered at all are taken back: otherwise requests that the network can't run would count in
        the heads' favour.
        """
        drawn = flight.drawn
        if flight.replied:
            answered = 1 if flight.rows == 1 else int(np.count_nonzero(flight.cacheable))
        else:
            replied = flight.replied_rows
            answered = int(np.count_nonzero(flight.cacheable & replied))
            if drawn.exists:
                breaker.take_back(drawn.number, int(np.count_nonzero(drawn.rows & ~replied)))
                drawn = drawn._replace(rows=drawn.rows & replied)
        self._draws.answered(breaker, answered)
        if not drawn.exists:
            return
        audits = hits.audits()
        others = np.count_nonzero(drawn.rows) - sum(len(audit.served) for audit in audits)
        breaker.settle(drawn.number, int(others))
        for audit in audits:
            self._later(audit)

    def _run_joined(self, flight: Flight, release: LiveRelease, hits: DrawnHits) -> bool:
        """Runs a flight through stages and heads joined; returns False if it has to go stage by stage.

        It also has to if the joined graph fails: going stage by stage shows whether a stage or only a head is at fault.
        Drawn hits are audited from their inputs on, so that the audit checks what the joined graph has answered.
        """
        joined = release.joined
        if joined is None or not self._joins(flight, release, joined.rows):
            return False
        since = time.perf_counter()

        def leave(rows: np.ndarray, output: np.ndarray, exit_: int) -> None:
            nonlocal since
            flight.runs.append(StageRun(exit_, time.perf_counter() - since, joined=True))
            flight.finish(rows, output, exit_, BACKBONE if exit_ == self._last else release.number)
            if exit_ != self._last:
                hits.left(exit_, rows, np.ones(len(rows), np.bool_))
            since = time.perf_counter()

        try:
            missed = joined.run(flight.values, release.state, leave)
        except Exception as error:
            if flight.replied:  # the graph has run: what failed came after the last reply
                raise
            flight.joined_error = error
            return False
        _learn(flight, release, [(release.state[index], rows, keys) for index, rows, keys in missed])
        return True

    def _joins(self, flight: Flight, release: LiveRelease, most: int) -> bool:
        """Whether a flight may go joined: not too large, all exits open, and all of its rows for heads to answer."""
        if flight.rows > most or self._cut is not None or len(release.breaker.open_exits) < len(release.state):
            return False
        return flight.rows == 1 or bool(flight.cacheable.all())

    def _run_stages(self, flight: Flight, release: LiveRelease, heads: Heads | None, hits: DrawnHits) -> None:
        """Runs what is left of a flight stage by stage; without `heads`, no head is asked."""
        rows = flight.waiting_rows()
        values: Mapping[str, Hidden] = flight.values
        if len(rows) < flight.rows:
            values = {name: value[rows] for name, value in flight.values.items()}
        keys: list[tuple[HeadState, np.ndarray, np.ndarray]] = []
        whole = release.whole if heads is None and self._cut is None else None
        for stage in release.stages if whole is None else (whole,):
            values = self._advance(stage, values, flight.runs, joined=whole is not None)
            index = stage.last
            if index == self._cut and release.whole_at(index):
                flight.kept = {name: np.asarray(value) for name, value in values.items()}
            if index == self._last:
                flight.finish(rows, np.asarray(values[self._chain.output.name]), index, BACKBONE)
                break
            prediction = self._look_up(heads, index, values, release)
            if prediction is None:
                continue
            hit = prediction.hit & (flight.cacheable if len(rows) == flight.rows else flight.cacheable[rows])
            if prediction.key is not None:
                keys.append((release.state[index], rows[~hit], prediction.key[~hit]))
            hit = hits.hold(index, rows, hit, prediction.answer)
            leaving = np.count_nonzero(hit)
            if leaving == len(rows):
                flight.finish(rows, prediction.answer, index, release.number)
                hits.left(index, rows, hit, values)
                break
            if leaving:
                flight.finish(rows[hit], prediction.answer[hit], index, release.number)
                hits.left(index, rows, hit, values)
                rows, values = rows[~hit], {name: value[~hit] for name, value in values.items()}
        if heads is not None or flight.bypasses:
            _learn(flight, release, keys)

    def _advance(
        self, stage: Stage, values: Mapping[str, Hidden], runs: list[StageRun], *, joined: bool = False
    ) -> dict[str, Hidden]:
        """Runs one stage, and adds the run to `runs`; returns its output, and what later stages read of the values."""
        started = time.perf_counter()
        output = stage.run({name: values[name] for name in stage.inputs})
        runs.append(StageRun(stage.last, time.perf_counter() - started, joined))
        kept = {name: value for name, value in values.items() if name in self._read_later[stage.last]}
        return kept | {self._chain.segments[stage.last].output.name: output}

    def _look_up(
        self, heads: Heads | None, index: int, values: Mapping[str, Hidden], release: LiveRelease
    ) -> Prediction | None:
        """Asks the head at a cut point; None if there is none to ask, or it is not ready or fails."""
        if heads is None or index not in release.breaker.open_exits:
            return None
        hidden = values[self._chain.segments[index].output.name]
        try:
            return heads.predict(index, hidden, release.state[index].feeds())
        except Exception as error:  # a head that fails is a miss: the backbone can still answer
            self._observer.head_failed(index, error)
            return None


def _learn(flight: Flight, release: LiveRelease, keys: list[tuple[HeadState, np.ndarray, np.ndarray]]) -> None:
    """Updates the heads' state: class mixes with all answers, memories with the answers to rows that they missed."""
    for state in release.state.values():
        if state.counts:
            state.count(flight.output[flight.cacheable])
    for state, rows, row_keys in keys:
        known = flight.finite[rows]
        state.remember(row_keys[known], flight.output[rows[known]])
