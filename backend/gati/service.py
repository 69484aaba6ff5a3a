"""A chain at work: engine, releases, recorder, metrics and worker threads, put together and taken apart."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from gati.bls import BlsEngine
from gati.breaker import Alarm
from gati.chain import read_chain
from gati.device import runner_on
from gati.flight import Flight, Request
from gati.head import first_line
from gati.inline import InlineEngine
from gati.ledger import Ledger
from gati.metrics import Metrics
from gati.minutes import Minutes
from gati.orchestrator import Audit, LiveRelease, Orchestrator
from gati.parent import when_orphaned
from gati.pulse import beat
from gati.recorder import Recorder, Sample
from gati.settings import Settings, workspace
from gati.watch import SECONDS, ReleaseWatch, Ticker
from gati.workers import Workers

AUDITS_WAITING = 16
"""Audits that may wait; while there are more, requests are served and none is drawn. Each holds its activations."""


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
        settings = Settings.from_environment(os.environ, repository)
        inline = self.chain.mode == "inline"
        if inline:
            engine = InlineEngine(repository, self.chain, runner_on(settings.device))
        else:
            engine = BlsEngine(repository, self.chain, pb_utils)
        self._metrics = Metrics(pb_utils, model)
        self._failing: set[int] = set()
        self._recorder = self._open_recorder(settings)
        work = workspace(repository)
        self._ledger = Ledger(work / "breaker" / model / f"{settings.replica}.json", self.chain, self._warn)
        path = work / "minutes" / model / f"{settings.replica}.jsonl"
        self._minutes = Minutes(path, len(self.chain.segments) - 1, self._warn)
        self._releases = ReleaseWatch(repository, self.chain, engine, self._refused, self._taken, self._ledger.open)
        self._said: tuple[Any, ...] = ()
        workers = settings.workers_in(self.chain.mode)
        self._workers = Workers(workers, self._failed)
        self._auditor = Workers(1, self._failed)
        self._hand_over = self._workers.submit if workers else self._workers.run
        self._orchestrator = Orchestrator(
            self.chain,
            lambda: self._releases.live,
            self,
            settings.audit_share,
            lambda audit: self._auditor.add(partial(self._orchestrator.audit, audit)),
            lambda: self._auditor.waiting >= AUDITS_WAITING,
        )
        self._start_metrics()
        self._can_look = inline
        self._look()
        _ = self._releases.live  # without a release, the backbone is loaded now, and not by the first request
        when_orphaned(self._leave)
        beat(os.environ)
        self._ticker = Ticker(SECONDS, self._warn, self._look, self._report)

    def submit(self, requests: Sequence[Request]) -> None:
        """Takes requests; each is replied to as soon as it is answered, before or after this returns."""
        self._can_look = True
        for _, group in groupby(sorted(requests, key=lambda r: repr(r.signature)), key=lambda r: r.signature):
            self._hand_over(partial(self._orchestrator.serve, list(group)))

    def live_release(self) -> int:
        """Number of the live release, 0 while there is none."""
        self._can_look = True
        return self._releases.live.number

    def close(self) -> None:
        """Answers what was taken, writes what was recorded, and stops."""
        self._ticker.close()
        self._workers.close()
        self._auditor.close()
        if self._recorder is not None:
            self._recorder.close()
        self._report()
        self._keep(now=True)
        self._metrics.close()

    def timed(self, segment: int, seconds: float) -> None:
        """Counts a segment's run; see Observer."""
        self._metrics.add("gati_segment_seconds_sum", seconds, segment=segment)
        self._metrics.add("gati_segment_seconds_count", segment=segment)

    def head_failed(self, index: int, error: Exception) -> None:
        """Counts a lookup that failed, and says why the first time; see Observer."""
        self._metrics.add("gati_head_failures_total", exit=index)
        if index not in self._failing:
            self._failing.add(index)
            self._warn(f"head {index} fails, its requests go on as misses: {type(error).__name__}: {first_line(error)}")

    def served(self, flight: Flight) -> None:
        """Counts and records what was answered; see Observer."""
        exits, latencies = Counter(flight.exit.tolist()), flight.latencies()
        for exit_, rows in exits.items():
            self._metrics.add("gati_requests_total", rows, exit=exit_)
        self._minutes.served(exits, latencies)
        for _, seconds in latencies:
            self._metrics.observe("gati_request_seconds", seconds)
        if self._recorder is None:
            return
        for request, span in zip(flight.requests, flight.spans, strict=True):
            self._record(self._recorder, request, flight, span)

    def _record(self, recorder: Recorder, request: Request, flight: Flight, span: slice) -> None:
        """Records the rows of one request: misses with the backbone's answer, hits without one."""
        exits, kept = flight.exit[span], flight.finite[span]
        missed = exits == len(self.chain.segments) - 1
        hit = ~missed
        if flight.drawn is not None:
            hit &= ~flight.drawn.rows[span]  # recorded when they are audited
        for part, known in ((missed, True), (hit, False)):
            chosen = part & kept
            if count := np.count_nonzero(chosen):
                rows = slice(None) if count == len(chosen) else chosen
                recorder.record(
                    Sample(
                        {name: value[rows] for name, value in request.inputs.items()},
                        flight.output[span][rows] if known else None,
                        exits[rows],
                        flight.release[span][rows],
                        request.arrived,
                    )
                )

    def audited(self, audit: Audit, outputs: np.ndarray, agreed: np.ndarray) -> None:
        """Counts audits, and records them with the backbone's answer; see Observer."""
        for agrees in agreed:
            self._metrics.add("gati_audits_total", exit=audit.index, agreed=str(bool(agrees)).lower())
        self._minutes.audited(agreed.tolist())
        if self._recorder is not None:
            rows = len(audit.served)
            exits, numbers = np.full(rows, audit.index, np.int32), np.full(rows, audit.release.number, np.int64)
            self._recorder.record(Sample(audit.inputs, outputs, exits, numbers, audit.arrived))

    def _failed(self, error: Exception) -> None:
        """Logs what went wrong; the client was told already."""
        self._logger.log_error(f"[gati] {self._model}: {type(error).__name__}: {error}")

    def _open_recorder(self, settings: Settings) -> Recorder | None:
        if settings.store is None:
            return None
        dropped = self._metrics.add
        return Recorder(
            self.chain,
            settings.store,
            settings.store_bytes,
            lambda rows: dropped("gati_samples_dropped_total", rows),
            self._warn,
        )

    def _start_metrics(self) -> None:
        """Counters start at zero, so that a rate is known from the first request on."""
        for segment in self.chain.segments:
            self._metrics.add("gati_requests_total", 0, exit=segment.index)
        for head in self.chain.heads:
            self._metrics.add("gati_head_failures_total", 0, exit=head)
            for agreed in ("true", "false"):
                self._metrics.add("gati_audits_total", 0, exit=head, agreed=agreed)
        self._metrics.add("gati_samples_dropped_total", 0)
        self._metrics.add("gati_releases_refused_total", 0)
        self._metrics.set("gati_release", 0)
        self._metrics.flush()

    def _look(self) -> None:
        """Looks for a new release; in BLS mode only once there are requests.

        Asking for other models while the server is starting fails, and its backend does not survive that.
        """
        if self._can_look:
            self._releases.look()

    def _leave(self) -> None:
        """Ends the process when its server was killed: the next call to that server would wait for ever."""
        self._keep(now=True)
        if self._recorder is not None:
            self._recorder.close()
        os._exit(1)

    def _report(self) -> None:
        live = self._releases.live
        said = live.number, live.breaker.alarm, live.breaker.bounds()
        self._keep()  # first: an alarm that was told survives whatever comes
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
                f"release {live.number} breaks its promise of {self.chain.epsilon:.2%}: {alarm}. Closed until the next "
                f"release: exit {', '.join(map(str, live.breaker.closed_exits))}"
            )

    def _refused(self, number: int, reason: str) -> None:
        self._metrics.add("gati_releases_refused_total")
        self._warn(f"release {number} is not taken: {reason}")

    def _taken(self, number: int) -> None:
        self._failing.clear()
        self._metrics.set("gati_release", number)
        self._logger.log_info(f"[gati] {self._model}: release {number} is live")

    def _warn(self, message: str) -> None:
        self._logger.log_warn(f"[gati] {self._model}: {message}")
