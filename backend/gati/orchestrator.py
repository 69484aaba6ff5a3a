"""A batch's way through the chain: segment, head, segment, head, until every row has its answer."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from gati.agreement import parse_agreement
from gati.audits import Audit, DrawnHits
from gati.breaker import Breaker
from gati.chain import Chain
from gati.device import Hidden
from gati.draws import Draws
from gati.engine import Heads, Stage
from gati.errors import GatiError
from gati.flight import BACKBONE, Drawn, Flight, Ran, Request
from gati.head import Prediction
from gati.live import LiveRelease
from gati.state import HeadState


class Observer(Protocol):
    """Who is told what was served; called after the answers have left."""

    def timed(self, ran: Sequence[Ran]) -> None:
        """What an audit ran; what a flight ran is in `Flight.ran`."""
        ...

    def head_failed(self, index: int, error: Exception) -> None:
        """A head could not be run; its rows went on as misses."""
        ...

    def joined_failed(self, error: Exception) -> None:
        """Stages and heads could not be run joined; a flight went stage by stage instead."""
        ...

    def served(self, flight: Flight) -> None:
        """All of a flight's rows are answered."""
        ...

    def audited(self, audit: Audit, outputs: np.ndarray, agreed: np.ndarray) -> None:
        """What the backbone says to audited hits: its outputs [rows, classes], and where it agrees, bool [rows]."""
        ...


