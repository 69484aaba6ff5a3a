"""What is measured of one contender under one load, turn by turn, and the row that comes of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from gati_export.bench.analyzer import Latency, Load
from gati_export.bench.judge import Answers
from gati_export.bench.rows import Row


@dataclass
class Tally:
    """Measurements, a turn each.

    Attributes:
        seen: Latencies.
        cpu_ms: Time on cores a request; None where that can't be told.
    """

    seen: list[Latency] = field(default_factory=list)
    cpu_ms: list[float | None] = field(default_factory=list)

    def add(self, seen: Latency, cpu_ms: float | None) -> None:
        """Adds a turn."""
        self.seen.append(seen)
        self.cpu_ms.append(cpu_ms)

    def mean(self, name: str) -> float:
        """The mean over the turns of one of `Latency`'s attributes."""
        return float(np.mean([getattr(one, name) for one in self.seen]))

    @property
    def throughput(self) -> float:
        """Answers a second: those of all turns by the time of all, as each turn has as many requests."""
        return len(self.seen) / sum(1 / one.throughput for one in self.seen)

    def row(self, name: str, workload: str, load: Load, plain: Tally, answers: Answers, peak: float | None) -> Row:
        """The row; `plain` is the plain model's under the same load."""
        ratios = [other.mean_ms / own.mean_ms for other, own in zip(plain.seen, self.seen, strict=True)]
        used = [value for value in self.cpu_ms if value is not None]
        return Row(
            name=name,
            workload=workload,
            concurrency=load.concurrency,
            rate=load.rate,
            mean_ms=self.mean("mean_ms"),
            p50_ms=self.mean("p50_ms"),
            p95_ms=self.mean("p95_ms"),
            p99_ms=self.mean("p99_ms"),
            throughput=self.throughput,
            agreement=answers.agreement,
            exits=answers.exits,
            cpu_ms=float(np.mean(used)) if used else None,
            rss_mb=peak,
            speedup=plain.mean("mean_ms") / self.mean("mean_ms"),
            low=min(ratios),
            high=max(ratios),
        )


def summed_up(milliseconds: np.ndarray) -> Latency:
    """Requests asked one after the other, [n]."""
    mean = float(milliseconds.mean())
    p50, p95, p99 = (float(value) for value in np.percentile(milliseconds, [50, 95, 99]))
    return Latency(mean, p50, p95, p99, 1e3 / mean)
