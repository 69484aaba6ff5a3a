"""What a benchmark is to measure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gati.inference.session import CPU, Device
from gati.repository.chain import Chain, Mode
from gati_export.bench.rows import PLAIN
from gati_export.bench.traffic import Feeds


@dataclass(frozen=True)
class BenchPlan:
    """What to measure.

    Attributes:
        repository: The model repository.
        chain: The chain.
        samples: What requests are drawn from, inputs by name, [n, ...].
        workload: Of `gati_export.bench.traffic.WORKLOADS`.
        against: Of `gati_export.bench.rows.AGAINST`; the plain backbone is always there.
        modes: In which the chain runs.
        concurrency: Numbers of requests in flight.
        rates: Requests a second; empty for a share of what the plain model can take.
        requests: Of a measurement.
        turns: How often each measurement is made.
        seed: Of the order of requests.
        learn_from: Samples that the peers' heads learn from, and int8 is calibrated on, inputs by name, [n, ...].
        extra: More samples for the peers to train on.
        device: Where inline chains run, and what they are compared with.
    """

    repository: Path
    chain: Chain
    samples: Feeds
    workload: str = "iid"
    against: tuple[str, ...] = (PLAIN,)
    modes: tuple[Mode, ...] = ("inline", "bls")
    concurrency: tuple[int, ...] = (1,)
    rates: tuple[float, ...] = ()
    requests: int = 300
    turns: int = 3
    seed: int = 0
    learn_from: Feeds | None = None
    extra: Feeds | None = None
    device: Device = CPU