class Orchestrator:
    """Runs flights through a chain.

    Args:
        chain: The chain.
        live: Gives the live release.
        observer: Who is told what was served.
        later: Takes audits, to be run by `audit` when the answers have left; of one at the end, nothing is left to run.
        draws: What requests are drawn for an audit; without it, none.
        cut: Cut point whose activations are recorded in place of the inputs, and a stage's end; None records inputs.
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
        """Answers requests of one signature. One release answers all of them: it is looked up here, once.

        What can't be run together is run one by one: one of them may ask for what can't be, as an unknown word does,
        and engines have many words for that.
        """
        flight: Flight | None = None
        try:
            flight = Flight(requests, self._chain.output)
            if self._cut is not None:
                flight.kept = None
            self._fly(flight, self._live())
        except Exception as error:
            waiting = [*requests] if flight is None else flight.take_out()
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
        """Answers each, whatever happens to the others; raises what the last failure was that nobody foresaw."""
        unforeseen: Exception | None = None
        for request in requests:
            try:
                self.serve([request])
            except Exception as error:
                unforeseen = error
        if unforeseen is not None:
            raise unforeseen

    def _fly(self, flight: Flight, release: LiveRelease) -> None:
        heads = release.heads if release.breaker.open_exits and flight.answerable else None
        if heads is not None and release.bypass.takes(flight.rows):
            heads, flight.bypasses = None, True
        if heads is not None:
            self._draw(flight, release.breaker)
        hits = DrawnHits(flight, release, self._chain.output.name, self._last)
        held = flight.drawn.held
        try:
            if heads is None or held or not self._run_joined(flight, release, hits):
                self._walk(flight, release, heads, hits)
            if heads is not None and not held:  # of what is held, exits do not tell what heads said
                release.bypass.saw((flight.exit if flight.rows == 1 else flight.exit[flight.cacheable]).tolist())
            if flight.unjoined is not None:  # not the request's fault
                self._observer.joined_failed(flight.unjoined)
        finally:
            if (answered := flight.answered()) is not None:  # who left at an early exit, though others then failed
                self._observer.served(answered)
            if heads is not None:
                self._follow_up(flight, release.breaker, hits)

    def audit(self, audit: Audit) -> None:
        """Runs audited hits on to the end, and tells the observer and the breaker whether the backbone agrees."""
        values, ran = audit.values, list[Ran]()
        for stage in audit.release.stages:
            if stage.last > audit.at:
                values = self._advance(stage, values, ran)
        outputs = np.asarray(values[self._chain.output.name])
        agreed = self._agreement(audit.served, outputs)
        good = int(np.count_nonzero(agreed))
        differ = len(agreed) - good
        audit.release.breaker.settle(audit.drawn.number, good, differ, audit.index, audit.drawn.price)
        self._observer.timed(ran)
        self._observer.audited(audit, outputs, agreed)

    def _draw(self, flight: Flight, breaker: Breaker) -> None:
        """Draws requests, each with the same chance, from what a head may answer; what becomes of them is open yet."""
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
        """Hands over the hits that were drawn. The others do not differ: the backbone answered.

        What nobody answered counts for nothing: heads would seem right to whom many send what the network can't run.
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
        """Runs a flight through stages and heads joined; False where it has to go stage by stage.

        So does what they can't run: that the stages can't either, or a head fails, and stage by stage it is seen
        which. Hits that were drawn are run on from their inputs, so that what is audited is what was served.
        """
        joined = release.joined
        if joined is None or not self._joins(flight, release, joined.rows):
            return False
        since = time.perf_counter()

        def leave(rows: np.ndarray, output: np.ndarray, exit_: int) -> None:
            nonlocal since
            flight.ran.append(Ran(exit_, time.perf_counter() - since, joined=True))
            flight.finish(rows, output, exit_, BACKBONE if exit_ == self._last else release.number)
            if exit_ != self._last:
                hits.left(exit_, rows, np.ones(len(rows), np.bool_))
            since = time.perf_counter()

        try:
            missed = joined.run(flight.values, release.state, leave)
        except Exception as error:
            if flight.replied:  # it was the last reply that failed
                raise
            flight.unjoined = error
            return False
        _learn(flight, release, [(release.state[index], rows, keys) for index, rows, keys in missed])
        return True

    def _joins(self, flight: Flight, release: LiveRelease, most: int) -> bool:
        """Whether a flight is one for all heads of a release together, which take so many rows."""
        if flight.rows > most or self._cut is not None or len(release.breaker.open_exits) < len(release.state):
            return False
        return flight.rows == 1 or bool(flight.cacheable.all())

    def _walk(self, flight: Flight, release: LiveRelease, heads: Heads | None, hits: DrawnHits) -> None:
        """Runs what is left of a flight to its end."""
        rows = flight.waiting_rows()
        values: Mapping[str, Hidden] = flight.values
        if len(rows) < flight.rows:
            values = {name: value[rows] for name, value in flight.values.items()}
        keys: list[tuple[HeadState, np.ndarray, np.ndarray]] = []
        whole = release.whole if heads is None and self._cut is None else None
        for stage in release.stages if whole is None else (whole,):
            values = self._advance(stage, values, flight.ran, joined=whole is not None)
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
        self, stage: Stage, values: Mapping[str, Hidden], ran: list[Ran], *, joined: bool = False
    ) -> dict[str, Hidden]:
        """Runs one stage; keeps of the values what later ones read. Adds to `ran` how long it took."""
        started = time.perf_counter()
        output = stage.run({name: values[name] for name in stage.inputs})
        ran.append(Ran(stage.last, time.perf_counter() - started, joined))
        kept = {name: value for name, value in values.items() if name in self._read_later[stage.last]}
        return kept | {self._chain.segments[stage.last].output.name: output}

    def _look_up(
        self, heads: Heads | None, index: int, values: Mapping[str, Hidden], release: LiveRelease
    ) -> Prediction | None:
        if heads is None or index not in release.breaker.open_exits:
            return None
        hidden = values[self._chain.segments[index].output.name]
        try:
            return heads.predict(index, hidden, release.state[index].feeds())
        except Exception as error:  # a cache that fails is a miss: the backbone can still answer
            self._observer.head_failed(index, error)
            return None


def _learn(flight: Flight, release: LiveRelease, keys: list[tuple[HeadState, np.ndarray, np.ndarray]]) -> None:
    """Updates the heads' state: memories take in what was answered to the rows that they missed, by whomever."""
    for state in release.state.values():
        if state.counts:
            state.count(flight.output[flight.cacheable])
    for state, rows, row_keys in keys:
        known = flight.finite[rows]
        state.remember(row_keys[known], flight.output[rows[known]])
