"""A chain at work: engine, releases, recorder, metrics and worker threads, put together and taken apart."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from gati.audits import Audit
from gati.bls import BlsEngine
from gati.breaker import Alarm
from gati.chain import read_chain
from gati.device import runner_on
from gati.draws import NO_PROMISE, Draws
from gati.drift import Drift
from gati.errors import first_line, printable
from gati.flight import Flight, Ran, Request
from gati.inline import InlineEngine
from gati.ledger import Ledger
from gati.live import LiveRelease
from gati.metrics import Metrics
from gati.minutes import Minutes
from gati.orchestrator import Orchestrator
from gati.parent import when_orphaned
from gati.pulse import beat, is_up
from gati.samples import Samples
from gati.settings import Settings, workspace
from gati.tail import Tail
from gati.watch import SECONDS, ReleaseWatch, Ticker
from gati.wire import NONE_CLOSED
from gati.workers import Workers

AUDIT_SECONDS = 5.0
"""How long an audit may take, in BLS mode, when the chain is being unloaded: what was recorded is to be written."""
AUDITS_WAITING = 16
"""Audits that may wait; while there are more, requests are served and none is drawn. Each holds its activations."""
CLERK_PAUSE, CLERK_CROWD = 0.1, 32
"""Seconds, or flights, after which what was answered is counted, together: one by one, that took a tenth of a hit's
time (measured), since it is done beside the next request, and a thread that slept finds nothing in the caches."""
FLIGHTS_WAITING, LARGEST_WAITING = 64, 1 << 20
"""Flights that may wait to be counted, and bytes that each may hold; others are counted by who serves."""


class Service:
    """Serves one chain inside a Triton process.

    Args:
        repository: The model repository.
        model: The chain's name.
        pb_utils: Triton's `triton_python_backend_utils`.

    Raises:
        GatiError: If the chain can't be served as it lies there.
    """

    def __init__(self, repository: Path, model: str, pb_utils: Any) -> None:
        self._logger = pb_utils.Logger
        self._model = model
        self.chain = read_chain(repository, model)
        self.tail = Tail(repository, self.chain) if self.chain.tail else None
        settings = Settings.from_environment(os.environ, repository)
        inline = self.chain.mode == "inline"
        self._metrics = Metrics(pb_utils, model)
        self._failing: set[str] = set()
        self._samples = Samples(
            self.chain, settings, partial(self._metrics.add, "gati_samples_dropped_total"), self._warn
        )
        cut = self._samples.cut
        cuts = () if cut is None else (cut,)
        self._bls: BlsEngine | None = None
        if inline:
            runner = runner_on(settings.device)
            engine = InlineEngine(repository, self.chain, runner, recorded=cuts, say=self._warn)
        else:
            engine = self._bls = BlsEngine(repository, self.chain, pb_utils)
        work = workspace(repository)
        self._ledger = Ledger(work / "breaker" / model / f"{settings.replica}.json", self.chain, self._warn)
        path = work / "minutes" / model / f"{settings.replica}.jsonl"
        self._minutes = Minutes(path, len(self.chain.segments) - 1, self._warn)
        told = (self._refused, self._taken, self._ledger.open)
        bypasses = settings.bypass and self.chain.epsilon < NO_PROMISE
        self._releases = ReleaseWatch(repository, self.chain, engine, *told, cuts, bypasses=bypasses)
        self._said: tuple[Any, ...] = ()
        self._drift = Drift()
        workers = settings.workers_in(self.chain.mode)
        self._workers = Workers(workers, self._failed)
        self._auditor = Workers(1, self._failed)
        self._clerk = Workers(1, self._failed, CLERK_PAUSE, CLERK_CROWD)
        self._hand_over = self._workers.submit if workers else self._workers.run
        self._orchestrator = Orchestrator(
            self.chain,
            lambda: self._releases.live,
            self,
            self._audit_later,
            Draws(settings.audit_share, self.chain.epsilon, self._audits_wait),
            cut,
        )
        self._start_metrics()
        self._can_look = inline
        if inline:
            self._look()
        _ = self._releases.live  # without a release, the backbone is loaded now, and not by the first request
        when_orphaned(self._leave)
        beat(os.environ)
        # Inline, loading a large release takes long, and audits find what they find meanwhile. In BLS mode Triton loads
        # it, and both ask Triton.
        ticking = [(self._look,), (self._report,)] if inline else [(self._look, self._report)]
        self._tickers = [Ticker(SECONDS, self._warn, *each) for each in ticking]

    def submit(self, requests: Sequence[Request]) -> None:
        """Takes requests; each is replied to as soon as it is answered, before or after this returns."""
        self._can_look = True
        if len(requests) == 1:
            self._hand_over(partial(self._orchestrator.serve, requests))
            return
        for _, group in groupby(sorted(requests, key=lambda r: repr(r.signature)), key=lambda r: r.signature):
            self._hand_over(partial(self._orchestrator.serve, list(group)))

    @property
    def serves_at_once(self) -> bool:
        """Whether all requests that `submit` takes are answered when it returns."""
        return self._hand_over == self._workers.run

    def live_release(self, asked: int) -> tuple[int, int]:
        """Number of the live release, 0 while there is none, and the first exit that is closed, or `NONE_CLOSED`.

        Raises:
            ReleaseRefused: If the release that is asked about, 0 for none, was looked at and is not taken.
        """
        self._can_look = True
        self._releases.check(asked)
        live = self._releases.live
        return live.number, next(iter(live.breaker.closed_exits), NONE_CLOSED)

    def close(self) -> None:
        """Answers what was taken, writes what was recorded, and stops; in BLS mode, nothing can be audited any more."""
        for ticker in self._tickers:
            ticker.close()
        self._workers.close()
        if self._bls is None:
            self._auditor.close()
        else:
            self._bls.end()
            self._auditor.close(AUDIT_SECONDS)
        self._clerk.close()
        self._samples.close()
        self._report()
        self._keep(now=True)
        self._metrics.close()

    def timed(self, ran: Sequence[Ran]) -> None:
        """Counts runs of stages; see Observer."""
        for segment, seconds in ran:
            self._metrics.add("gati_segment_seconds_sum", seconds, segment=segment)
            self._metrics.add("gati_segment_seconds_count", segment=segment)

    def head_failed(self, index: int, error: Exception) -> None:
        """Counts a lookup that failed, and says why the first time; see Observer."""
        self._metrics.add("gati_head_failures_total", exit=index)
        self._warn_once(f"head {index} fails, its requests go on as misses", error)

    def joined_failed(self, error: Exception) -> None:
        """Says the first time that single requests go the long way; see Observer."""
        self._warn_once("single requests take longer than they need to", error)

    def _warn_once(self, what: str, error: Exception | None = None) -> None:
        if what not in self._failing:
            self._failing.add(what)
            self._warn(what if error is None else f"{what}: {type(error).__name__}: {first_line(error)}")

    def served(self, flight: Flight) -> None:
        """Sees to it that what was answered is counted and recorded; see Observer.

        A request that came alone is answered when this returns: a thread of its own does the rest meanwhile.
        """
        if self._clerk.waiting < FLIGHTS_WAITING and flight.bytes <= LARGEST_WAITING:
            self._clerk.add(partial(self._count, flight))
        else:
            self._count(flight)

    def _count(self, flight: Flight) -> None:
        """Counts and records what was answered."""
        self.timed(flight.ran)
        exits, latencies = Counter(flight.exit.tolist()), flight.latencies()
        for exit_, rows in exits.items():
            self._metrics.add("gati_requests_total", rows, exit=exit_)
        if held := flight.held:
            self._metrics.add("gati_held_total", held)
        bypassed = int(np.count_nonzero(flight.cacheable)) if flight.bypasses else 0
        if bypassed:
            self._metrics.add("gati_bypassed_total", bypassed)
        self._minutes.served(exits, latencies, held, bypassed)
        for _, seconds in latencies:
            self._metrics.observe("gati_request_seconds", seconds)
        self._samples.served(flight)
        if self._drift.take(flight.output):
            self._releases.live.breaker.traffic_changed()

    def audited(self, audit: Audit, outputs: np.ndarray, agreed: np.ndarray) -> None:
        """Counts audits, and records them with the backbone's answer; see Observer."""
        for agrees in agreed:
            self._metrics.add("gati_audits_total", exit=audit.index, agreed=str(bool(agrees)).lower())
        self._minutes.audited(agreed.tolist())
        self._samples.audited(audit, outputs)

    def _audit_later(self, audit: Audit) -> None:
        """Leaves an audit to a thread of its own, unless there is nothing left to run."""
        take = self._auditor.run if audit.at == len(self.chain.segments) - 1 else self._auditor.add
        take(partial(self._audit, audit))

    def _audit(self, audit: Audit) -> None:
        """Runs an audit; where it can't be run, what it is about is recorded as hits are that nobody audits."""
        release = audit.release if self._bls is None else self._bls.detached(audit.release)
        try:
            self._orchestrator.audit(replace(audit, release=release))
        except Exception:
            self._samples.audited(audit, None)
            if self._bls is None or self._bls.stays:
                raise

    def _audits_wait(self) -> bool:
        return self._auditor.waiting >= AUDITS_WAITING

    def _failed(self, error: Exception) -> None:
        """Logs what went wrong; the client was told already."""
        self._logger.log_error(printable(f"[gati] {self._model}: {type(error).__name__}: {error}"))

    def _start_metrics(self) -> None:
        """Counters start at zero, so that a rate is known from the first request on."""
        for segment in self.chain.segments:
            self._metrics.add("gati_requests_total", 0, exit=segment.index)
        for head in self.chain.heads:
            self._metrics.add("gati_head_failures_total", 0, exit=head)
            for agreed in ("true", "false"):
                self._metrics.add("gati_audits_total", 0, exit=head, agreed=agreed)
        self._metrics.add("gati_held_total", 0)
        self._metrics.add("gati_bypassed_total", 0)
        self._metrics.add("gati_samples_dropped_total", 0)
        self._metrics.add("gati_releases_refused_total", 0)
        self._metrics.set("gati_release", 0)
        self._metrics.flush()

    def _look(self) -> None:
        """Looks for a new release; in BLS mode only once the server is up, which the first request tells at the latest.

        Asking for other models while the server is starting fails, and its backend does not survive that.
        """
        self._can_look = self._can_look or is_up(os.environ)
        if self._can_look:
            self._releases.look()

    def _leave(self) -> None:
        """Ends the process when its server was killed: the next call to that server would wait for ever."""
        self._keep(now=True)
        self._samples.close()
        os._exit(1)

    def _report(self) -> None:
        live = self._releases.live
        said = live.number, live.breaker.alarm, live.breaker.bounds()
        self._keep()  # first: an alarm that was told survives whatever comes
        if live.breaker.budget.overdrawn:
            self._warn_once(
                f"more answers differ than the {self.chain.epsilon:.2%} that was promised, as far as audits of release "
                f"{live.number} tell: whenever that is so, the backbone answers until it is made up for"
            )
        if live.bypass.active:
            self._warn_once(
                f"the heads of release {live.number} take more time than they save now: most requests go past them, "
                "until they pay again"
            )
        if said != self._said:
            self._show(live, *said[1:])
            self._said = said
        self._metrics.flush()

    def _keep(self, *, now: bool = False) -> None:
        """Writes down what the breaker knows, and what came."""
        self._ledger.keep(now=now)
        live = self._releases.live
        self._minutes.keep(live.number, live.breaker.closed_exits, live.breaker.bounds(), now=now)

    def _show(self, live: LiveRelease, alarm: Alarm | None, bounds: tuple[float, float]) -> None:
        """Sets what the breaker says; logs an alarm once."""
        for bound, value in zip(("lower", "upper"), bounds, strict=True):
            self._metrics.set("gati_disagreement", value, bound=bound)
        self._metrics.set("gati_breaker_open", int(alarm is not None))
        for index in self.chain.heads:
            closed = alarm is not None and index in live.breaker.closed_exits
            self._metrics.set("gati_exit_closed", int(closed), exit=index)
        if alarm is not None and (live.number, alarm) != self._said[:2]:
            self._warn(
                f"release {live.number} breaks its promise of {self.chain.epsilon:.2%}: {alarm}. Closed until heads "
                f"are learned anew: exit {', '.join(map(str, live.breaker.closed_exits))}"
            )

    def _refused(self, number: int, reason: str) -> None:
        self._metrics.add("gati_releases_refused_total")
        self._warn(f"release {number} is not taken: {reason}")

    def _taken(self, number: int) -> None:
        self._failing.clear()
        self._metrics.set("gati_release", number)
        self._logger.log_info(f"[gati] {self._model}: release {number} is live")
        self._samples.taken(self._releases.live)

    def _warn(self, message: str) -> None:
        self._logger.log_warn(printable(f"[gati] {self._model}: {message}"))
