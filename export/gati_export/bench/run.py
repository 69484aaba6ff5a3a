"""Runs a benchmark: contenders on one server, in turns, so that a machine that drifts does so for all of them."""

from __future__ import annotations

import math
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort

from gati.errors import SamplesError, first_line
from gati.inference.session import open_session, run
from gati.promise.breaker import LONGEST
from gati.promise.draws import NEW, NO_PROMISE
from gati.repository.chain import Chain
from gati.repository.workspace import workspace
from gati.settings import Settings
from gati.triton.ports import HOST, Ports
from gati.triton.server import Server
from gati_export.bench.analyzer import Latency, Load, find_analyzer, measure
from gati_export.bench.arena import Arena, Contender
from gati_export.bench.audits import audited, eager
from gati_export.bench.conditions import conditions
from gati_export.bench.contenders import SCORED, add_studies, set_up
from gati_export.bench.judge import Answers, ask, exits_of, judge, shares
from gati_export.bench.limits import oracle_exits, seconds_until, time_engine
from gati_export.bench.peers import peer_heads
from gati_export.bench.plan import BenchPlan
from gati_export.bench.processes import cpu_seconds, peak_mib
from gati_export.bench.rows import ALLOWED, BYPASSED, ENGINE, ORACLE, PLAIN, SERVED, Result, Row, noise, serves
from gati_export.bench.startup import seconds_to_answer
from gati_export.bench.tally import Tally, summed_up
from gati_export.bench.traffic import Traffic, write_inputs
from gati_export.progress import Progress
from gati_export.report.scrape import Reading, read_metrics
from gati_export.samples.ragged import batches, count, rows_at

SATURATION = 0.7
"""Of the plain model's largest throughput, the rate that is measured if none is asked for."""
LATE = 0.05
"""The share of requests at a rate that may be sent late without a word: Poisson arrivals come in crowds."""
SETTLE = 1.0
"""Seconds after which what a chain has answered is in its metrics: it hands them over four times a second."""
LOG = "bench.log"
"""The servers' log, in the repository's workspace: what fails is looked for there when all else is removed."""
CACHE_BYTES = 1 << 28
WARM_UP = 250
"""Requests that chains are asked in turns, before anything is measured."""
LONGER = 28
"""Rounds of them that are waited for releases to be known to be good, beyond what most take."""
NOT_IDLE = (
    "The engine alone took longer than with the server: the machine was not idle, or --requests is too low, so oracle "
    "and allowed say little."
)
BATCH = 32


def bench(plan: BenchPlan, progress: Progress) -> Result:
    """Runs a benchmark.

    Args:
        plan: What to measure.
        progress: Told how far it is.

    Raises:
        GatiError: If something can't be measured; see its message.
    """
    analyzer = find_analyzer()
    folder = workspace(plan.repository)
    folder.mkdir(parents=True, exist_ok=True)
    _clear(folder)
    log = folder / LOG
    with tempfile.TemporaryDirectory(prefix=f"bench-{os.getpid()}-{socket.gethostname()}-", dir=folder) as work:
        peers, notes = _peers(plan, progress)
        arena = set_up(Path(work, "models"), plan, peers, progress)
        arena.notes += notes
        session = open_session(arena.backbone(), plan.device)
        classes = outputs_of(session, plan.chain, plan.samples).argmax(1) if plan.workload == "hot" else None
        traffic = Traffic(plan.workload, plan.samples, classes, plan.chain.inputs, plan.seed)
        add_studies(arena, traffic.take(SCORED))
        first = [c.name for c in arena.contenders if serves(c.name)][:2]  # the plain model, and the chain
        starts = seconds_to_answer(arena, first, Path(work, "start"), rows_at(traffic.take(1), [0]), log)
        options = [f"--cache-config=local,size={CACHE_BYTES}"] if "cache" in plan.against else []
        with Server(arena.repository, Ports(0, 0, 0), arena.environment, log, options) as server:
            rows = _Run(plan, arena, traffic, session, server, analyzer, Path(work, "inputs.json"), progress).rows()
        result = Result(conditions(plan, arena, traffic, starts), tuple(rows), tuple(arena.notes))
        return replace(result, notes=(*result.notes, *filter(None, [noise(result)])))


def _clear(folder: Path) -> None:
    """Removes what benchmarks of this machine that were killed have left: copies of a whole backbone, some of them."""
    for left in folder.glob("bench-*"):
        number, _, rest = left.name.removeprefix("bench-").partition("-")
        if rest.rpartition("-")[0] != socket.gethostname():  # others may share the repository
            continue
        try:
            os.kill(int(number), 0)
        except (ProcessLookupError, ValueError):
            shutil.rmtree(left, ignore_errors=True)
        except PermissionError:  # somebody else's, and at work
            continue


