"""What a benchmark found: a row a measurement, as a table, as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.table import Table

PLAIN, ORACLE, ALLOWED, ENGINE = "plain", "oracle", "allowed", "engine"
SERVED = ("chain-inline", "chain-bls")
"""The chain as it is, in either mode."""
MOSTLY_HITS, BYPASSED = "hits-80", "bypassed"
WHOLE = ("mechanism", "all-miss", BYPASSED)
"""Those that run the whole backbone, and something beside."""
AGAINST = (PLAIN, "int8", "cache", "peers")
"""What a chain can be compared with."""
MISSING = "—"


@dataclass(frozen=True)
class Row:
    """One model under one load.

    Attributes:
        name: Of the contender.
        workload: What the requests resemble.
        concurrency: Requests in flight; None at a rate.
        rate: Requests a second, Poisson arrivals; None at a concurrency.
        mean_ms: Mean latency.
        p50_ms: Median; like the other percentiles the mean over the turns.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
        throughput: Answers a second.
        agreement: Share of answers that agree with the backbone's; None where nothing was compared.
        exits: Share of requests answered at each exit, by its index; the backbone's is the last one. Empty for models
            without.
        cpu_ms: Time on all cores a request, the server's and the model's together.
        rss_mb: The most memory that the model's processes have held, in MiB.
        speedup: Mean latency of the plain model under the same load ÷ this one's.
        low: Of the speed-up, the smallest of a turn.
        high: The largest of a turn.
    """

    name: str
    workload: str
    concurrency: int | None
    rate: float | None
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    throughput: float
    agreement: float | None
    exits: dict[str, float]
    cpu_ms: float | None
    rss_mb: float | None
    speedup: float
    low: float
    high: float


@dataclass(frozen=True)
class Result:
    """A benchmark's rows, the conditions they were taken under, and what is missing and why."""

    conditions: dict[str, Any]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {"conditions": self.conditions, "rows": [asdict(row) for row in self.rows], "notes": list(self.notes)}

    def loads(self) -> list[tuple[int | None, float | None]]:
        """Concurrencies and rates, in the order in which they were measured."""
        return list(dict.fromkeys((row.concurrency, row.rate) for row in self.rows))

    def under(self, load: tuple[int | None, float | None]) -> list[Row]:
        """The rows of one load."""
        return [row for row in self.rows if (row.concurrency, row.rate) == load]

    @property
    def first(self) -> list[Row]:
        """The rows of the load that was measured first, at which there are all contenders."""
        return self.under(self.loads()[0]) if self.rows else []

    def row(self, name: str, concurrency: int = 1) -> Row | None:
        """A contender's row at a concurrency."""
        return next((row for row in self.rows if row.name == name and row.concurrency == concurrency), None)


def serves(name: str) -> bool:
    """Whether a contender is a way to serve, and not a study of where time goes."""
    studies = (ORACLE, ALLOWED, ENGINE, MOSTLY_HITS, *WHOLE)
    return name not in studies and not name.startswith("hit-")


LEAST_SAVED, MOST_SAVED = 0.01, 1.25
"""Share of the plain model's latency, below which what a limit would save is noise, and a share of it says nothing; and
share of that, above which what the chain saves is."""
NOISE, NOISE_LOADED = 1.15, 1.5
"""Speed-ups of what runs the whole backbone that are more than chance, one at a time and with more in flight. One at a
time up to 1.07 were seen on machines that were as idle as can be. With more in flight Triton makes its batches for
each model anew, of whatever waits, and theirs may be better ones: only what these can't explain is counted."""


def kept(result: Result, limit: str) -> float | None:
    """The share of the latency that a limit would save which the fastest chain does save, at concurrency 1, 0..1.

    None where that says nothing: the chain saves none, or the limit, or the machine was not idle, and the chain seems
    faster than its limit, or what runs the whole backbone faster than the backbone.
    """
    plain, least, engine = result.row(PLAIN), result.row(limit), result.row(ENGINE)
    chains = [row.mean_ms for row in map(result.row, SERVED) if row is not None]
    if plain is None or least is None or not chains or plain.mean_ms - least.mean_ms < LEAST_SAVED * plain.mean_ms:
        return None
    if (engine is not None and engine.mean_ms > plain.mean_ms) or any(row.concurrency == 1 for row in too_fast(result)):
        return None
    saved = (plain.mean_ms - min(chains)) / (plain.mean_ms - least.mean_ms)
    return min(saved, 1.0) if 0 < saved <= MOST_SAVED else None


def too_fast(result: Result) -> list[Row]:
    """The rows of what runs the whole backbone, and yet seems to be clearly faster than the backbone is by itself.

    None on a GPU, where chains run as CUDA graphs, which the plain model does not, and may well be faster for it.
    """
    if result.conditions["device"] != "cpu":
        return []
    rows = [row for row in result.rows if row.name in WHOLE]
    return [row for row in rows if row.speedup > (NOISE if row.concurrency == 1 else NOISE_LOADED)]


def noise(result: Result) -> str | None:
    """What rows tell that can't be: how little the measurement is worth, in a sentence; None where there are none."""
    rows = too_fast(result)
    if not rows:
        return None
    seemed = ", ".join(f"{row.name} {row.speedup:.2f} times, {load_name(row.concurrency, row.rate)}" for row in rows)
    return (
        f"What runs the whole network, and more, seemed faster than the plain model ({seemed}): the machine was not "
        "idle, or --requests or --turns too low, and the speed-ups are worth little."
    )


def load_name(concurrency: int | None, rate: float | None) -> str:
    """A load in words."""
    return f"{concurrency} in flight" if rate is None else f"{rate:.4g} a second, Poisson"


def loads_table(result: Result, load: tuple[int | None, float | None]) -> Table:
    """How fast all were under one load, for the terminal."""
    columns = ("mean ms", "p50", "p95", "p99", "per s", "speed-up", "its turns", "CPU ms")
    found = _table(load_name(*load), columns)
    for row in result.under(load):
        times = [_short(value) for value in (row.mean_ms, row.p50_ms, row.p95_ms, row.p99_ms)]
        used = MISSING if row.cpu_ms is None else _short(row.cpu_ms)
        turns = f"{row.low:.2f}-{row.high:.2f}"
        found.add_row(row.name, *times, f"{row.throughput:.0f}", f"{row.speedup:.2f}", turns, used)
    return found


def answers_table(result: Result) -> Table:
    """What all answered, from which exit, and how much memory they took, under the first load, for the terminal."""
    found = _table(f"answers, {load_name(*result.loads()[0])}", ("agreement", "MiB"))
    found.add_column("requests by exit", overflow="fold")
    for row in result.first:
        exits = " ".join(f"{exit_}:{share:.0%}" for exit_, share in row.exits.items() if share >= 0.005)
        memory = MISSING if row.rss_mb is None else f"{row.rss_mb:.0f}"
        found.add_row(row.name, MISSING if row.agreement is None else f"{row.agreement:.2%}", memory, exits)
    return found


def _short(milliseconds: float) -> str:
    """In five characters, so that the table fits into 80."""
    return f"{milliseconds:.{0 if milliseconds >= 999.5 else 1 if milliseconds >= 99.95 else 2}f}"


def _table(title: str, columns: Sequence[str]) -> Table:
    found = Table(
        title=title, box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0), show_edge=False, pad_edge=False
    )
    found.add_column("", no_wrap=True)
    for column in columns:
        found.add_column(column, justify="right", no_wrap=True)
    return found
