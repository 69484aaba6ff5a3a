"""The service of one chain: engine, releases, audits, records and threads, put together and taken apart again.

Threads of a chain's process:

    Triton's                calls `execute`; serves requests itself where there are no workers (inline, by default)
    gati-worker-N           serve requests, in BLS mode by default; `Settings.workers` of them
    gati-auditor-0          runs audits when their answers have left
    gati-counter-0          counts and records what was served (gati.telemetry.bookkeeping)
    gati-ticker             looks for releases, and writes down how things stand; inline, two threads
    gati-recorder           writes samples (gati.recording.recorder)
    gati-load               opens heads while stages are opened (gati.inference.inline); ends with the load
    gati-ladder             runs CUDA graphs, on a GPU (gati.inference.ladder)
    gati-heartbeat          shows `gati serve` that the process does not hang (gati.triton.heartbeat)
    gati-parent             ends the process when its server is gone (gati.system.parent)

They share the live release, which is swapped as a whole (gati.serving.watch), and what it holds; the books; and the
recorder's queue. Each of these has a lock of its own, or says why it needs none.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from gati.errors import printable
from gati.inference.bls import BlsEngine
from gati.inference.device import runner_on
from gati.inference.inline import InlineEngine
from gati.inference.tail import Tail
from gati.promise.draws import NO_PROMISE, Draws
from gati.promise.ledger import Ledger
from gati.recording.samples import Samples
from gati.repository.chain import read_chain
from gati.repository.workspace import workspace
from gati.serving.audits import Audit
from gati.serving.flight import Request
from gati.serving.orchestrator import Orchestrator
from gati.serving.watch import SECONDS, ReleaseWatch
from gati.serving.wire import NONE_CLOSED
from gati.settings import Settings
from gati.system.parent import when_orphaned
from gati.system.ticker import Ticker
from gati.system.workers import Job, Workers
from gati.telemetry.bookkeeping import Bookkeeper
from gati.telemetry.metrics import Metrics
from gati.telemetry.minutes import Minutes
from gati.triton.heartbeat import beat, is_up

AUDIT_SECONDS = 5.0
"""How long to wait for audits, in BLS mode, when the chain is being unloaded: samples are still to be written then."""
AUDITS_WAITING = 16
"""Audits that may wait; while there are more, the backbone answers what is drawn. Each holds its activations."""


class Service:
    """Serves one chain inside a Triton process.

    Args:
        repository: The model repository.
        model: The chain's name.
        pb_utils: Triton's `triton_python_backend_utils`.

    Attributes:
        chain: The chain.
        tail: Computes the chain's outputs beside its scores; None if there are none.
        serves_at_once: Whether all requests that `submit` takes are answered when it returns.

    Raises:
        GatiError: If the chain can't be served.
    """

    def __init__(self, repository: Path, model: str, pb_utils: Any) -> None:
        self._logger = pb_utils.Logger
        self._model = model
        self.chain = read_chain(repository, model)
        self.tail = Tail(repository, self.chain) if self.chain.tail else None
        settings = Settings.from_environment(os.environ, repository)
        inline = self.chain.mode == "inline"
        metrics = Metrics(pb_utils, model)
        self._samples = Samples(self.chain, settings, partial(metrics.add, "gati_samples_dropped_total"), self._warn)
        cut = self._samples.cut
        cuts = () if cut is None else (cut,)
        self._bls: BlsEngine | None = None
        if inline:
            runner = runner_on(settings.device)
            engine = InlineEngine(repository, self.chain, runner, recorded=cuts, warn=self._warn)
        else:
            engine = self._bls = BlsEngine(repository, self.chain, pb_utils)
        work = workspace(repository)
        ledger = Ledger(work / "breaker" / model / f"{settings.replica}.json", self.chain, self._warn)
        path = work / "minutes" / model / f"{settings.replica}.jsonl"
        minutes = Minutes(path, self.chain.backbone_exit, self._warn)
        self._books = Bookkeeper(
            self.chain,
            lambda: self._releases.live,
            metrics,
            minutes,
            ledger,
            self._samples,
            self._warn,
            self._failed,
        )
        self._releases = ReleaseWatch(
            repository,
            self.chain,
            engine,
            self._books.refused,
            self._went_live,
            ledger.open,
            cuts,
            bypasses=settings.bypass and self.chain.epsilon < NO_PROMISE,
        )
        workers = settings.workers_in(self.chain.mode)
        self._workers = Workers(workers, self._failed)
        self._auditor = Workers(1, self._failed, name="gati-auditor")
        self.serves_at_once = workers == 0
        self._serve_on = self._workers.run if self.serves_at_once else self._workers.submit
        self._orchestrator = Orchestrator(
            self.chain,
            lambda: self._releases.live,
            self._books,
            self._audit_later,
            Draws(settings.audit_share, self.chain.epsilon, self._audits_wait),
            cut,
        )
        self._server_is_up = inline  # as far as it matters: inline, nothing is asked of the server
        self._tickers = self._start(inline)

    def _start(self, inline: bool) -> list[Ticker]:
        """Loads what the first request needs, and starts the threads that look for releases and report."""
        if inline:
            self._look()
        _ = self._releases.live  # without a release, this loads the backbone, so that the first request need not
        when_orphaned(self._leave)
        beat(os.environ)
        # Inline, loading a large release takes long, and what audits find meanwhile is to be reported: two threads. In
        # BLS mode Triton loads releases, and both looking and reporting call Triton: one thread.
        ticking = [(self._look,), (self._books.report,)] if inline else [(self._look, self._books.report)]
        return [Ticker(SECONDS, self._warn, *each) for each in ticking]

    def submit(self, requests: Sequence[Request], trace: Any = None) -> None:
        """Has requests served; each is replied to as soon as it is answered, before or after this returns.

        Args:
            requests: What Triton has batched.
            trace: As `trace_of` gives it. With one, all are answered when this returns.
        """
        self._server_is_up = True
        if trace is None or self._bls is None:
            self._serve(requests, self._serve_on)
            return
        with self._bls.traced(trace):
            self._serve(requests, self._workers.run)

    def _serve(self, requests: Sequence[Request], serve_on: Callable[[Job], None]) -> None:
        if len(requests) == 1:
            serve_on(partial(self._orchestrator.serve, requests))
            return
        for _, group in groupby(sorted(requests, key=lambda r: repr(r.signature)), key=lambda r: r.signature):
            serve_on(partial(self._orchestrator.serve, list(group)))

    def trace_of(self, requests: Sequence[Any]) -> Any:
        """Triton's trace that segments and heads are to be seen in, as far as other models are called; None for none.

        Where they are answered by other threads than Triton's own, only traces with a context are: OpenTelemetry's. Of
        others a request does not tell whether it has one, and none outlives `execute`.
        """
        if self._bls is None:
            return None
        traces = [request.trace() for request in requests]
        known = [trace for trace in traces if trace.get_context() is not None]
        return next(iter(known or (traces if self.serves_at_once else [])), None)

    def live_release(self, asked: int) -> tuple[int, int]:
        """Number of the live release, 0 while there is none, and the first exit that is closed, or `NONE_CLOSED`.

        Args:
            asked: A release that is asked about; 0 for none.

        Raises:
            ReleaseRefused: If that release was refused.
        """
        self._server_is_up = True
        self._releases.check(asked)
        live = self._releases.live
        return live.number, next(iter(live.breaker.closed_exits), NONE_CLOSED)

    def close(self) -> None:
        """Answers requests that were taken, runs audits that wait (inline), writes what was recorded, and stops."""
        for ticker in self._tickers:
            ticker.close()
        self._workers.close()
        if self._bls is None:
            self._auditor.close()
        else:
            self._bls.end()
            self._auditor.close(AUDIT_SECONDS)
        self._books.close()

    def _audit_later(self, audit: Audit) -> None:
        """Leaves an audit to the auditor's thread, unless the backbone has run already and there is only to compare."""
        take = self._auditor.run if audit.at == self.chain.backbone_exit else self._auditor.add
        take(partial(self._audit, audit))

    def _audit(self, audit: Audit) -> None:
        """Runs an audit. If that fails, its hits are recorded as if they had not been drawn."""
        if self._bls is not None:
            audit = replace(audit, release=replace(audit.release, stages=self._bls.detached(audit.release.stages)))
        try:
            self._orchestrator.audit(audit)
        except Exception:
            self._samples.audited(audit, None)
            if self._bls is None or self._bls.stays:
                raise

    def _audits_wait(self) -> bool:
        return self._auditor.waiting >= AUDITS_WAITING

    def _failed(self, error: Exception) -> None:
        """Logs an unforeseen error; the client was told that its request failed."""
        self._logger.log_error(printable(f"[gati] {self._model}: {type(error).__name__}: {error}"))

    def _look(self) -> None:
        """Looks for a new release; in BLS mode only once the server is up, which the first request shows at the latest.

        To call other models while the server is starting fails, and crashes this process.
        """
        self._server_is_up = self._server_is_up or is_up(os.environ)
        if self._server_is_up:
            self._releases.look()

    def _leave(self) -> None:
        """Ends the process because its server was killed: the next call to that server would wait for ever."""
        self._books.keep(now=True)
        self._samples.close()
        os._exit(1)

    def _went_live(self, number: int) -> None:
        self._logger.log_info(f"[gati] {self._model}: release {number} is live")
        self._books.went_live(self._releases.live)

    def _warn(self, message: str) -> None:
        self._logger.log_warn(printable(f"[gati] {self._model}: {message}"))