def _peers(plan: BenchPlan, progress: Progress) -> tuple[dict[str, dict[int, bytes]], list[str]]:
    """The peers' heads, and why one has none."""
    if "peers" not in plan.against:
        return {}, []
    if plan.learn_from is None:
        raise SamplesError("The peers' heads have to learn from samples: give those of the export with --samples.")
    segments = plan.chain.segment_paths(plan.repository)
    return peer_heads(plan.chain, segments, plan.learn_from, plan.extra, progress)


def outputs_of(session: ort.InferenceSession, chain: Chain, requests: Mapping[str, np.ndarray]) -> np.ndarray:
    """What the backbone says, [n, classes].

    Raises:
        SamplesError: If it can't take them.
    """
    rows = np.arange(count(requests))
    found = np.empty((len(rows), *chain.output.shape), chain.output.numpy)
    try:
        for batch in batches(requests, rows, min(BATCH, chain.max_batch)):
            found[batch] = run(session, [chain.output.name], rows_at(requests, batch))[0]
        return found
    except Exception as error:  # ONNX Runtime's own errors share no base
        raise SamplesError(f"The backbone can't take these samples: {first_line(error)}") from error


class _Run:
    """Measurements on a running server."""

    def __init__(
        self,
        plan: BenchPlan,
        arena: Arena,
        traffic: Traffic,
        session: ort.InferenceSession,
        server: Server,
        analyzer: Path,
        inputs: Path,
        progress: Progress,
    ) -> None:
        self._plan = plan
        self._arena = arena
        self._traffic = traffic
        self._session = session
        self._server = server
        self._analyzer = analyzer
        self._inputs = inputs
        self._progress = progress
        self._address = f"{HOST}:{server.ports.grpc}"
        self._usual = Settings.from_environment(os.environ, plan.repository).audit_share
        self._rows: list[Row] = []

    def rows(self) -> list[Row]:
        """All rows."""
        verdicts = self._judge()
        self._traffic.begin_measuring()
        self._read = self._readings()
        for done, concurrency in enumerate(self._plan.concurrency):
            self._measure(Load(concurrency), verdicts, done / (len(self._plan.concurrency) + 1))
        plain = [row.throughput for row in self._rows if row.name == PLAIN]
        for rate in self._plan.rates or (SATURATION * max(plain),):
            self._measure(Load(None, rate), verdicts, len(self._plan.concurrency) / (len(self._plan.concurrency) + 1))
        self._progress("Measure", 1)
        self._arena.notes += filter(None, map(_closed, self._read, self._read.values()))
        return self._rows

    def _judge(self) -> dict[str, Answers]:
        """What each contender answers."""
        self._warm_up()
        self._traffic.begin_comparing()
        self._first = self._traffic.take(max(self._plan.requests, NEW // 2))
        outputs = outputs_of(self._session, self._plan.chain, self._first)
        verdicts = {}
        for done, contender in enumerate(self._arena.contenders):
            verdicts[contender.name] = judge(self._address, contender.name, self._plan.chain, self._first, outputs)
            self._progress("Compare answers", (done + 1) / len(self._arena.contenders))
        return verdicts

    def _warm_up(self) -> None:
        """Asks until nobody looks closely at a new release any more: until then, half of its hits are audited.

        That takes as many times the requests as belong to a scene, and more of them the closer what differs comes to
        what was promised, so that some `LONGER` rounds are waited for it. What makes no promise is not looked at.
        """
        chains = {one.name: one.chain for one in self._arena.contenders if one.chain}
        watched = [name for name, chain in chains.items() if chain.epsilon < NO_PROMISE]
        together = self._arena.release.certificate.together if self._arena.release else 1.0
        rounds = math.ceil(NEW / WARM_UP * min(together, LONGEST))
        before: dict[str, Reading] = {}
        for done in range(rounds + LONGER):
            requests = self._traffic.take(WARM_UP)
            for name in watched if done else chains:
                for _ in ask(self._address, name, requests):
                    pass
            self._progress("Warm up", min(1.0, (done + 1) / rounds))
            after = self._readings() if done + 1 >= rounds else {}
            if before and not any(eager(audited(before[name], after[name]), self._usual) for name in watched):
                return
            before = after

    def _readings(self) -> dict[str, Reading]:
        """The metrics of all chains, when what they have answered is in them."""
        time.sleep(SETTLE)
        address = f"{HOST}:{self._server.ports.metrics}"
        return {one.name: read_metrics(address, one.name) for one in self._arena.contenders if one.chain}

    def _measure(self, load: Load, verdicts: Mapping[str, Answers], before: float) -> None:
        """Measures all contenders under one load, in turns, and adds their rows."""
        contenders = [c for c in self._arena.contenders if load.concurrency is not None or serves(c.name)]
        tallies = {contender.name: Tally() for contender in contenders}
        engine = Tally()
        for turn in range(self._plan.turns):
            requests = self._traffic.take(load.count(self._plan.requests))
            write_inputs(self._inputs, requests)
            first = turn % len(contenders)
            for contender in contenders[first:] + contenders[:first]:
                tallies[contender.name].add(*self._ask(contender, load))
            if load.concurrency == 1:
                engine.add(summed_up(time_engine(self._session, self._plan.chain, requests) * 1e3), None)
            self._progress("Measure", before + (turn + 1) / self._plan.turns / (len(self._plan.concurrency) + 1))
        earlier, self._read = self._read, self._readings()
        plain = tallies[PLAIN]
        verdicts = {name: _under(one, earlier.get(name), self._read.get(name)) for name, one in verdicts.items()}
        self._say_watched(load, earlier)
        for contender in contenders:
            self._say_late(contender.name, load, tallies[contender.name].mean("late"))
            verdict = verdicts[contender.name]
            peak = peak_mib(self._server.process.pid, contender.models)
            self._rows.append(
                tallies[contender.name].row(contender.name, self._plan.workload, load, plain, verdict, peak)
            )
        if engine.seen:
            chain = next(verdict for name, verdict in verdicts.items() if name in SERVED)
            self._rows += self._limits(load, plain, engine, chain)

    def _say_watched(self, load: Load, earlier: Mapping[str, Reading]) -> None:
        """Says whose heads were not asked, and of whom more hits were audited than is usual: it was slower for it."""
        for name, before in earlier.items():
            after = self._read[name]
            past = (after.bypassed - before.bypassed) / max(1, after.requests - before.requests)
            if past and name != BYPASSED:
                self._arena.notes.append(
                    f"{name}: at {load}, {past:.0%} of requests went past its heads, which took more time than they "
                    "saved."
                )
            share = audited(before, after)
            if eager(share, self._usual):
                self._arena.notes.append(
                    f"{name}: at {load}, {share:.0%} of its hits were audited, as of a new release until it is known "
                    "to be good: in the long run it is faster."
                )

    def _say_late(self, name: str, load: Load, late: float) -> None:
        """Says of whom a rate was more than it could take, so that its times are too good."""
        if late > LATE:
            self._arena.notes.append(
                f"{name}: at {load}, {late:.0%} were sent late, as all of perf_analyzer's threads waited for answers; "
                "how long these had to wait is not in its times."
            )

    def _ask(self, contender: Contender, load: Load) -> tuple[Latency, float]:
        """One measurement, and the time on cores that it took, in ms a request."""
        root, number, used = self._server.process.pid, load.count(self._plan.requests), list[float]()
        begin = lambda: used.append(cpu_seconds(root))  # noqa: E731
        seen = measure(self._analyzer, self._address, contender.name, self._inputs, number, load, begin)
        taken = cpu_seconds(root) - used[-1]
        if len(used) > 1:
            self._arena.notes.append(
                f"{contender.name}: at {load}, perf_analyzer did not end, and asked the same requests once more: what "
                "remembers requests knew them."
            )
        return seen, taken * 1e3 / number

    def _limits(self, load: Load, plain: Tally, engine: Tally, chain: Answers) -> list[Row]:
        """The engine alone; and what an oracle, and the chain's own heads, would take if lookups cost nothing.

        To the time of these the server adds what it adds to the plain model's; where the engine alone took longer,
        nothing.
        """
        if engine.mean("mean_ms") > plain.mean("mean_ms") and NOT_IDLE not in self._arena.notes:
            self._arena.notes.append(NOT_IDLE)
        workload, n = self._plan.workload, count(self._first)
        rows = [engine.row(ENGINE, workload, load, plain, Answers(None, {}), None)]
        until = seconds_until(self._arena, self._first)
        for name, exits in ((ORACLE, shares(oracle_exits(self._arena, self._first))), (ALLOWED, chain.exits)):
            tally, share = Tally(), until[exits_of(exits, n)] / until[-1]
            for served, alone in zip(plain.seen, engine.seen, strict=True):
                tally.add(summed_up(share * alone.mean_ms + max(0.0, served.mean_ms - alone.mean_ms)), None)
            rows.append(tally.row(name, workload, load, plain, Answers(None, exits), None))
        return rows


def _under(verdict: Answers, before: Reading | None, after: Reading | None) -> Answers:
    """What a contender answered, with the exits of the requests between two readings of its metrics."""
    if before is None or after is None:
        return verdict
    left = {exit_: count - before.exits.get(exit_, 0) for exit_, count in sorted(after.exits.items())}
    total = sum(left.values())
    return replace(verdict, exits={str(exit_): count / total for exit_, count in left.items() if count})


def _closed(name: str, reading: Reading) -> str | None:
    """What to know of a chain whose breaker has closed exits: its times are partly without them."""
    if not reading.breaker_open and not reading.closed:
        return None
    exits = ", ".join(map(str, reading.closed)) or "all"
    return (
        f"{name}: audits found more answers that differ than is promised, and closed exits while it was measured "
        f"({exits}): these requests are unlike those that it was certified on."
    )
