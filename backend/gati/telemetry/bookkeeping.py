"""Bookkeeping: what a chain's replica writes down about itself, as metrics, minutes, evidence, samples and warnings.

Requests do not wait for any of it: flights that were served are counted by a thread of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from gati.errors import first_line
from gati.promise.breaker import Alarm
from gati.promise.drift import Drift
from gati.promise.ledger import Ledger
from gati.recording.samples import Samples
from gati.repository.chain import Chain
from gati.serving.audits import Audit
from gati.serving.flight import Flight, StageRun
from gati.serving.live import LiveRelease
from gati.serving.orchestrator import Observer
from gati.system.warn_once import WarnOnce
from gati.system.workers import Workers
from gati.telemetry.metrics import Metrics
from gati.telemetry.minutes import Minutes

LINGER_SECONDS, FLIGHTS_TOGETHER = 0.1, 32
"""Flights are counted together, after so many seconds or so many flights. One by one, that took a tenth of a hit's time
(measured): it happens beside the next request, and a thread that has slept finds nothing in the caches."""
FLIGHTS_WAITING, LARGEST_WAITING = 64, 1 << 20
"""How many flights may wait to be counted, and how many bytes each may hold; the thread that served counts others."""


@dataclass(frozen=True)
class Shown:
    """What was last shown of a release.

    Attributes:
        release: Its number.
        alarm: Its breaker's alarm; None without one.
        bounds: Lower and upper bound on the share of its answers that differ.
    """

    release: int
    alarm: Alarm | None
    bounds: tuple[float, float]


class Bookkeeper(Observer):
    """Counts and records what is served; see `Observer` for who calls it.

    What it writes to is made for several threads. `report` is for one: `_shown` is its alone.

    Args:
        chain: The chain.
        live: Gives the live release.
        metrics: Takes counters and gauges.
        minutes: Takes each minute's counts.
        ledger: Keeps the breakers' evidence.
        samples: Records samples.
        warn: Logs a warning.
        failed: Logs an unforeseen error.
    """

    def __init__(
        self,
        chain: Chain,
        live: Callable[[], LiveRelease],
        metrics: Metrics,
        minutes: Minutes,
        ledger: Ledger,
        samples: Samples,
        warn: Callable[[str], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self._chain = chain
        self._live = live
        self._metrics = metrics
        self._minutes = minutes
        self._ledger = ledger
        self._samples = samples
        self._warn = warn
        self._warn_once = WarnOnce(warn)
        self._drift = Drift()
        self._shown: Shown | None = None
        self._counting = Workers(1, failed, LINGER_SECONDS, FLIGHTS_TOGETHER, "gati-counter")
        self._start_metrics()

    def _start_metrics(self) -> None:
        """Creates counters at zero, so that a rate is known from the first request on."""
        for segment in self._chain.segments:
            self._metrics.add("gati_requests_total", 0, exit=segment.index)
        for head in self._chain.heads:
            self._metrics.add("gati_head_failures_total", 0, exit=head)
            for agreed in ("true", "false"):
                self._metrics.add("gati_audits_total", 0, exit=head, agreed=agreed)
        self._metrics.add("gati_held_total", 0)
        self._metrics.add("gati_bypassed_total", 0)
        self._metrics.add("gati_samples_dropped_total", 0)
        self._metrics.add("gati_releases_refused_total", 0)
        self._metrics.set("gati_release", 0)
        self._metrics.flush()

    def timed(self, runs: Sequence[StageRun]) -> None:
        """Counts runs of stages, with a label of their own for those of several joined; see Observer."""
        for segment, seconds, joined in runs:
            labels = {"segment": segment, "joined": str(joined).lower()}
            self._metrics.add("gati_segment_seconds_sum", seconds, **labels)
            self._metrics.add("gati_segment_seconds_count", **labels)

    def head_failed(self, index: int, error: Exception) -> None:
        """Counts a lookup that failed; warns the first time. See Observer."""
        self._metrics.add("gati_head_failures_total", exit=index)
        self._tell_failure(f"head {index} fails, its requests go on as misses", error)

    def joined_failed(self, error: Exception) -> None:
        """Warns the first time that joined stages and heads fail; see Observer."""
        self._tell_failure("the fast path fails, its requests run stage by stage", error)

    def _tell_failure(self, what: str, error: Exception) -> None:
        self._warn_once(f"{what}: {type(error).__name__}: {first_line(error)}", about=what)

    def served(self, flight: Flight) -> None:
        """Has a flight counted and recorded, by another thread if possible; see Observer.

        Inline, what `execute` returns leaves only when this has returned.
        """
        if self._counting.waiting < FLIGHTS_WAITING and flight.bytes <= LARGEST_WAITING:
            self._counting.add(partial(self._count, flight))
        else:
            self._count(flight)

    def _count(self, flight: Flight) -> None:
        """Counts and records a flight."""
        self.timed(flight.runs)
        exits, latencies = Counter(flight.exit.tolist()), flight.latencies
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
            self._live().breaker.traffic_changed()

    def audited(self, audit: Audit, outputs: np.ndarray, agreed: np.ndarray) -> None:
        """Counts audits, and records them with the backbone's answer; see Observer."""
        for agrees in agreed:
            self._metrics.add("gati_audits_total", exit=audit.index, agreed=str(bool(agrees)).lower())
        self._minutes.audited(agreed.tolist())
        self._samples.audited(audit, outputs)

    def refused(self, number: int, reason: str) -> None:
        """Counts a release that was refused, and logs why."""
        self._metrics.add("gati_releases_refused_total")
        self._warn(f"release {number} is not taken: {reason}")

    def went_live(self, live: LiveRelease) -> None:
        """Notes that a release went live."""
        self._warn_once.forget()
        self._metrics.set("gati_release", live.number)
        self._samples.went_live(live)

    def report(self) -> None:
        """Writes down how the live release stands, and shows it as metrics; to be called again and again."""
        live = self._live()
        standing = Shown(live.number, live.breaker.alarm, live.breaker.bounds())
        self.keep()  # first, so that an alarm is on disk before anybody hears of it
        if live.breaker.budget.overdrawn:
            self._warn_once(
                f"more answers differ than the {self._chain.epsilon:.2%} that was promised, as far as audits of "
                f"release {live.number} tell: whenever that is so, the backbone answers until it is made up for",
                about="budget",
            )
        if live.bypass.active:
            self._warn_once(
                f"the heads of release {live.number} take more time than they save now: most requests go past them, "
                "until they pay again",
                about="bypass",
            )
        if standing != self._shown:
            self._show(standing, live.breaker.closed_exits)
            self._shown = standing
        self._metrics.flush()

    def keep(self, *, now: bool = False) -> None:
        """Writes the breaker's evidence, and the minute if it is over; both at once if `now`."""
        self._ledger.keep(now=now)
        live = self._live()
        self._minutes.keep(live.number, live.breaker.closed_exits, live.breaker.bounds(), now=now)

    def _show(self, standing: Shown, closed: Sequence[int]) -> None:
        """Sets the breaker's metrics; logs an alarm once."""
        alarm, before = standing.alarm, self._shown
        for bound, value in zip(("lower", "upper"), standing.bounds, strict=True):
            self._metrics.set("gati_disagreement", value, bound=bound)
        self._metrics.set("gati_breaker_open", int(alarm is not None))
        for index in self._chain.heads:
            self._metrics.set("gati_exit_closed", int(alarm is not None and index in closed), exit=index)
        told = before is not None and (before.release, before.alarm) == (standing.release, alarm)
        if alarm is not None and not told:
            self._warn(
                f"release {standing.release} breaks its promise of {self._chain.epsilon:.2%}: {alarm}. Closed until "
                f"heads are learned anew: exit {', '.join(map(str, closed))}"
            )

    def close(self) -> None:
        """Counts and writes what is left, and stops; by then, nobody else calls `report` any more."""
        self._counting.close()
        self._samples.close()
        self.report()
        self.keep(now=True)
        self._metrics.close()
