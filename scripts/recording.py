"""What recording costs: scripts/recording.py [REPOSITORY], by default the clone's own chain of digits.

Starts a server for each way of recording, on copies of one repository, and asks them the same requests over gRPC, in
turns longer than it takes to write what waits. Says the latencies, how much longer the median is than with the first
way in the same turns, what the servers' processes took of processor time and memory, what lies in the store, and what
was dropped.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table
from soak_releases import CLONE, requests

from gati.options import existing_folder, json_option, write_json
from gati.repository.chain import find_chains
from gati.repository.workspace import workspace
from gati.settings import RECORD, RECORD_SHARE
from gati.triton.ports import HOST, Ports
from gati.triton.server import Server
from gati_client import Client
from gati_client.load import summary
from gati_export.bench.processes import cpu_seconds, resident_mib
from gati_export.report.scrape import read_metrics

WAYS: dict[str, dict[str, str]] = {
    "nothing": {RECORD: "nothing"},
    "again": {RECORD: "nothing"},  # what differs from the first is noise
    "inputs": {},
    "a tenth": {RECORD_SHARE: "0.1"},
    "features": {RECORD: "features"},
}
WARM_UP = 50
PAUSE_SECONDS = 3.0
"""After a turn: what waits to be written is not written in the next one's time."""


@dataclass(frozen=True)
class Cost:
    """What a way of recording came to.

    Attributes:
        way: Its name.
        mean_ms: Of a request, like the next two.
        p50_ms: Its median.
        p99_ms: Its 99th percentile.
        p50_more: How much longer the median is than where nothing is recorded, as a share; the median over the turns.
        spread: Half of what the middle half of the turns differ by, likewise.
        cpu_ms: Processor time of the server's processes for a request.
        resident_mib: Their memory at the end.
        stored_mib: What lies in the store.
        dropped: Samples that were lost.
    """

    way: str
    mean_ms: float
    p50_ms: float
    p99_ms: float
    p50_more: float
    spread: float
    cpu_ms: float
    resident_mib: float
    stored_mib: float
    dropped: int


def measure(repository: Path, model: str, ways: Sequence[str], turns: int, block: int, exact: bool) -> list[Cost]:
    """Asks a server for each way, in turns that begin with another one each time."""
    images, seconds = requests(), {way: np.empty((turns, block)) for way in ways}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = {way: stack.enter_context(started(repository, folder / str(i), way)) for i, way in enumerate(ways)}
        clients = {
            way: stack.enter_context(Client(f"{HOST}:{server.ports.grpc}", model)) for way, server in servers.items()
        }
        for client in clients.values():
            ask(client, images[:WARM_UP], exact)
        time.sleep(PAUSE_SECONDS)  # the first shard brings Arrow
        before = {way: cpu_seconds(server.process.pid) for way, server in servers.items()}
        for turn in range(turns):
            part = images[(np.arange(block) + turn * block) % len(images)]
            for way in np.roll(ways, turn):
                seconds[way][turn] = ask(clients[way], part, exact)
                time.sleep(PAUSE_SECONDS)
        return [cost(way, model, servers[way], seconds, before, folder) for way in ways]


def started(repository: Path, folder: Path, way: str) -> Server:
    """A server on a copy."""
    shutil.copytree(repository, folder / "models")
    return Server(folder / "models", Ports(0, 0, 0), WAYS[way])


def ask(client: Client, images: np.ndarray, exact: bool) -> list[float]:
    """Seconds of each request."""
    taken = []
    for image in images:
        start = time.perf_counter()
        client.infer(image[None], exact=exact)
        taken.append(time.perf_counter() - start)
    return taken


def cost(
    way: str,
    model: str,
    server: Server,
    seconds: Mapping[str, np.ndarray],
    before: Mapping[str, float],
    folder: Path,
) -> Cost:
    """What a way came to, beside the first."""
    base = np.median(next(iter(seconds.values())), axis=1)
    more = np.median(seconds[way], axis=1) / base - 1
    low, middle, high = np.percentile(more, [25, 50, 75])
    pid = server.process.pid
    store = workspace(server.repository) / "samples"
    stored = sum(path.stat().st_size for path in store.rglob("*.parquet"))
    used = (cpu_seconds(pid) - before[way]) / seconds[way].size
    return Cost(
        way=way,
        **summary(seconds[way].ravel()),
        p50_more=float(middle),
        spread=float(high - low) / 2,
        cpu_ms=used * 1e3,
        resident_mib=resident_mib(pid),
        stored_mib=stored / (1 << 20),
        dropped=read_metrics(f"{HOST}:{server.ports.metrics}", model).dropped,
    )


@click.command()
@click.argument("repository", type=existing_folder, default=CLONE)
@click.option("--ways", default=",".join(WAYS), show_default=True, help="Which to compare; the first is the base.")
@click.option("--turns", type=click.IntRange(1), default=10, show_default=True)
@click.option(
    "--block", type=click.IntRange(1), default=3000, show_default=True, help="Requests in a turn: some seconds."
)
@click.option("--exact", is_flag=True, help="Ask for the backbone's answers: no head answers.")
@json_option
def main(repository: Path, ways: str, turns: int, block: int, exact: bool, json_path: Path | None) -> None:
    """Measure what recording adds to a request."""
    found = measure(repository, find_chains(repository)[0], ways.split(","), turns, block, exact)
    table = Table(title=f"{turns} turns of {block} requests, one client, batch 1{', exact' if exact else ''}; ms, MiB")
    for head in ("recorded", "p50", "p99", "p50 more", "CPU", "memory", "stored", "lost"):
        table.add_column(head, justify="left" if head == "recorded" else "right")
    for one in found:
        row = f"{one.p50_ms:.3f}", f"{one.p99_ms:.2f}", f"{one.p50_more:+.1%} ± {one.spread:.1%}"
        table.add_row(
            one.way, *row, f"{one.cpu_ms:.2f}", f"{one.resident_mib:.0f}", f"{one.stored_mib:.1f}", f"{one.dropped}"
        )
    Console().print(table)
    write_json(json_path, [asdict(one) for one in found])


if __name__ == "__main__":
    main()
