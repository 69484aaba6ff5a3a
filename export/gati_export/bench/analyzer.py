"""NVIDIA's perf_analyzer: one measurement of one model, with real inputs in their order."""

from __future__ import annotations

import csv
import math
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tritonclient.grpc as triton

from gati.errors import BenchError, UnavailableError

SECONDS = 600
"""After which a measurement is given up."""
HUNG, TRIES = 15.0, 3
"""Seconds that perf_analyzer may take to end when all its requests are answered: its threads then wait for one another
now and again, for ever. It is ended and begun anew, so many times."""
THREADS = 16
"""That send requests at a rate: perf_analyzer's own default, 4, is too few for a slow model."""
MEAN = re.compile(r"^\s*Avg latency: (\d+) usec", re.MULTILINE)
"""Where perf_analyzer prints how long requests took by its own clock, in µs. Its table has the mean in parts alone,
most of them by the server's clock, to which all of a batch take as long as its last row: where some of a batch are
answered before others, the sum of the parts is more than requests took."""
STEADY = 16
"""Requests for each that is in flight, at least: while the first are sent, and the last are waited for, fewer are in
flight, so that throughput is not what Little's law makes of the latency."""
LATE = re.compile(r"([\d.]+)% of the requests were delayed")
"""What it prints where it can't keep to a rate, as all its threads wait for answers."""


@dataclass(frozen=True)
class Load:
    """How a model is asked: so many requests in flight all the time, or so many a second, with Poisson arrivals.

    Attributes:
        concurrency: Requests in flight; None if `rate` is given.
        rate: Requests a second.
    """

    concurrency: int | None
    rate: float | None = None

    def count(self, requests: int) -> int:
        """How many requests to send where `requests` are asked for: `STEADY` times as many as are in flight at least.

        And at a rate, a second's.
        """
        return max(requests, math.ceil(self.rate or STEADY * (self.concurrency or 1)))

    def options(self) -> list[str]:
        """For perf_analyzer."""
        if self.concurrency is not None:
            return ["--concurrency-range", str(self.concurrency)]
        return ["--request-rate-range", f"{self.rate:g}", "--request-distribution", "poisson",
                "--max-threads", str(THREADS)]  # fmt: skip

    def __str__(self) -> str:
        return f"concurrency {self.concurrency}" if self.rate is None else f"{self.rate:g} requests/s"


@dataclass(frozen=True)
class Latency:
    """What perf_analyzer saw.

    Attributes:
        mean_ms: Mean time of a request.
        p50_ms: Median.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
        throughput: Answers a second. perf_analyzer's own is over whole seconds, rounded up; this is by Little's law, as
            many requests being in flight as may be, or the rate, as far as it was kept to.
        late: At a rate, the share of requests that were sent late, as all threads waited; how long is in no latency.
    """

    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    throughput: float
    late: float = 0.0


def find_analyzer() -> Path:
    """The program: on PATH, or beside this interpreter, where `make install` puts it.

    Raises:
        UnavailableError: If there is none.
    """
    found = shutil.which("perf_analyzer") or shutil.which("perf_analyzer", path=str(Path(sys.executable).parent))
    if found is None:
        raise UnavailableError(
            "perf_analyzer is not installed: it is in NVIDIA's Triton SDK container, and "
            "scripts/install-perf-analyzer.sh gets it from a wheel."
        )
    return Path(found)


def measure(
    analyzer: Path,
    address: str,
    model: str,
    inputs: Path,
    count: int,
    load: Load,
    begin: Callable[[], None] = lambda: None,
) -> Latency:
    """Asks a model `count` requests over gRPC.

    Args:
        analyzer: perf_analyzer.
        address: The server's, HOST:GRPC_PORT.
        model: The model's name.
        inputs: Input data, as `write_inputs` left it; begun again where it ends.
        count: Requests.
        load: How many at a time, or a second.
        begin: Called before the first request, once more if perf_analyzer has to be begun anew.

    Raises:
        BenchError: If perf_analyzer fails, as it does when a request does, does not end, or takes ten minutes.
    """
    table = inputs.with_suffix(".csv")
    table.unlink(missing_ok=True)
    command = [
        str(analyzer), "-i", "grpc", "-u", address, "-m", model, "--input-data", str(inputs), "-f", str(table),
        "--request-count", str(count), *load.options(),
    ]  # fmt: skip
    with triton.InferenceServerClient(address) as client:
        for _ in range(TRIES):
            begin()
            ended = _run(command, count, lambda: _answered(client, model))
            if ended is not None:
                code, output = ended
                if code or not table.exists():
                    raise BenchError(f"perf_analyzer failed on {model!r} at {load}: {_reason(output)}")
                return _read(table, output, load)
    raise BenchError(f"perf_analyzer did not end with {count} requests to {model!r} at {load}, {TRIES} times.")


def _run(command: list[str], count: int, answered: Callable[[], int]) -> tuple[int, str] | None:
    """Runs perf_analyzer to its end: its exit code, and what it printed; None if it hangs, all being answered."""
    until = answered() + count
    ends = time.monotonic() + SECONDS
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        while True:
            try:
                output, _ = process.communicate(timeout=1)
                return process.returncode, output
            except subprocess.TimeoutExpired:
                if answered() >= until:
                    ends, until = time.monotonic() + HUNG, math.inf
                if time.monotonic() > ends:
                    process.kill()
                    if math.isinf(until):
                        return None
                    left = int(until) - answered()
                    raise BenchError(
                        f"After {SECONDS / 60:.0f} minutes {left} of {count} requests are not answered; measure with "
                        "fewer (--requests), or at a higher rate."
                    ) from None
            except BaseException:
                process.kill()
                raise


def _answered(client: triton.InferenceServerClient, model: str) -> int:
    """How many requests a model has answered, well or not; 0 for one that is not there."""
    try:
        stats = client.get_inference_statistics(model).model_stats[0].inference_stats  # type: ignore[union-attr]
    except triton.InferenceServerException:
        return 0
    return stats.success.count + stats.fail.count


def _read(table: Path, output: str, load: Load) -> Latency:
    with table.open(encoding="utf-8", newline="") as file:
        row = next(csv.DictReader(file), {})
    said, late = MEAN.search(output), LATE.search(output)
    if said is None or int(said[1]) == 0 or "p50 latency" not in row:
        raise BenchError("perf_analyzer did not say how long requests took: this release of it is not known.")
    mean = int(said[1]) / 1e3
    p50, p95, p99 = (float(row[f"p{percentile} latency"]) / 1e3 for percentile in (50, 95, 99))
    most = (load.concurrency or THREADS) * 1e3 / mean
    throughput = most if load.rate is None else min(load.rate, most)
    return Latency(mean, p50, p95, p99, throughput, float(late[1]) / 100 if late else 0.0)


def _reason(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [line for line in lines if any(word in line.lower() for word in ("error", "fail", "invalid", "unable"))]
    return (telling or lines or ["it said nothing"])[0][:300]
