"""A chain at work: engine, releases, recorder, metrics and worker threads, put together and taken apart."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from gati.audits import Audit
from gati.bls import BlsEngine
from gati.bookkeeping import Bookkeeper
from gati.chain import read_chain
from gati.device import runner_on
from gati.draws import NO_PROMISE, Draws
from gati.errors import printable
from gati.flight import Request
from gati.heartbeat import beat, is_up
from gati.inline import InlineEngine
from gati.ledger import Ledger
from gati.metrics import Metrics
from gati.minutes import Minutes
from gati.orchestrator import Orchestrator
from gati.parent import when_orphaned
from gati.samples import Samples
from gati.settings import Settings, workspace
from gati.tail import Tail
from gati.watch import SECONDS, ReleaseWatch, Ticker
from gati.wire import NONE_CLOSED
from gati.workers import Job, Workers

AUDIT_SECONDS = 5.0
"""How long an audit may take, in BLS mode, when the chain is being unloaded: what was recorded is to be written."""
AUDITS_WAITING = 16
"""Audits that may wait; while there are more, the backbone answers what is drawn. Each holds its activations."""


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
            self._taken,
            ledger.open,
            cuts,
            bypasses=settings.bypass and self.chain.epsilon < NO_PROMISE,
        )
        workers = settings.workers_in(self.chain.mode)
        self._workers = Workers(workers, self._failed)
        self._auditor = Workers(1, self._failed)
        self._hand_over = self._workers.submit if workers else self._workers.run
        self._orchestrator = Orchestrator(
            self.chain,
            lambda: self._releases.live,
            self._books,
            self._audit_later,
            Draws(settings.audit_share, self.chain.epsilon, self._audits_wait),
            cut,
        )
        self._can_look = inline
        self._tickers = self._started(inline)

    def _started(self, inline: bool) -> list[Ticker]:
        """Loads what the first request needs, and begins to look for releases and to report."""
        if inline:
            self._look()
        _ = self._releases.live  # without a release, the backbone is loaded now, and not by the first request
        when_orphaned(self._leave)
        beat(os.environ)
        # Inline, loading a large release takes long, and audits find what they find meanwhile. In BLS mode Triton loads
        # it, and both ask Triton.
        ticking = [(self._look,), (self._books.report,)] if inline else [(self._look, self._books.report)]
        return [Ticker(SECONDS, self._warn, *each) for each in ticking]

    def submit(self, requests: Sequence[Request], trace: Any = None) -> None:
        """Takes requests; each is replied to as soon as it is answered, before or after this returns.

        Args:
            requests: What Triton has batched.
            trace: As `trace_of` gives it. With one, all are answered when this returns.
        """
        self._can_look = True
        if trace is None or self._bls is None:
            self._take(requests, self._hand_over)
            return
        with self._bls.traced(trace):
            self._take(requests, self._workers.run)

    def _take(self, requests: Sequence[Request], hand_over: Callable[[Job], None]) -> None:
        if len(requests) == 1:
            hand_over(partial(self._orchestrator.serve, requests))
            return
        for _, group in groupby(sorted(requests, key=lambda r: repr(r.signature)), key=lambda r: r.signature):
            hand_over(partial(self._orchestrator.serve, list(group)))

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
        self._books.close()

    def _audit_later(self, audit: Audit) -> None:
        """Leaves an audit to a thread of its own, unless there is nothing left to run."""
        take = self._auditor.run if audit.at == self.chain.backbone_exit else self._auditor.add
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

    def _look(self) -> None:
        """Looks for a new release; in BLS mode only once the server is up, which the first request tells at the latest.

        Asking for other models while the server is starting fails, and its backend does not survive that.
        """
        self._can_look = self._can_look or is_up(os.environ)
        if self._can_look:
            self._releases.look()

    def _leave(self) -> None:
        """Ends the process when its server was killed: the next call to that server would wait for ever."""
        self._books.keep(now=True)
        self._samples.close()
        os._exit(1)

    def _taken(self, number: int) -> None:
        self._logger.log_info(f"[gati] {self._model}: release {number} is live")
        self._books.taken(self._releases.live)

    def _warn(self, message: str) -> None:
        self._logger.log_warn(printable(f"[gati] {self._model}: {message}"))
